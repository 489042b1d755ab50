"""The members of a run: who takes part, who was lost, and the meetings at which they wait."""

from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from downpour.errors import RefusedError, SettingError, WorkerLostError
from downpour.serving.held import Account, json_bytes
from downpour.wire import cut

if TYPE_CHECKING:
    from collections.abc import Callable

State: TypeAlias = Literal["running", "left", "lost", "failed"]
OnLoss: TypeAlias = Literal["continue", "stop"]

CHIEF = -1
POLL_S = 0.2  # who waits at a meeting looks this often for members that went silent
KEPT = 256  # decided meetings that are kept even when all have fetched the answer: a reply can fail
MAX_OPEN = 256  # meetings to which somebody has come, and that are not decided
KEPT_IN_NEED = 4  # of them, where there is no room
MEETING_BYTES = 1000  # that a meeting takes beside its payloads, and a payload beside its content


@dataclass(frozen=True, slots=True)
class Member:
    """A worker of the run, or its chief (rank -1), as of a moment.

    incarnation: tells a process from another one that took the same rank.
    seen_s_ago: seconds since it last called.
    report: what it said last in a beat.
    error: what it raised if it failed, how it was dropped if it was lost, else None.
    """

    rank: int
    incarnation: int
    state: State
    seen_s_ago: float
    report: dict[str, Any]
    error: str | None


@dataclass(slots=True)
class _Life:
    """One process in its place in the run."""

    incarnation: int
    seen: float
    state: State = "running"
    report: dict[str, Any] = field(default_factory=dict)
    report_bytes: int = 0
    error: str | None = None

    def at_step(self) -> str:
        step = self.report.get("step")
        return "" if step is None else f" at step {step}"


@dataclass(slots=True)
class _Meeting:
    """What each rank brought, and once it is decided what everyone takes home."""

    name: str
    with_chief: bool
    payloads: dict[int, bytes] = field(default_factory=dict)
    answer: dict[int, bytes] | None = None
    fetched: set[int] = field(default_factory=set)
    num_bytes: int = 0


