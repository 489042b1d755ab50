"""Disks that are full, folders that are gone: named, no end of training, and kept elsewhere."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import downpour as dp
from downpour.checkpoint import write_whole
from downpour.disk import naming
from downpour.serving.flight_server import FlightServer
from downpour.serving.service import Service
from downpour.unwritten import SavedElsewhereError, Unwritten, save_somewhere
from tests.fault_runs import PLAN
from tests.small_runs import Stream, batches, click, small_run

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

ROOT = Path(__file__).parents[1]
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class At:
    """A loss that does something before its step of a number."""

    def __init__(self, number: int, do: Callable[[], object]) -> None:
        self._left, self._do = number, do

    def __call__(self, model: torch.nn.Module, batch: dp.Batch) -> torch.Tensor:
        self._left -= 1
        if self._left == 0:
            self._do()
        return click(model, batch)


def trainer_of(folder: Path, do: Callable[[], object], **settings: Any) -> dp.Trainer:
    return dp.Trainer(small_run(losses={"click": At(3, do)}, **settings), folder, quiet=True)


def replace_by_a_file(folder: Path) -> None:
    """Nobody can write into it any more, whoever he is."""
    folder.rename(folder.with_name("moved"))
    folder.write_text("a file")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_folder_that_is_gone_costs_no_training(tmp_path: Path, temporary: Path) -> None:
    run = tmp_path / "run"
    trainer = trainer_of(run, lambda: replace_by_a_file(run), epochs=2)
    with pytest.raises(OSError, match=r"the model was saved in .* instead, move it from") as raised:
        trainer.train()
    assert str(run / "model") in str(raised.value)
    assert "free space for" in str(raised.value)
    (kept,) = temporary.iterdir()
    assert str(kept) in str(raised.value)
    trained = dp.load(kept).client.export_dense("dense.click")
    assert trained.step == 16  # all steps of both epochs
    metrics = trainer.metrics()
    assert metrics["stopped"].startswith("failed: the model was saved in")
    assert len(metrics["epochs"]) == 2
    assert any(it.startswith(f"{run}/metrics.json could not be") for it in trainer.unwritten)


def test_where_no_disk_takes_the_model_all_paths_are_named(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise FULL

    monkeypatch.setattr("downpour.checkpoint.write_rows", full)
    trainer = dp.Trainer(small_run(), tmp_path / "run", quiet=True)
    with pytest.raises(OSError, match=rf"No space left.*{tmp_path}/run/model/save-") as raised:
        trainer.train()
    assert raised.value.errno == errno.ENOSPC
    (note,) = raised.value.__notes__
    assert str(temporary) in note
    assert f"free space for {tmp_path}/run/, or name another folder" in note
    assert not [*temporary.iterdir()]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["stopped"].startswith("failed: no model was kept: OSError: [Errno 28] No space")
    assert metrics["epochs"][0]["steps"] == 8


def test_an_error_of_training_is_not_hidden_by_one_of_saving(
    tmp_path: Path, temporary: Path
) -> None:
    run = tmp_path / "run"
    data = Stream(batches(6), dp.DataError("bad row"))
    trainer = trainer_of(run, lambda: replace_by_a_file(run), data=data)
    with pytest.raises(dp.DataError, match="bad row") as raised:
        trainer.train()
    assert "the model was saved in" in raised.value.__notes__[0]
    assert len([*temporary.iterdir()]) == 1


def test_metrics_that_could_be_written_in_the_end_are_no_error(tmp_path: Path) -> None:
    """A folder of that name is in their place for one epoch."""
    metrics = tmp_path / "run" / "metrics.json"
    said: list[str] = []
    trainer = trainer_of(tmp_path / "run", metrics.mkdir, epochs=3)
    trainer.files._unwritten._say = said.append
    write = trainer._write_metrics

    def write_and_clear() -> None:
        write()
        if metrics.is_dir() and len(trainer.history.epochs) == 2:
            metrics.rmdir()

    trainer._write_metrics = write_and_clear  # type: ignore[method-assign]
    assert trainer.train()["stopped"] == "finished"
    assert len(said) == 1  # not once an epoch
    assert said[0].startswith(f"{metrics} could not be written")
    assert trainer.unwritten == []
    assert len(json.loads(metrics.read_text())["epochs"]) == 3


def test_events_that_cannot_be_written_end_and_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise FULL

    monkeypatch.setattr("tensorboardX.event_file_writer.EventsWriter.flush", full)
    trainer = dp.Trainer(small_run(), tmp_path / "run", quiet=True)
    assert trainer.train()["stopped"] == "finished"
    told = f"{tmp_path}/run/events could not be written: [Errno 28] No space left on device"
    assert trainer.unwritten[0].startswith(told)
    dp.load(tmp_path / "run")


LIMITED = f"""
import resource, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "src")!r}]
from tests.fault_runs import PLAN
from tests.small_runs import small_run
from tests.test_unwritten import At

