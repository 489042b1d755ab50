"""Threads of a worker equal one process on their joint batches; workers push at any time."""

from __future__ import annotations

import copy
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import downpour as dp
from downpour.consistency import HalfAsync
from downpour.remote.connect import connect
from downpour.remote.half_async import HalfAsyncClient
from downpour.threaded_worker import ThreadedWorker
from tests import test_ctr_training as ctr
from tests import test_data_norm as data_norm
from tests.half_async_runs import (
    assert_as_one,
    client_of,
    groups_of,
    step_all,
    trained,
)
from tests.networks import Network, a_batch, everything, planned, random_batches
from tests.servers import at_once, held, servers, train_embedded
from tests.test_windows import TwoHeads, first, second

DATA = random_batches(0, 11)  # of 2 to 7 samples, with bags of 0 to 3 ids
RULES = {
    "sgd": {"sparse": dp.SGD(0.5), "dense": dp.SGD(0.5)},
    "adagrad": {"sparse": dp.Adagrad(0.5), "dense": dp.Adagrad(0.2)},
    "adam": {"sparse": dp.Adam(0.1), "dense": dp.Adam(0.05)},
    "decay": {
        "sparse": dp.SGD(0.5, weight_decay=0.2),
        "dense": dp.Adam(0.1, schedule=dp.StepDecay(every=2, factor=0.5)),
    },
}


def network() -> Network:
    return Network(dtype=torch.float64, init=dp.Normal(0.5))


@pytest.mark.parametrize("num_servers", [1, 2])
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("rules", RULES)
def test_threads_equal_one_worker_on_their_joint_batches(
    rules: str, threads: int, num_servers: int
) -> None:
    model = network()
    plan, groups = planned(model, **RULES[rules]), groups_of(DATA, threads)
    made = trained(plan, model, groups, threads=threads, num_servers=num_servers)
    assert_as_one(made, plan, model, groups)


def test_in_float32_too() -> None:
    model = Network(init=dp.Normal(0.5))
    plan, groups = planned(model, **RULES["adagrad"]), groups_of(DATA, 3)
    assert_as_one(trained(plan, model, groups, threads=3), plan, model, groups, rtol=2e-4)


@pytest.mark.parametrize("window", [2, 3, 9])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_windows_count_the_samples_of_all_threads(threads: int, window: int) -> None:
    model = TwoHeads()
    rules = {"sparse": dp.SGD(0.05), "dense": dp.Adam(0.05)}
    plan, groups = planned(model, [first, second], window=window, **rules), groups_of(DATA, threads)
    made = trained(plan, model, groups, threads=threads)
    assert_as_one(made, plan, model, groups)
    assert made.tables["dense.first"] > 0


@pytest.mark.parametrize("window", [1, 2])
def test_any_thread_may_lack_a_batch_and_have_one_again(window: int) -> None:
    model = network()
    plan = planned(model, window=window, **RULES["adam"])
    a, b, c, d, e, f, g = DATA[:7]
    groups = [[None, a], [b, c], [d, None], [e, f], [g]]  # None also where a window begins
    assert_as_one(trained(plan, model, groups, threads=2), plan, model, groups)


@pytest.mark.parametrize("scales", [True, False])
def test_counts_of_ctr_rows_are_summed(scales: bool) -> None:
    model = ctr.Net()
    settings = {"scale_sparse_gradient_with_batch_size": scales}
    plan = ctr.plan_of(model, [ctr.click, ctr.buy], **settings)
    groups = groups_of(ctr.batches(num=11), 3)
    made = trained(plan, model, groups, threads=3, num_servers=2)
    assert_as_one(made, plan, model, groups)
    assert np.sum(made.tables["counts of embedding"]) > 0


@pytest.mark.parametrize("window", [1, 2])
def test_statistics_of_data_norm_are_summed(window: int) -> None:
    model = data_norm.Normalised()
    plan = planned(model, data_norm.fit, data_norm.batches()[0], window=window)
    groups = groups_of(data_norm.batches(7), 2)
    assert_as_one(trained(plan, model, groups, threads=2), plan, model, groups)


def test_who_is_faster_changes_no_bit() -> None:
    model = Network()
    plan, groups = planned(model, window=2, **RULES["adam"]), groups_of(DATA, 3)
    one, other = (trained(plan, model, groups, threads=3) for _ in range(2))
    assert one.losses == other.losses
    assert one.tables == other.tables


@pytest.mark.parametrize("window", [1, 2])
def test_a_plain_worker_equals_one_in_this_process_bit_for_bit(window: int) -> None:
    model = Network()
    plan = planned(model, window=window, **RULES["adam"])
    theirs = train_embedded(plan, model, DATA)
    with client_of(plan, 1) as client, dp.Worker(plan, copy.deepcopy(model), client) as worker:
        assert [worker.step("click", batch).loss for batch in DATA] == theirs.losses[0]
        worker.flush()
        assert held(client) == theirs.tables


def test_dense_values_travel_once_for_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    plan = planned(model, window=2)
    with client_of(plan, 3) as client, ThreadedWorker(plan, model, client) as worker:
        pull = Mock(wraps=client.pull_dense)
        monkeypatch.setattr(client, "pull_dense", pull)
        step_all(plan, worker, groups_of(DATA[:9], 3))
        assert pull.call_count == 2  # in the first and in the third of three steps


# Several workers.


def click_rate(model: Any, batch: dp.Batch) -> torch.Tensor:
    """Each id's gradient is how often it stands there, by sample."""
    rows = model.embedding(batch).sum() / batch.size
    return rows + model.out.bias.sum()


def test_all_pushes_of_all_workers_count() -> None:
    model = Network(dtype=torch.float64, init=dp.Constant(0.0))
    torch.nn.init.zeros_(model.out.bias)
    plan = planned(model, click_rate, sparse=dp.SGD(1.0), dense=dp.SGD(1.0))
    batches = [a_batch([1, 2], [[1], []]), a_batch([1, 3], [[1], [1]])]

    def work(rank: int) -> None:
        settings = {"consistency": HalfAsync(threads=2), "rank": rank, "num_workers": 2}
        with connect(plan, addresses, **settings) as client:
            assert isinstance(client, HalfAsyncClient)
            with ThreadedWorker(plan, copy.deepcopy(model), client) as worker:
                step_all(plan, worker, [batches] * (5 + rank))

    with servers(2) as addresses:
        at_once([lambda rank=rank: work(rank) for rank in range(2)])  # type: ignore[misc]
        with connect(plan, addresses) as ps:
            assert ps.steps == dict.fromkeys(ps.steps, 11)
            rows = ps.pull("embedding", [1, 2, 3], feature="user")
            assert rows[:, 0].tolist() == [-11 * 2 / 4, -11 / 4, -11 / 4]
            assert (ps.pull("embedding", [1], feature="item") == -11 * 3 / 4).all()
            assert everything(ps)["weights of dense.click_rate"][0][0] == -11.0


def test_a_read_sees_all_pushes_of_its_own_worker() -> None:
    model = network()
    plan = planned(model)
    with client_of(plan, 2) as client, ThreadedWorker(plan, model, client) as worker:
        step_all(plan, worker, groups_of(DATA, 2))
        report = client.report()
        assert report["staleness_count"] == len(DATA)
        assert report["staleness_max"] == report["in_flight"] == 0
