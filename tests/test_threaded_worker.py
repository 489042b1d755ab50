"""A worker of several threads: what its copies are, what it leaves behind, what it refuses."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

import downpour as dp
from downpour.remote.connect import connect
from downpour.threaded_worker import ThreadedWorker
from tests.half_async_runs import assert_as_one, client_of, groups_of, step_all, trained
from tests.networks import Network, a_batch, click, planned, random_batches
from tests.servers import servers

GOOD = random_batches(0, 6)


def network() -> Network:
    return Network(dtype=torch.float64, init=dp.Normal(0.5))


def test_the_copies_are_in_the_mode_of_the_model() -> None:
    seen: dict[int, bool] = {}

    def noted(model: torch.nn.Module, batch: dp.Batch) -> torch.Tensor:
        seen[batch.size] = model.out.training
        return click(model, batch)

    model = network()
    plan = planned(model, {"noted": noted})
    with client_of(plan, 3) as client, ThreadedWorker(plan, model, client) as worker:
        for mode in (False, True):
            model.train(mode)
            worker.step_many("noted", [a_batch([1] * size, [[1]] * size) for size in (2, 3, 4)])
            assert seen == {2: mode, 3: mode, 4: mode}


class WithNorm(Network):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(8)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        return self.out(self.norm(self.embedding(batch).flatten(1))).squeeze(1)


def test_the_models_buffers_are_those_of_the_first_thread() -> None:
    model = WithNorm()
    plan = planned(model)
    with client_of(plan, 2) as client, ThreadedWorker(plan, model, client) as worker:
        before = int(model.norm.num_batches_tracked)
        step_all(plan, worker, [*groups_of(GOOD, 2), [None, GOOD[0]]])
        assert model.norm.num_batches_tracked - before == 3


class WithGate(Network):
    def __init__(self) -> None:
        super().__init__(dtype=torch.float64)
        self.gate = torch.nn.Linear(8, 8, dtype=torch.float64)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        rows = self.embedding(batch).flatten(1)
        return self.out(self.gate(rows) * rows).squeeze(1)


def test_detached_outputs_are_so_in_all_threads_of_a_compiled_model() -> None:
    model = WithGate()
    plan = dp.DownpourSGD().minimize(click, model=model, example=a_batch(), no_grad_set=["gate"])
    compiled = torch.compile(model, backend="eager")
    groups = groups_of(GOOD, 3)
    assert_as_one(trained(plan, compiled, groups, threads=3), plan, model, groups)


def test_startup_is_called_once() -> None:
    calls: list[Any] = []

    def startup(model: torch.nn.Module) -> None:
        calls.append(model)
        torch.nn.init.constant_(model.out.bias, 5.0)

    model = network()
    plan = dp.DownpourSGD().minimize(click, model=model, example=a_batch(), startup=startup)
    groups = groups_of(GOOD, 3)
    made = trained(plan, model, groups, threads=3)
    assert calls == [made.model]
    assert_as_one(made, plan, model, groups)


def test_outside_a_step_the_model_reads_the_tables_rows() -> None:
    model = network()
    plan = planned(model)
    with client_of(plan, 2) as client, ThreadedWorker(plan, model, client) as worker:
        step_all(plan, worker, groups_of(GOOD, 2))
        worker.pull_dense()
        rows = client.pull("embedding", [5, 7], feature="user").ravel()
        seen = model.embedding(a_batch([5, 7], [[], []]))[:, 0].flatten()
        assert np.array_equal(seen, rows)
        assert np.array_equal(model.out.bias.detach(), client.pull_dense("dense.click")[:1])


def test_idling_and_closing_push_what_windows_hold() -> None:
    model = network()
    plan = planned(model, window=2)
    with client_of(plan, 2) as client, ThreadedWorker(plan, model, client) as worker:
        step_all(plan, worker, [GOOD[:2]])
        worker.idle("click")
        assert client.steps["dense.click"] == 1
        step_all(plan, worker, [GOOD[2:4]])
        worker.close()
        worker.close()
        assert client.steps == {"embedding": 2, "dense.click": 2}


def test_torchs_threads_are_divided_until_it_is_closed() -> None:
    before = torch.get_num_threads()
    model = network()
    plan = planned(model)
    try:
        torch.set_num_threads(4)
        with client_of(plan, 2) as client, ThreadedWorker(plan, model, client):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_more_batches_than_threads_are_refused() -> None:
    model = network()
    plan = planned(model)
    refused = pytest.raises(dp.SettingError, match="3 batches are too many for 2 threads")
    with client_of(plan, 2) as client, ThreadedWorker(plan, model, client) as worker, refused:
        worker.step_many("click", GOOD[:3])


def test_other_clients_are_refused() -> None:
    model = network()
    plan = planned(model)
    refused = pytest.raises(dp.SettingError, match=r"HalfAsync\(...\)\), got RemoteClient")
    with servers() as addresses, connect(plan, addresses) as client, refused:
        ThreadedWorker(plan, model, client)  # type: ignore[arg-type]


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = network()
    plan = planned(model)
    object.__setattr__(model, "lock", threading.Lock())
    refused = pytest.raises(dp.SettingError, match=r"cannot copy this one: .* take threads=1")
    with client_of(plan, 2) as client, refused:
        ThreadedWorker(plan, model, client)
    with client_of(plan, 1) as client, ThreadedWorker(plan, model, client) as worker:
        assert len(worker.step_many("click", GOOD[:1])) == 1
