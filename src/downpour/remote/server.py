"""A server in another process, as a client has it."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl

from downpour.errors import ServerLostError, ServerTimeoutError
from downpour.remote.endpoint import RETRY_S, nothing
from downpour.remote.link import Link
from downpour.row_batches import read_rows, row_batches, rows_schema
from downpour.tables import TableStats
from downpour.transport import DenseState, DenseStats, Shrunk
from downpour.wire import VERSION, error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from downpour.deployment import Deployment
    from downpour.remote.endpoint import Endpoint
    from downpour.remote.link import Ticket
    from downpour.transport import Floats, Keys, SparseState
    from downpour.wire import Message

SLOWEST = 4 << 20  # bytes a second that all of a table makes at least, on its way or to disk
PAUSE_S = 1.0  # between two looks at deadlines; longer, and it is this process that was stopped
CLOSE_S = 1.0  # how long a stream may take to end well
T = TypeVar("T")


class RemoteServer:
    """The tables of one shard, asked over two streams: one for reads, one for writes.

    `begin_...` sends a request and gives its ticket, which fails at `until` of time.monotonic, or
    after `deadline_s` seconds; the calls of `Transport` wait. Raises
    RefusedError for another plan, version or token, ServerError where it cannot be reached within
    `start_s` seconds. `client` is this client's identity. watch: called while the server is not
    reached; what it raises ends the wait.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        deployment: Deployment,
        client: str,
        *,
        deadline_s: float,
        start_s: float,
        watch: Callable[[], None] = nothing,
    ) -> None:
        self.endpoint, self.deployment = endpoint, deployment
        self._watch = watch
        self.deadline_s = deadline_s
        self.connection = endpoint.connect(start_s)
        self.incarnation: int | None = None  # until it is known
        self._looking = threading.Lock()  # of what follows
        self._looked_at: float | None = None
        self._paused_s = self._postponed_s = 0.0
        self.greeting = self._introduce(start_s)
        self.incarnation = self.greeting["incarnation"]
        hello = {"client": client}
        make = (self.greeting["incarnation"], deadline_s, watch)
        self.reads = Link(endpoint, b"read", hello, *make)
        self.writes = Link(endpoint, b"write", hello, *make)

    def ask(
        self,
        verb: str,
        request: Mapping[str, Any],
        *,
        deadline_s: float | None = None,
        name: str | None = None,
    ) -> dict[str, Any]:
        """Call a verb; a connection that broke is made again within the deadline."""
        limit_s = self.deadline_s if deadline_s is None else deadline_s
        is_known = self.incarnation is not None
        if is_known:
            request = {**request, "server": self.incarnation}

        def call(left_s: float) -> dict[str, Any]:
            return self.endpoint.ask(
                self.connection, verb, request, left_s, name=name, is_known=is_known
            )

        answer = self._within(limit_s, call)
        if "error" in answer:
            raise error_of(answer, str(self.endpoint))
        return answer

    def expire(self, now: float) -> None:
        """End what has waited too long, at `now` of time.monotonic()."""
        if self._looked_at is None:
            self._looked_at = now
        self._look(now)
        more_s = self._paused_s - self._postponed_s
        self._postponed_s += more_s
        for link in (self.reads, self.writes):
            if more_s:
                link.postpone(more_s)
            link.expire(now)

    def end(self) -> None:
        """Let both streams end; `close` waits for that."""
        self.reads.end()
        self.writes.end()

    def close(self, until: float | None = None) -> None:
        """End the connections, by time.monotonic at the latest or in a moment."""
        self.end()
        until = time.monotonic() + CLOSE_S if until is None else until
        for link in (self.reads, self.writes):
            link.close(until)
        with contextlib.suppress(pa.ArrowException, OSError):
            self.connection.close()

    def _within(self, limit_s: float, call: Callable[[float], T]) -> T:
        """What a call gives, made again where its connection broke; it is told the seconds left."""
        until, paused_s, is_again = time.monotonic() + limit_s, self._paused_s, False
        while True:
            try:
                return call(max(until - time.monotonic(), 0.001))
            except ServerLostError:
                self._watch()
                if time.monotonic() + RETRY_S >= until:
                    raise
                time.sleep(RETRY_S)
            except ServerTimeoutError:
                self._watch()
                self.connection = self.endpoint.connect(limit_s)  # the old one may lead nowhere
                self._look(time.monotonic())
                if is_again or self._paused_s == paused_s:
                    raise
                until, is_again = time.monotonic() + limit_s, True  # the server may have answered

    def _look(self, now: float) -> None:
        """Note that this process runs, and for how long it did not just before."""
        with self._looking:
            if self._looked_at is None:  # nobody watches yet
                return
            if now - self._looked_at > PAUSE_S:
                self._paused_s += now - self._looked_at
            self._looked_at = now

    # Requests on their way.

    def begin_pull(
        self, table: str, keys: Keys, *, create: bool, after: int, until: float | None = None
    ) -> Ticket:
        """Rows of keys, once step `after` is committed: the answer's values."""
        header = {"op": "pull", "table": table, "create": create, **self._after(after)}
        return self.reads.send(header, keys, until=until)

    def begin_pull_dense(self, table: str, *, after: int, until: float | None = None) -> Ticket:
        """The server's part of a dense table: the answer's values."""
        header = {"op": "pull_dense", "table": table, **self._after(after)}
        return self.reads.send(header, until=until)

    def begin_write(
        self,
        op: str,
        header: Mapping[str, Any],
        keys: Keys | None = None,
        values: Floats | None = None,
        *,
        until: float | None = None,
    ) -> Ticket:
        """A numbered request, applied once."""
        return self.writes.send({"op": op, **header}, keys, values, until=until)

    def begin_rebuild(self, op: str, table: str) -> Ticket:
        """A numbered request that goes over all rows of a sparse table, and may take longer."""
        until = time.monotonic() + self.patience_s(self.stats()[table].bytes)
        return self.begin_write(op, {"table": table}, until=until)

    def patience_s(self, num_bytes: int) -> float:
        """How long a request may take that goes over so much memory."""
        return self.deadline_s + num_bytes / SLOWEST

    def _after(self, step: int) -> dict[str, Any]:
        return {"after": step, "wait_s": self.deadline_s} if step else {}

    # The calls of Transport that RemoteClient makes as they are.

    def set(self, table: str, keys: Keys, weights: Floats) -> None:
        """See Transport."""
        self.begin_write("set", {"table": table}, keys, weights).result()

    def init_dense(self, table: str, flat: Floats) -> bool:
        """See Transport."""
        answer = self.begin_write("init_dense", {"table": table}, None, flat).result()
        return bool(answer.header.get("taken", False))

    def set_dense(self, table: str, flat: Floats, names: Collection[str]) -> None:
        """See Transport."""
        header = {"table": table, "names": sorted(names)}
        self.begin_write("set_dense", header, None, flat).result()

    def clear(self, table: str) -> None:
        """See Transport."""
        self.begin_rebuild("clear", table).result()

    def shrink(self, table: str) -> Shrunk:
        """See Transport."""
        return shrunk_of(self.begin_rebuild("shrink", table).result())

    def export(self, table: str) -> SparseState:
        """See Transport."""
        spec = self.deployment.plan.sparse_table(table)
        name = _named("export", table)
        num_bytes = self._stats(name)[table].bytes

        def fetch(left_s: float) -> SparseState:
            try:
                options = self.endpoint.options(left_s)
                reader = self.connection.do_get(fl.Ticket(table.encode()), options)
                return read_rows(spec, reader.read_all())
            except (pa.ArrowException, OSError) as error:
                raise self.endpoint.typed(error, name, left_s) from None

        state = self._within(self.patience_s(num_bytes), fetch)
        self._stats(name)
        return state

    def restore(self, table: str, state: SparseState) -> None:
        """See Transport."""
        spec = self.deployment.plan.sparse_table(table)
        descriptor = fl.FlightDescriptor.for_command(table.encode())
        schema = rows_schema(spec, state)
        num_bytes = state.keys.nbytes + state.weights.nbytes + state.state.nbytes
        limit_s, name = self.patience_s(num_bytes), _named("restore", table)
        self._stats(name)
        try:
            options = self.endpoint.options(limit_s)
            writer, _ = self.connection.do_put(descriptor, schema, options)
            for batch in row_batches(spec, state):
                writer.write_batch(batch)
            writer.close()
        except (pa.ArrowException, OSError) as error:
            raise self.endpoint.typed(error, name, limit_s) from None
        self._stats(name)

    def export_dense(self, table: str) -> DenseState:
        """See Transport."""
        answer = self.reads.send({"op": "export_dense", "table": table}).result()
        dtype = np.dtype(self.deployment.plan.dense_table(table).dtype)
        lengths: dict[str, int] = answer.header["parts"]
        size = answer.values.nbytes // dtype.itemsize
        flat = answer.floats(dtype, (size,)).copy()
        own = size - sum(lengths.values())
        ends = np.cumsum([own, *lengths.values()])[:-1]
        weights, *states = np.split(flat, ends)
        return DenseState(
            weights,
            dict(zip(lengths, states, strict=True)),
            answer.header["updates"],
            answer.header["step"],
        )

    def restore_dense(self, table: str, state: DenseState) -> None:
        """See Transport."""
        header = {
            "table": table,
            "size": len(state.weights),
            "parts": {name: len(values) for name, values in state.state.items()},
            "updates": dict(state.updates),
            "step": state.step,
        }
        flat = np.concatenate([state.weights, *state.state.values()])
        self.begin_write("restore_dense", header, None, flat).result()

    def stats(self) -> dict[str, TableStats | DenseStats]:
        """See Transport."""
        return self._stats()

    def _stats(self, name: str | None = None) -> dict[str, TableStats | DenseStats]:
        """Of each table. ServerLostError where the server has come back without them.

        The transfer of a whole table names no incarnation, so they are asked for before and after
        it: one that is gone does not come back. `name`: of that transfer, for errors.
        """
        stats: dict[str, dict[str, Any]] = self.ask("stats", {}, name=name)["stats"]
        return {
            table: TableStats(**it) if "rows" in it else DenseStats(**it)
            for table, it in stats.items()
        }

    def report(self) -> dict[str, Any]:
        """What the server says of itself, a ServerReport."""
        report: dict[str, Any] = self.ask("stats", {})["report"]
        return report

    def greet(self, deadline_s: float | None = None) -> dict[str, Any]:
        """Say hello, and hear how far the server is."""
        return self.ask("hello", self._introduction(), deadline_s=deadline_s)

    def _introduce(self, start_s: float) -> dict[str, Any]:
        """Say hello until it is heard; bring the tables if the server has none."""
        greeting = self.greet(start_s)
        if not greeting["has_plan"]:
            message = {**self._introduction(), **self.deployment.message()}
            greeting = self.ask("hello", message, deadline_s=start_s)
        return greeting

    def _introduction(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "fingerprint": self.deployment.fingerprint,
            "shard": self.endpoint.number,
        }


def _named(request: str, table: str) -> str:
    return f"{request!r} of table {table!r}"


def shrunk_of(answer: Message) -> Shrunk:
    """What a server answers to a shrink."""
    return Shrunk(answer.header["kept"], answer.header["deleted"])
