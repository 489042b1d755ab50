"""The clients of a federation as its coordinator has them: started, waited for, and named."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from downpour.engine.processes import cluster_options
from downpour.errors import WorkerLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from downpour.engine.children import Children
    from downpour.engine.cluster import Cluster
    from downpour.remote.enrolment import Coordination
    from downpour.stopping import Stopping

LOOK_S = 0.1  # between two looks for clients that have come


class Clients:
    """The `number` clients of a federation; `say` tells of those that are missing or have failed.

    Processes that are started here are among the `children`; others may come from elsewhere.
    """

    def __init__(
        self, number: int, children: Children, cluster: Cluster, say: Callable[[str], None]
    ) -> None:
        self._number, self._children, self._cluster, self._say = number, children, cluster, say

    def start(self, target: str, addresses: Sequence[str], changes: Sequence[str]) -> None:
        """Start a process for each; `changes` are options that change what `target` gives."""
        token = self._cluster.security.token
        cluster = self._cluster
        shared = [
            *("--servers", ",".join(addresses), "--clients", str(self._number)),
            *("--of-parent", "--client-timeout", str(cluster.worker_timeout_s)),
            *cluster_options(cluster),
            *changes,
        ]
        for client in range(self._number):
            arguments = ["client", target, "--client", str(client), *shared]
            self._children.start_trainer(f"client {client}", arguments, 1, token)

    def wait(self, coordination: Coordination, stopping: Stopping, *, for_all: bool) -> list[int]:
        """Those that are here, once all are or no more will come; none after Ctrl-C or SIGTERM.

        for_all: else one is enough. Raises WorkerLostError where none comes within `start_s`
        seconds, ServerError for a server's process that has ended.
        """
        wanted = self._number if for_all else 1
        until = time.monotonic() + self._cluster.start_s
        is_told = for_all
        while not stopping.requested:
            present = self.present(coordination)
            self.look()
            self.hear(stopping)
            is_late = time.monotonic() > until
            if present and (is_late or len(present) >= wanted - self._num_ended()):
                if len(present) < wanted:
                    self._say(f"{len(present)} of {wanted} clients are here; others may come")
                return present
            self._require_hope(is_late=is_late)
            if not is_told:
                self._say("no client is here; waiting for one to come")
                is_told = True
            time.sleep(LOOK_S)
        return []

    def present(self, coordination: Coordination) -> list[int]:
        """Those that are here, by number."""
        return [it["client"] for it in coordination.clients() if it["state"] == "running"]

    def look(self) -> None:
        """Raise ServerError for a server that has ended, and name clients that have failed."""
        self._children.look()
        for end in self._children.ends():
            self._say(end)

    def hear(self, stopping: Stopping) -> None:
        """Stop where somebody has asked a server that was started here to."""
        if self._children.asked_by is not None:
            stopping.request(self._children.asked_by)

    def _num_ended(self) -> int:
        """How many processes that were started here have ended."""
        return sum(child.exit_code is not None for child in self._children.trainers)

    def _require_hope(self, *, is_late: bool) -> None:
        """Raise WorkerLostError where no client will come."""
        num_started = len(self._children.trainers)
        if num_started and self._num_ended() == num_started:
            raise WorkerLostError(f"all clients have ended{self._children.last_words()}")
        if is_late:
            raise WorkerLostError(
                f"no client came within {self._cluster.start_s:g} s; start them with "
                "`downpour client`"
            )
