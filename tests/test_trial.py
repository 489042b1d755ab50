"""Mistakes of an evaluation, found before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import csv

import downpour as dp
from downpour.engine.chief import Chief
from downpour.engine.cluster import Cluster
from downpour.train import Trainer
from tests.small_runs import SCHEMA, Net, Stream, batches, columns, frame, small_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def logits(model: Any, batch: dp.Batch) -> torch.Tensor:
    scores: torch.Tensor = model(batch) * 1000.0
    return scores


def columns_of(model: Any, batch: dp.Batch) -> torch.Tensor:
    return torch.sigmoid(model(batch)).unsqueeze(1)


def pairs(model: Any, batch: dp.Batch) -> torch.Tensor:
    return torch.sigmoid(model(batch)).unsqueeze(1).repeat(1, 2)


def missing_file(folder: Path) -> dp.Files:
    csv.write_csv(pa.table(columns(20)), folder / "log.csv")
    data = dp.Files(folder / "log.csv", SCHEMA, batch_size=8)
    (folder / "log.csv").unlink()
    return data


def missing_column(folder: Path) -> dp.Files:
    csv.write_csv(pa.table(columns(20)).drop_columns("item"), folder / "log.csv")
    return dp.Files(folder / "log.csv", SCHEMA, batch_size=8)


def two_labels(folder: Path) -> Stream:
    return Stream([dp.Batch(features=it.features, labels={"a": it.label, "b": it.label})
                   for it in batches(2)])  # fmt: skip


def own(model: Any) -> dict[str, float]:
    return {"recall": 0.5}


def not_a_dict(model: Any) -> Any:
    return 0.5


def raising(model: Any) -> dict[str, float]:
    raise KeyError("column")


MISTAKES: list[tuple[Callable[[Path], dict[str, Any]], type[Exception], str]] = [
    (lambda folder: {"eval_data": missing_file(folder)}, dp.DataError, r"log\.csv"),
    (lambda folder: {"eval_data": missing_column(folder)}, dp.DataError, "no column 'item'"),
    (lambda folder: {"eval_data": two_labels(folder)}, dp.DataError, "say which one is predicted"),
    (lambda folder: {"eval_data": Stream([])}, dp.DataError, "evaluated on nothing"),
    (lambda _: {"eval_data": frame(), "predict": logits}, dp.DataError, "must be probabilities"),
    (lambda _: {"eval_data": frame(), "predict": pairs}, dp.DataError, r"got \[32, 2\]"),
    (lambda _: {"eval_data": frame(), "predict": columns_of}, dp.DataError, r"got \[32, 1\]"),
    (
        lambda _: {"evaluate": own, "early_stop": dp.EarlyStop(metric="recal")},
        dp.SettingError,
        "'recal' is not evaluated; there are: recall",
    ),
    (lambda _: {"evaluate": not_a_dict}, dp.SettingError, "must give a dict of numbers"),
    (lambda _: {"evaluate": raising}, KeyError, "column"),
]


@pytest.mark.parametrize(("settings", "error", "message"), MISTAKES)
def test_a_mistake_in_evaluation_is_found_before_the_first_step(
    settings: Callable[[Path], dict[str, Any]],
    error: type[Exception],
    message: str,
    tmp_path: Path,
) -> None:
    run = small_run(**settings(tmp_path))
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    with pytest.raises(error, match=message) as caught:
        Trainer(run, tmp_path / "run", quiet=True)
    if error is not dp.SettingError or "dict" in message:
        assert "before the first step; nothing was trained" in caught.value.__notes__[0]
    assert not (tmp_path / "run").exists()
    assert all(torch.equal(before[name], it) for name, it in run.model.state_dict().items())


def test_the_chief_finds_it_before_it_starts_a_process(tmp_path: Path) -> None:
    run = small_run(eval_data=frame(), predict=pairs)
    with pytest.raises(dp.DataError, match=r"got \[32, 2\]"):
        Chief("no.py", run, tmp_path / "run", cluster=Cluster(), quiet=True)
    assert not (tmp_path / "run").exists()


def test_one_batch_is_read_and_evaluate_is_called_once() -> None:
    read, calls = [], []

    class Counted(Stream):
        def batches(self, epoch: int = 0) -> Any:
            for batch in super().batches(epoch):
                read.append(batch)
                yield batch

    def evaluate(model: Any) -> dict[str, float]:
        calls.append(model.training)
        return {"score": float(model(batches(1)[0]).sum())}

    empty = batches(1)[0].slice(0, 0)
    run = small_run(eval_data=Counted([empty, *batches(5)]), evaluate=evaluate)
    trainer = Trainer(run, quiet=True)
    assert (len(read), calls) == (2, [False])
    assert trainer.client.stats()["embedding"].rows == 0  # type: ignore[union-attr]
    assert run.model.training
    trainer.train()
    assert (len(read), calls) == (2 + 6, [False, False])


def test_the_trial_changes_nothing_that_is_learned() -> None:
    def losses(**settings: Any) -> Any:
        run = small_run(lambda: torch.nn.Sequential(Net(), torch.nn.Dropout()), **settings)
        return Trainer(run, quiet=True).train()["curves"]["loss"]

    def drawing(model: Any) -> dict[str, float]:
        return {"score": float(torch.rand(()))}

    assert np.array_equal(losses(), losses(evaluate=drawing, eval_data=frame(seed=1)))
