"""Errors of a user's own code on the command line: by that code's frames."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from downpour.cli import main
from downpour.tracebacks import LEFT_OUT

if TYPE_CHECKING:
    from click.testing import Result

ROOT = Path(__file__).parents[1]
FILE = """
import sys
sys.path.insert(0, {root!r})
import torch
from tests.small_runs import Net, click, frame, small_run

class Mine(Net):
    def forward(self, batch):
        return self.top(self.embedding(batch)).squeeze()  # [8 of 4]

def helper():
    return {{}}["missing"]

def loss(model, batch):
    return helper() if model.training and torch.is_grad_enabled() else click(model, batch)

def predict(model, batch):
    raise KeyError("of mine")

class Own:
    def batches(self, epoch=0):
        yield from frame().batches()
        raise RuntimeError("the log is gone")

    def num_batches(self):
        return None

def in_run():
    value = helper()

def in_loss():
    return small_run(losses={{"click": loss}})

def in_forward():
    return small_run(Mine)

def in_predict():
    return small_run(eval_data=frame(), predict=predict)

def in_data():
    return small_run(data=Own())

def opening():
    open("/no/such/file")

def wrapped():
    try:
        helper()
    except KeyError as error:
        raise ValueError("no such setting") from error
"""


@pytest.fixture
def target(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    name = "".join(it if it.isalnum() else "_" for it in request.node.name)
    path = tmp_path / f"{name}.py"
    path.write_text(FILE.format(root=str(ROOT)))
    return path


def train(target: Path, function: str, folder: Path) -> Result:
    words = ["train", f"{target}:{function}", "--out", str(folder / "run"), "--quiet"]
    return CliRunner().invoke(main, words)


def frames(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.startswith('  File "')]


@pytest.mark.parametrize(
    ("function", "last", "functions"),
    [
        ("in_run", "KeyError: 'missing'", ["in_run", "helper"]),
        ("in_loss", "KeyError: 'missing'", ["loss", "helper"]),
        ("in_predict", "KeyError: 'of mine'", ["predict"]),
        ("in_data", "RuntimeError: the log is gone", ["batches"]),
        ("opening", "FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file'",
         ["opening"]),
        ("wrapped", "ValueError: no such setting", ["wrapped", "helper", "wrapped"]),
    ],
)  # fmt: skip
def test_an_error_of_ones_own_has_ones_own_frames(
    function: str, last: str, functions: list[str], target: Path, tmp_path: Path
) -> None:
    result = train(target, function, tmp_path)
    assert result.exit_code == 1
    text = result.stderr
    assert text.startswith(LEFT_OUT)
    shown = frames(text)
    assert all(str(target) in line for line in shown), text
    assert sorted(line.rpartition(" in ")[2] for line in shown) == sorted(functions)
    assert last in text.splitlines()


def test_a_library_that_ones_code_called_is_left_out_too(target: Path, tmp_path: Path) -> None:
    text = train(target, "in_forward", tmp_path).stderr
    own = [line for line in frames(text) if str(target) in line]
    assert [line.rpartition(" in ")[2] for line in own] == ["forward"]
    assert len(frames(text)) <= 2  # and the test's own loss
    assert "RuntimeError" in text.splitlines()[-1] or "cannot be multiplied" in text


def test_what_was_kept_is_said_below(target: Path, tmp_path: Path) -> None:
    text = train(target, "in_data", tmp_path).stderr
    assert f"what was trained until then is kept in {tmp_path / 'run'}/" in text


def test_a_file_that_does_not_parse_is_shown_where_it_does_not(tmp_path: Path) -> None:
    path = tmp_path / "unparsed.py"
    path.write_text("def run(:\n")
    text = train(path, "run", tmp_path).stderr
    assert frames(text) == [f'File "{path}", line 1']
    assert "SyntaxError: invalid syntax" in text


def test_all_frames_are_shown_where_that_is_wanted(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOWNPOUR_TRACEBACK", "full")
    text = train(target, "in_run", tmp_path).stderr
    assert "downpour/target.py" in text
    assert LEFT_OUT not in text


def test_a_mistake_of_downpours_own_is_shown_whole(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("downpour.train.History", None)
    result = train(target, "in_data", tmp_path)
    assert isinstance(result.exception, TypeError)  # which Python shows as ever
    assert LEFT_OUT not in result.stderr


def test_a_worker_process_says_it_in_its_log(target: Path) -> None:
    words = ["worker", f"{target}:in_run", "--servers", "127.0.0.1:1", "--rank", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "downpour", *words, "--workers", "1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "KeyError: 'missing'"
    assert all(str(target) in line for line in frames(done.stderr))
