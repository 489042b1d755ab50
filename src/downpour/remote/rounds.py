"""The client of a client in federated training: what it sends is one update a round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from downpour.errors import RefusedError, RoundClosedError, TableError, WorkerLostError
from downpour.remote.staging import StagingClient

if TYPE_CHECKING:
    from collections.abc import Sequence

    from downpour.deployment import Deployment
    from downpour.remote.enrolment import Enrolment, Round
    from downpour.remote.server import RemoteServer
    from downpour.transport import Floats


class RoundClient(StagingClient):
    """A federation's client: it reads what the round before has left, and stages its update.

    `losses` and `counted["steps"]` are of its round, for the report of it.
    """

    def __init__(
        self,
        deployment: Deployment,
        servers: Sequence[RemoteServer],
        enrolment: Enrolment,
        *,
        start_s: float = 60.0,
    ) -> None:
        super().__init__(deployment, servers, rank=enrolment.client, start_s=start_s)
        self.enrolment = enrolment
        self._begun = 0  # the last round
        self._traffic = self._bytes()  # when a round was last reported

    def close(self) -> None:
        """Leave the federation and end the connections."""
        self.abandon(None)

    def abandon(self, error: str | None) -> None:
        """End the connections; the coordinator names a client that left with an error."""
        if not self._closed.is_set():
            self.enrolment.leave(error)
        super().abandon(None)

    def init_dense(self, table: str, flat: Floats) -> bool:
        """The coordinator gives dense tables their first weights."""
        return False

    def begin_round(self, given: Round) -> None:
        """Train for this round from now on; what was staged for another one is forgotten.

        Raises WorkerLostError for a round that was begun before: servers may have an update of it,
        or a part of one, and would add another one to it.
        """
        if given.number <= self._begun:
            raise WorkerLostError(
                f"client {self.rank} was given round {given.number} again, after it has failed in "
                "it: a round is begun once; start the client anew"
            )
        self._staged.clear()
        self._tables.clear()
        self._dense.clear()
        self._begun = given.number
        self.step = self.after = given.number - 1

    def end_step(self, samples: int, *, goes_on: bool = True) -> float:
        """Report the round's update once all servers have it. RoundClosedError if that is late.

        Raises TableError where servers do not take it though the round is under way, RefusedError
        where this client was taken for lost. Its bytes are all since the last report that counts.
        """
        number = self.step + 1
        self._await_staged(number)
        now = self._bytes()
        report = {
            "samples": samples,
            "steps": self.counted["steps"],
            "losses": self.losses,
            "tables": sorted(self._tables),
            **{name: now[name] - self._traffic[name] for name in now},
        }
        self.enrolment.report(number, report)
        self._traffic = now
        return 1.0

    def _await_staged(self, number: int) -> None:
        try:
            self.finish()
        except (TableError, RefusedError) as error:  # servers stage for one round alone
            if self.enrolment.is_under_way(number):
                raise TableError(
                    f"the servers do not take this client's update of round {number}: {error}"
                ) from error
            raise RoundClosedError(f"round {number} has closed without this client: {error}") from (
                error
            )

    def _bytes(self) -> dict[str, int]:
        """Of keys and values on all connections so far."""
        report = self.report()
        return {name: report[name] for name in ("bytes_sent", "bytes_received")}
