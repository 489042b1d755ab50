"""The tables of one shard on a server, and who may change them when."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np

from downpour.errors import RefusedError, TableError
from downpour.server import Server
from downpour.serving.changes import Changes
from downpour.serving.memory_errors import typed_memory
from downpour.serving.staging import Staging
from downpour.tables import shard_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from downpour.deployment import Deployment
    from downpour.serving.staging import Commit
    from downpour.transport import DenseState, Shrunk, SparseState


class Hosted:
    """The tables of one shard, and what is staged for them.

    Whoever changes a table, or needs it unchanged, holds its lock in `locks`; a commit, which
    changes many tables, holds the locks of all of them and `committed` (see `alone`). So the
    changes of a table come one after the other. Reads hold none of these: a table shows them all of
    a change or nothing, and `clear` and `shrink` replace a table, so that a read which has found
    the old one still ends.
    """

    def __init__(self, deployment: Deployment, shard: int) -> None:
        if not 0 <= shard < deployment.num_shards:
            raise RefusedError(f"shard must be in [0, {deployment.num_shards}), got {shard}")
        self.deployment, self.shard = deployment, shard
        self.server = self.new_server()
        elsewhere = {it.name for it in deployment.plan.dense} - self.server.dense.keys()
        self.staging = Staging(self.server, elsewhere=elsewhere)
        self.changes = Changes(self.server)
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

    def restore(self, table: str, state: SparseState) -> None:
        """Fill an empty sparse table."""
        self.check_own(state.keys)
        with self.alone(table), typed_memory("restore", table):
            self.server.restore(table, state)

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