class Members:
    """Keeps the members of a run, for calls from many threads.

    A member that does not call for longer than `timeout_s` seconds is lost; waiting at a meeting
    is no sign of life, coming to it or asking again is. The loss of the chief stops the run, the
    loss of a worker does where `on_loss` is "stop", and an error of a member always does. `clock`
    gives seconds, and tells how long a member was silent. What is kept of meetings and reports has
    its room in `account`.
    """

    def __init__(
        self,
        num_workers: int,
        *,
        timeout_s: float,
        on_loss: OnLoss = "stop",
        clock: Callable[[], float] = time.monotonic,
        account: Account | None = None,
    ) -> None:
        if num_workers < 1:
            raise SettingError(f"num_workers must be 1 or more, got {num_workers}")
        if not 0.0 < timeout_s < math.inf:
            raise SettingError(f"timeout_s must be a finite number of s above 0, got {timeout_s}")
        if on_loss not in get_args(OnLoss):
            raise SettingError(f'on_loss must be "continue" or "stop", got {on_loss!r}')
        self.num_workers = num_workers
        self.timeout_s = timeout_s
        self.on_loss = on_loss
        self._clock = clock
        self._account = account or Account()
        self._lives: dict[int, _Life] = {}
        self._open: dict[str, _Meeting] = {}
        self._decided: dict[str, _Meeting] = {}
        self._looked_at = clock()
        self.is_watched = False  # `check` is called all the time: a gap is this process's own
        self._reason: str | None = None
        self._failure: str | None = None
        self._changed = threading.Condition()  # guards all of the above

    @property
    def is_over(self) -> bool:
        """Whether all have come and gone: every rank was taken, and nobody is running."""
        with self._changed:
            self._drop_silent()
            workers = self._lives.keys() - {CHIEF}
            is_running = any(life.state == "running" for life in self._lives.values())
            has_ended = len(workers) == self.num_workers or self._failure is not None
            return bool(self._lives) and has_ended and not is_running

    # The calls of a member.

    def join(self, rank: int, incarnation: int) -> None:
        """Take the place of a rank; once more by the same incarnation changes nothing.

        RefusedError if the rank is not one of the run or not free; WorkerLostError if the run has
        stopped.
        """
        with self._changed:
            self._drop_silent()
            if not CHIEF <= rank < self.num_workers:
                raise RefusedError(
                    f"rank {rank} is none of this run: its {self.num_workers} workers have ranks "
                    f"0 to {self.num_workers - 1}, its chief has {CHIEF}"
                )
            life = self._lives.get(rank)
            if life is None:
                self._go_on()
                self._lives[rank] = _Life(incarnation, self._clock())
            elif life.state == "running" and life.incarnation == incarnation:
                life.seen = self._clock()
            else:
                raise RefusedError(_taken(rank, life))

    def beat(self, rank: int, incarnation: int, report: dict[str, Any]) -> str | None:
        """Give a sign of life and a report; the reason to stop, None while the run goes on.

        report: of any content; its "step" is named if the member is lost. Raises as `meet` does.
        """
        num_bytes = json_bytes(json.dumps(report).encode())
        with self._changed:
            life = self._called(rank, incarnation)
            self._keep(num_bytes - life.report_bytes)
            life.report, life.report_bytes = dict(report), num_bytes
            self._go_on()
            return self._reason

    def leave(self, rank: int, incarnation: int, error: str | None = None) -> None:
        """Take part no longer; with the text of an error the run stops for the others.

        Once more changes nothing. RefusedError before `join`, WorkerLostError after a loss.
        """
        with self._changed:
            self._drop_silent()
            life = self._joined(rank, incarnation)
            if life.state != "running":
                return
            life.seen = self._clock()
            error = None if error is None else cut(error)
            life.state, life.error = "left" if error is None else "failed", error
            if error is not None:
                self._fail(f"{_name(rank)} failed{life.at_step()}, and the run stops: {error}")
            self._settle()
            self._changed.notify_all()

    def meet(
        self,
        name: str,
        rank: int,
        incarnation: int,
        payload: bytes,
        *,
        with_chief: bool,
        wait_s: float,
    ) -> dict[int, bytes] | None:
        """Wait for all workers (and the chief) at a meeting; the payload of each rank that came.

        Everyone gets the same. Who left or was lost is not waited for, but counts if it came
        before. None after `wait_s` seconds: ask again, with the same payload, as after a broken
        connection. RefusedError for who is not a running member, or asks for something else than
        before; WorkerLostError for who was dropped, and for everyone once the run has stopped.
        """
        until = time.monotonic() + wait_s  # a thread waits in real time, whatever the clock
        with self._changed:
            self._called(rank, incarnation)
            self._go_on()
            meeting = self._come(name, rank, payload, with_chief)
            while meeting.answer is None and (left_s := until - time.monotonic()) > 0.0:
                self._changed.wait(min(left_s, POLL_S))
                self._drop_silent()
                self._running(rank, incarnation)
                self._go_on()
            if meeting.answer is None:
                return None
            meeting.fetched.add(rank)
            return dict(meeting.answer)

    # The calls for the chief and the server.

    def request_stop(self, reason: str) -> None:
        """Answer all beats with a reason to stop, the first one given; meetings go on."""
        with self._changed:
            self._drop_silent()
            if self._reason is None:
                self._reason = cut(reason)

    def check(self) -> None:
        """Drop the members that were silent for longer than `timeout_s`."""
        with self._changed:
            self._drop_silent()

    def snapshot(self) -> tuple[Member, ...]:
        """All that have joined, also those that are gone, by rank."""
        with self._changed:
            self._drop_silent()
            now = self._clock()
            return tuple(
                Member(rank, life.incarnation, life.state, now - life.seen, life.report, life.error)
                for rank, life in sorted(self._lives.items())
            )

    # Who is here. From here on the lock is held.

    def _joined(self, rank: int, incarnation: int) -> _Life:
        """The member that calls, if it was not lost."""
        life = self._lives.get(rank)
        if life is None or life.incarnation != incarnation:
            raise RefusedError(
                f"{_name(rank)} (incarnation {incarnation}) is no member of this run: it must "
                "join before it beats, meets or leaves"
            )
        if life.state == "lost":
            raise WorkerLostError(
                f"{life.error}. It cannot come back: start a new run, with a longer timeout if "
                "members may be silent for so long"
            )
        return life

    def _running(self, rank: int, incarnation: int) -> _Life:
        life = self._joined(rank, incarnation)
        if life.state != "running":
            raise RefusedError(f"{_name(rank)} has left this run: it can beat and meet no more")
        return life

    def _called(self, rank: int, incarnation: int) -> _Life:
        """The running member that calls; it was seen now, unless it was silent for too long."""
        self._drop_silent()
        life = self._running(rank, incarnation)
        life.seen = self._clock()
        return life

    def _go_on(self) -> None:
        if self._failure is not None:
            raise WorkerLostError(self._failure)

    def _fail(self, message: str) -> None:
        if self._failure is None:  # what comes after it is mostly a consequence
            self._failure = message

    def _drop_silent(self) -> None:
        now = self._clock()
        paused_s = now - self._looked_at
        self._looked_at = now
        if self.is_watched and paused_s > self.timeout_s / 2:
            # It is this process that was stopped, and heard nobody.
            for life in self._lives.values():
                life.seen += paused_s
        silent = [
            (now - life.seen, rank)
            for rank, life in self._lives.items()
            if life.state == "running" and now - life.seen > self.timeout_s
        ]
        for silent_s, rank in sorted(silent, reverse=True):
            life = self._lives[rank]
            life.state = "lost"
            life.error = (
                f"{_name(rank)} was dropped{life.at_step()} after {silent_s:.1f} s of silence: a "
                f"member is lost when it is silent for longer than {self.timeout_s:g} s"
            )
            self._fail_of_loss(rank, life.error)
        if silent:
            self._settle()
            self._changed.notify_all()

    def _fail_of_loss(self, rank: int, loss: str) -> None:
        """Stop the run if it cannot or must not go on without a member that was lost."""
        states = [life.state for other, life in self._lives.items() if other != CHIEF]
        if rank == CHIEF:
            self._fail(f"{loss}. The run stops without its chief: start a new run")
        elif self.on_loss == "stop":
            self._fail(
                f'{loss}. The run stops: set on_worker_loss="continue" to go on without lost '
                "workers"
            )
        elif states == ["lost"] * self.num_workers:
            self._fail(f"all {self.num_workers} workers are lost. At last {loss}")

    # Meetings.

    def _come(self, name: str, rank: int, payload: bytes, with_chief: bool) -> _Meeting:
        """The meeting of a name, with what a rank brings to it."""
        if rank == CHIEF and not with_chief:
            raise RefusedError(f"meeting {name!r}: the chief came to a meeting without the chief")
        meeting = self._open.get(name) or self._decided.get(name)
        if meeting is None:
            if len(self._open) >= MAX_OPEN:
                raise RefusedError(
                    f"meeting {name!r:.200}: {len(self._open)} other meetings wait for members, "
                    "and may be no more: come to those first"
                )
            num_bytes = MEETING_BYTES + 4 * len(name)
            self._keep(num_bytes)
            meeting = self._open[name] = _Meeting(name, with_chief, num_bytes=num_bytes)
        if meeting.with_chief != with_chief:
            raise RefusedError(
                f"meeting {name!r}: {_name(rank)} came with with_chief={with_chief}, others with "
                f"{meeting.with_chief}: a meeting has one name and one group"
            )
        if rank not in meeting.payloads:
            self._keep(MEETING_BYTES + len(payload))
            meeting.num_bytes += MEETING_BYTES + len(payload)
        if meeting.payloads.setdefault(rank, payload) != payload:
            raise RefusedError(
                f"meeting {name!r}: {_name(rank)} came again with another payload, of "
                f"{len(payload)} bytes: who asks again must bring the same"
            )
        self._settle()
        return meeting

    def _settle(self) -> None:
        """Decide the meetings that all have come to."""
        workers = self._lives.keys() - {CHIEF}
        if len(workers) < self.num_workers:
            return
        gone = self._gone()
        for meeting in list(self._open.values()):
            group = workers | {CHIEF} if meeting.with_chief else workers
            if group <= meeting.payloads.keys() | gone:
                meeting.answer = dict(sorted(meeting.payloads.items()))
                self._decided[meeting.name] = self._open.pop(meeting.name)
                self._forget(meeting.with_chief)
                self._changed.notify_all()

    def _forget(self, with_chief: bool, kept: int = KEPT) -> None:
        """Forget old meetings of a group that nobody will ask for any more.

        Those with the chief are counted apart: between two of them many without it may pass, and
        the chief may still have to ask again for the first.
        """
        gone = self._gone()
        decided = [it for it in self._decided.values() if it.with_chief == with_chief]
        for meeting in decided[:-kept]:
            if meeting.payloads.keys() <= meeting.fetched | gone:
                del self._decided[meeting.name]
                self._account.drop(meeting.num_bytes)

    def _keep(self, num_bytes: int) -> None:
        """Have room for more. RefusedError where there is none, also without old meetings."""
        try:
            self._account.add(num_bytes)
        except RefusedError:
            for with_chief in (True, False):
                self._forget(with_chief, KEPT_IN_NEED)
            self._account.add(num_bytes)

    def end(self) -> None:
        """Keep nothing more, where another run takes the place of this one."""
        with self._changed:
            self._account.clear()
            self._open, self._decided = {}, {}

    def _gone(self) -> set[int]:
        return {rank for rank, life in self._lives.items() if life.state != "running"}


def _name(rank: int) -> str:
    return "the chief" if rank == CHIEF else f"worker {rank}"


def _taken(rank: int, life: _Life) -> str:
    """Why a place cannot be taken, and what to do."""
    if life.state == "running":
        return (
            f"rank {rank} is taken by another running process: give each a rank of its own; if "
            "that one died, its place is not taken again within a run, start a new run"
        )
    how = life.error if life.state == "lost" else f"{_name(rank)} has left"
    return f"rank {rank} is not free: {how}. A place is taken once in a run: start a new run"
