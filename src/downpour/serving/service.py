"""What a server process does with requests, whatever brings them: tables behind checks."""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from downpour.deployment import Deployment
from downpour.errors import RefusedError, ServerLostError, ServerTimeoutError, TableError
from downpour.metrics.latency import Latency
from downpour.serving.changes import packed
from downpour.serving.fields import (
    commit_of,
    flag,
    number,
    rates,
    restored_dense,
    rows_of,
    table_of,
    text,
    texts,
    whole,
)
from downpour.serving.held import Held
from downpour.serving.hosted import Hosted
from downpour.serving.memory_errors import typed_memory
from downpour.serving.sessions import Sessions
from downpour.tables import TableStats
from downpour.warm import warm
from downpour.wire import VERSION, Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from downpour.limits import Limits
    from downpour.serving.sessions import Session

    Answer = tuple[dict[str, Any], NDArray[Any] | None]

MAX_WAIT_S = 600.0
ANSWERED_AGAIN = {"init_dense", "shrink"}  # writes whose answer says what they did
T = TypeVar("T")


class Service:
    """Answers requests about the tables of one shard. Safe to call from many threads.

    `incarnation` is new in each process: a server that was restarted without its tables has
    another one. `cluster` is given by the first client to all servers that belong together; a
    server that lacks it while others have it has come back empty. `held` counts what is held for
    clients, within its limits.
    """

    def __init__(
        self,
        deployment: Deployment | None = None,
        shard: int | None = None,
        *,
        limits: Limits | None = None,
    ) -> None:
        self.held = Held(limits)
        self.incarnation = secrets.randbits(52) + 1
        self.cluster: str | None = None
        self.sessions = Sessions()
        self.pull_served, self.push_served = Latency(), Latency()
        self.num_refused = 0
        self.in_progress = 0
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._configuring = threading.Lock()
        self._hosted: Hosted | None = None
        if deployment is not None:
            assert shard is not None
            self._host(deployment, shard)
        self._reads: dict[str, Callable[[Hosted, Message, str], Answer]] = {
            "pull": self._pull,
            "pull_dense": self._pull_dense,
            "export_dense": self._export_dense,
            "geo_fetch": self._geo_fetch,
        }
        self._writes: dict[str, Callable[[Hosted, Message, str], dict[str, Any]]] = {
            "push": self._push,
            "push_dense": self._push_dense,
            "stage": self._stage,
            "stage_dense": self._stage_dense,
            "commit": self._commit,
            "set": self._set,
            "init_dense": self._init_dense,
            "set_dense": self._set_dense,
            "restore_dense": self._restore_dense,
            "clear": self._clear,
            "shrink": self._shrink,
            "geo_join": self._geo_join,
            "geo_leave": self._geo_leave,
            "geo_add": self._geo_add,
            "geo_add_dense": self._geo_add_dense,
        }

    @property
    def hosted(self) -> Hosted:
        """The tables. RefusedError before a client has said which."""
        if self._hosted is None:
            raise RefusedError("this server has no tables yet: connect with a plan first")
        return self._hosted

    def configure(self, request: dict[str, Any]) -> dict[str, Any]:
        """Say hello: take the plan if there is none, else compare. RefusedError names what differs.

        The answer comes when the kernels are compiled.
        """
        if request.get("version") != VERSION:
            raise RefusedError(
                f"this server speaks version {VERSION} of the protocol, the client "
                f"{request.get('version')!r:.80}; use one release of Downpour for all"
            )
        fingerprint, shard = text(request, "fingerprint"), whole(request, "shard")
        with self._configuring:
            if self._hosted is None and "tables" in request:
                self._host(Deployment.of_message(request), shard)
            if self._hosted is not None:
                self._compare(self._hosted, fingerprint, shard)
        return self.greeting()

    def greeting(self) -> dict[str, Any]:
        """Who this is, and how far its tables are."""
        hosted = self._hosted
        answer: dict[str, Any] = {
            "version": VERSION,
            "incarnation": self.incarnation,
            "cluster": self.cluster,
            "has_plan": hosted is not None,
        }
        if hosted is not None:
            tables = {**hosted.server.sparse, **hosted.server.dense}
            answer["committed"] = hosted.staging.committed
            answer["steps"] = {name: table.step for name, table in tables.items()}
        return answer

    def form(self, cluster: str) -> str:
        """Give this server its cluster unless it has one; the one it has."""
        with self._lock:
            if self.cluster is None:
                self.cluster = cluster
            return self.cluster

    def require_same(self, incarnation: object) -> None:
        """Raise ServerLostError for a request to another incarnation; None is to any."""
        if incarnation not in (None, self.incarnation):
            raise ServerLostError(
                f"it has come back without its tables (incarnation {self.incarnation}, it was "
                f"{incarnation!r:.40}); load a saved run into new servers"
            )

    def read(self, message: Message, client: str) -> Answer:
        """Answer a request that changes no value; a pull may make rows."""
        return self._timed(self.pull_served, lambda: self._read(message, client))

    def write(self, message: Message, session: Session, owner: object) -> dict[str, Any]:
        """Apply a numbered request once."""
        op = text(message.header, "op")
        if op not in self._writes:
            raise RefusedError(f"no request {op!r}; there are: {', '.join(self._writes)}")
        number, step = whole(message.header, "n", least=1), whole(message.header, "s", default=0)

        def apply() -> dict[str, Any]:
            with typed_memory(op, message.header.get("table")):
                return self._writes[op](self.hosted, message, session.client)

        keeps = op in ANSWERED_AGAIN
        return self._timed(
            self.push_served,
            lambda: session.once(owner, number, step, apply, keeps_answer=keeps),
        )

    def note_refusal(self) -> None:
        """Count a request that was refused."""
        with self._lock:
            self.num_refused += 1

    def report(self) -> dict[str, Any]:
        """What a ServerReport holds, but for the address and the bytes that have travelled."""
        hosted = self._hosted
        stats = {} if hosted is None else hosted.server.stats()
        tables = {
            name: {
                "kind": "sparse" if isinstance(it, TableStats) else "dense",
                "rows": it.rows if isinstance(it, TableStats) else 0,
                "bytes": it.bytes,
            }
            for name, it in stats.items()
        }
        with self._lock:
            return {
                "shard": -1 if hosted is None else hosted.shard,
                "incarnation": self.incarnation,
                "tables": tables,
                "pull": self.pull_served.as_dict(),
                "push": self.push_served.as_dict(),
                "duplicates": self.sessions.duplicates,
                "refused": self.num_refused,
                "in_progress": self.in_progress,
                "uptime_s": time.monotonic() - self._started,
            }

    def stats(self) -> dict[str, dict[str, Any]]:
        """What `Server.stats` gives, as JSON."""
        if self._hosted is None:
            return {}
        return {name: asdict(it) for name, it in self._hosted.server.stats().items()}

    # What they do.

    def _host(self, deployment: Deployment, shard: int) -> None:
        try:
            hosted = Hosted(
                deployment, shard, self.held
            )  # before kernels are compiled for what is refused
            warm(deployment.plan, served=True)
        except (MemoryError, OverflowError) as error:
            raise RefusedError(f"the tables do not fit into memory here: {error}") from None
        self._hosted = hosted

    def _compare(self, hosted: Hosted, fingerprint: str, shard: int) -> None:
        if fingerprint != hosted.deployment.fingerprint:
            raise RefusedError(
                "this server has the tables of another plan, or another number of servers "
                f"(fingerprint {hosted.deployment.fingerprint[:12]}, the client's "
                f"{fingerprint[:12]}); plan with the same model, losses, data and settings"
            )
        if shard != hosted.shard:
            raise RefusedError(
                f"this server is shard {hosted.shard}, the client takes it for shard {shard}; give "
                "all the same servers in the same order"
            )

    def _timed(self, latency: Latency, call: Callable[[], T]) -> T:
        start = time.perf_counter()
        with self._lock:
            self.in_progress += 1
        try:
            return call()
        finally:
            with self._lock:
                self.in_progress -= 1
                latency.add(time.perf_counter() - start)

    def _read(self, message: Message, client: str) -> Answer:
        op = text(message.header, "op")
        if op not in self._reads:
            raise RefusedError(f"no request {op!r}; there are: {', '.join(self._reads)}")
        hosted = self.hosted
        self._await_commit(hosted, message)
        with typed_memory(op, message.header.get("table")):
            header, values = self._reads[op](hosted, message, client)
        return {**header, "seen": self.sessions.step_of(client)}, values

    def _await_commit(self, hosted: Hosted, message: Message) -> None:
        """A read of sync training comes after a step that may still be on its way here."""
        after = whole(message.header, "after", default=0)
        if hosted.staging.committed >= after:
            return
        wait_s = min(number(message.header, "wait_s"), MAX_WAIT_S)
        with hosted.committed:
            if not hosted.committed.wait_for(
                lambda: hosted.staging.committed >= after, timeout=wait_s
            ):
                raise ServerTimeoutError(
                    f"step {after} was not committed here within {wait_s:.1f} s, the last is "
                    f"{hosted.staging.committed}"
                )

    def _pull(self, hosted: Hosted, message: Message, client: str) -> Answer:
        table = table_of(hosted.server.sparse, message)
        hosted.check_own(message.keys)
        create = flag(message.header, "create")
        if create:
            hosted.growth.check(table, message.keys)
        return {}, table.pull(message.keys, create=create)

    def _pull_dense(self, hosted: Hosted, message: Message, client: str) -> Answer:
        return {}, table_of(hosted.server.dense, message).pull()

    def _export_dense(self, hosted: Hosted, message: Message, client: str) -> Answer:
        table = table_of(hosted.server.dense, message)
        with hosted.locks[table.name]:
            state = hosted.server.export_dense(table.name)
        parts = {name: len(values) for name, values in state.state.items()}
        values = np.concatenate([state.weights, *state.state.values()])
        return {"parts": parts, "updates": dict(state.updates), "step": state.step}, values

    def _push(self, hosted: Hosted, message: Message, client: str) -> dict[str, Any]:
        table = table_of(hosted.server.sparse, message)
        hosted.check_own(message.keys)
        pushes = rows_of(message, table.accessor.numpy_dtype, table.accessor.push_dim)
        lr = rates(message.header)
        hosted.growth.check(table, message.keys)
        with hosted.locks[table.name]:
            table = hosted.server.sparse[table.name]  # another one since, if it was cleared
            step = table.step + 1
            table.push(message.keys, pushes, step=step, lr=lr)
        return {"step": step}

    def _push_dense(self, hosted: Hosted, message: Message, client: str) -> dict[str, Any]:
        table = table_of(hosted.server.dense, message)
        grad = message.floats(table.dtype, (table.size,))
        lr, names = rates(message.header), texts(message.header, "names")
        if len(lr) != 1:
            raise TableError(f"dense table {table.name!r}: lr must be one number, got {list(lr)}")
        with hosted.locks[table.name]:
            step = hosted.server.dense[table.name].step + 1
            hosted.server.push_dense(table.name, grad, step=step, lr=lr[0], names=names)
        return {"step": step}

    def _stage(self, hosted: Hosted, message: Message, client: str) -> dict[str, Any]:
        table = table_of(hosted.server.sparse, message)
        hosted.check_own(message.keys)
        pushes = rows_of(message, table.accessor.numpy_dtype, table.accessor.push_dim)
        rank, step = whole(message.header, "rank"), whole(message.header, "at")
        is_mean = flag(message.header, "mean", default=True)
        hosted.growth.check(table, message.keys)
        # Kept as it came: the memory of a message is its own, and lives as long as its arrays.
        hosted.staging.stage(table.name, rank, step, message.keys, pushes, is_mean=is_mean)
        return {}

    def _stage_dense(self, hosted: Hosted, message: Message, client: str) -> dict[str, Any]:
        table = table_of(hosted.server.dense, message)
        grad = message.floats(table.dtype, (table.size,))
        rank, step = whole(message.header, "rank"), whole(message.header, "at")
        names, is_mean = texts(message.header, "names"), flag(message.header, "mean", default=True)
        hosted.staging.stage_dense(table.name, rank, step, grad, names, is_mean=is_mean)
        return {}

    def _commit(self, hosted: Hosted, message: Message, client: str) -> dict[str, Any]:
        hosted.commit(commit_of(message.header))
        return {}

    def _set(self, hosted: Hosted, message: Message, client: str) -> dict[str, Any]:
        table = table_of(hosted.server.sparse, message)
        hosted.check_own(message.keys)
        rows = rows_of(message, table.accessor.numpy_dtype, table.accessor.dim)
        hosted.growth.check(table, message.keys)
        keys = message.keys.copy()  # to be kept without the rest of the message
        with hosted.locks[table.name]:
            hosted.server.set(table.name, keys, rows)
            hosted.changes.note(table.name, keys)
        return {}

    def _init_dense(self, hosted: Hosted, message: Message, client: str) -> dict[str, Any]:
        table = table_of(hosted.server.dense, message)
        flat = message.floats(table.dtype, (table.size,))
        with hosted.locks[table.name]:
            return {"taken": hosted.server.init_dense(table.name, flat)}

    def _set_dense(self, hosted: Hosted, message: Message, client: str) -> dict[str, Any]:
        table = table_of(hosted.server.dense, message)
        flat = message.floats(table.dtype, (table.size,))
        names = texts(message.header, "names")
        with hosted.locks[table.name]:
            hosted.server.set_dense(table.name, flat, names)
        return {}

    def _restore_dense(self, hosted: Hosted, message: Message, client: str) -> dict[str, Any]:
        table = table_of(hosted.server.dense, message)
        state = restored_dense(message, table.dtype)
        with hosted.locks[table.name]:
            hosted.server.restore_dense(table.name, state)
        return {}

    def _clear(self, hosted: Hosted, message: Message, client: str) -> dict[str, Any]:
        hosted.clear(table_of(hosted.server.sparse, message).name)
        return {}

    def _shrink(self, hosted: Hosted, message: Message, client: str) -> dict[str, Any]:
        return asdict(hosted.shrink(table_of(hosted.server.sparse, message).name))

    # Geo training.

    def _geo_join(self, hosted: Hosted, message: Message, client: str) -> dict[str, Any]:
        rank = whole(message.header, "rank", least=-1)
        with hosted.committed:  # before a table is cleared, or after it
            hosted.changes.join(client, rank)
        return {}

    def _geo_leave(self, hosted: Hosted, message: Message, client: str) -> dict[str, Any]:
        hosted.changes.leave(client)
        return {}

    def _geo_add(self, hosted: Hosted, message: Message, client: str) -> dict[str, Any]:
        table = table_of(hosted.server.sparse, message)
        hosted.check_own(message.keys)
        deltas = rows_of(message, table.accessor.numpy_dtype, table.accessor.dim)
        hosted.growth.check(table, message.keys)
        with hosted.locks[table.name]:
            hosted.changes.add(client, table.name, message.keys, deltas)
        return {}

    def _geo_add_dense(self, hosted: Hosted, message: Message, client: str) -> dict[str, Any]:
        table = table_of(hosted.server.dense, message)
        has_keep = flag(message.header, "keeps")
        deltas, *keep = message.floats(table.dtype, (1 + has_keep, table.size))
        with hosted.locks[table.name]:
            hosted.changes.add_dense(client, table.name, deltas, keep[0] if keep else None)
        return {}

    def _geo_fetch(self, hosted: Hosted, message: Message, client: str) -> Answer:
        table = table_of(hosted.server.sparse, message)
        number = whole(message.header, "number")
        keys, rows, has_more = hosted.changes.fetch(client, table.name, number)
        return {"more": has_more}, packed(keys, rows)
