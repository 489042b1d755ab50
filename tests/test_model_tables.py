"""A trained model goes on with its parameters and its rows, or it is refused."""

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import downpour as dp
from downpour.engine.chief import Chief
from downpour.engine.cluster import Cluster
from downpour.train import Trainer
from tests.networks import Network, a_batch, everything, planned
from tests.networks import click as plain_click
from tests.servers import servers
from tests.small_runs import Net, Stream, batches, click, frame, small_run

OTHER_RULE = dp.DownpourSGD(sparse=dp.Adagrad(0.2), dense=dp.Adam(0.01))


def trained(folder: Path | None = None, **settings: Any) -> Trainer:
    trainer = Trainer(small_run(**settings), folder, quiet=True)
    trainer.train()
    return trainer


def unpickled(model: torch.nn.Module) -> torch.nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: torch.nn.Module = torch.load(file, weights_only=False)
    return loaded


def steps(worker: dp.Worker, seed: int = 3) -> list[float]:
    return [worker.step("click", batch).loss for batch in batches(4, seed=seed)]


def test_a_second_run_of_a_model_goes_on_as_more_epochs_do() -> None:
    first = trained()
    second = Trainer(small_run(model=first.run.model), quiet=True)
    metrics = second.train()
    whole = trained(data=Twice())
    assert metrics["settings"]["goes_on_with"] == "50 rows of earlier training"
    assert everything(second.client) == everything(whole.client)
    losses = [loss for _, loss in whole.metrics()["curves"]["loss"]]
    assert [loss for _, loss in metrics["curves"]["loss"]] == losses[8:]


class Twice:
    """The first epoch of a run, twice over."""

    def batches(self, epoch: int = 0) -> Any:
        yield from frame().batches(0)
        yield from frame().batches(0)

    def num_batches(self) -> int:
        return 16


def test_a_loaded_run_goes_on_with_its_rows(tmp_path: Path) -> None:
    first = trained(tmp_path / "first")
    saved = dp.load(tmp_path / "first")
    loaded = Trainer(small_run(model=saved.model), tmp_path / "second", quiet=True)
    assert loaded.client is saved.client
    loaded.train()
    in_memory = Trainer(small_run(model=first.run.model), quiet=True)
    in_memory.train()
    assert everything(loaded.client) == everything(in_memory.client)
    assert loaded.client.steps["embedding"] == 16
    again = dp.load(tmp_path / "second")
    assert everything(again.client) == everything(loaded.client)


def test_a_loop_of_ones_own_on_a_loaded_run(tmp_path: Path) -> None:
    trained(tmp_path)
    saved = dp.load(tmp_path)
    optimizer = small_run().optimizer
    plan = optimizer.minimize(click, model=saved.model, example=batches(1)[0])
    with pytest.raises(dp.PlanError, match=r"rows of table 'embedding'.*dp\.Worker\(plan, model, "):
        dp.Worker(plan, saved.model, dp.embedded(plan))
    before = saved.predict(batches(1)[0])
    with dp.Worker(plan, saved.model, saved.client) as worker:
        assert np.array_equal(saved.predict(batches(1)[0]), before)
        steps(worker)
    assert saved.client.steps["embedding"] == 12


@pytest.mark.parametrize("copied", [copy.deepcopy, unpickled])
def test_a_copy_of_a_trained_model_is_refused_without_its_rows(copied: Any) -> None:
    first = trained()
    model = copied(first.run.model)
    with pytest.raises(dp.PlanError, match="rows that are not in this process"):
        Trainer(small_run(model=model), quiet=True)
    with pytest.raises(dp.PlanError, match="its rows begin anew"):
        dp.Worker(first.plan, model, dp.embedded(first.plan))
    with dp.Worker(first.plan, model, first.client) as worker:
        assert steps(worker) != []
    fresh = copied(Net())
    Trainer(small_run(model=fresh), quiet=True).train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": OTHER_RULE}, r"'embedding' of this client has accessor .*lr=0\.1.*lr=0\.2"),
        ({"seed": 5}, "'embedding' of this client has seed 0, and the plan 5"),
        ({"losses": {"buy": click}}, "the plan has table 'dense.buy', and .* are dense.click"),
        ({"startup": torch.nn.Module.state_dict}, "startup, which gives first values"),
    ],
)
def test_a_run_of_other_tables_is_refused_before_it_trains(
    settings: dict[str, Any], message: str
) -> None:
    first = trained()
    before = everything(first.client)
    with pytest.raises(dp.PlanError, match=message):
        Trainer(small_run(model=first.run.model, **settings), quiet=True)
    assert everything(first.client) == before


