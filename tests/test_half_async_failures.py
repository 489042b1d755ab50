"""Where one thread of a worker fails: nothing is applied, nobody waits, and training can go on."""

from __future__ import annotations

import copy
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch

import downpour as dp
from downpour.errors import ServerLostError, WorkerLostError
from downpour.threaded_worker import ThreadedWorker
from tests.half_async_runs import client_of, groups_of, step_all, trained
from tests.networks import Network, a_batch, click, planned, random_batches
from tests.servers import held

GOOD = random_batches(0, 6)
BAD = a_batch([1] * 9, [[2]] * 9)  # of 9 samples, as no other


def network() -> Network:
    return Network(dtype=torch.float64, init=dp.Normal(0.5))


class OddBatchError(Exception):
    pass


def failing(model: torch.nn.Module, batch: dp.Batch) -> torch.Tensor:
    if batch.size == BAD.size:
        raise OddBatchError
    return click(model, batch)


def infinite(model: torch.nn.Module, batch: dp.Batch) -> torch.Tensor:
    value = click(model, batch)
    return value / 0 if batch.size == BAD.size else value


def ended(model: torch.nn.Module, batch: dp.Batch) -> torch.Tensor:
    if batch.size == BAD.size:
        raise KeyboardInterrupt
    return click(model, batch)


LACKING = dp.Batch(features={"user": [1]}, labels=[1])
FAILURES = {
    "loss": (failing, BAD, OddBatchError),
    "infinite": (infinite, BAD, dp.NonFiniteError),
    "ended": (ended, BAD, KeyboardInterrupt),
    "feature": (click, LACKING, dp.DataError),
}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("name", FAILURES)
def test_where_one_thread_fails_nothing_is_applied(name: str, place: int) -> None:
    loss, bad, error = FAILURES[name]
    model = network()
    plan = planned(model, loss, sparse=dp.Adagrad(0.5))
    with client_of(plan, 3) as client, ThreadedWorker(plan, model, client) as worker:
        step_all(plan, worker, [GOOD[:3]])
        before = held(client)
        batches = [*GOOD[3:5]]
        batches.insert(place, bad)
        with pytest.raises(error):
            worker.step_many(loss.__name__, batches)
        assert moved(held(client)) == moved(before)


def moved(tables: dict[str, Any]) -> Any:
    """All but rows that a step has made and no gradient has reached."""
    keys, weights, state, _ = tables["rows of embedding"]
    rows = {key: it for key, *it in zip(keys, weights, state, strict=True) if np.any(it[1])}
    assert rows
    return {**tables, "rows of embedding": rows}


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("place", [0, 1])
def test_training_goes_on_as_if_the_step_had_not_been(place: int, window: int) -> None:
    model = network()
    plan = planned(model, failing, sparse=dp.Adagrad(0.5), dense=dp.Adam(0.1), window=window)
    groups = groups_of(GOOD, 2)
    own, theirs = copy.deepcopy(model), trained(plan, model, groups, threads=2)
    bad = [GOOD[0]]
    bad.insert(place, BAD)
    with client_of(plan, 2) as client:
        with ThreadedWorker(plan, own, client) as worker:
            for group in groups:
                with pytest.raises(OddBatchError):
                    worker.step_many("failing", bad)
                step_all(plan, worker, [group])
        ours = held(client)
    assert moved(ours) == moved(theirs.tables)


def test_errors_of_all_threads_are_one() -> None:
    model = network()
    plan = planned(model, failing)
    with client_of(plan, 3) as client, ThreadedWorker(plan, model, client) as worker:
        with pytest.raises(OddBatchError):
            worker.step_many("failing", [BAD, BAD, BAD])
        step_all(plan, worker, [GOOD[:3]])
        assert client.steps == {"embedding": 1, "dense.failing": 1}


def test_an_error_of_the_push_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*pushes: object) -> None:
        raise ServerLostError("gone")

    model = network()
    plan = planned(model)
    with client_of(plan, 3) as client, ThreadedWorker(plan, model, client) as worker:
        with monkeypatch.context() as patch:
            patch.setattr(client, "push_all", lost)
            with pytest.raises(ServerLostError):
                worker.step_many("click", GOOD[:3])
        step_all(plan, worker, [GOOD[3:]])
        assert client.steps["embedding"] == 1


def test_a_sum_that_is_infinite_is_not_sent() -> None:
    model = Network(init=dp.Constant(0.0))
    torch.nn.init.constant_(model.out.weight, 2e38)
    plan = planned(model, large, sparse=dp.SGD(1e-38), scale_sparse_gradient_with_batch_size=True)
    with client_of(plan, 2) as client, ThreadedWorker(plan, model, client) as worker:
        batch = a_batch([1, 2], [[], []], [0, 0])
        with pytest.raises(dp.NonFiniteError, match="table 'embedding': gradients sum to infinity"):
            worker.step_many("large", [batch, batch])
        assert client.steps == dict.fromkeys(client.steps, 0)
        worker.step_many("large", [batch])
        assert client.steps == dict.fromkeys(client.steps, 1)


def large(model: torch.nn.Module, batch: dp.Batch) -> torch.Tensor:
    return model(batch).mean()


def test_a_run_that_stops_is_heard_of_before_the_push() -> None:
    model = network()
    plan = planned(model)
    with client_of(plan, 2) as client:
        worker = ThreadedWorker(plan, model, client)
        assert client.membership is not None
        client.membership.beats.failure = WorkerLostError("worker 3 is gone")
        with pytest.raises(WorkerLostError, match="worker 3 is gone"):
            worker.step_many("click", GOOD[:2])
        assert client.steps["embedding"] == 0
        worker.close()  # no window has anything left


def test_nobody_waits_for_a_thread_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    plan = planned(model)
    with client_of(plan, 3) as client, ThreadedWorker(plan, model, client) as worker:
        submit, waiting = worker._pool.submit, list[Future[Any]]()

        def once(*call: Any) -> Future[Any]:
            if waiting:
                raise RuntimeError("can't start new thread")
            waiting.append(submit(*call))
            return waiting[0]

        monkeypatch.setattr(worker._pool, "submit", once)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            worker.step_many("click", GOOD[:3])
        assert waiting[0].result(timeout=300) is None
        assert client.steps["embedding"] == 0
