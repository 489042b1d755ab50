"""Real processes for the tests of faults: servers that are stopped, killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from downpour.serving.process import LISTENING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LIMIT_S = 300.0  # after which a process counts as hanging, also on a busy machine


class Process:
    """A Python process, with what it prints; it is killed at the end of a `with` block."""

    def __init__(self, arguments: Sequence[str], **settings: Any) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `close`)
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            **settings,
        )
        assert self._process.stdout is not None
        self.out = self._process.stdout

    def stop(self) -> None:
        """Let it hang, until `go_on`; it does when this returns."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)

    def go_on(self) -> None:
        """Let it go on after a `stop`."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, and wait for that."""
        self._process.kill()
        self._process.wait(LIMIT_S)

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.send_signal(signal.SIGTERM)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def send(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def exit_code(self) -> int:
        """Wait for its end."""
        return self._process.wait(LIMIT_S)

    def line(self) -> str:
        """What it prints next; empty once it has ended."""
        return self.out.readline().strip()

    def log(self) -> str:
        """What it has written on standard error."""
        self._log.seek(0)
        return self._log.read()

    def close(self) -> None:
        """End it whatever its state, and free what it holds."""
        self.kill()
        self.out.close()
        self._log.close()


class ServerProcess(Process):
    """`downpour server`, on any free port or again on one that it had."""

    def __init__(self, port: int = 0, options: Sequence[str] = ()) -> None:
        super().__init__(["-m", "downpour", "server", "--port", str(port), *options])
        self._address = ""

    @property
    def address(self) -> str:
        """Where it listens, once it does."""
        if not self._address:
            line = self.line()
            assert line.startswith(LISTENING), self.log()
            self._address = line.removeprefix(LISTENING).strip()
        return self._address

    @property
    def port(self) -> int:
        """The number at the end of its address."""
        return int(self.address.rpartition(":")[2])


@contextmanager
def started(number: int) -> Iterator[list[ServerProcess]]:
    """So many servers that listen; who has put others in their places has them ended too."""
    processes = [ServerProcess() for _ in range(number)]
    try:
        for process in processes:
            assert process.address
        yield processes
    finally:
        for process in processes:
            process.close()
