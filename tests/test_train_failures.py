"""Training that cannot begin, or that something ends: said by name, and what was trained kept."""

import contextlib
import gzip
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import csv

import downpour as dp
from downpour.train import Trainer
from tests.small_runs import SCHEMA, Net, Stream, batches, click, columns, frame, small_run

BROKEN = 5  # the batch whose loss is NaN, from 1


def fragile(model: torch.nn.Module, batch: dp.Batch) -> torch.Tensor:
    return click(model, batch) * batch.dense["factor"].sum() / batch.dense["factor"].sum()


def with_factor(num: int) -> list[dp.Batch]:
    """Batches of factor 1, the one numbered BROKEN of factor 0: 0 / 0."""
    made = []
    for number, batch in enumerate(batches(num), start=1):
        factor = np.full(batch.size, float(number != BROKEN))
        made.append(
            dp.Batch(features=batch.features, labels=batch.labels, dense={"factor": factor})
        )
    return made


def write_log(path: Path, rows: int = 100, **changes: Any) -> Path:
    table = pa.table(columns(rows) | changes)
    csv.write_csv(table, path)
    return path


def fail(trainer: Trainer, error: type[Exception], message: str) -> Exception:
    before = {*threading.enumerate()}
    with pytest.raises(error, match=message) as caught:
        trainer.train()
    left = {*threading.enumerate()} - before
    assert not [it for it in left if it.name.startswith("downpour")]
    return caught.value


def test_nan_in_the_loss_keeps_what_was_trained(tmp_path: Path) -> None:
    run = small_run(losses=fragile, data=Stream(with_factor(8)), epochs=2)
    trainer = Trainer(run, tmp_path, quiet=True)
    error = fail(trainer, dp.NonFiniteError, "loss 'fragile' is nan")
    assert error.__notes__ == [f"what was trained until then is kept in {tmp_path}/"]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["stopped"].startswith("failed: NonFiniteError: loss 'fragile' is nan")
    assert [epoch["steps"] for epoch in metrics["epochs"]] == [BROKEN - 1]
    assert metrics["samples_per_s"] > 0
    assert metrics["tables"]["embedding"]["rows"] > 0
    trained = dp.load(tmp_path).client.export_dense("dense.fragile").weights
    assert np.array_equal(trained, trainer.client.export_dense("dense.fragile").weights)


def test_the_report_says_how_it_failed(tmp_path: Path) -> None:
    run = small_run(losses=fragile, data=Stream(with_factor(8)))
    fail(Trainer(run, tmp_path, quiet=True), dp.NonFiniteError, "nan")
    page = (tmp_path / "report.html").read_text()
    assert ">Failed</span>" in page
    assert "1 epoch, 4 steps, 32 samples. NonFiniteError: loss" in page


@pytest.mark.parametrize("error", [dp.DataError("bad row"), OSError("disk gone"), KeyError("x")])
def test_an_error_of_the_reader_keeps_what_was_trained(error: Exception, tmp_path: Path) -> None:
    trainer = Trainer(small_run(data=Stream(batches(6), error)), tmp_path, quiet=True)
    assert fail(trainer, type(error), str(error)) is error
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["stopped"] == f"failed: {type(error).__name__}: {error}"
    # The step before an error waits for the batch after it, to prefetch its rows.
    assert metrics["epochs"][0]["steps"] == 5
    assert len(dp.load(tmp_path).client.export("embedding").keys) > 0


def test_failing_before_the_first_step_keeps_the_reason(tmp_path: Path) -> None:
    bad = small_run(data=Stream(batches(1)), eval_data=frame())
    trainer = Trainer(bad, tmp_path, quiet=True)
    bad.data.error = dp.DataError("gone")  # type: ignore[attr-defined]
    error = fail(trainer, dp.DataError, "gone")
    assert not hasattr(error, "__notes__")
    assert json.loads((tmp_path / "metrics.json").read_text())["epochs"] == []
    assert "Not one epoch was finished. DataError: gone" in (tmp_path / "report.html").read_text()
    with pytest.raises(dp.SavedRunError, match="holds no trained model"):
        dp.load(tmp_path)


