"""Rounds of federated training whose time passes when a test says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from downpour.serving.rounds import Rounds
from tests.member_runs import Clock

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from concurrent.futures import Future, ThreadPoolExecutor

    from downpour.serving.enrolled import ClientView
    from downpour.serving.one_round import RoundView, Task

    T = TypeVar("T")

TIMEOUT_S = 10.0
DEADLINE_S = 30.0
COORDINATOR = 7
SETTINGS = "FedAvg()"
FIRST = 5  # the number of the first round
LONG_S = 100.0  # for who is woken up before


class Federation:
    """All but the late have enrolled, client c as incarnation 100 + c."""

    def __init__(self, num_clients: int, *, late: Collection[int] = ()) -> None:
        self.clock = Clock()
        self.rounds = Rounds(
            num_clients,
            settings=SETTINGS,
            timeout_s=TIMEOUT_S,
            first_round=FIRST,
            coordinator=COORDINATOR,
            clock=self.clock,
        )
        for client in range(num_clients):
            if client not in late:
                self.enroll(client)

    # Clients.

    def enroll(self, client: int, *, life: int = 100) -> int:
        return self.rounds.enroll(client, life + client, SETTINGS)

    def ask(self, client: int, *, life: int = 100, wait_s: float = 0.0) -> Task | str | None:
        return self.rounds.ask(client, life + client, wait_s=wait_s)

    def report(self, client: int, number: int = FIRST, *, life: int = 100, **more: Any) -> None:
        self.rounds.report(client, life + client, number, report(client, number, **more))

    def beat(self, client: int, *, life: int = 100) -> int:
        return self.rounds.beat(client, life + client)

    def leave(self, client: int, error: str | None = None, *, life: int = 100) -> None:
        self.rounds.leave(client, life + client, error)

    # The coordinator.

    def open(self, *sampled: int, number: int = FIRST, deadline_s: float = DEADLINE_S) -> None:
        self.rounds.open(COORDINATOR, number, sampled, deadline_s)

    def watch(self, *, wait_s: float = 0.0) -> RoundView:
        return self.rounds.watch(COORDINATOR, wait_s=wait_s)

    def close(self, number: int = FIRST) -> RoundView:
        return self.rounds.close(COORDINATOR, number)

    def clients(self) -> tuple[ClientView, ...]:
        return self.rounds.coordinate(COORDINATOR)

    def end(self, reason: str = "all rounds are done") -> None:
        self.rounds.end(COORDINATOR, reason)

    def states(self) -> dict[int, str]:
        return {it.client: it.state for it in self.clients()}

    # Time.

    def pass_time(self, seconds: float, *silent: int) -> None:
        """Let time pass, in which the coordinator and all clients but these let hear of them."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.clock.now = min(until, self.clock.now + 0.4 * TIMEOUT_S)
            self.rounds.check()
            for client in self.clients():
                if client.state == "running" and client.client not in silent:
                    self.rounds.beat(client.client, client.incarnation)

    def lose(self, *clients: int) -> None:
        self.pass_time(1.2 * TIMEOUT_S, *clients)

    def lose_coordinator(self) -> None:
        for _ in range(3):
            self.clock.now += 0.4 * TIMEOUT_S
            self.rounds.check()


def report(client: int, number: int, **more: Any) -> dict[str, Any]:
    return {"samples": 10 * client + number, **more}


def waiting(
    pool: ThreadPoolExecutor, federation: Federation, who: int, call: Callable[[], T]
) -> Future[T]:
    """Let a client, or the coordinator (-1), wait on a thread; it waits when this returns."""
    federation.clock.now += 1.0
    future = pool.submit(call)
    rounds = federation.rounds

    def seen() -> float:
        with rounds._lock:  # who has been seen and lets go of it waits
            life = rounds._clients.of(who)
            return rounds._coordinator_seen if life is None else life.seen

    while seen() < federation.clock.now:
        assert not future.done()
    return future
