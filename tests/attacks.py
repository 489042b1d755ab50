"""A server process with small limits, what attacks it, and how much memory that takes."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl

from downpour.errors import DownpourError
from downpour.remote.endpoint import Endpoint
from downpour.remote.server import RemoteServer
from downpour.row_batches import rows_schema
from downpour.tables import shard_of
from downpour.transport import SparseState
from downpour.wire import SCHEMA, error_of, header_bytes, pack, parsed
from tests.one_shard import DEPLOYMENT, new_server
from tests.processes import ServerProcess
from tests.staged import PLAIN_DIM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MB = 1 << 20
SPEC = DEPLOYMENT.plan.sparse_table("plain")
LIMIT_S = 60.0
# docs/servers.md states the bound. Without limits each attack takes more than twice as much.
LIMITS = {
    "message_bytes": 8 * MB, "held_bytes": 64 * MB, "connection_bytes": 64 * MB,
    "table_bytes": 96 * MB, "new_rows": 100_000, "streams": 48, "connection_streams": 24,
}  # fmt: skip
HELD_MB, ARROW_MB, SLACK_MB = 64, 73, 256
BOUND_MB = HELD_MB + ARROW_MB + SLACK_MB


class Target:
    """A server process that is attacked, and a client that has work for it all the time."""

    def __init__(self, process: ServerProcess, own: RemoteServer) -> None:
        self.process, self.own = process, own
        self.port = process.port
        self._steps = 0
        self.work()
        self._fresh_mb = self.memory_mb("VmRSS")

    def work(self) -> None:
        """Push and pull, as an honest client, and see that it counts."""
        self._steps += 1
        push = {"table": "plain", "lr": [0.1]}
        grads = np.ones((len(OWN), PLAIN_DIM))
        ticket = self.own.begin_write("push", push, OWN, grads, until=time.monotonic() + LIMIT_S)
        assert ticket.result().header["step"] > 0
        rows = self.own.begin_pull("plain", OWN, create=False, after=0).result()
        assert rows.values.nbytes == grads.nbytes

    def clear(self) -> None:
        """Empty the table that is attacked."""
        self.own.clear("plain")
        self._steps = 0

    def connect(self) -> fl.FlightClient:
        """A connection of its own."""
        alone = [("grpc.use_local_subchannel_pool", 1)]
        return fl.FlightClient(f"grpc+tcp://127.0.0.1:{self.port}", generic_options=alone)

    @contextmanager
    def stream(
        self,
        kind: bytes = b"write",
        *,
        name: str = "",
        client: fl.FlightClient | None = None,
        **settings: Any,
    ) -> Iterator[tuple[Any, Any]]:
        """A writer and a reader of a stream, on a connection of its own unless on a client's.

        With a name it has said hello. Raises what the server has told.
        """
        with self.connect() if client is None else contextlib.nullcontext(client) as its:
            try:
                writer, reader = its.do_exchange(fl.FlightDescriptor.for_command(kind))
            except (pa.ArrowException, OSError) as error:
                raise typed(error) from None
            try:
                try:
                    writer.begin(SCHEMA, **settings)
                    if name:
                        writer.write_with_metadata(pack(None, None), header_bytes({"client": name}))
                        reader.read_chunk()
                except (pa.ArrowException, OSError, StopIteration) as error:
                    raise typed(error) from None
                yield writer, reader
            finally:
                reader.cancel()
                with contextlib.suppress(pa.ArrowException, OSError):
                    writer.close()

    def act(self, verb: str, body: bytes) -> dict[str, Any]:
        """What a verb answers."""
        with self.connect() as client:
            (answer,) = client.do_action(fl.Action(verb, body))
        return parsed(answer.body.to_pybytes())

    def refusals(self) -> int:
        """How many requests were refused."""
        return int(self.own.report()["refused"])

    def memory_mb(self, what: str) -> float:
        """VmRSS, what the process has, or VmHWM, the most that it had."""
        status = Path(f"/proc/{self.process._process.pid}/status").read_text()
        found = re.search(rf"{what}:\s+(\d+)", status)
        assert found is not None
        return int(found[1]) / 1024

    def threads(self) -> int:
        """How many it has."""
        return len([*Path(f"/proc/{self.process._process.pid}/task").iterdir()])

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """The memory of the process keeps to what docs/servers.md says, at any moment meanwhile."""
        self.work()
        Path(f"/proc/{self.process._process.pid}/clear_refs").write_text("5")  # VmHWM begins anew
        before_mb = self.memory_mb("VmHWM")
        yield
        tables_mb = sum(table.bytes for table in self.own.stats().values()) / MB
        own_mb = self.memory_mb("VmHWM") - self._fresh_mb - tables_mb
        # Seen by `pytest -rP`.
        print(f"{own_mb:.0f} MB beside {tables_mb:.0f} MB of tables; before: {before_mb:.0f} MB")  # noqa: T201
        assert own_mb < BOUND_MB
        self.work()

    def comes_back(self, slack_mb: float) -> None:
        """Wait until it has no more memory than it began with, but for its tables and a slack."""
        tables_mb = sum(table.bytes for table in self.own.stats().values()) / MB
        until = time.monotonic() + LIMIT_S
        while self.memory_mb("VmRSS") > self._fresh_mb + tables_mb + slack_mb:
            assert time.monotonic() < until, f"{self.memory_mb('VmRSS'):.0f} MB are kept"
            time.sleep(0.1)

    def discard(self) -> None:
        """Throw away what is staged."""
        commit = {"at": self.own.greet()["committed"] + 1, "samples": {}, "rates": {}}
        self.own.begin_write("commit", commit).result()


@contextmanager
def target(**limits: float) -> Iterator[Target]:
    """A server process with small limits, filled a little and warm."""
    options = [x for k, v in {**LIMITS, **limits}.items() for x in ("--limit", f"{k}={v}")]
    process = ServerProcess(options=options)
    with closing(process):
        own = as_client(process.port, "own")
        with closing(own):
            yield Target(process, own)
            assert "Traceback" not in process.log()


def as_client(port: int, name: str) -> RemoteServer:
    """A client of the shard."""
    return RemoteServer(
        Endpoint(f"127.0.0.1:{port}"), DEPLOYMENT, name, deadline_s=30.0, start_s=LIMIT_S
    )


def own_keys(number: int, start: int = 1) -> np.ndarray:
    """So many keys of this shard."""
    keys = np.arange(start, start + 3 * number + 100, dtype=np.uint64)
    return keys[shard_of(keys, 2) == 0][:number]


OWN = own_keys(20)


def refused(call: Callable[[], Any]) -> DownpourError:
    """The error that the server has told of; a connection that was closed is one."""
    try:
        answer = call()
    except (pa.ArrowException, OSError, StopIteration) as error:
        return typed(error)
    except DownpourError as error:
        return error
    header = answer if isinstance(answer, dict) else parsed(answer.app_metadata.to_pybytes())
    assert "error" in header, f"it was taken: {header}"
    return error_of(header, "it")


def typed(error: BaseException) -> DownpourError:
    """What an error of Flight means."""
    return Endpoint("127.0.0.1:1").typed(error, "attack", LIMIT_S)


def at_once(number: int, attack: Callable[[int], None]) -> None:
    """Attack so many times, each on a thread of its own."""
    threads = [threading.Thread(target=attack, args=(i,), daemon=True) for i in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
        assert not thread.is_alive(), "an attack hangs"


# The attacks, each with how much of it; what comes of it is an error, or nothing.


def compressed(it: Target, num_bytes: int) -> DownpourError:
    """A message that is small, and large once it is decompressed."""
    column = pa.array([bytes(num_bytes)], pa.large_binary())
    batch = pa.RecordBatch.from_arrays([pa.array([b""], pa.large_binary()), column], schema=SCHEMA)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with it.stream(options=options) as (writer, reader):

        def say() -> Any:
            writer.write_with_metadata(batch, header_bytes({"client": "compressed"}))
            return reader.read_chunk()

        return refused(say)


def long_name(it: Target, size: int, number: int) -> None:
    """Refused requests of one client that name a long parameter."""
    fields = {"op": "push_dense", "table": "dense", "lr": [0.1], "incarnation": it.own.incarnation}
    with it.stream(name="long") as (writer, reader):
        grad = np.zeros(new_server().dense["dense"].size)
        for n in range(1, number + 1):
            header = {**fields, "n": n, "names": [f"{n}{'x' * size}"]}
            writer.write_with_metadata(pack(None, grad), header_bytes(header))
            assert "at most 1000 characters" in str(refused(reader.read_chunk))


def meetings(it: Target, size: int, number: int) -> list[DownpourError]:
    """Meetings to which one of two members comes, each with a payload; what is refused."""
    who = {"rank": 0, "incarnation": 1}
    join = {**who, "run": "r", "num_workers": 2, "timeout_s": 1000.0, "on_loss": "continue"}
    it.act("join", header_bytes(join))
    errors = []
    for i in range(number):
        meet = {**who, "name": f"{i}", "payload": "x" * size, "with_chief": False, "wait_s": 0.0}
        answer = it.act("meet", header_bytes(meet))
        if "error" in answer:
            errors.append(error_of(answer, "it"))
    # The next run, in which nobody meets, takes the place of this one.
    it.act("leave", header_bytes({**who, "error": "it was an attack"}))
    it.act("join", header_bytes({**join, "incarnation": 2}))
    it.act("leave", header_bytes({**who, "incarnation": 2, "error": "the same"}))
    return errors


def large_action(it: Target, num_bytes: int) -> DownpourError:
    """A verb with a large body."""
    return refused(lambda: it.act("stats", bytes(num_bytes)))


def staged(it: Target, num_keys: int, number: int) -> list[DownpourError]:
    """Pushes for a step that nobody commits."""
    client = as_client(it.port, "staging")
    errors = []
    with closing(client):
        for rank in range(number):
            fields = {"table": "plain", "rank": rank, "at": client.greeting["committed"] + 1}
            grads = np.ones((num_keys, PLAIN_DIM))
            try:
                client.begin_write("stage", fields, own_keys(num_keys), grads).result()
            except DownpourError as error:
                errors.append(error)
    return errors


def put(it: Target, num_rows: int, number: int, *, repeats: bool = False) -> DownpourError | None:
    """Rows put into a table, chunk after chunk, as long as the server takes them."""
    width, state_dim = PLAIN_DIM, SPEC.accessor.state_dim
    none = SparseState(OWN[:0], np.empty((0, width)), np.empty((0, state_dim)), 3, 0.0)
    schema = rows_schema(SPEC, none, num_rows * number)
    with it.connect() as client:
        writer, _ = client.do_put(fl.FlightDescriptor.for_command(b"plain"), schema)

        def say() -> dict[str, Any]:
            for i in range(number):
                keys = own_keys(num_rows, 1 if repeats else 1 + 4 * i * num_rows)
                columns = [pa.array(keys)] + [
                    pa.FixedSizeListArray.from_arrays(pa.array(np.ones(num_rows * dim)), dim)
                    for dim in (width, state_dim)
                ]
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            writer.close()
            return {"error": "nothing", "message": "it was taken"}

        error = refused(say)
        with contextlib.suppress(pa.ArrowException, OSError):
            writer.close()
    return None if "it was taken" in str(error) else error


@contextmanager
def unread(it: Target, number: int) -> Iterator[list[Any]]:
    """Exports that nobody reads."""
    with ExitStack() as held:
        readers = []
        for _ in range(number):
            client = held.enter_context(it.connect())
            with contextlib.suppress(pa.ArrowException, OSError):
                readers.append(client.do_get(fl.Ticket(b"plain")))
        yield readers
        for reader in readers:
            with contextlib.suppress(pa.ArrowException, OSError):
                reader.cancel()


@contextmanager
def open_streams(it: Target, number: int) -> Iterator[int]:
    """Streams that say nothing after their greeting, each on a connection of its own."""
    taken = 0
    with ExitStack() as held:
        for i in range(number):
            with contextlib.suppress(DownpourError):
                held.enter_context(it.stream(b"read", name=f"idle {i}"))
                taken += 1
        yield taken


@contextmanager
def silent_connections(it: Target, number: int) -> Iterator[list[socket.socket]]:
    """Connections on which nothing is said."""
    with ExitStack() as held:
        address = ("127.0.0.1", it.port)
        yield [
            held.enter_context(socket.create_connection(address, LIMIT_S)) for _ in range(number)
        ]