def test_an_error_of_the_evaluation_keeps_what_was_trained(tmp_path: Path) -> None:
    held_back = Stream(batches(3), dp.DataError("bad row"))
    trainer = Trainer(small_run(eval_data=held_back), tmp_path, quiet=True)
    fail(trainer, dp.DataError, "bad row")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["epochs"][0]["steps"] == 8
    dp.load(tmp_path)


def test_a_model_that_cannot_be_kept_is_told_in_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("downpour.saved.save", full)
    fail(Trainer(small_run(), tmp_path, quiet=True), OSError, "no space left")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["stopped"] == "failed: no model was kept: OSError: no space left on device"
    assert metrics["epochs"][0]["steps"] == 8


class Interrupt:
    """Raises at a step what the second Ctrl-C raises."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, model: torch.nn.Module, batch: dp.Batch) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return click(model, batch)


def test_a_keyboard_interrupt_keeps_no_model(tmp_path: Path) -> None:
    trainer = Trainer(small_run(losses={"click": Interrupt(at=4)}), tmp_path, quiet=True)
    with contextlib.suppress(KeyboardInterrupt):
        trainer.train()
    assert {path.name for path in tmp_path.iterdir()} == {"plan.txt", "events", "metrics.json"}
    assert "KeyboardInterrupt" in json.loads((tmp_path / "metrics.json").read_text())["stopped"]


@pytest.mark.parametrize("empty", [[], batches(1)[0].slice(0, 0)])
def test_a_source_of_nothing_is_refused(empty: Any) -> None:
    source = Stream([empty] if isinstance(empty, dp.Batch) else [])
    with pytest.raises(dp.DataError, match=r"trained on nothing: Stream\(.*gave no sample"):
        Trainer(small_run(data=source), quiet=True)


def test_a_later_epoch_of_nothing_is_an_error() -> None:
    source = Stream(batches(2))
    trainer = Trainer(small_run(data=source, epochs=2), quiet=True)
    source.given = []
    fail(trainer, dp.DataError, "trained on nothing: epoch 1 of")


@pytest.mark.parametrize("text", ["", "user,item,click\n"])
def test_an_empty_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_text(text)
    data = dp.Files(tmp_path / "clicks.csv", SCHEMA, batch_size=8)
    with pytest.raises(dp.DataError, match=r"clicks\.csv"):
        Trainer(small_run(data=data), quiet=True)


def test_a_missing_column_is_refused(tmp_path: Path) -> None:
    path = write_log(tmp_path / "clicks.csv")
    path.write_text(path.read_text().replace("item", "items", 1))
    data = dp.Files(path, SCHEMA, batch_size=8)
    with pytest.raises(dp.DataError, match=r"clicks\.csv: no column 'item'; did you mean 'items'"):
        Trainer(small_run(data=data), quiet=True)


def test_a_truncated_gz_stops_training_and_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("downpour.data.readers.BLOCK_BYTES", 1 << 12)  # of text at a time
    whole = gzip.compress(write_log(tmp_path / "clicks.csv", rows=150_000).read_bytes())
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) * 3 // 4])
    data = dp.Files(tmp_path / "cut.csv.gz", SCHEMA, batch_size=2048)
    trainer = Trainer(small_run(data=data), tmp_path / "run", quiet=True)
    fail(trainer, dp.DataError, r"cut\.csv\.gz: the file is cut off")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["epochs"][0]["steps"] > 0


def test_a_label_that_evaluation_will_not_find_stops_training() -> None:
    with pytest.raises(dp.DataError, match="the batch has no label 'buy'; it has: click"):
        Trainer(small_run(eval_data=frame(), label="buy"), quiet=True)


def test_a_model_that_cannot_be_saved_is_refused_before_training(tmp_path: Path) -> None:
    class Inside(Net):
        pass

    trainer = Trainer(small_run(model=Inside()), tmp_path / "run", quiet=True)
    with pytest.raises(dp.SettingError, match=r"Inside.* at the top level of a module, not in a"):
        trainer.train()
    assert not (tmp_path / "run").exists()
    assert Trainer(small_run(model=Inside()), quiet=True).train()["stopped"] == "finished"
