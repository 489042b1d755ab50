"""Runs, batches and saved models on another device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import downpour as dp
from downpour import run as run_module
from downpour.consistency import Async
from downpour.errors import SettingError
from downpour.remote.connect import connect
from downpour.train import Trainer
from tests.devices import any_device
from tests.networks import everything, weights_of
from tests.servers import Jittery, servers, train_epoch
from tests.small_runs import Net, batches, frame, small_run
from tests.test_async import BATCHES, NUM_STEPS, ones

if TYPE_CHECKING:
    from pathlib import Path

device = any_device  # a fixture


class Kept(Net):
    """A buffer, and a tensor that is neither buffer nor parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(8)
        self.plain = torch.rand(8)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        self.plain = self.plain.to(self.top.weight.device)
        seen = self.norm(self.embedding(batch).flatten(1)) * self.plain
        logits: torch.Tensor = self.top(seen).squeeze(1)
        return logits


@pytest.fixture
def run_device(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that runs take: the one that is pretended is none of theirs."""
    monkeypatch.setattr(run_module, "checked_device", lambda _, value: torch.device(value))
    return device


def train(folder: Path, **settings: Any) -> Trainer:
    trainer = Trainer(small_run(Kept, eval_data=frame(seed=3), **settings), folder, quiet=True)
    trainer.train()
    return trainer


def test_a_run_there_learns_as_one_on_the_cpu(run_device: torch.device, tmp_path: Path) -> None:
    there = train(tmp_path / "there", device=run_device)
    here = train(tmp_path / "here")
    assert there.run.model.top.weight.device == run_device
    for name in ("auc", "logloss"):
        theirs = here.metrics()["final"][name]
        assert there.metrics()["final"][name] == pytest.approx(theirs, rel=1e-3)
    keys = np.arange(30)
    ours, others = (it.client.pull("embedding", keys, feature="item") for it in (there, here))
    np.testing.assert_allclose(ours, others, rtol=1e-3, atol=1e-5)


def test_a_run_that_was_saved_there_loads_on_the_cpu(
    run_device: torch.device, tmp_path: Path
) -> None:
    trainer = train(tmp_path, device=run_device)
    saved = dp.load(tmp_path)
    state, theirs = saved.model.state_dict(), trainer.run.model.state_dict()
    assert all(tensor.device.type == "cpu" for tensor in [*state.values(), saved.model.plain])
    assert all(np.array_equal(state[name], theirs[name].cpu().numpy()) for name in theirs)
    results = saved.evaluate(frame(seed=3).batches()).results
    final = trainer.metrics()["final"]
    assert results == pytest.approx({name: final[name] for name in results}, rel=1e-4)


def test_a_saved_run_loads_there(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path)
    here = dp.load(tmp_path)
    monkeypatch.setattr("downpour.saved.checked_device", lambda _, value: torch.device(value))
    there = dp.load(tmp_path, device=device)
    assert there.model.top.weight.device == device
    for batch in batches(2, seed=5):
        np.testing.assert_allclose(there.predict(batch), here.predict(batch), rtol=1e-5)


def test_a_run_on_the_cpu_is_as_it_was() -> None:
    plain, said = (Trainer(small_run(**it), quiet=True) for it in ({}, {"device": "cpu:0"}))
    plain.train()
    said.train()
    assert everything(plain.client) == everything(said.client)
    ours, theirs = weights_of(plain.run.model), weights_of(said.run.model)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_run_keeps_its_device() -> None:
    assert small_run().device == torch.device("cpu")
    run = small_run(device=torch.device("cpu"))
    assert run.settings()["device"] == "cpu"


@pytest.mark.parametrize("given", ["gpu", "mps", 1, None])
def test_a_run_refuses_what_is_no_device(given: Any) -> None:
    with pytest.raises(SettingError, match=r"Run.device must be 'cpu', 'cuda', 'cuda:N' or such"):
        small_run(device=given)


def a_batch() -> dp.Batch:
    dense = {"x": np.arange(8.0).reshape(4, 2)}
    return dp.Batch(
        features={"id": [5, 6, 7, 8]}, dense=dense, labels=[0, 1, 0, 1], weights=[1] * 4
    )


def test_a_batch_goes_there_but_for_its_features(device: torch.device) -> None:
    batch = a_batch()
    there = batch.to(device)
    assert batch.device == torch.device("cpu")
    assert there.device == there.label.device == there.dense["x"].device == device
    assert there.weights is not None
    assert there.weights.device == device
    assert there.features["id"] is batch.features["id"]
    assert there.size == 4
    assert np.array_equal(there.dense["x"].cpu().numpy(), batch.dense["x"].numpy())


def test_a_batch_that_is_there_is_itself(device: torch.device) -> None:
    batch = a_batch()
    assert batch.to("cpu") is batch
    assert (there := batch.to(device)).to(device) is there
    only_ids = dp.Batch(features={"id": [5]})
    assert only_ids.to(device) is only_ids


def test_a_batch_there_is_cut_and_joined_as_here(device: torch.device) -> None:
    batch = a_batch()
    there = batch.to(device)
    for make in (
        lambda it: it.select([3, 0]),
        lambda it: it.select(np.array([True, False, True, True])),
        lambda it: it.slice(1, 3),
        lambda it: dp.Batch.concat([it, it]),
        lambda it: it.reweighted([1, 2, 3, 4]),
    ):
        ours, theirs = make(there), make(batch)
        assert ours.device == ours.weights.device == device
        for own, other in ((ours.dense["x"], theirs.dense["x"]), (ours.weights, theirs.weights)):
            assert np.array_equal(own.cpu().numpy(), other.numpy())
        assert ours.features["id"] == theirs.features["id"]


def test_columns_may_come_from_there(device: torch.device) -> None:
    there = a_batch().to(device)
    batch = dp.Batch(dense=there.dense, labels=there.labels, weights=there.weights)
    assert batch.device == torch.device("cpu")
    assert np.array_equal(batch.dense["x"].numpy(), a_batch().dense["x"].numpy())


def test_rows_that_have_come_are_read_ahead() -> None:
    _, plan = ones()
    with servers() as addresses, connect(plan, addresses, consistency=Async()) as ps:
        keys: Any = ps.locate("rows", np.arange(3, dtype=np.uint64), create=True)
        assert ps.read_ahead(keys, 1) is None  # nobody has asked for them
        for step, has_come in ((4, False), (3, True)):  # no staler than 2 steps
            ps.ask_ahead(keys, 1)
            [ticket.result() for ticket in keys.tickets]
            assert (ps.read_ahead(keys, step) is not None) == has_come
        assert (ps.staleness.count, ps.staleness.total) == (1, 2)
        ps.ask_ahead(keys, 1)
        assert np.array_equal(ps.read(keys), np.zeros((3, 1)))


def test_rows_go_there_while_the_step_before_computes(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plan = ones()
    ahead = list[Any]()
    with (
        servers() as addresses,
        connect(plan, addresses, consistency=Async(max_staleness=NUM_STEPS)) as ps,
        dp.Worker(plan, model.to(device), ps) as worker,
    ):
        ask, read = ps.ask_ahead, ps.read_ahead

        def noted_ask(keys: Any, step: int) -> None:
            ask(keys, step)
            for ticket in tuple(keys.tickets):
                ticket.result()  # as where a network is fast

        def noted_read(keys: Any, step: int) -> Any:
            ahead.append(read(keys, step))
            return ahead[-1]

        monkeypatch.setattr(ps, "ask_ahead", noted_ask)
        monkeypatch.setattr(ps, "read_ahead", noted_read)
        train_epoch(worker, BATCHES, prefetch=True)
    assert [rows.shape for rows in ahead] == [(1, 1)] * (NUM_STEPS - 1)


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_rows_that_went_ahead_are_no_staler_than_they_may_be(
    device: torch.device, staleness: int
) -> None:
    (model, plan), setting = ones(), Async(max_staleness=staleness, max_in_flight=4)
    with (
        servers(1, Jittery) as addresses,
        connect(plan, addresses, consistency=setting) as ps,
        dp.Worker(plan, model.to(device), ps) as worker,
    ):
        train_epoch(worker, BATCHES, prefetch=True)
        assert ps.staleness.most <= staleness
    lacking = np.arange(NUM_STEPS) - np.array(model.seen)[:, 0]
    assert lacking.min() >= 0
    assert lacking.max() <= ps.staleness.most
