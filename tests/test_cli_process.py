"""The real command in a process of its own, and Ctrl-C in it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import downpour as dp

ROOT = Path(__file__).parents[1]
COMMAND = Path(sys.executable).with_name("downpour")
LIMIT_S = 300  # after which a process counts as hanging

# Trains until it is stopped, and says on standard output where it is.
LONG_RUN = f"""
import signal, sys, threading
sys.path.insert(0, {str(ROOT)!r})
from tests.small_runs import batches, click, small_run

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
steps = 0

class Endless:
    def batches(self, epoch=0):
        while True:
            yield from batches(4)

    def num_batches(self):
        return None

def loss(model, batch):
    global steps
    steps += 1
    if steps == 20:
        print("trained", flush=True)
    return click(model, batch)

def stuck(model, batch):
    value = loss(model, batch)
    if steps == 20:
        threading.Event().wait()
    return value

def run():
    return small_run(data=Endless(), losses=loss)

def run_that_hangs():
    return small_run(data=Endless(), losses=stuck)

class Evaluated(Endless):
    def batches(self, epoch=0):
        if steps >= 8:  # and not before training, where one batch is tried
            print("evaluating", flush=True)
        yield from super().batches(epoch)

def run_that_evaluates():
    return small_run(losses=loss, eval_data=Evaluated())

def run_that_never_is():
    print("planning", flush=True)
    threading.Event().wait()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "long_run.py").write_text(LONG_RUN)
    return tmp_path


def start(folder: Path, target: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [COMMAND, "train", target, "--out", "run"],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(text: str, process: subprocess.Popen[str]) -> None:
    """Read lines until one has the text; the test's own time limit ends a wait for nothing."""
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert any(text in line for line in lines), process.communicate()


@pytest.mark.parametrize(
    ("number", "status", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_a_signal_stops_cleanly_and_keeps_what_was_trained(
    number: int, status: int, name: str, folder: Path
) -> None:
    with start(folder, "long_run.py") as process:
        wait_for("trained", process)
        process.send_signal(number)
        out, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == status
    assert errors == ""
    assert "stopping after this step; what was trained is kept" in out
    assert f"({name} again: stop at once, without saving)" in out
    assert out.splitlines()[-2].startswith("interrupted  ")
    assert out.splitlines()[-1].startswith("run/ (report.html, ")
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert metrics["stopped"] == "interrupted"
    assert metrics["epochs"][0]["steps"] >= 19
    assert len(dp.load(folder / "run").client.export("embedding").keys) > 0
    assert ">Interrupted</span>" in (folder / "run" / "report.html").read_text()


def test_a_second_ctrl_c_stops_at_once(folder: Path) -> None:
    with start(folder, "long_run.py:run_that_hangs") as process:
        wait_for("trained", process)
        process.send_signal(signal.SIGINT)
        wait_for("stopping after this step", process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert errors == "Error: stopped at once by Ctrl-C; no model was saved\n"
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert metrics["stopped"].startswith("failed: KeyboardInterrupt: stopped at once by Ctrl-C")
    assert not (folder / "run" / "model").exists()


def test_a_signal_breaks_an_evaluation_off(folder: Path) -> None:
    with start(folder, "long_run.py:run_that_evaluates") as process:
        wait_for("evaluating", process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, errors) == (143, "")
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert (metrics["stopped"], metrics["epochs"][0]["steps"]) == ("interrupted", 8)
    assert "eval" not in metrics["epochs"][0]
    assert dp.load(folder / "run").client.stats()


def test_sigterm_before_it_trains_ends_it(folder: Path) -> None:
    with start(folder, "long_run.py:run_that_never_is") as process:
        wait_for("planning", process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, errors) == (143, "Error: stopped by SIGTERM\n")
    assert not (folder / "run").exists()


def test_a_known_error_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [COMMAND, "train", "missing.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: there is no file missing.py\n"


def test_it_trains_where_its_output_is_a_pipe(folder: Path) -> None:
    done = subprocess.run(
        [COMMAND, "train", "long_run.py:small_run", "--out", "run"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1].startswith("run/ (report.html")
    assert done.stderr == ""


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from downpour.cli import main; "
        "main(['train', '--help'], standalone_mode=False); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"
