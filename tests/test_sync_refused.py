"""Steps of sync training that a server refuses: what all workers hear, and what servers have."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from downpour.consistency import Sync
from downpour.errors import DownpourError, NonFiniteError, OutOfMemoryError
from downpour.remote.connect import connect
from downpour.serving.flight_server import FlightServer
from downpour.serving.service import Service
from downpour.tables import arena, index, shard_of
from tests.geo_runs import DENSE, DIM, NAMES, SIZE, START, TABLE, a_plan
from tests.servers import LIMIT_S, at_once

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAN = a_plan()
KEYS = np.arange(40, dtype=np.uint64)
SHARDS = shard_of(KEYS, 2)
HUGE = 1.5e308


@contextmanager
def workers(num_servers: int = 2) -> Iterator[tuple[list[Any], list[FlightServer]]]:
    """Two workers of a run that has begun, and the servers."""
    with ExitStack() as stack:
        servers = [FlightServer(Service()) for _ in range(num_servers)]
        for server in servers:
            stack.callback(server.end)
        addresses = [server.address for server in servers]
        clients: list[Any] = [
            connect(PLAN, addresses, rank=rank, num_workers=2, consistency=Sync())
            for rank in (0, 1)
        ]
        for client in clients:
            stack.callback(client.abandon, None)
        clients[0].init_dense(DENSE, START)
        at_once([client.begin for client in clients])
        yield clients, servers


def step(clients: list[Any], grads: Any) -> list[str]:
    """A step of all workers with the same gradient for every key; what each raised, or nothing."""

    def work(client: Any) -> str:
        rows = np.full((len(KEYS), DIM), grads, np.float64)
        try:
            client.update(client.locate(TABLE, KEYS, create=True), rows, is_mean=False)
            client.push_dense(DENSE, np.ones(SIZE), NAMES)
            client.end_step(4)
        except DownpourError as error:
            return f"{type(error).__name__}: {error}"
        return ""

    return at_once([lambda client=client: work(client) for client in clients])  # type: ignore[misc]


def state(server: FlightServer) -> tuple[int, list[float], list[float]]:
    """The last step, and what the tables hold of KEYS and of the server's share."""
    hosted = server.service.hosted
    rows = hosted.server.sparse[TABLE].export()[1][:, 0].tolist()
    weights = hosted.server.dense[DENSE].pull().tolist() if DENSE in hosted.server.dense else []
    return hosted.staging.committed, rows, weights


def of_server_1(value: float) -> np.ndarray:
    return np.where(SHARDS == 1, value, 1.0)[:, None]


def test_a_step_that_one_server_refuses_is_refused_to_all_workers_and_over_on_all() -> None:
    with workers() as (clients, servers):
        assert step(clients, of_server_1(HUGE / 2)) == ["", ""]
        assert step(clients, 0.0) == ["", ""]
        for client in clients:
            client.finish()
        taken = [state(server) for server in servers]
        assert [it[0] for it in taken] == [2, 2]
        assert step(clients, of_server_1(HUGE / 2)) == ["", ""]  # it is heard of at the next one
        first, second = step(clients, 1.0)
        assert first == second
        assert "NonFiniteError: server 1 " in first
        assert ": step 3: table 'embedding': this push would make the row of key" in first
        assert step(clients, 1.0) == [first, second]  # and at each that comes
        until = time.monotonic() + LIMIT_S
        while state(servers[0])[0] < 3 and time.monotonic() < until:
            time.sleep(0.01)  # workers hear of the refusal first
        here, there = (state(server) for server in servers)
        assert there == (3, *taken[1][1:])
        assert here[0] == 3
        assert here[1] == [row - 2.0 for row in taken[0][1]]
        assert np.isfinite(there[1]).all()
        for client in clients:
            with pytest.raises(NonFiniteError, match="step 3"):
                client.finish()
            client.abandon(None)
        addresses = [server.address for server in servers]
        with connect(PLAN, addresses, rank=0, num_workers=1, consistency=Sync()) as alone:
            assert alone.after == 3
            alone.begin()
            assert step([alone], 0.0) == [""]
            alone.finish()
        assert [state(server)[0] for server in servers] == [4, 4]


def test_a_step_that_one_server_has_no_memory_for_is_refused_to_all_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with workers(1) as (clients, servers):
        assert step(clients, 0.0) == ["", ""]
        for client in clients:
            client.finish()
        before = state(servers[0])
        many = np.arange(100, 200_000, dtype=np.uint64)

        def no_memory(num_bytes: int) -> None:
            raise MemoryError(f"the system gives no {num_bytes} bytes")

        with monkeypatch.context() as patched:
            for module in (arena, index):
                patched.setattr(module, "Pages", no_memory)
            clients[0].update(
                clients[0].locate(TABLE, many, create=True), np.ones((len(many), DIM))
            )
            assert step(clients, 1.0) == ["", ""]
            first, second = step(clients, 1.0)
        assert first == second
        assert "OutOfMemoryError: server 0 " in first
        assert ": step 2: table 'embedding': there is no memory for more than its" in first
        committed, rows, weights = state(servers[0])
        assert (committed, weights) == (2, before[2])
        assert set(rows) == {1.0}  # new ones as they are when new
        with pytest.raises(OutOfMemoryError):
            clients[1].finish()


def test_a_worker_that_comes_late_hears_of_the_step_and_not_of_who_has_left() -> None:
    with workers() as (clients, _):
        assert step(clients, of_server_1(HUGE / 2)) == ["", ""]
        assert step(clients, of_server_1(HUGE / 2)) == ["", ""]
        with pytest.raises(NonFiniteError, match="step 2"), clients[0]:
            clients[0].finish()
        assert step(clients[1:], 1.0)[0].startswith("NonFiniteError: server 1 ")
