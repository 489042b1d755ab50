"""The tables of one shard on a server, and who may change them when."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np

from downpour.errors import RefusedError, TableError
from downpour.row_batches import batch_rows
from downpour.server import Server
from downpour.serving.changes import Changes
from downpour.serving.growth import INDEX_BYTES, Growth
from downpour.serving.held import Account, Held
from downpour.serving.memory_errors import typed_memory
from downpour.serving.staging import Staging
from downpour.tables import shard_of
from downpour.transport import SparseState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from downpour.deployment import Deployment
    from downpour.serving.staging import Commit
    from downpour.tables import CtrTable, SparseTable
    from downpour.transport import DenseState, Shrunk


class Hosted:
    """The tables of one shard, and what is staged for them.

    Whoever changes a table, or needs it unchanged, holds its lock in `locks`; a commit, which
    changes many tables, holds the locks of all of them and `committed` (see `alone`). So the
    changes of a table come one after the other. Reads hold none of these: a table shows them all of
    a change or nothing, and `clear` and `shrink` replace a table, so that a read which has found
    the old one still ends.
    """

    def __init__(self, deployment: Deployment, shard: int, held: Held | None = None) -> None:
        if not 0 <= shard < deployment.num_shards:
            raise RefusedError(f"shard must be in [0, {deployment.num_shards}), got {shard}")
        self.deployment, self.shard = deployment, shard
        self.server = self.new_server()
        elsewhere = {it.name for it in deployment.plan.dense} - self.server.dense.keys()
        held = held or Held()
        staged = Account(held, "what is staged for a step")
        self.staging = Staging(self.server, elsewhere=elsewhere, account=staged)
        self.changes = Changes(self.server, most_bytes=held.limits.held_bytes // 4)
        self._filling: dict[str, SparseTable | CtrTable] = {}  # beside the tables of these names
        self._lock = threading.Lock()  # of these
        self.growth = Growth(self.server, held.limits, self._filling)
        self.committed = threading.Condition()
        self.locks = {name: threading.Lock() for name in (*self.server.sparse, *self.server.dense)}

    def new_server(self) -> Server:
        """The shard's tables, empty."""
        deployment = self.deployment
        return Server(
            deployment.plan,
            shard=self.shard,
            num_shards=deployment.num_shards,
            sections=deployment.sections,
        )

    def check_own(self, keys: NDArray[np.uint64]) -> None:
        """Refuse keys of other shards: rows that no pull would ever find."""
        shards = shard_of(keys, self.deployment.num_shards)
        if (shards != self.shard).any():
            place = int(np.argmax(shards != self.shard))
            raise TableError(
                f"key {keys[place]} belongs to shard {shards[place]}, this is shard {self.shard}; "
                "nothing was changed"
            )

    @contextmanager
    def alone(self, *tables: str) -> Iterator[None]:
        """Nobody else changes these tables meanwhile, or commits a step."""
        with ExitStack() as held:
            held.enter_context(self.committed)
            for name in sorted(tables):  # all who hold several take them in one order
                held.enter_context(self.locks[name])
            yield

    def clear(self, table: str) -> None:
        """Empty a sparse table. Geo workers will hear that its rows are new ones."""
        with self.alone(table):
            keys = self.server.export(table).keys if self.changes.clients else None
            self.server.clear(table)
            if keys is not None:
                self.changes.note(table, keys)

    def shrink(self, table: str) -> Shrunk:
        """Let a day pass for a table of CTR rows. TableError for another one."""
        with self.alone(table):
            return self.server.shrink(table)

    def export(self, table: str) -> SparseState:
        """All rows of a sparse table, as of one moment."""
        with self.alone(table):
            return self.server.export(table)

    def export_parts(self, table: str) -> tuple[int, SparseState, Iterator[SparseState]]:
        """The rows that a sparse table has now, by rising key, in parts of a bounded size.

        Before them their number, and a part without rows, which has the step and decay. Each part
        is as of the moment in which it is asked for: a table that is cleared or shrunk meanwhile is
        read to its end as it was.
        """
        with self.alone(table):
            own = self.server.sparse[table]
            order, passed = own.row_order(), (own.step, own.log_decay)
            size = batch_rows(self.deployment.plan.sparse_table(table))

        def part(rows: NDArray[np.uint32]) -> SparseState:
            keys, weights, state, *statistics = own.export_rows(rows)
            return SparseState(keys, weights, state, *passed, *statistics)

        def parts() -> Iterator[SparseState]:
            for start in range(0, max(order.size, 1), size):
                with self.alone(table):
                    made = part(order[start : start + size])
                yield made

        return order.size, part(order[:0]), parts()

    def export_dense(self, table: str) -> DenseState | None:
        """The share of a dense table, as of one moment; None before it has its first weights."""
        with self.alone(table):
            return self.server.export_dense(table) if self.server.has_weights(table) else None

    def commit(self, commit: Commit) -> None:
        """Apply a step of sync training, see `Staging.commit`, and wake those who wait for it."""
        tables = self.locks.keys() & commit.rates.keys()
        with self.alone(*tables):
            try:
                self.staging.commit(commit)
            finally:  # a step that was refused is over, too
                self.committed.notify_all()

    def restore(
        self, table: str, parts: Iterable[SparseState], *, step: int, log_decay: float
    ) -> None:
        """Fill an empty sparse table with rows that come in parts, which must differ in key.

        They go into a table beside it, which takes its place at the end: where a part cannot be
        taken, or none comes, nothing has changed. Raises TableError.
        """
        self.server.sparse[table].require_empty()
        fresh = self.server.fresh(table, step=step, log_decay=log_decay)
        with self._filling_one(table, fresh), typed_memory("restore", table):
            row_bytes = fresh.row_bytes + INDEX_BYTES
            for part in parts:
                self.check_own(part.keys)
                self.growth.check_bytes(f"table {table!r}", len(part.keys) * row_bytes)
                num_rows = len(fresh) + len(part.keys)
                statistics = () if part.statistics is None else (part.statistics,)
                fresh.append(part.keys, part.weights, part.state, *statistics)
                if len(fresh) < num_rows:
                    raise TableError(f"table {table!r}: rows to be restored must differ in key")
            with self.alone(table):
                self.server.sparse[table].require_empty()
                self.server.sparse[table] = fresh

    @contextmanager
    def _filling_one(self, table: str, fresh: SparseTable | CtrTable) -> Iterator[None]:
        """One who restores a table at a time, as each has a table beside it."""
        with self._lock:
            if table in self._filling:
                raise TableError(f"table {table!r} is being restored by another client")
            self._filling[table] = fresh
        try:
            yield
        finally:
            with self._lock:
                del self._filling[table]

    def require_new(self) -> None:
        """Raise RefusedError where a table holds anything, or a step was committed."""
        if not self.server.is_new or self.staging.committed:
            raise RefusedError(
                f"shard {self.shard} has been trained or filled already: only new servers load a "
                "save; start all servers anew, and load before anything else"
            )

    def adopt(self, filled: Server) -> None:
        """Take over the tables of another server of this shard. RefusedError unless this is new."""
        with self.alone(*self.locks):
            self.require_new()
            self.server.adopt(filled)
