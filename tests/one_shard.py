"""Shard 0 of 2 of a table of each kind on a server, and each request to it as it should be."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from downpour.deployment import Deployment
from downpour.server import Server
from downpour.serving.flight_server import FlightServer
from downpour.serving.flight_stream import FlightStream
from downpour.serving.held import Peer
from downpour.serving.service import Service
from downpour.tables import shard_of
from downpour.wire import header_bytes, pack
from tests.ctr_tables import some_pushes
from tests.staged import PLAIN_DIM, bits, plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from downpour.limits import Limits

DEPLOYMENT = Deployment(plan=plan(), num_shards=2)
SOME = np.arange(1, 100, dtype=np.uint64)
OWN, FOREIGN = (SOME[shard_of(SOME, 2) == shard][:12] for shard in (0, 1))
NEW = SOME[shard_of(SOME, 2) == 0][12:20]  # keys of this shard without rows
READ_OPS = {"pull", "pull_dense", "export_dense", "geo_fetch"}
PEER = "ipv4:192.0.2.1:4600"


@dataclass(frozen=True)
class Request:
    """What a client asks on a stream of reads or of writes."""

    header: dict[str, Any]
    is_write: bool
    keys: np.ndarray | None = None
    values: np.ndarray | None = None

    def but(self, *without: str, **changed: Any) -> Request:
        """The same with other fields, keys or values, or without a field."""
        arrays = {name: changed.pop(name) for name in ("keys", "values") if name in changed}
        header = {k: v for k, v in {**self.header, **changed}.items() if k not in without}
        return replace(self, header=header, **arrays)


def request(op: str, keys: Any = None, values: Any = None, **header: Any) -> Request:
    return Request({"op": op, **header}, op not in READ_OPS, keys, values)


def rows(width: int = PLAIN_DIM) -> np.ndarray:
    return np.linspace(-1.0, 1.0, len(OWN) * width).reshape(-1, width)


def new_server() -> Server:
    return Server(DEPLOYMENT.plan, shard=0, num_shards=2)


def fill(server: Server) -> None:
    """Give all tables rows and weights."""
    server.set("plain", OWN, rows())
    server.sparse["ctr"].push(OWN, some_pushes(len(OWN)), step=1, lr=(0.1, 0.1))
    for name, table in server.dense.items():
        server.init_dense(name, np.linspace(0.0, 1.0, table.size))


@contextmanager
def serving(service: Service, **settings: Any) -> Iterator[FlightServer]:
    """A server; it listens."""
    server = FlightServer(service, **settings)
    try:
        yield server
    finally:
        server.stop()
        server.shutdown()


@contextmanager
def hosted(limits: Limits | None = None, **settings: Any) -> Iterator[FlightServer]:
    """A server of the shard, filled."""
    service = Service(DEPLOYMENT, 0, limits=limits)
    fill(service.hosted.server)
    with serving(service, **settings) as server:
        yield server


def held(server: FlightServer) -> dict[str, Any]:
    """All that the server's tables hold, as values that compare bit for bit."""
    return bits(server.service.hosted.server)


DENSE = new_server().dense["dense"]
SIZE = DENSE.size
PARTS = {name: len(state) for name, state in DENSE.export()[1].items()}
STEP = {"rank": 0, "at": 1, "mean": True}
RATES = {"plain": [1, [0.1]], "ctr": [1, [0.1, 0.1]], "dense": [1, [0.1]]}
READS = {
    "pull": request("pull", OWN, table="plain", create=False),
    "pull_dense": request("pull_dense", table="dense"),
    "export_dense": request("export_dense", table="dense"),
    "geo_fetch": request("geo_fetch", table="plain", number=1),
}
WRITES = {
    "push": request("push", OWN, rows(), table="plain", lr=[0.1], s=1),
    "push_dense": request(
        "push_dense", None, np.ones(SIZE), table="dense", lr=[0.1], names=["bias", "weight"], s=1
    ),
    "stage": request("stage", OWN, rows(), table="plain", **STEP),
    "stage_dense": request(
        "stage_dense", None, np.ones(SIZE), table="dense", names=["bias", "weight"], **STEP
    ),
    "commit": request("commit", at=1, samples={"0": 3}, rates=RATES),
    "set": request("set", OWN, rows(), table="plain"),
    "init_dense": request("init_dense", None, np.ones(SIZE), table="dense"),
    "restore_dense": request(
        "restore_dense", None, np.ones(SIZE + sum(PARTS.values())),
        table="dense", size=SIZE, parts=PARTS, updates=dict.fromkeys(PARTS, 3), step=3,
    ),
    "clear": request("clear", table="plain"),
    "shrink": request("shrink", table="ctr"),
    "geo_join": request("geo_join", rank=0),
    "geo_add": request("geo_add", OWN, rows(), table="plain"),
    "geo_add_dense": request(
        "geo_add_dense", None, np.full((2, SIZE), 0.5), table="dense", keeps=True
    ),
    "geo_leave": request("geo_leave"),
}  # fmt: skip
GOOD = {**READS, **WRITES}


class Stream:
    """An exchange with a server in this process, as Flight drives it."""

    def __init__(
        self, server: FlightServer, *, is_write: bool, client: str = "one", hello: Any = None
    ) -> None:
        self.server = server
        self._stream = FlightStream(server, Peer(PEER, 0.0), is_write)
        self._number = 0
        self.greeting = self.say({"client": client} if hello is None else hello)

    def ask(self, asked: Request, **header: Any) -> dict[str, Any]:
        """The answer's header; a request is numbered and for this server unless it says else."""
        self._number += 1
        own = {"n": self._number, "incarnation": self.server.service.incarnation}
        return self.say({**own, **asked.header, **header}, asked.keys, asked.values)

    def say(
        self, header: Any, keys: np.ndarray | None = None, values: np.ndarray | None = None
    ) -> dict[str, Any]:
        """The answer to any header, bytes as they are."""
        data = header if isinstance(header, bytes) else header_bytes(header)
        return self.give(pack(keys, values), data)

    def give(self, batch: Any, header: bytes) -> dict[str, Any]:
        """The answer to any record batch."""
        chunk = SimpleNamespace(data=batch, app_metadata=pa.py_buffer(header))
        answer, _, self.is_over = self._stream.answer(chunk)
        return answer


def streams(server: FlightServer, client: str = "one") -> dict[bool, Stream]:
    """A stream of reads and one of writes, by whether it is of writes."""
    return {it: Stream(server, is_write=it, client=client) for it in (False, True)}
