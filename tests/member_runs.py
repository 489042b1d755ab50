"""Members of a run whose time passes when a test says so."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from downpour.errors import RefusedError, WorkerLostError
from downpour.serving.members import Members

if TYPE_CHECKING:
    from collections.abc import Collection

TIMEOUT_S = 10.0


class Clock:
    """Time passes when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Run:
    """All but the late have joined, rank r as incarnation 100 + r."""

    def __init__(
        self, num_workers: int, *, chief: bool = False, late: Collection[int] = (), **settings: Any
    ) -> None:
        self.clock = Clock()
        self.members = Members(num_workers, timeout_s=TIMEOUT_S, clock=self.clock, **settings)
        for rank in range(-1 if chief else 0, num_workers):
            if rank not in late:
                self.join(rank)

    def join(self, rank: int) -> None:
        self.members.join(rank, 100 + rank)

    def beat(self, rank: int, **report: Any) -> str | None:
        return self.members.beat(rank, 100 + rank, report)

    def leave(self, rank: int, error: str | None = None) -> None:
        self.members.leave(rank, 100 + rank, error)

    def meet(
        self, rank: int, name: str = "epoch", *, chief: bool = False, wait_s: float = 0.0
    ) -> dict[int, bytes] | None:
        return self.members.meet(
            name, rank, 100 + rank, payload(name, rank), with_chief=chief, wait_s=wait_s
        )

    def silence(self, *ranks: int) -> None:
        """Let time pass until the ranks are silent for too long; the others go on beating."""
        for _ in range(2):
            self.clock.now += 0.6 * TIMEOUT_S
            self.members.check()
            for member in self.members.snapshot():
                if member.rank not in ranks:
                    with suppress(RefusedError, WorkerLostError):
                        self.beat(member.rank, **member.report)

    def states(self) -> dict[int, str]:
        return {member.rank: member.state for member in self.members.snapshot()}


def payload(name: str, rank: int) -> bytes:
    return f"{rank} at {name}".encode()


def brought(*ranks: int, name: str = "epoch") -> dict[int, bytes]:
    return {rank: payload(name, rank) for rank in ranks}
