"""Geo clients of servers in this process, for the tests of geo training. A row is one number."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

import downpour as dp
from downpour.consistency import Geo
from downpour.remote.connect import connect
from downpour.serving.flight_server import FlightServer
from downpour.serving.service import Service
from tests.plans import dense_table, plain_table, small_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from downpour.remote.geo import GeoClient

TABLE, DENSE, DIM, SIZE = "embedding", "dense.click", 4, 9
NAMES = ["out.bias", "out.weight"]  # of 1 and of 8 elements
START = np.arange(SIZE, dtype=np.float64)  # the first dense weights; rows begin at 1


class Lost(BaseException):
    """No error that a server answers with: it breaks the stream off."""


class Faulty(Service):
    """A service that does requests of an op as always, and then fails as often as told."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: dict[str, list[BaseException]] = {}

    def read(self, message: Any, client: str) -> Any:
        return self._faulty(message, super().read(message, client))

    def write(self, message: Any, session: Any, owner: object) -> Any:
        return self._faulty(message, super().write(message, session, owner))

    def _faulty(self, message: Any, answer: Any) -> Any:
        if faults := self.faults.get(message.header["op"]):
            raise faults.pop()
        return answer


@contextmanager
def served(num_servers: int) -> Iterator[list[FlightServer]]:
    servers = [FlightServer(Faulty()) for _ in range(num_servers)]
    try:
        yield servers
    finally:
        for server in servers:
            server.stop()
            server.shutdown()


def a_plan(**settings: Any) -> dp.Plan:
    """Rows and parameters from which a gradient is subtracted."""
    given = {"rule": dp.SGD(1.0), "init": dp.Constant(1.0), "dtype": "float64", **settings}
    dense = dense_table(rule=dp.SGD(1.0), dtype="float64")
    return small_plan(plain_table(**given), dense=(dense,))


@contextmanager
def workers(
    num_workers: int = 2, *, plan: dp.Plan | None = None, num_servers: int = 2, k: int = 100
) -> Iterator[list[Any]]:
    """Geo clients of one run that has begun, and then the servers."""
    plan = plan or a_plan()
    with served(num_servers) as servers, ExitStack() as stack:
        given: Any = {"consistency": Geo(k_steps=k), "num_workers": num_workers}
        addresses = [server.address for server in servers]
        clients: list[Any] = [
            stack.enter_context(connect(plan, addresses, rank=rank, **given))
            for rank in range(num_workers)
        ]
        clients[0].init_dense(DENSE, START)
        at_once(clients, lambda client: client.begin())
        yield [*clients, servers]


def at_once(clients: list[Any], call: Callable[[Any], object]) -> list[Any]:
    """What a call gives of each client, each on a thread of its own."""
    with ThreadPoolExecutor(len(clients)) as pool:
        return list(pool.map(call, clients))


def add(client: GeoClient, keys: Any, amount: float) -> None:
    """A step that adds an amount to rows."""
    client.push(TABLE, keys, np.full((len(keys), DIM), -amount), feature="item")


def add_dense(client: GeoClient, amount: float) -> None:
    client.push_dense(DENSE, np.full(SIZE, -amount), NAMES)


def own_rows(client: GeoClient, keys: Any) -> list[float]:
    """The first number of each row as the worker has it."""
    numbers: list[float] = client.pull(TABLE, keys, feature="item")[:, 0].tolist()
    return numbers


def served_rows(client: GeoClient) -> dict[int, float]:
    """The same by key, of all rows that servers have."""
    rows = client.export(TABLE)
    return dict(zip(rows.keys.tolist(), rows.weights[:, 0].tolist(), strict=True))
