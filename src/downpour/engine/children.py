"""The processes that a run has started: servers, and those that train."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from downpour import folder as run_folder
from downpour.deployment import Deployment
from downpour.engine.processes import END_S, STOP_S, Child, address_of, start_server
from downpour.errors import ServerError, WorkerLostError

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

    def start_trainer(
        self, name: str, arguments: Sequence[str], threads: int, token: str | None
    ) -> None:
        """Start a process that trains, with so many threads of torch."""
        log = self._log(name.replace(" ", "-"))
        self.trainers.append(Child(name, arguments, log, token=token, threads=threads))

    @property
    def asked_by(self) -> int | None:
        """The signal by which somebody has asked one of them to stop: it is for the whole run."""
        every = (*self.servers, *self.trainers)
        return next((it.asked_by for it in every if it.asked_by is not None), None)

    def look(self) -> None:
        """Raise ServerError or WorkerLostError for a process that has ended too early."""
        self.look_at_servers()
        for trainer in () if self._may_go else self.trainers:
            if trainer.exit_code not in (None, 0):
                raise WorkerLostError(trainer.how_it_ended())

    def look_at_servers(self) -> None:
        """Raise ServerError for a server's process that has ended."""
        for number in range(len(self.servers)):
            self.require_server(number)

    def is_going(self, name: str) -> bool:
        """Whether a process that trains may still run: one that was not started here may."""
        return all(it.exit_code is None for it in self.trainers if it.name == name)

    def require_server(self, number: int) -> None:
        """Raise ServerError where the process of a server that was started here has ended."""
        servers = self.servers
        if number < len(servers) and servers[number].exit_code is not None:
            raise ServerError(servers[number].how_it_ended())

    def ends(self) -> list[str]:
        """How those that train and have failed have ended, each told once."""
        failed = [it for it in self.trainers if it.exit_code and it.pid not in self._told]
        self._told |= {it.pid for it in failed}
        return [it.how_it_ended() for it in failed]

    def last_words(self) -> str:
        """The end of the log of a process that trains and has failed."""
        failed = (it for it in self.trainers if it.exit_code not in (None, 0))
        return next((f": {it.name}{it.last_words()}" for it in failed), "")

    def end(self, patience_s: float = 0.0) -> None:
        """End all: those that train have so long, all together, to end by themselves."""
        self._wait_for_trainers(patience_s)
        self._end([*self.trainers, *self.servers], STOP_S)
        self.trainers, self.servers = [], []

    def end_trainers(self, patience_s: float) -> None:
        """End those that train, and let the servers go on."""
        self._wait_for_trainers(patience_s)
        self._end(self.trainers, END_S)

    def end_at_once(self) -> None:
        """End all, whatever they are at."""
        self._end([*self.trainers, *self.servers], END_S)
        self.trainers, self.servers = [], []

    def _wait_for_trainers(self, patience_s: float) -> None:
        until = time.monotonic() + patience_s
        for trainer in self.trainers:
            trainer.wait(until - time.monotonic())

    def _end(self, children: Sequence[Child], patience_s: float) -> None:
        for child in children:
            child.let_go()
        until = time.monotonic() + patience_s
        for child in children:
            child.end(until - time.monotonic())

    def _log(self, name: str) -> Path | None:
        if self._folder is None:
            return None
        logs = self._folder / run_folder.LOGS
        logs.mkdir(exist_ok=True)
        return logs / f"{name}.log"
