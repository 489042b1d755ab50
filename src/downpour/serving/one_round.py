"""One round of federated training: who is waited for, whose update counts, and why not others'."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from downpour.errors import RefusedError, RoundClosedError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Task:
    """A round to train in, with the seconds that are left until its deadline."""

    round: int
    left_s: float


@dataclass(frozen=True, slots=True)
class RoundView:
    """A round as of a moment.

    reports: of the clients whose updates count. dropped: why there will be none of another: "lost",
    "failed" or "left", and once the round is closed "late".
    """

    number: int
    sampled: tuple[int, ...]
    reports: Mapping[int, dict[str, Any]]
    dropped: Mapping[int, str]
    is_closed: bool


@dataclass(slots=True)
class OneRound:
    """A round from its opening on; for one thread at a time.

    Each sampled client is in one of `waiting`, `reports` and `dropped`, and leaves only the first.
    deadline: by the clock of the caller, in seconds, which is `deadline_s` after the opening.
    reports: with the incarnation of the process that has reported.
    """

    number: int
    sampled: tuple[int, ...]
    deadline_s: float
    deadline: float
    waiting: set[int]
    reports: dict[int, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    dropped: dict[int, str] = field(default_factory=dict)
    is_closed: bool = False
    num_bytes: int = 0  # of the reports

    def can_be_closed(self, now: float) -> bool:
        """Whether nobody is waited for any more."""
        return not self.waiting or now >= self.deadline

    def task(self, client: int, now: float) -> Task | None:
        """What a client has to do, None if there is nothing or it is too late."""
        left_s = self.deadline - now
        return Task(self.number, left_s) if client in self.waiting and left_s > 0.0 else None

    def count(self, client: int, incarnation: int, report: dict[str, Any]) -> None:
        """Count an update; the same once more changes nothing.

        RoundClosedError if the round has closed without it, RefusedError if the client is not
        waited for.
        """
        if self.reports.get(client) == (incarnation, report):
            return
        if client not in self.waiting:
            kind = RoundClosedError if self.is_closed else RefusedError
            raise kind(
                f"round {self.number} {'has closed' if self.is_closed else 'goes on'} without this "
                f"update of client {client}: {self._why_not(client, incarnation)}. Ask for the "
                "next round"
            )
        self.waiting.remove(client)
        self.reports[client] = incarnation, dict(report)

    def drop(self, client: int, why: str) -> None:
        """Wait for a client no longer; no change if it was not waited for."""
        if client in self.waiting:
            self.waiting.remove(client)
            self.dropped[client] = why

    def close(self, now: float) -> None:
        """Drop who is still waited for; once more changes nothing."""
        passed_s = self.deadline_s - max(self.deadline - now, 0.0)
        why = f"late: no update within {round(passed_s, 1):g} s"
        self.dropped |= dict.fromkeys(self.waiting, why)
        self.waiting.clear()
        self.is_closed = True

    def view(self) -> RoundView:
        """The round as of now."""
        reports = {client: dict(report) for client, (_, report) in sorted(self.reports.items())}
        dropped = dict(sorted(self.dropped.items()))
        return RoundView(self.number, self.sampled, reports, dropped, self.is_closed)

    def _why_not(self, client: int, incarnation: int) -> str:
        """Why a client is not waited for."""
        if client in self.reports:
            reporter, _ = self.reports[client]
            who = "it" if reporter == incarnation else "another process in its place"
            return f"{who} has reported something else before, and that counts"
        return self.dropped.get(client, "it was not sampled")
