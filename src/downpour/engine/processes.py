"""Child processes of a run on this machine: started, watched, and never left behind."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, BinaryIO

from downpour.errors import ServerError
from downpour.parent import first_message, framed
from downpour.serving.process import ASKED, LISTENING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from downpour.deployment import Deployment
    from downpour.engine.cluster import Cluster
    from downpour.security import Security

STOP_S = 10.0  # how long a process may take to end by itself
END_S = 1.0  # and where nothing of it is wanted any more
TAIL_BYTES = 1 << 16  # of a log, in which its last line is looked for


class Child:
    """One process of a run. It ends when its stdin does, so it never outlives this one.

    Its output goes to `log`, or nowhere. token: that of the servers; it is told over stdin, where
    nobody else on the machine sees it.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        log: Path | None,
        *,
        token: str | None,
        threads: int | None = None,
    ) -> None:
        self.name, self.log = name, log
        self.asked_by: int | None = None  # the signal by which somebody has asked it to stop
        self._output: BinaryIO | None = None if log is None else log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "downpour", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output or subprocess.DEVNULL,
            env=_environment(threads),
            process_group=0,  # Ctrl-C is the chief's to answer
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._has_line = threading.Event()
        self._first_line = ""
        self.tell(first_message(token))
        threading.Thread(target=self._read, name=f"downpour {name}", daemon=True).start()

    def tell(self, message: bytes) -> None:
        """Send it a message over stdin; one that has ended is seen by its exit code."""
        with contextlib.suppress(OSError):
            self._stdin.write(framed(message))
            self._stdin.flush()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def first_line(self, timeout_s: float) -> str:
        """What it prints first. ServerError where it ends before, or prints nothing in time."""
        until = time.monotonic() + timeout_s
        while not self._has_line.wait(0.1):
            if self.exit_code is not None and not self._has_line.wait(1.0):
                raise ServerError(self.how_it_ended())
            if time.monotonic() > until:
                raise ServerError(f"{self.name} was not there within {timeout_s:g} s")
        return self._first_line

    def how_it_ended(self) -> str:
        """Of one that has ended: its exit code or signal, and the end of its log."""
        return f"{self.name} ended with {_said(self.exit_code)}{self.last_words()}"

    def last_words(self) -> str:
        """The end of its log."""
        if self.log is None:
            return ""
        try:
            with self.log.open("rb") as file:
                file.seek(max(self.log.stat().st_size - TAIL_BYTES, 0))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:  # somebody has removed it
            return ""
        return f": {lines[-1][:500]} (see {self.log})" if lines else ""

    def wait(self, seconds: float) -> None:
        """Wait so long at most for it to end by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(seconds, 0.0))

    def let_go(self) -> None:
        """Close its stdin, at which it ends."""
        with contextlib.suppress(OSError):
            self._stdin.close()

    def end(self, patience_s: float = STOP_S) -> None:
        """Let it go, and kill it where it has not ended so many seconds later."""
        self.let_go()
        self.wait(patience_s)
        if self.exit_code is None:
            self._process.kill()
            self._process.wait()
        if self._output is not None:
            with contextlib.suppress(OSError):  # its disk is full
                self._output.close()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def _read(self) -> None:
        """Pass on what it prints to its log, but for the first line and what is meant for us."""
        with self._stdout as lines:
            for line in lines:
                if not self._has_line.is_set():
                    self._first_line = line.decode(errors="replace").strip()
                    self._has_line.set()
                elif line.startswith(ASKED.encode()):
                    self.asked_by = int(line.removeprefix(ASKED.encode()))
                elif self._output is not None:
                    with contextlib.suppress(ValueError, OSError):
                        self._output.write(line)


def start_server(deployment: Deployment, shard: int, log: Path | None, security: Security) -> Child:
    """Start the server of a shard on loopback; `address_of` waits for it."""
    child = Child(
        f"server {shard}",
        ["server", "--of-parent", *security_options(security)],
        log,
        token=security.token,
        threads=1,
    )
    # Rules of the user's own are in modules that this process has on its path.
    child.tell(pickle.dumps([path for path in sys.path if path]))
    child.tell(pickle.dumps((deployment, shard)))
    return child


def address_of(server: Child, timeout_s: float) -> str:
    """Where a server listens, once it does. Raises ServerError."""
    line = server.first_line(timeout_s)
    if not line.startswith(LISTENING):
        raise ServerError(f"{server.name} did not start: {line}{server.last_words()}")
    return line.removeprefix(LISTENING).strip()


def cluster_options(cluster: Cluster) -> list[str]:
    """What all processes of a cluster have alike, as their command lines say it."""
    sections = cluster.sections
    return [
        *("--deadline", str(cluster.deadline_s), "--start", str(cluster.start_s)),
        *("--min-section", str(sections.min_size), "--placement", sections.placement),
        "--split" if sections.split else "--no-split",
        *security_options(cluster.security),
    ]


def security_options(security: Security) -> list[str]:
    """As the command line has it, but for the token, which a child is told over stdin."""
    options = {
        "--tls-certificate": security.certificate,
        "--tls-key": security.key,
        "--tls-authority": security.authority,
    }
    return [
        str(part) for name, path in options.items() if path is not None for part in (name, path)
    ]


def _environment(threads: int | None) -> dict[str, str]:
    """Threads that wait for work must not hold cores that another process needs."""
    own = dict(os.environ)
    own.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads is not None:
        own.setdefault("OMP_NUM_THREADS", str(threads))
    return own


def _said(code: int | None) -> str:
    """How a process has ended."""
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # one that has no name
        return f"signal {-code}"
