"""Signals in runs of several processes: all stop alike, what is saved fits, and nobody is left."""

from __future__ import annotations

import json
import os
import re
import signal
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import downpour as dp
from downpour.checkpoint import MANIFEST
from downpour.engine.chief import Chief
from downpour.engine.cluster import Cluster
from downpour.serving.flight_server import FlightServer
from downpour.serving.service import Service
from downpour.target import load_run
from tests.fault_runs import until
from tests.federations import FOLDER, Signs, is_running
from tests.processes import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
SMALL = str(HERE / "cluster_run.py")


class Trained(Process):
    """`downpour train` with two servers and two workers, and what it leaves in `folder`/run."""

    def __init__(self, target: str, folder: Path, *options: str) -> None:
        self.folder = folder / "run"
        command = ["-m", "downpour", "train", target, "--servers", "2", "--workers", "2"]
        environment = {**os.environ, FOLDER: str(folder)}
        super().__init__([*command, "--out", str(self.folder), *options], env=environment)

    def wait_until_it_trains(self) -> None:
        for line in iter(self.line, ""):
            if line.startswith("worker=0"):
                return
        raise AssertionError(self.log())

    def pids(self, what: str) -> list[int]:
        """Of its servers, by their logs."""
        logs = [(self.folder / "logs" / f"{what}-{place}.log") for place in range(2)]
        found = [re.search(r"pid=(\d+)", log.read_text()) for log in logs]
        return [int(it[1]) for it in found if it is not None]

    def metrics(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text())
        return read


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Any]:
    """Starts a run, which ends with the test."""
    with ExitStack() as stack:
        yield lambda target, *options: stack.enter_context(
            closing(Trained(target, tmp_path, *options))
        )


@pytest.mark.parametrize("whom", ["chief", "server"])
def test_sigterm_stops_all_workers_after_the_same_step(whom: str, started: Any) -> None:
    """Also where another process of the run got it: schedulers send it to all of them."""
    process = started(f"{SMALL}:endless_sync")
    process.wait_until_it_trains()
    servers = process.pids("server")
    if whom == "chief":
        process.terminate()
    else:
        os.kill(servers[1], signal.SIGTERM)
    assert process.exit_code() == 143, process.log()
    metrics = process.metrics()
    assert metrics["stopped"] == "interrupted"
    first, second = metrics["workers"]
    assert first["steps"] == second["steps"] > 0
    assert first["samples"] == second["samples"]
    assert dp.load(process.folder).client.stats()
    assert not any(map(is_running, servers))


def test_two_ctrl_c_in_a_row_stop_a_run_at_once(started: Any) -> None:
    process = started(f"{SMALL}:endless")
    process.wait_until_it_trains()
    servers = process.pids("server")
    process.interrupt()
    until(lambda: "stopping after this step" in process.line())
    process.interrupt()
    assert process.exit_code() == 130
    assert process.log() == "Error: stopped at once by Ctrl-C; no model was saved\n"
    assert not (process.folder / "model").exists()
    assert process.metrics()["stopped"].startswith("failed: KeyboardInterrupt: stopped at once")
    until(lambda: not any(map(is_running, servers)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "SIGKILL"])
def test_children_that_start_end_with_their_chief(
    number: signal.Signals, started: Any, tmp_path: Path
) -> None:
    """Workers hang in an import, one of them without ever giving the interpreter away."""
    process, signs = started(str(HERE / "hanging_run.py")), Signs(tmp_path)
    pids = [int(signs.wait(f"worker {rank} hangs")) for rank in range(2)]
    pids += process.pids("server")
    process.send(number)
    assert process.exit_code() == (130 if number == signal.SIGINT else -number)
    until(lambda: not any(map(is_running, pids)))
    if number == signal.SIGINT:
        assert process.log() == "Error: stopped by Ctrl-C\n"


def test_what_an_async_run_saves_is_of_one_moment_though_a_worker_failed(tmp_path: Path) -> None:
    target = f"{SMALL}:one_fails"
    cluster = Cluster(servers=2, workers=2)
    chief = Chief(target, load_run(target), tmp_path / "run", cluster=cluster, quiet=True)
    with pytest.raises(dp.WorkerLostError, match=r"worker 1 .*NonFiniteError"):
        chief.train()
    manifest = json.loads((tmp_path / "run" / "model" / MANIFEST).read_text())
    steps = {it["step"] for kind in ("sparse", "dense") for it in manifest[kind].values()}
    assert len(steps) == 1
    assert steps.pop() >= 30


# Started by hand.


def steps_of(server: FlightServer) -> dict[int, tuple[str, int]]:
    """The state of each worker that has joined, and how many steps it has reported."""
    try:
        members = server.runs.members.snapshot()
    except dp.RefusedError:  # none yet
        return {}
    return {it.rank: (it.state, it.report.get("steps", 0)) for it in members}


@pytest.mark.parametrize("on_loss", ["stop", "continue"])
def test_a_worker_that_is_sent_sigterm_stops_the_run_or_leaves_it(on_loss: str) -> None:
    """Without a chief: the others end as they do at the end of their data."""
    target, server = f"{SMALL}:endless_sync", FlightServer(Service())
    with ExitStack() as stack:
        stack.callback(server.end)
        command = ["-m", "downpour", "worker", target, "--servers", server.address]
        options = ["--workers", "2", "--on-worker-loss", on_loss]
        workers = [
            stack.enter_context(closing(Process([*command, *options, "--rank", str(rank)])))
            for rank in range(2)
        ]
        until(lambda: len(steps_of(server)) == 2 and all(it[1] for it in steps_of(server).values()))
        workers[1].terminate()
        assert workers[1].exit_code() == 143, workers[1].log()
        assert "stopping after this step" in workers[1].log()
        left = steps_of(server)
        assert left[1][0] == "left"
        if on_loss == "continue":
            until(lambda: steps_of(server)[0][1] > left[1][1])
            workers[0].terminate()
        assert workers[0].exit_code() == (0 if on_loss == "stop" else 143), workers[0].log()
        if on_loss == "stop":
            assert steps_of(server)[0] == steps_of(server)[1]
