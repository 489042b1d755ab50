"""Geo training on a server: changes that workers add, and which rows each has still to hear of."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from downpour.errors import NonFiniteError, RefusedError, TableError
from downpour.tables import SparseTable, dedup, segment_sum
from downpour.tables.batches import is_finite
from downpour.wire import aligned

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from downpour.server import Server
    from downpour.transport import Floats, Keys

PART_BYTES = 32 << 20
PART_ROWS = 100_000
LEAST_NOTED = 1 << 16  # keys that are noted before repeats are looked for
SET_BYTES = 1000  # that a set takes beside its keys
NO_KEYS = np.empty(0, np.uint64)


def part_rows(dim: int, dtype: np.dtype[Any]) -> int:
    """Rows that go in one message: a bounded number, of a bounded size."""
    return max(1, min(PART_ROWS, PART_BYTES // (8 + dim * dtype.itemsize)))


class ChangeSet:
    """The keys of one table whose rows one worker has not heard of.

    They are handed out in parts with rising numbers from 1. A part goes once the next one is asked
    for, as that says that it came; asked for again, as after a broken connection, it is the same.

    Keys are kept as they come, and repeats are dropped whenever their number has doubled. So the
    set holds at most about twice as many keys as the table, however long nobody asks. Safe to call
    from many threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._noted: list[Keys] = []
        self._num_noted, self._most_noted = 0, LEAST_NOTED
        self._ready = NO_KEYS  # to be handed out before what is noted meanwhile
        self._part = NO_KEYS
        self._number = 0

    def __len__(self) -> int:
        """Keys held, repeats included."""
        with self._lock:
            return self._num_noted + self._ready.size + self._part.size

    def note(self, keys: Keys) -> None:
        """Add keys; the array is kept and must not change."""
        if not keys.size:
            return
        with self._lock:
            self._noted.append(keys)
            self._num_noted += keys.size
            if self._num_noted > self._most_noted:
                with suppress(MemoryError):  # then repeats stay, as what they tell of has happened
                    self._noted = [self._different()]
                self._num_noted = sum(each.size for each in self._noted)
                self._most_noted = max(LEAST_NOTED, 2 * self._num_noted)

    def fetch(self, number: int, most: int) -> tuple[Keys, bool]:
        """Part `number`, at most so many keys, and whether more were noted before its first part.

        Raises RefusedError for a number that is neither the last one nor the next.
        """
        with self._lock:
            if number == self._number + 1:
                if not self._ready.size:
                    self._ready = self._different()
                    self._noted, self._num_noted = [], 0
                self._part, self._ready = self._ready[:most], self._ready[most:]
                self._number = number
            elif number != self._number:
                raise RefusedError(
                    f"part {number} of the changes was asked for after part {self._number}: each "
                    "worker asks for them in order, and for the last one again at most"
                )
            return self._part, bool(self._ready.size)

    def _different(self) -> Keys:
        """What was noted, rising; the lock is held."""
        return np.unique(np.concatenate(self._noted)) if self._noted else NO_KEYS


