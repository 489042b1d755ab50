"""Runs whose labels are other numbers than 0 and 1."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from rich.console import Console

import downpour as dp
from downpour.train import Trainer
from tests.small_runs import SCHEMA, columns, frame, small_run

if TYPE_CHECKING:
    from pathlib import Path


def squared(model: Any, batch: dp.Batch) -> torch.Tensor:
    return torch.nn.functional.mse_loss(model(batch), batch.label)


def outputs(model: Any, batch: dp.Batch) -> torch.Tensor:
    out: torch.Tensor = model(batch)
    return out


def rated(seed: int = 0) -> dp.Frame:
    table = columns(256, seed)
    table["click"] = 1 + 4.0 * (table["item"] % 2 == 0)  # ratings of 1 and 5
    return dp.Frame(table, SCHEMA, batch_size=32)


def test_a_regression_trains_and_is_evaluated_by_its_errors(tmp_path: Path) -> None:
    run = small_run(
        losses=squared,
        data=rated(),
        eval_data=rated(1),
        predict=outputs,
        epochs=3,
        optimizer=dp.DownpourSGD(sparse=dp.Adagrad(0.5), dense=dp.Adam(0.05)),
        early_stop=dp.EarlyStop(metric="rmse", mode="min"),
    )
    out = io.StringIO()
    metrics = Trainer(run, tmp_path / "run", console=Console(file=out, width=200)).train()
    rmse = [epoch["eval"]["rmse"] for epoch in metrics["epochs"]]
    assert len(rmse) == 3
    assert rmse[-1] < rmse[0] < 4
    assert metrics["final"]["auc"] is None
    assert metrics["undefined"]["auc"] == "labels must be 0 or 1, got 5.0"
    said = out.getvalue()
    assert said.count("auc, auc_bucketed are not defined: labels must be 0 or 1, got 5.0") == 1
    assert f"rmse {rmse[-1]:.4f}" in said
    report = (tmp_path / "run" / "report.html").read_text()
    assert "RMSE over steps" in report
    saved = dp.load(tmp_path / "run")
    assert saved.evaluate(rated(1).batches()).results["rmse"] == pytest.approx(rmse[-1])


def test_soft_labels_are_evaluated_with_the_default_predictions() -> None:
    table = columns(64) | {"click": np.linspace(0, 1, 64)}
    data = dp.Frame(table, SCHEMA, batch_size=16)
    final = Trainer(small_run(data=data, eval_data=data), quiet=True).train()["final"]
    assert final["auc"] is None
    assert 0.5 < final["logloss"] < 1
    assert 0 < final["rmse"] < 1


def test_click_labels_are_evaluated_as_before() -> None:
    final = Trainer(small_run(eval_data=frame(seed=1)), quiet=True).train()["final"]
    assert list(final) == ["auc", "auc_bucketed", "logloss", "copc", "samples", "seconds"]
