"""A process as a member of a run: it joins, lets hear of itself, meets the others, and leaves."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from downpour.errors import RefusedError, ServerError, WorkerLostError
from downpour.remote.beats import Beats
from downpour.remote.endpoint import nothing

if TYPE_CHECKING:
    from collections.abc import Callable

    from downpour.remote.server import RemoteServer

POLL_S = 5.0  # how long one question at a meeting may wait
GOODBYE_S = 5.0  # how long a server is tried that is told of an end: it may be gone itself


class Membership:
    """Member `rank` (-1: the chief) of run `name`, as the first server keeps it.

    num_workers: of the run. timeout_s: after how long a silence a member counts as lost. on_loss:
    whether the others then "continue" or "stop". beat_s: how often this one lets hear of itself.
    with_chief: whether the run has a chief, for whom meetings of all wait.
    """

    def __init__(
        self,
        server: RemoteServer,
        name: str,
        rank: int,
        incarnation: int,
        *,
        num_workers: int,
        timeout_s: float,
        on_loss: str,
        with_chief: bool,
    ) -> None:
        self.rank, self.num_workers, self.with_chief = rank, num_workers, with_chief
        self.report: Callable[[], dict[str, Any]] = dict
        self.watch: Callable[[], None] = nothing  # called while waiting at a meeting
        self.poll_s = min(POLL_S, server.deadline_s / 2)  # how often
        self.stop_reason: str | None = None
        self._server = server
        self._who = {"rank": rank, "incarnation": incarnation}
        request = {
            **self._who,
            "run": name,
            "num_workers": num_workers,
            "timeout_s": timeout_s,
            "on_loss": on_loss,
        }
        server.ask("join", request)
        self.beats = Beats(self.beat, timeout_s=timeout_s, deadline_s=server.deadline_s)

    def meet(
        self,
        name: str,
        payload: str = "",
        *,
        with_chief: bool = False,
        limit_s: float | None = None,
    ) -> dict[int, str]:
        """Wait until all members have come, and give what each brought, by rank.

        A member that is lost is not waited for. Raises WorkerLostError where the run stops, or
        where somebody has not come within `limit_s` seconds, as a worker that was never started.
        """
        until = None if limit_s is None else time.monotonic() + limit_s
        while True:
            met = self.come(name, payload, with_chief=with_chief, wait_s=self.poll_s)
            if met is not None:
                return met
            self.watch()
            if until is not None and time.monotonic() > until:
                raise WorkerLostError(self._missing(limit_s))

    def come(
        self, name: str, payload: str = "", *, with_chief: bool = False, wait_s: float
    ) -> dict[int, str] | None:
        """As `meet`, but waits `wait_s` seconds at most: None, to come again."""
        request = {
            **self._who,
            "name": name,
            "payload": payload,
            "with_chief": with_chief and self.with_chief,
            "wait_s": wait_s,
        }
        answer = self._server.ask("meet", request)
        if "payloads" not in answer:
            return None
        return {int(rank): text for rank, text in answer["payloads"].items()}

    def _missing(self, limit_s: float | None) -> str:
        here = {member["rank"] for member in self.members()}
        expected = {*range(self.num_workers), *([-1] if self.with_chief else [])}
        names = ", ".join(
            "the chief" if rank < 0 else f"worker {rank}" for rank in sorted(expected - here)
        )
        return (
            f"waited {limit_s:g} s for {names or 'others that have joined'}; start all "
            f"{self.num_workers} workers of the run"
        )

    def members(self) -> list[dict[str, Any]]:
        """All members with their states and last reports."""
        members: list[dict[str, Any]] = self._server.ask("members", {})["members"]
        return members

    def halt(self, reason: str) -> None:
        """Ask the workers to stop after their step."""
        self._server.ask("halt", {"reason": reason})

    def leave(self, error: str | None = None) -> None:
        """Say goodbye: finished, or failed with an error, which stops the run for the others."""
        self.beats.end()
        limit_s = min(GOODBYE_S, self._server.deadline_s)
        with contextlib.suppress(ServerError):  # then it is gone, and need not be told
            with contextlib.suppress(WorkerLostError, RefusedError):  # the run has stopped
                self.beat(limit_s)
            with contextlib.suppress(WorkerLostError, RefusedError):
                self._server.ask("leave", {**self._who, "error": error}, deadline_s=limit_s)

    def beat(self, deadline_s: float | None = None) -> None:
        """Let hear of this member; WorkerLostError if it was dropped, or the run stops."""
        request = {**self._who, "report": self.report()}
        answer = self._server.ask("beat", request, deadline_s=deadline_s)
        self.stop_reason = answer.get("stop")

    def check(self) -> None:
        """Raise what beats have learned: that this member was dropped, or that the run stops.

        Also that their server was not reached for as long as a request may take.
        """
        self.beats.check()


def client_of(rank: int, incarnation: int) -> str:
    """The identity by which servers know a member of a run as a client."""
    return f"{rank}-{incarnation:x}"