def test_a_plan_of_other_rules_is_refused_by_the_worker() -> None:
    first = trained()
    plan = OTHER_RULE.minimize(click, model=first.run.model, example=batches(1)[0])
    with pytest.raises(dp.PlanError, match="'embedding' of this client has accessor"):
        dp.Worker(plan, first.run.model, first.client)


class Two(Network):
    def __init__(self) -> None:
        super().__init__()
        self.other = dp.SparseEmbedding("item", 2)


def both(model: Any, batch: dp.Batch) -> torch.Tensor:
    scores: torch.Tensor = model(batch)
    return scores.square().mean() + model.other(batch).square().mean()


def test_a_plan_of_fewer_tables_than_the_client_has_is_fine_and_of_more_is_not() -> None:
    model = Two()
    large, small = planned(model, {"click": both}), planned(model, {"click": plain_click})
    ps = dp.embedded(large)
    with dp.Worker(large, model, ps) as worker:
        worker.step("click", a_batch())
    with dp.Worker(small, model, ps) as worker:
        worker.step("click", a_batch())
    with pytest.raises(dp.PlanError, match="the plan has table 'other', and the tables of this"):
        dp.Worker(large, Two(), dp.embedded(small))


def test_servers_and_federations_begin_with_empty_tables(tmp_path: Path) -> None:
    first = trained()
    chief: Any = (f"{__file__}:run", small_run(model=first.run.model), tmp_path / "run")
    with pytest.raises(dp.PlanError, match="a run with servers begins with empty tables"):
        Chief(*chief, cluster=Cluster(), quiet=True)
    assert not (tmp_path / "run").exists()


def test_empty_servers_refuse_a_trained_model_and_filled_ones_take_it() -> None:
    first = trained()
    with servers(2) as addresses, dp.connect(first.plan, addresses) as client:
        with pytest.raises(dp.PlanError, match="its rows begin anew"):
            dp.Worker(first.plan, first.run.model, client)
        for spec in first.plan.sparse:
            client.restore(spec.name, first.client.export(spec.name))
        worker = dp.Worker(first.plan, first.run.model, client)
        assert steps(worker) != []


def test_models_that_have_not_trained_may_be_planned_and_connected_again() -> None:
    model = Net()
    for _ in range(2):
        trainer = Trainer(small_run(model=model), quiet=True)
    with torch.no_grad():
        model(batches(1)[0])
    trainer.train()


def test_rows_that_were_set_or_cleared_are_the_users_own_doing() -> None:
    first = trained()
    ps = dp.embedded(first.plan)
    ps.set("embedding", [5], np.ones((1, 4), np.float32), feature="user")
    dp.Worker(first.plan, first.run.model, ps)
    second = trained()
    second.client.clear("embedding")
    dp.Worker(second.plan, second.run.model, dp.embedded(second.plan))


def test_a_worker_whose_model_reads_other_tables_by_now_is_refused() -> None:
    model = Net()
    one, two = (Trainer(small_run(model=model), quiet=True) for _ in range(2))
    with pytest.raises(dp.PlanError, match="is read by another worker now, from other tables"):
        one.train()
    two.train()


def test_two_workers_of_one_model_and_client_take_turns() -> None:
    def losses(*, change: bool) -> list[float]:
        run = small_run()
        model = run.model
        plan = run.optimizer.minimize(click, model=model, example=batches(1)[0])
        ps = dp.embedded(plan)
        workers = [dp.Worker(plan, model, ps) for _ in range(2)]
        return [
            workers[number % 2 if change else 0].step("click", batch).loss
            for number, batch in enumerate(batches(6))
        ]

    assert losses(change=True) == losses(change=False)


def test_a_trainer_trains_once() -> None:
    trainer = trained()
    before = everything(trainer.client)
    with pytest.raises(dp.SettingError, match="has trained already; make another one"):
        trainer.train()
    assert everything(trainer.client) == before
    assert trainer.metrics()["stopped"] == "finished"


def test_a_trainer_that_failed_does_not_train_again() -> None:
    trainer = Trainer(small_run(data=Stream(batches(4), OSError("gone"))), quiet=True)
    with pytest.raises(OSError, match="gone"):
        trainer.train()
    with pytest.raises(dp.SettingError, match="has trained already"):
        trainer.train()
    assert trainer.metrics()["stopped"] == "failed: OSError: gone"
