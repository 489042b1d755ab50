"""A federation as its first server keeps it, seen by one of its clients and by its coordinator."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from downpour.errors import RefusedError, ServerError, WorkerLostError
from downpour.remote.beats import Beats
from downpour.remote.endpoint import RETRY_S

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from downpour.remote.server import RemoteServer

POLL_S = 1.0  # how long one question may wait
MAX_REASON = 1000  # characters of why somebody goes
GOODBYE_S = 5.0  # how long a server is tried that is told of an end: it may be gone itself


@dataclass(frozen=True, slots=True)
class Round:
    """A round that a client is to train in, with the seconds until it closes."""

    number: int
    left_s: float


class Enrolment:
    """Client `client` of a federation.

    settings: a fingerprint of the federation's settings, which all must have alike. timeout_s:
    after how long a silence it counts as lost. It waits `start_s` seconds for the coordinator, also
    where another federation has ended before. `next_round` is the first that it may be sampled in,
    `why_over` the reason once all is over. Raises RefusedError where its place is taken or its
    settings are others, WorkerLostError where no coordinator comes, and ServerError as all its
    calls do.
    """

    def __init__(
        self,
        server: RemoteServer,
        client: int,
        incarnation: int,
        settings: str,
        *,
        timeout_s: float,
        start_s: float,
    ) -> None:
        self.client = client
        self.why_over: str | None = None
        self._server, self._timeout_s = server, timeout_s
        self._who = {"client": client, "incarnation": incarnation}
        self._settings = settings
        self._enroll(start_s)

    def ask(self, is_to_stop: Callable[[], bool] = lambda: False) -> Round | None:
        """Wait for the next round that this client is sampled in; None once all is over.

        is_to_stop: whether to wait no longer, looked at about once a second; then it is None too.
        A client that was silent for too long, as on a machine that slept, enrolls once more.
        Raises WorkerLostError where the coordinator is lost, RefusedError where another process has
        taken the client's place.
        """
        wait_s = _poll_s(self._server)
        while not is_to_stop():
            try:
                self._beats.check()
                answer = self._server.ask("ask", {**self._who, "wait_s": wait_s})
            except RefusedError:
                self._beats.end()
                self._enroll(0.0)
                continue
            if "over" in answer:
                self.why_over = answer["over"]
                return None
            if "round" in answer:
                return Round(answer["round"], answer["left_s"])
        return None

    def is_under_way(self, number: int) -> bool:
        """Whether a round is not closed yet. RefusedError for who is not enrolled any more."""
        return bool(self._server.ask("client_beat", self._who)["round"] == number)

    def report(self, number: int, report: dict[str, Any]) -> None:
        """Tell that the update of a round is on all servers. RoundClosedError if that is late."""
        self._server.ask("report", {**self._who, "round": number, "report": report})

    def leave(self, error: str | None = None) -> None:
        """Take part no longer: finished, or failed with an error."""
        self._beats.end()
        request = {**self._who, "error": error[:MAX_REASON] if error else None}
        with contextlib.suppress(ServerError, WorkerLostError, RefusedError):
            self._server.ask("client_leave", request, deadline_s=_goodbye_s(self._server))

    def _enroll(self, start_s: float) -> None:
        until = time.monotonic() + start_s
        request = {**self._who, "settings": self._settings}
        while "round" not in (answer := self._server.ask("enroll", request)):
            if time.monotonic() >= until:
                raise WorkerLostError(
                    f"{self._server.endpoint}: {answer['not_yet']}; waited {start_s:g} s for a "
                    "coordinator, start it with `downpour federated`"
                )
            time.sleep(RETRY_S)
        self.next_round: int = answer["round"]
        self._beats = Beats(
            self._beat, timeout_s=self._timeout_s, deadline_s=self._server.deadline_s
        )

    def _beat(self, limit_s: float) -> None:
        self._server.ask("client_beat", self._who, deadline_s=limit_s)


class Coordination:
    """The coordinator of a federation of `num_clients` clients; see `serving.rounds.Rounds`.

    timeout_s: after how long a silence a client, or the coordinator, counts as lost. `next_round`
    is the first that it may open. A round before it that servers have not committed was opened by a
    coordinator that is gone: it is to be committed with nobody's update. Raises RefusedError where
    another federation is under way; all calls raise WorkerLostError once this one was lost, and
    ServerError.
    """

    def __init__(
        self,
        server: RemoteServer,
        incarnation: int,
        num_clients: int,
        settings: str,
        *,
        timeout_s: float,
    ) -> None:
        self._server = server
        self._who = {"incarnation": incarnation}
        request = {
            **self._who,
            "num_clients": num_clients,
            "settings": settings,
            "timeout_s": timeout_s,
        }
        self.next_round: int = server.ask("begin_federation", request)["round"]
        self._beats = Beats(self._beat, timeout_s=timeout_s, deadline_s=server.deadline_s)

    def clients(self) -> list[dict[str, Any]]:
        """All that have enrolled, by number: those "running" can be sampled."""
        self._beats.check()
        clients: list[dict[str, Any]] = self._server.ask("clients", self._who)["clients"]
        return clients

    def open(self, number: int, sampled: Collection[int], deadline_s: float) -> None:
        """Begin a round."""
        request = {"round": number, "sampled": sorted(sampled), "deadline_s": deadline_s}
        self._server.ask("open_round", {**self._who, **request})

    def watch(self, wait_s: float, limit_s: float | None = None) -> dict[str, Any]:
        """How the round stands, after `wait_s` seconds at most or once it could be closed.

        limit_s: how long the server may not be reached, if not for the deadline of a request.
        """
        self._beats.check()
        wait_s = min(wait_s, _poll_s(self._server))
        request = {**self._who, "wait_s": wait_s}
        return self._server.ask("watch_round", request, deadline_s=limit_s)

    def check(self) -> None:
        """Raise what was learned meanwhile: that this coordinator was lost."""
        self._beats.check()

    def close(self, number: int) -> dict[str, Any]:
        """End a round: what was heard of each sampled client, or why not."""
        return self._server.ask("close_round", {**self._who, "round": number})

    def end(self, reason: str) -> None:
        """End the federation, and tell its clients why."""
        self._beats.end()
        request = {**self._who, "reason": reason[:MAX_REASON]}
        with contextlib.suppress(ServerError, WorkerLostError, RefusedError):
            self._server.ask("end_federation", request, deadline_s=_goodbye_s(self._server))

    def _beat(self, limit_s: float) -> None:
        self._server.ask("coordinator_beat", self._who, deadline_s=limit_s)


def _poll_s(server: RemoteServer) -> float:
    """How long a question may wait, so that its answer comes within the deadline."""
    return min(POLL_S, server.deadline_s / 2)


def _goodbye_s(server: RemoteServer) -> float:
    return min(GOODBYE_S, server.deadline_s)