def limit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))

def run():
    return small_run(losses={{"click": At(3, limit)}}, epochs=2)
"""


def test_files_that_may_not_grow_are_named_by_the_command(tmp_path: Path) -> None:
    """A limit of the system stands for a full disk: no file can have more than 1000 bytes."""
    (tmp_path / "limited.py").write_text(LIMITED)
    command = [sys.executable, "-m", "downpour", "train", "limited.py", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "run/metrics.json could not be written: [Errno 27]" in done.stdout
    assert done.stdout.count("could not be written") <= 3  # each file once
    assert "epoch 2/2" in done.stdout
    (error,) = done.stderr.splitlines()
    assert error.startswith("Error: [Errno 27] ")
    assert "'run/model/save-" in error
    assert "nor could it be saved in /" in error
    assert error.endswith("free space for run/, or name another folder")


def test_a_server_that_cannot_save_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise FULL

    monkeypatch.setattr("downpour.serving.save_verbs.save_shard", full)
    server = FlightServer(Service(), save_root=tmp_path)
    told = rf"No space left .*{tmp_path}/monday/shard-0"
    try:
        with (
            dp.connect(PLAN, [server.address]) as client,
            pytest.raises(dp.ServerError, match=told),
        ):
            client.save("monday")
    finally:
        server.end()


# What it is made of.


def test_an_error_without_a_path_gets_one() -> None:
    for error, text in (
        (FULL, "[Errno 28] No space left on device: 'here'"),
        (OSError("disk gone"), "disk gone: 'here'"),
        (OSError(errno.EPERM, "no", "there"), "[Errno 1] no: 'there'"),
    ):
        with pytest.raises(OSError, match=text[-6:]) as raised, naming(Path("here")):
            raise error
        assert str(raised.value) == text
        assert raised.value.errno == error.errno


def test_a_server_that_is_lost_is_no_file() -> None:
    with pytest.raises(dp.ServerError, match=r"^gone$"), naming(Path("here")):
        raise dp.ServerError("gone")
    with pytest.raises(dp.ServerError, match=r"^gone$"), Unwritten(print).noted(Path("here")):
        raise dp.ServerError("gone")
    with pytest.raises(dp.ServerError, match=r"^gone$"):
        save_somewhere(lambda folder: _raise(dp.ServerError("gone")), Path("here"))


def _raise(error: Exception) -> None:
    raise error


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(NotADirectoryError, match=r"file/text'$"):
        write_whole(tmp_path / "file" / "text", "text")
    write_whole(tmp_path / "text", "old")
    (tmp_path / "text").unlink()
    (tmp_path / "text").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "text", "new")
    assert sorted(it.name for it in tmp_path.iterdir()) == ["file", "text"]


def test_saved_elsewhere_is_said_so(tmp_path: Path, temporary: Path) -> None:
    saved: list[Path] = []

    def save(folder: Path) -> None:
        if folder == tmp_path:
            raise FULL
        saved.append(folder)

    with pytest.raises(SavedElsewhereError, match=rf"{temporary}/downpour-.* instead"):
        save_somewhere(save, tmp_path)
    assert [it.parent for it in saved] == [temporary]
