"""The rounds of federated training: who is sampled, who has reported, and whose update counts."""

from __future__ import annotations

import json
import math
import threading
import time
from typing import TYPE_CHECKING, Any

from downpour.errors import RefusedError, RoundClosedError, SettingError, WorkerLostError
from downpour.serving.enrolled import Enrolled
from downpour.serving.held import Account, json_bytes
from downpour.serving.one_round import OneRound
from downpour.wire import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from downpour.serving.enrolled import ClientView, Life, State
    from downpour.serving.one_round import RoundView, Task

POLL_S = 0.2  # who waits looks this often for deadlines and for who went silent
SHORTEST_PAUSE_S = 0.5  # a server looks a few times a second: shorter gaps are no pause of it


class Rounds:
    """Keeps the clients and the rounds of a federation, for calls from many threads.

    settings: a fingerprint of how clients train, which all must have alike. first_round: the number
    of the first round to come. coordinator: the incarnation of the process that opens and closes
    the rounds. Who does not call for longer than `timeout_s` seconds is lost; waiting is no sign of
    life, asking again is. A lost client may come back in a later round, the loss of the coordinator
    ends the federation. Once `check` was called it must be called all the time: a gap is a pause of
    this process, which counts for nobody's silence and for no deadline. `clock` gives seconds.
    Reports have their room in `account`.
    """

    def __init__(
        self,
        num_clients: int,
        *,
        settings: str,
        timeout_s: float,
        first_round: int,
        coordinator: int,
        clock: Callable[[], float] = time.monotonic,
        account: Account | None = None,
    ) -> None:
        for name, number in (("num_clients", num_clients), ("first_round", first_round)):
            if number < 1:
                raise SettingError(f"{name} must be 1 or more, got {number}")
        if not 0.0 < timeout_s < math.inf:
            raise SettingError(f"timeout_s must be a finite number of s above 0, got {timeout_s}")
        self.timeout_s = timeout_s
        self.coordinator = coordinator
        self.account = account or Account()
        self._clock = clock
        self._clients = Enrolled(num_clients, settings=settings, timeout_s=timeout_s)
        self._next = first_round  # the number of the next round to be opened
        self._round: OneRound | None = None  # the last that was opened
        self._before: OneRound | None = None  # and the one before it
        self._now = self._coordinator_seen = clock()  # the time of the last look
        self._is_watched = False
        self._reason: str | None = None  # why the federation was ended
        self._failure: str | None = None  # how its coordinator was lost
        self._lock = threading.Lock()  # guards all of the above
        self._for_clients = threading.Condition(self._lock)  # they wait for a round
        self._for_coordinator = threading.Condition(self._lock)  # it waits for what comes of it

    @property
    def is_over(self) -> bool:
        """Whether the federation has ended, or its coordinator was lost."""
        with self._lock:
            self._look()
            return self._has_ended()

    # The calls of a client.

    def enroll(self, client: int, incarnation: int, settings: str) -> int:
        """Take the place of a client; the number of the first round that it can be sampled in.

        Once more by the same running process changes nothing; who has left, failed or was lost
        starts afresh. RefusedError if the number is not one of the federation or is taken, or the
        settings are others; WorkerLostError once the federation is over.
        """
        with self._lock:
            self._look()
            self._go_on()
            if self._reason is not None:
                raise WorkerLostError(
                    f"client {client} cannot enroll, the federation is over: {self._reason}"
                )
            life = self._clients.enroll(
                client, incarnation, settings, now=self._now, next_round=self._next
            )
            return life.since_round

    def ask(self, client: int, incarnation: int, *, wait_s: float) -> Task | str | None:
        """Wait for an open round that this client is to report to; the same when asked again.

        A text is the reason for which the federation has ended. None after `wait_s` seconds. A
        round whose deadline has passed is begun by nobody. Raises as `beat` does.
        """
        until = time.monotonic() + wait_s  # a thread waits in real time, whatever the clock
        with self._lock:
            self._look()
            if self._reason is None:
                self._called(client, incarnation)
            while True:
                answer = self._answer(client, incarnation)
                left_s = until - time.monotonic()
                if answer is not None or left_s <= 0.0:
                    return answer
                self._for_clients.wait(min(left_s, POLL_S))
                self._look()

    def report(self, client: int, incarnation: int, number: int, report: dict[str, Any]) -> None:
        """Count this client's update of a round, which all servers have.

        The same once more changes nothing, also after the round has closed with it.
        RoundClosedError if the round has closed without it. RefusedError if this process is not,
        or no longer, waited for in the round; else raises as `beat` does.
        """
        with self._lock:
            self._called(client, incarnation)
            given = self._find(number)
            if given is None:
                kind = RoundClosedError if number < self._next else RefusedError
                raise kind(f"client {client} reports round {number}, but {self._standing()}")
            if client in given.waiting:
                num_bytes = json_bytes(json.dumps(report).encode())
                self.account.add(num_bytes)
                given.num_bytes += num_bytes
            given.count(client, incarnation, report)
            self._for_coordinator.notify_all()

    def beat(self, client: int, incarnation: int) -> int:
        """Give a sign of life; the number of the round under way, or of that to come.

        RefusedError for who is not enrolled, or no longer: it may enroll anew. WorkerLostError if
        the coordinator was lost.
        """
        with self._lock:
            self._called(client, incarnation)
            return self._next if self._under_way() is None else self._next - 1

    def leave(self, client: int, incarnation: int, error: str | None = None) -> None:
        """Take part no longer, with the text of an error if that is why.

        Once more changes nothing. RefusedError for who is not enrolled, or was lost.
        """
        with self._lock:
            self._look()
            life = self._clients.here(client, incarnation)
            if life.state == "running":
                life.seen = self._now
                self._retire(client, life, "left" if error is None else "failed", error)

    # The calls of the coordinator, each a sign of life of it. RefusedError for another incarnation,
    # WorkerLostError once it was lost.

    def open(
        self, incarnation: int, number: int, sampled: Collection[int], deadline_s: float
    ) -> None:
        """Begin the next round, with clients that have enrolled; those gone by now are dropped.

        The same once more changes nothing. RefusedError for another number, for no, unknown or
        repeated clients, before the round under way is closed, and once the federation has ended.
        """
        with self._lock:
            self._coordinated(incarnation)
            last, clients = self._round, tuple(sorted(sampled))
            asked = number, clients, deadline_s
            if last is not None and asked == (last.number, last.sampled, last.deadline_s):
                return
            lives = self._openable(number, clients, deadline_s)
            deadline = self._now + deadline_s
            opened = OneRound(number, clients, deadline_s, deadline, waiting=set(clients))
            for client, life in lives.items():
                if life.state != "running":
                    opened.drop(client, life.why_gone())
            if self._before is not None:
                self.account.drop(self._before.num_bytes)
            self._before, self._round, self._next = last, opened, number + 1
            self._for_clients.notify_all()

    def watch(self, incarnation: int, *, wait_s: float) -> RoundView:
        """Wait until the round can be closed; how it stands then, or after `wait_s` seconds.

        It can be once every sampled client has reported or is dropped, or its deadline has passed.
        RefusedError before the first round.
        """
        until = time.monotonic() + wait_s
        with self._lock:
            self._coordinated(incarnation)
            given = self._round
            if given is None:
                raise RefusedError(f"no round has been opened: open round {self._next} first")
            while not given.can_be_closed(self._now):
                left_s = until - time.monotonic()
                if left_s <= 0.0:
                    break
                self._for_coordinator.wait(min(left_s, POLL_S))
                self._look()
                self._go_on()
            return given.view()

    def close(self, incarnation: int, number: int) -> RoundView:
        """End a round, from now on no report of it counts; the same view when closed again.

        Who was sampled and has not reported is dropped. RefusedError for a round that was not
        opened, or is no longer kept.
        """
        with self._lock:
            self._coordinated(incarnation)
            given = self._find(number)
            if given is None:
                raise RefusedError(f"round {number} cannot be closed: {self._standing()}")
            given.close(self._now)
            self._for_coordinator.notify_all()
            return given.view()

    def coordinate(self, incarnation: int) -> tuple[ClientView, ...]:
        """Give a sign of life; all that have enrolled, also those that are gone, by number."""
        with self._lock:
            self._coordinated(incarnation)
            return self._clients.views(self._now)

    def end(self, incarnation: int, reason: str) -> None:
        """End the federation and the round under way; of several reasons the first is told."""
        with self._lock:
            self._coordinated(incarnation)
            if self._reason is None:
                self._reason = cut(reason)
                if (given := self._under_way()) is not None:
                    given.close(self._now)
                self._for_clients.notify_all()
                self._for_coordinator.notify_all()

    # The call of the server.

    def check(self) -> None:
        """Drop the clients that fell silent; a silent coordinator ends the federation."""
        with self._lock:
            self._look()
            self._is_watched = True

    # Who is here. From here on the lock is held.

    def _called(self, client: int, incarnation: int) -> None:
        """Hear a running client; it was seen now, unless it was silent for too long."""
        self._look()
        self._go_on()
        self._clients.running(client, incarnation).seen = self._now

    def _coordinated(self, incarnation: int) -> None:
        """Hear the coordinator."""
        self._look()
        if incarnation != self.coordinator:
            raise RefusedError(
                f"incarnation {incarnation} does not coordinate this federation, another process "
                f"does: end that one, or begin once it is lost, after {self.timeout_s:g} s of "
                "silence"
            )
        self._go_on()
        self._coordinator_seen = self._now

    def _has_ended(self) -> bool:
        return self._reason is not None or self._failure is not None

    def _go_on(self) -> None:
        if self._failure is not None:
            raise WorkerLostError(self._failure)

    def _look(self) -> None:
        """Drop the silent."""
        now = self._clock()
        paused_s = now - self._now
        self._now = now
        if self._has_ended():
            return
        if self._is_watched and paused_s > max(self.timeout_s / 2, SHORTEST_PAUSE_S):
            # It is this process that was stopped, and heard nobody.
            self._coordinator_seen += paused_s
            self._clients.move(paused_s)
            if (given := self._under_way()) is not None:
                given.deadline += paused_s
        silent_s = now - self._coordinator_seen
        if silent_s > self.timeout_s:
            self._failure = (
                f"{self._lost('the coordinator', silent_s)}. The federation ends without it: begin "
                "a new one, its rounds go on from the last that the servers have"
            )
            self._for_clients.notify_all()
            self._for_coordinator.notify_all()
            return
        for client, silent_s in self._clients.silent(now).items():
            if (life := self._clients.of(client)) is not None:
                self._retire(client, life, "lost", self._lost(f"client {client}", silent_s))

    def _lost(self, who: str, silent_s: float) -> str:
        is_open = self._under_way() is not None
        at_round = f"in round {self._next - 1}" if is_open else f"before round {self._next}"
        return (
            f"{who} was dropped {at_round} after {silent_s:.1f} s of silence: who is silent for "
            f"longer than {self.timeout_s:g} s is lost"
        )

    def _retire(self, client: int, life: Life, state: State, error: str | None) -> None:
        """Let a client go, and the round go on without it; what it has reported counts."""
        life.state, life.error = state, None if error is None else cut(error)
        if self._round is not None:
            self._round.drop(client, life.why_gone())
        self._for_clients.notify_all()  # it may wait itself
        self._for_coordinator.notify_all()

    # Rounds.

    def _answer(self, client: int, incarnation: int) -> Task | str | None:
        """What a client that asks is told, None to let it wait."""
        if self._reason is not None:
            return self._reason
        self._go_on()
        self._clients.running(client, incarnation)
        return None if self._round is None else self._round.task(client, self._now)

    def _under_way(self) -> OneRound | None:
        return None if self._round is None or self._round.is_closed else self._round

    def _find(self, number: int) -> OneRound | None:
        """One of the last two rounds; older ones are not kept."""
        kept = (self._round, self._before)
        return next((it for it in kept if it is not None and it.number == number), None)

    def _standing(self) -> str:
        return (
            f"round {self._next} is the next to be opened"
            if self._under_way() is None
            else f"round {self._next - 1} is under way"
        )

    def _openable(
        self, number: int, clients: tuple[int, ...], deadline_s: float
    ) -> dict[int, Life]:
        """The clients of a round that can be opened. RefusedError for any other."""
        if self._reason is not None:
            raise RefusedError(
                f"round {number} cannot be opened, the federation is over: {self._reason}"
            )
        if self._under_way() is not None or number != self._next:
            raise RefusedError(
                f"round {number} cannot be opened: {self._standing()}; rounds are opened one after "
                "the other, each when the one before it is closed"
            )
        lives = {client: life for client in clients if (life := self._clients.of(client))}
        if not 1 <= len(clients) == len(lives):
            raise RefusedError(
                f"round {number} must have one or more clients that have enrolled, each once, got "
                f"{list(clients)!r:.200}"
            )
        if not 0.0 < deadline_s < math.inf:
            raise RefusedError(
                f"round {number} must have a finite deadline_s above 0, got {deadline_s}"
            )
        return lives