class Changes:
    """Adds what workers have changed to a server's tables, and tells each what others did.

    A worker joins as a client with its rank; of one rank the last client counts, so what a worker
    that died had still to hear is kept until its rank is taken again, by the next run. Calls that
    change one table must not overlap.

    most_bytes: of all that is kept for workers. Where that is too much, who has fetched least takes
    part no longer.
    """

    def __init__(self, server: Server, *, most_bytes: int = 1 << 62) -> None:
        self._server, self._most_bytes = server, most_bytes
        self._num_noted = 0  # keys noted since all were counted
        self._lock = threading.Lock()
        self._by_rank: dict[int, str] = {}
        self._sets: dict[str, dict[str, ChangeSet]] = {}  # by client and table

    @property
    def clients(self) -> tuple[str, ...]:
        """Those who take part, in the order in which they came."""
        with self._lock:
            return tuple(self._sets)

    def join(self, client: str, rank: int) -> None:
        """Note changes for a client from now on; once more changes nothing.

        RefusedError where there is no room for another one.
        """
        with self._lock:
            if client not in self._sets:
                own = {name: ChangeSet() for name in self._server.sparse}
                self._sets.pop(self._by_rank.pop(rank, ""), None)
                sets = (len(self._sets) + 1) * len(self._server.sparse)
                if sets * SET_BYTES > self._most_bytes:
                    raise RefusedError(
                        f"{len(self._sets)} workers take part in geo training here, and there is "
                        "no room for more: start new servers"
                    )
                self._by_rank[rank] = client
                self._sets[client] = own

    def leave(self, client: str) -> None:
        """Forget a client; one that is not here may leave."""
        with self._lock:
            self._sets.pop(client, None)
            self._by_rank = {rank: it for rank, it in self._by_rank.items() if it != client}

    def add(self, client: str, table: str, keys: Keys, deltas: Floats) -> None:
        """Add deltas [n, dim] to the rows of keys [n], made where they are missing.

        Weights stay within the table's bounds. Raises RefusedError for a client that has not
        joined, TableError or NonFiniteError, and then nothing has changed.
        """
        changed = self._of(client)[table]
        own = self._server.sparse[table]
        if not isinstance(own, SparseTable):
            raise TableError(f"table {table!r} has CTR rows, to which no changes can be added")
        unique, inverse = dedup(keys)
        if unique.size < keys.size:
            deltas = segment_sum(deltas, inverse, unique.size)
        # What is not finite is found before rows are made.
        with np.errstate(over="ignore", invalid="ignore"):
            summed = own.read(unique, own.locate(unique, create=False)) + deltas
        if not is_finite(summed):
            raise NonFiniteError(
                f"table {table!r}: changes lead to NaN or infinity; nothing was applied"
            )
        bounds = own.accessor.bounds
        kept = summed if bounds is None else summed.clip(*bounds)
        # Where there are no bounds the client knows what its rows are now.
        others = None if bounds is None else unique[(kept != summed).any(axis=1)]
        own.replace(own.locate(unique, create=True), kept)
        self.note(table, unique, but=client)
        if others is not None:
            changed.note(others)

    def add_dense(self, client: str, table: str, deltas: Floats, keep: Floats | None) -> None:
        """Make a share of a dense table keep * weights + deltas, each [size]; None keeps all.

        Raises RefusedError, TableError or NonFiniteError, and then nothing has changed.
        """
        self._of(client)
        own = self._server.dense[table]
        if keep is not None and not ((keep >= 0.0) & (keep <= 1.0)).all():
            raise TableError(f"dense table {table!r}: what is kept must be in [0, 1]")
        weights = own.pull()
        with np.errstate(over="ignore", invalid="ignore"):
            own.set((weights if keep is None else keep * weights) + deltas)

    def note(self, table: str, keys: Keys, *, but: str | None = None) -> None:
        """Let all clients, or all but one, hear of rows; the array is kept and must not change."""
        with self._lock:
            sets = [own[table] for client, own in self._sets.items() if client != but]
        for each in sets:
            each.note(keys)
        with self._lock:
            self._num_noted += keys.size * len(sets)
            if 8 * self._num_noted > self._most_bytes // 4:
                self._num_noted = 0
                self._bound()

    def fetch(self, client: str, table: str, number: int) -> tuple[Keys, Floats, bool]:
        """Part `number` of what a client has not heard of: keys and rows as of now.

        And whether there is more. Raises RefusedError as `ChangeSet.fetch` does, and for a client
        that has not joined.
        """
        changed = self._of(client)[table]
        own = self._server.sparse[table]
        accessor = own.accessor
        most = part_rows(accessor.pull_dim, accessor.numpy_dtype)
        keys, has_more = changed.fetch(number, most)
        return keys, own.pull(keys, create=False), has_more

    def _bound(self) -> None:
        """Forget who has most to fetch while there is too much; the lock is held."""
        kept = {client: sum(map(len, own.values())) for client, own in self._sets.items()}
        while kept and 8 * sum(kept.values()) > self._most_bytes // 2:
            client = max(kept, key=kept.__getitem__)
            del kept[client], self._sets[client]

    def _of(self, client: str) -> dict[str, ChangeSet]:
        with self._lock:
            own = self._sets.get(client)
        if own is None:
            raise RefusedError(
                f"client {client} takes no part in geo training here: it has not joined, has left, "
                "another one has taken its rank, or it had too many changes of others to fetch"
            )
        return own


def packed(keys: Keys, rows: Floats) -> NDArray[np.uint8]:
    """Keys [n] and their rows as the values of one answer."""
    return np.concatenate([keys.view(np.uint8), rows.reshape(-1).view(np.uint8)])


def unpacked(values: NDArray[np.uint8], dim: int, dtype: np.dtype[Any]) -> tuple[Keys, Floats]:
    """The keys [n] and rows [n, dim] that `packed` has put together."""
    count = values.nbytes // (8 + dim * dtype.itemsize)
    rows = aligned(values[8 * count :], dtype).reshape(count, dim)
    return aligned(values[: 8 * count], np.dtype(np.uint64)), rows
