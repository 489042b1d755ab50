"""The processes that a run has started: servers, and those that train."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from downpour import folder as run_folder
from downpour.deployment import Deployment
from downpour.engine.processes import STOP_S, Child, address_of, start_server
from downpour.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from downpour.engine.cluster import Cluster
    from downpour.plan.plan import Plan


class Children:
    """Starts processes, each with a log in the run's folder, and ends them.

    may_go: whether one that trains may end in any way without an end of the run.
    """

    def __init__(self, folder: Path | None, *, may_go: bool) -> None:
        self.servers: list[Child] = []
        self.trainers: list[Child] = []
        self._folder, self._may_go = folder, may_go
        self._told: set[int] = set()  # the pids of those whose end was told

    def start_servers(self, plan: Plan, cluster: Cluster) -> tuple[str, ...]:
        """Start the servers of a cluster, with the tables of a plan; where each listens."""
        deployment = Deployment(plan=plan, num_shards=cluster.servers, sections=cluster.sections)
        for shard in range(cluster.servers):
            log = self._log(f"server-{shard}")
            self.servers.append(start_server(deployment, shard, log, cluster.security))
        return tuple(address_of(server, cluster.start_s) for server in self.servers)

    def start_trainer(self, name: str, arguments: Sequence[str], threads: int) -> None:
        """Start a process that trains, with so many threads of torch."""
        log = self._log(name.replace(" ", "-"))
        self.trainers.append(Child(name, arguments, log, threads))

    def look(self) -> None:
        """Raise ServerError for a process that has ended too early."""
        for child in (*self.servers, *([] if self._may_go else self.trainers)):
            code = child.exit_code
            if code not in (None, 0):
                raise ServerError(f"{child.name} ended with {_said(code)}{child.last_words()}")

    def ends(self) -> list[str]:
        """How those that train and have failed have ended, each told once."""
        failed = [it for it in self.trainers if it.exit_code and it.pid not in self._told]
        self._told |= {it.pid for it in failed}
        return [f"{it.name} ended with {_said(it.exit_code)}{it.last_words()}" for it in failed]

    def last_words(self) -> str:
        """The end of the log of a process that trains and has failed."""
        failed = (it for it in self.trainers if it.exit_code not in (None, 0))
        return next((f": {it.name}{it.last_words()}" for it in failed), "")

    def end(self, patience_s: float = 0.0) -> None:
        """End all: those that train have so long, all together, to end by themselves."""
        every = (*self.trainers, *self.servers)
        until = time.monotonic() + patience_s
        for trainer in self.trainers:
            trainer.wait(until - time.monotonic())
        for child in every:
            child.let_go()
        until = time.monotonic() + STOP_S
        for child in every:
            child.end(until - time.monotonic())
        self.trainers, self.servers = [], []

    def _log(self, name: str) -> Path | None:
        if self._folder is None:
            return None
        logs = self._folder / run_folder.LOGS
        logs.mkdir(exist_ok=True)
        return logs / f"{name}.log"


def _said(code: int | None) -> str:
    """How a process has ended."""
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
