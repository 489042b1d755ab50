"""Servers and trainers of transpiled programs as processes: the scripts of docs/transpiler.md."""

from __future__ import annotations

import re
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.processes import Process
from tests.transpiled_runs import free_endpoints

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[1] / "docs" / "transpiler.md"
SERVERS = "127.0.0.1:6174,127.0.0.1:6175"  # of the page
SCRIPTS = (
    "clicks.py", "server.py", "trainer.py", "federated.py", "write.py", "job_server.py",
    "job_trainer.py",
)  # fmt: skip

SHOW = """
import sys
from clicks import *

made = transpiler(federation=dp.FedAvg() if sys.argv[1:] else None)
if sys.argv[1:]:
    print(*made.get_trainer_program(), sep="\\n")
else:
    print(made.transpiled, made.get_pserver_program("127.0.0.1:6175"), sep="\\n\\n")
"""

DYING = """
import signal
import sys
from clicks import *

number, on_loss = int(sys.argv[1]), sys.argv[2]
made = transpiler(number)
recv, local, send = made.get_trainer_program()
try:
    with dp.Executor(
        made.transpiled, Clicks(), on_worker_loss=on_loss, worker_timeout_s=2.0, deadline_s=3.0
    ) as executor:
        executor.run(made.get_startup_program())
        for step, batch in enumerate(batches(seed=number, count=5)):
            executor.run(recv)
            executor.run(local, batch)
            print("step", step, flush=True)
            if (number, step) == (1, 2):
                signal.pause()  # until it is killed
            executor.run(send)
        print("done")
except dp.DownpourError as error:
    print(f"{type(error).__name__}: {error}")
"""

CTRL_C_WORKS = """
import runpy
import signal
import sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests may run without
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def of_page(language: str) -> list[str]:
    """The blocks of the page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.S | re.M)


class Folder:
    """A folder with the page's scripts for servers of these addresses, and what runs in it."""

    def __init__(self, path: Path, endpoints: list[str], running: ExitStack) -> None:
        self.path, self.endpoints, self._running = path, endpoints, running
        for name, text in zip(SCRIPTS, of_page("python"), strict=True):
            (path / name).write_text(text.replace(SERVERS, ",".join(endpoints)))
        (path / "show.py").write_text(SHOW)
        (path / "dying.py").write_text(DYING)

    def start(self, *arguments: str) -> Process:
        """A script with its arguments, until the test ends."""
        process = Process(["-c", CTRL_C_WORKS, *arguments], cwd=self.path)
        self._running.enter_context(closing(process))
        return process

    def servers(self, *mode: str) -> list[Process]:
        """The servers of the page."""
        return [self.start("server.py", endpoint, *mode) for endpoint in self.endpoints]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """Its servers listen at ports that are free."""
    with ExitStack() as running:
        yield Folder(tmp_path, free_endpoints(2), running)


@pytest.mark.parametrize("mode", ["trainer", "federated"])
def test_the_scripts_of_the_page_train(folder: Folder, mode: str) -> None:
    servers = folder.servers(*["federated"] * (mode == "federated"))
    trainers = [folder.start(f"{mode}.py", str(number)) for number in range(2)]
    all_end_well(servers, trainers)


def test_a_job_runs_from_the_folders_of_its_processes(folder: Folder) -> None:
    writer = folder.start("write.py")
    assert writer.exit_code() == 0, writer.log()
    servers = [folder.start("job_server.py", f"job/server{number}") for number in range(2)]
    trainers = [folder.start("job_trainer.py", f"job/trainer{number}") for number in range(2)]
    all_end_well(servers, trainers)


def all_end_well(servers: list[Process], trainers: list[Process]) -> None:
    for number, trainer in enumerate(trainers):
        assert trainer.exit_code() == 0, trainer.log()
        said = re.fullmatch(rf"trainer {number}: loss (0\.\d+)", trainer.line())
        assert said is not None
        assert float(said[1]) < 0.5  # of 0.69 at the start
    for server in servers:
        server.interrupt()
        assert server.exit_code() == 0, server.log()


@pytest.mark.parametrize("mode", ["", "federated"], ids=["plain", "federated"])
def test_the_page_shows_what_the_programs_print(tmp_path: Path, mode: str) -> None:
    with ExitStack() as running:
        folder = Folder(tmp_path, SERVERS.split(","), running)
        process = folder.start("show.py", *filter(None, [mode]))
        assert process.out.read() == of_page("text")[mode == "federated"], process.log()
        assert process.exit_code() == 0


def waiting(folder: Folder, on_loss: str = "stop") -> list[Process]:
    """Two trainers: the second has stopped before it sends, so that the first one waits for it."""
    trainers = [folder.start("dying.py", str(number), on_loss) for number in range(2)]
    for trainer in trainers:
        assert [trainer.line() for _ in range(3)] == ["step 0", "step 1", "step 2"], trainer.log()
    return trainers


@pytest.mark.parametrize("on_loss", ["stop", "continue"])
def test_a_trainer_that_is_killed_leaves_no_other_waiting(folder: Folder, on_loss: str) -> None:
    folder.servers()
    first, second = waiting(folder, on_loss)
    second.kill()
    left = first.out.read().splitlines()
    assert first.exit_code() == 0, first.log()
    if on_loss == "stop":
        assert len(left) == 1
        assert re.match(r"WorkerLostError: .*worker 1 was dropped .*after 2\.\d s", left[0])
    else:
        assert left == ["step 3", "step 4", "done"]


def test_servers_that_end_leave_no_trainer_waiting_and_end_once_all_have_gone(
    folder: Folder,
) -> None:
    servers = folder.servers()
    first, second = waiting(folder)
    for server in servers:
        server.interrupt()
    assert re.match(r"(Server|Worker)\w*Error: server \d ", first.out.read()), first.log()
    second.kill()
    for server in servers:
        assert server.exit_code() == 0, server.log()
