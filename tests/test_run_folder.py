"""Runs one after the other, and at the same time, in one folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import downpour as dp
from downpour.engine.chief import Chief
from downpour.engine.cluster import Cluster
from downpour.folder import EARLIER, LOCK, Lock, require_free
from downpour.train import Trainer
from tests.networks import everything
from tests.small_runs import Stream, batches, small_run

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
ENDLESS = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from downpour.train import Trainer
from tests.cluster_run import endless

class Telling:
    def batches(self, epoch=0):
        for number, batch in enumerate(endless().data.batches()):
            if number == 20:
                print("training", flush=True)
            yield batch

    def num_batches(self):
        return None

from tests.small_runs import small_run
Trainer(small_run(data=Telling()), sys.argv[1], quiet=True).train()
"""


def run(folder: Path, **settings: Any) -> Trainer:
    trainer = Trainer(small_run(**settings), folder, quiet=True)
    trainer.train()
    return trainer


def run_id(path: Path) -> str:
    found: str = json.loads(path.read_text("utf-8"))["run"]
    return found


@contextlib.contextmanager
def training(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is training into a folder, and does not end by itself."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "training\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_killed_run_leaves_the_model_before_and_what_told_of_it(tmp_path: Path) -> None:
    first = run(tmp_path)
    report = (tmp_path / "report.html").read_text()
    expected = everything(first.client)
    with training(tmp_path) as process:
        assert everything(dp.load(tmp_path).client) == expected  # also meanwhile
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert everything(dp.load(tmp_path).client) == expected
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / EARLIER / "report.html").read_text() == report
    model = tmp_path / "model" / "manifest.json"
    assert run_id(model) == run_id(tmp_path / EARLIER / "metrics.json")

    failing = small_run(data=Stream(batches(2)))
    trainer = Trainer(failing, tmp_path, quiet=True)
    failing.data.error, failing.data.given = dp.DataError("gone"), []  # type: ignore[attr-defined]
    with pytest.raises(dp.DataError, match="gone"):  # another one that leaves no model
        trainer.train()
    assert everything(dp.load(tmp_path).client) == expected
    assert json.loads((tmp_path / "metrics.json").read_text())["model"] is None
    assert (tmp_path / EARLIER / "report.html").read_text() == report
    assert "model/ is that of an earlier run" in (tmp_path / "report.html").read_text()

    last = run(tmp_path, epochs=2)
    assert everything(dp.load(tmp_path).client) == everything(last.client)
    assert run_id(model) == run_id(tmp_path / "metrics.json")
    assert not (tmp_path / EARLIER).exists()
    assert not (tmp_path / LOCK).exists()


def test_a_run_that_cannot_save_leaves_the_model_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path)

    def full(*args: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("downpour.saved.save", full)
        with pytest.raises(OSError, match="no space"):
            run(tmp_path, epochs=2)
    assert everything(dp.load(tmp_path).client) == everything(first.client)
    assert run_id(tmp_path / EARLIER / "metrics.json") == first.metrics()["run"]


def test_a_second_run_into_a_folder_is_refused_and_disturbs_nothing(tmp_path: Path) -> None:
    with training(tmp_path) as process:
        before = sorted(tmp_path.rglob("*"))
        refusal = rf"another run writes there now, process {process.pid}; wait until"
        with pytest.raises(dp.SettingError, match=refusal):
            Trainer(small_run(data=Stream([])), tmp_path, quiet=True)
        with pytest.raises(dp.SettingError, match=refusal):
            Chief("no.py", small_run(), tmp_path, cluster=Cluster(), quiet=True)
        assert sorted(tmp_path.rglob("*")) == before
        process.send_signal(signal.SIGINT)
        process.wait()
    assert dp.load(tmp_path).client.steps["embedding"] > 0
    run(tmp_path)


def test_one_that_was_made_before_the_other_began_is_refused_too(tmp_path: Path) -> None:
    late = Trainer(small_run(), tmp_path, quiet=True)
    with Lock(tmp_path), pytest.raises(dp.SettingError, match=f"process {os.getpid()}"):
        late.train()
    again = Trainer(small_run(), tmp_path, quiet=True)  # as in a notebook
    Trainer(small_run(), tmp_path, quiet=True).train()
    again.train()


@pytest.mark.parametrize("where", ["/dev/null/run", "/proc/no/run", "/sys/run"])
def test_a_folder_that_cannot_be_written_is_found_before_planning(where: str) -> None:
    source = Stream([])  # planning would find that it gives nothing
    with pytest.raises(dp.SettingError, match=f"--out {where} cannot be written: .*name another"):
        Trainer(small_run(data=source), where, quiet=True)


def test_looking_at_a_folder_leaves_nothing(tmp_path: Path) -> None:
    require_free(tmp_path / "a" / "b")
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "a").mkdir()
    require_free(tmp_path / "a")
    with pytest.raises(dp.DataError, match="trained on nothing"):
        Trainer(small_run(data=Stream([])), tmp_path / "a" / "b" / "c", quiet=True)
    assert [*tmp_path.rglob("*")] == [tmp_path / "a"]


def test_a_lock_that_nobody_holds_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("12345\n")
    require_free(tmp_path)
    with Lock(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"
    assert not (tmp_path / LOCK).exists()


def test_metrics_name_the_run_of_the_model(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert first.metrics()["model"] == {"epoch": 1, "step": 8, "is_best": False}
    assert run_id(tmp_path / "model" / "manifest.json") == first.metrics()["run"]
    assert np.array_equal(
        dp.load(tmp_path).client.pull_dense("dense.click"), first.client.pull_dense("dense.click")
    )
