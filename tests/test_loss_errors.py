"""A model that was cast, and a BatchNorm of one sample: errors that name the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import downpour as dp
from downpour.train import Trainer
from tests.small_runs import FEATURES, Net, batches, click, frame, small_run

if TYPE_CHECKING:
    from pathlib import Path

CASTS = ["double", "bfloat16", "half"]
DTYPES = {"double": "float64", "bfloat16": "bfloat16", "half": "float16"}


def planned(model: torch.nn.Module) -> dp.Plan:
    optimizer = dp.DownpourSGD(sparse=dp.Adagrad(0.1), dense=dp.Adam(0.01))
    return optimizer.minimize([click], model=model, example=batches(1)[0])


@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_before_planning_is_named(cast: str) -> None:
    message = rf"'top.weight' is {DTYPES[cast]}, as after model.{cast}\(\), and the rows of Sparse"
    way_out = "dtype=torch.float64" if cast == "double" else r"torch.autocast\('cpu'"
    with pytest.raises(dp.PlanError, match=f"^loss 'click': .*{message}.*{way_out}"):
        planned(getattr(Net(), cast)())


class CastsRows(Net):
    """Takes rows in the dtype that its layer has."""

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        rows = self.embedding(batch).flatten(1).to(self.top.weight.dtype)
        logits: torch.Tensor = self.top(rows).squeeze(1).float()
        return logits


def test_parameters_of_less_precision_are_refused_in_planning() -> None:
    with pytest.raises(
        dp.PlanError, match=r"all be float32 or all float64.*model.half\(\).*autocast"
    ):
        planned(CastsRows().half())
    assert planned(CastsRows().double()).dense[0].dtype == "float64"


@pytest.mark.parametrize("make", [Net, CastsRows])
@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_after_planning_is_named(cast: str, make: Any) -> None:
    model = make()
    plan = planned(model)
    message = rf"is {DTYPES[cast]}, as after model.{cast}\(\), and the plan's table 'dense.click'"
    with dp.Worker(plan, model, dp.embedded(plan)) as worker:
        before = worker.client.pull_dense("dense.click")
        getattr(model, cast)()
        with pytest.raises(dp.PlanError, match=message):
            worker.step("click", batches(1)[0])
        assert np.array_equal(worker.client.pull_dense("dense.click"), before)
        with pytest.raises(dp.PlanError, match=message):
            dp.Worker(plan, model, dp.embedded(plan))
        model.float()
        worker.step("click", batches(1)[0])


def test_a_cast_of_a_loaded_run_is_named(tmp_path: Path) -> None:
    Trainer(small_run(), tmp_path / "run", quiet=True).train()
    saved = dp.load(tmp_path / "run")
    saved.model.double()
    for use in (saved.predict, lambda batch: saved.evaluate([batch])):
        with pytest.raises(
            dp.PlanError, match=r"top.weight' is float64, as after model.double\(\)"
        ):
            use(batches(1)[0])


class Double(Net):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = dp.SparseEmbedding(FEATURES, dim=4, dtype=torch.float64)
        self.double()


class Autocast(Net):
    def forward(self, batch: dp.Batch) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(batch)


@pytest.mark.parametrize("make", [Double, Autocast])
def test_the_ways_out_train(make: type[torch.nn.Module]) -> None:
    loss = lambda model, batch: click(model, batch)  # noqa: E731
    run = small_run(make, losses={"click": doubled if make is Double else loss}, epochs=3)
    losses = [epoch["loss"] for epoch in Trainer(run, quiet=True).train()["epochs"]]
    assert losses[-1] < losses[0]


def doubled(model: Any, batch: dp.Batch) -> torch.Tensor:
    logits = model(batch)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.label.to(logits))


class Normed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(8)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        logits: torch.Tensor = self.top(self.norm(self.embedding(batch).flatten(1))).squeeze(1)
        return logits


def test_a_last_batch_of_one_sample_names_drop_last() -> None:
    message = (
        "^loss 'click': a BatchNorm needs more than one sample.*this batch has 1.*drop_last=True"
    )
    trainer = Trainer(small_run(Normed, data=frame(rows=33)), quiet=True)
    with pytest.raises(dp.DataError, match=message):
        trainer.train()
    assert trainer.metrics()["epochs"][0]["steps"] == 1
    with pytest.raises(dp.DataError, match=message):
        Trainer(small_run(Normed, data=frame(rows=1)), quiet=True)
    columns = frame(rows=33).samples
    source = dp.Frame(
        {"user": columns.features["user"].values, "item": columns.features["item"].values}
        | {"click": columns.label},
        dp.Schema(features=FEATURES, labels=["click"]),
        batch_size=32,
        drop_last=True,
    )
    assert Trainer(small_run(Normed, data=source), quiet=True).train()["stopped"] == "finished"


def wrong(model: Any, batch: dp.Batch) -> torch.Tensor:
    raise ValueError("a type that is not there")


def test_other_errors_of_a_loss_stay_as_they_are() -> None:
    with pytest.raises(ValueError, match=r"^a type that is not there$"):
        Trainer(small_run(losses=wrong), quiet=True)
