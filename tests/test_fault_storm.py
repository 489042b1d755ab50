"""Pushes while connections break and servers hang: each that is acknowledged is applied once."""

from __future__ import annotations

import random
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from downpour.consistency import Async
from downpour.errors import ServerLostError, ServerTimeoutError
from downpour.remote.connect import connect
from downpour.tables import shard_of
from tests.fault_runs import DEADLINE_S, MARGIN_S, PLAN, push, rows, until
from tests.geo_runs import TABLE
from tests.processes import started
from tests.proxy import BOTH, TO_CLIENT, TO_SERVER, Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from downpour.remote.client import RemoteClient
    from tests.processes import ServerProcess

NUM_SERVERS, NUM_FAULTS = 2, 50
COMMON = np.arange(6)  # keys that all pushes have, of both servers
OWN = 10_000  # from here each push has keys that no other has


class Pusher(threading.Thread):
    """Pushes 1 to keys of its own again and again; every tenth push is of many packets."""

    def __init__(self, client: RemoteClient, place: int) -> None:
        super().__init__(daemon=True)
        self.client, self.place = client, place
        self.sent: list[Any] = []  # the keys of each push
        self.acknowledged: set[int] = set()  # of them, places in `sent`
        self.errors: list[Exception] = []
        self.longest_s = 0.0
        self.is_over = threading.Event()
        self._open: list[int] = []

    def run(self) -> None:
        while not self.is_over.wait(0.005):
            self._timed(self._push)
            if len(self.sent) % 5 == 0:
                self._timed(self._finish)
                self._timed(lambda: rows(self.client, COMMON))
        self._timed(self._finish)

    def _push(self) -> None:
        number = len(self.sent)
        start = OWN + 10**8 * self.place + 10_000 * number
        keys = np.concatenate([COMMON, np.arange(start, start + (30 if number % 10 else 4000))])
        self.sent.append(keys)
        self._open.append(number)
        push(self.client, keys)
        self.client.end_step(1)

    def _finish(self) -> None:
        self.client.finish()
        self.acknowledged |= set(self._open)
        self._open.clear()

    def _timed(self, call: Callable[[], object]) -> None:
        start = time.monotonic()
        try:
            call()
        except Exception as error:  # noqa: BLE001 (looked at by the test)
            self.errors.append(error)
            self._open.clear()  # nobody knows
            self.is_over.wait(0.05)
        self.longest_s = max(self.longest_s, time.monotonic() - start)


@contextmanager
def storm() -> Iterator[tuple[list[ServerProcess], list[Proxy], list[Pusher]]]:
    """Servers, the proxies before them, and clients that push through those."""
    with started(NUM_SERVERS) as servers, ExitStack() as stack:
        proxies = [stack.enter_context(Proxy(server.address)) for server in servers]
        addresses = [proxy.address for proxy in proxies]
        consistencies: Any = [None, None, Async(max_in_flight=4)]
        clients = [
            connect(PLAN, addresses, consistency=it, deadline_s=DEADLINE_S) for it in consistencies
        ]
        pushers = [Pusher(client, place) for place, client in enumerate(clients)]
        try:
            for pusher in pushers:
                pusher.start()
            yield servers, proxies, pushers
        finally:
            end(pushers)
            for client in clients:
                client.abandon(None)


def end(pushers: list[Pusher]) -> None:
    for pusher in pushers:
        pusher.is_over.set()
    for pusher in pushers:
        pusher.join()


def do_fault(chance: random.Random, number: int, server: ServerProcess, proxy: Proxy) -> None:
    """One of 50: most cut connections, some wherever bytes are then, or stop a server shortly."""
    if number in (15, 35):
        proxy.silence()
        return
    match chance.choice(("reset", "reset", "cut on the way", "stop")):
        case _ if number in (10, 30):
            halt(server, DEADLINE_S + 0.5)
        case "reset":
            proxy.reset()
        case "cut on the way":
            proxy.hold(*chance.choice([(TO_SERVER,), (TO_CLIENT,), BOTH]))
            time.sleep(chance.uniform(0.0, 0.1))
            proxy.reset()
            proxy.recover()
        case "stop":
            halt(server, chance.uniform(0.05, 0.3))


def halt(server: ServerProcess, seconds: float) -> None:
    server.stop()
    time.sleep(seconds)
    server.go_on()


def applied(pushers: list[Pusher], addresses: list[str], place: int) -> Any:
    """Of each push how often the server at a place has applied it; all of it or nothing."""
    with connect(PLAN, addresses) as seer:
        state = seer.remote[place].export(TABLE)
    counts = dict(zip(state.keys.tolist(), 1.0 - state.weights[:, 0], strict=True))
    times = []
    for pusher in pushers:
        for keys in pusher.sent:
            own = keys[(keys >= OWN) & (shard_of(keys.astype(np.uint64), NUM_SERVERS) == place)]
            found = {counts.get(key, 0.0) for key in own.tolist()}
            assert len(found) == 1
            times.append(found.pop())
    for key in COMMON[shard_of(COMMON.astype(np.uint64), NUM_SERVERS) == place].tolist():
        assert counts[key] == sum(times)
    return np.array(times)


def test_an_acknowledged_push_is_applied_once_whatever_happens_on_its_way() -> None:
    chance = random.Random(7)
    with storm() as (servers, proxies, pushers):
        for number in range(NUM_FAULTS):
            place = chance.randrange(NUM_SERVERS)
            do_fault(chance, number, servers[place], proxies[place])
            time.sleep(chance.uniform(0.0, 0.1))
        end(pushers)
        taken = [number in it.acknowledged for it in pushers for number in range(len(it.sent))]
        assert sum(taken) > len(taken) / 2
        for place in range(NUM_SERVERS):
            times = applied(pushers, [server.address for server in servers], place)
            assert set(times.tolist()) <= {0.0, 1.0}
            assert (times[taken] == 1.0).all()
        for pusher in pushers:
            assert pusher.longest_s < DEADLINE_S + MARGIN_S
            assert {type(error) for error in pusher.errors} <= {ServerTimeoutError, ServerLostError}
            assert pusher.client.report()["retries"] > 0


def test_pushes_to_a_server_that_is_killed_fail_in_time() -> None:
    with storm() as (servers, _, pushers):
        until(lambda: all(pusher.acknowledged for pusher in pushers))
        servers[1].kill()
        until(lambda: all(pusher.errors for pusher in pushers))
        end(pushers)
        for pusher in pushers:
            assert pusher.acknowledged
            assert {type(error) for error in pusher.errors} <= {ServerTimeoutError, ServerLostError}
            assert pusher.errors
            assert pusher.longest_s < DEADLINE_S + MARGIN_S
