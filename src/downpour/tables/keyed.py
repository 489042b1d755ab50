"""What sparse tables have in common: rows by 64-bit key, made when first asked for."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from downpour.errors import NonFiniteError, OutOfMemoryError, TableError
from downpour.tables import kernels
from downpour.tables.batches import dedup, is_finite
from downpour.tables.index import MAX_ROWS, Index
from downpour.tables.read_write_lock import ReadWriteLock
from downpour.tables.rows import read_keys
from downpour.tables.stats import TableStats
from downpour.tables.undo import SpareMemory, Transaction, UndoLog
from downpour.team import share

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from downpour.accessor import Accessor, Rates
    from downpour.tables.row_store import RowStore
    from downpour.tables.views import TableView

KEY_BYTES = 8  # with which a row begins


class KeyedTable(ABC):
    """The index, the rows that it points to, and the checks of what comes from outside.

    Whoever changes rows has `lock` alone, and readers share it, so a read on any thread sees all of
    an update or nothing. An update that raises has changed nothing; it may have made rows, which
    then hold their initial values. With `within`, a change is a part of that transaction.
    """

    pushed: ClassVar[str]  # what a push brings, in messages

    def __init__(self, name: str, accessor: Accessor, seed: int, rows: RowStore) -> None:
        self.name = name
        self.accessor = accessor
        self.seed = seed
        self.step = 0
        self.log_decay = 0.0
        self._dtype = accessor.numpy_dtype
        self.lock = ReadWriteLock()
        self._rows = rows
        self._index = Index()
        self._spare = SpareMemory()
        self._structure_lock = threading.Lock()

    def __len__(self) -> int:
        return self._index.num_rows

    def __repr__(self) -> str:
        kind = type(self).__name__
        return f"{kind}({self.name!r}, rows={len(self)}, dim={self.dim}, step={self.step})"

    @property
    def dim(self) -> int:
        """Weights a row."""
        return self.accessor.dim

    # The trusted calls: keys uint64 and contiguous, pushes of the table's dtype, rows unique.

    def locate(self, keys: np.ndarray, *, create: bool) -> np.ndarray:
        """The row number of each key, int64 [n]; where there is none, made or -1.

        Raises OutOfMemoryError; then the rows that could be made are there.
        """
        assert keys.dtype == np.uint64
        assert keys.ndim == 1
        rows = np.empty(keys.size, np.int64)
        with self._structure_lock:
            share(partial(self._find, keys, rows), keys.size)
        if create and (unknown := np.flatnonzero(rows < 0)).size:
            rows[unknown] = self._make(keys[unknown])
        return rows

    def read(self, keys: np.ndarray, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """What a pull gives of located rows, [n, pull_dim]; row -1 gives the key's initial row."""
        assert keys.shape == rows.shape
        assert rows.dtype == np.int64
        out = self._out(keys.size, out)
        with self.lock.read():
            self._read_all(keys, rows, out)
        return out

    def advance(self, *, step: int, lr: Rates) -> None:
        """Let `step` pass, also for rows that get no gradient: all weights decay by its lr.

        A step seen before changes nothing; steps passed over decay by this lr too.
        """
        with self.lock.write():
            self._pass(step, self._log_decay_at(step, lr))

    # The calls for anyone: checked, and refused whole.

    @property
    def row_bytes(self) -> int:
        """What a row takes in memory, beside its place in the index."""
        return self._rows.layout.num_bytes

    def stats(self) -> TableStats:
        """Rows and memory, of this moment."""
        return TableStats(
            rows=len(self),
            row_bytes=self.row_bytes,
            arena_bytes=self._rows.touched_bytes(len(self)),
            index_bytes=self._index.num_bytes,
            load=len(self) / self._index.num_slots,
            growths=self._index.growths,
        )

    def row_order(self) -> np.ndarray:
        """The numbers of all rows by rising key, uint32 [n], for `export_rows`."""
        with self._structure_lock:
            keys = np.empty(len(self), np.uint64)
            read_keys(np.arange(len(self)), keys, self._rows.view)
        order: np.ndarray = np.argsort(keys, kind="stable").astype(np.uint32)
        return order

    # What tables differ in.

    @abstractmethod
    def _read(
        self, keys: np.ndarray, rows: np.ndarray, out: np.ndarray, start: int, stop: int
    ) -> None:
        """Write what a pull gives of rows[start:stop] to out[start:stop]."""

    @property
    @abstractmethod
    def _record_bytes(self) -> int:
        """Bytes of a row's record in the undo log."""

    @abstractmethod
    def _undo_rows(self, rows: np.ndarray, records: np.uint64) -> None:
        """Restore rows from their records at an address."""

    @abstractmethod
    def _merge(self, pushes: np.ndarray, inverse: np.ndarray, num_unique: int) -> np.ndarray:
        """One push a key from pushes [n, push_dim] with repeats."""

    def _log_decay_of(self, lr: Rates) -> float:
        """The logarithm of what a step leaves of a weight; 0: all of it."""
        return 0.0

    # What they share.

    def _pass(self, step: int, log_decay: float) -> None:
        """Let a step pass that leaves this `log_decay`, for a caller that has the lock."""
        self.log_decay = log_decay
        self.step = max(self.step, step)

    def _log_decay_at(self, step: int, lr: Rates) -> float:
        """`log_decay` once a step has passed."""
        passed = step - self.step
        return self.log_decay + passed * self._log_decay_of(lr) if passed > 0 else self.log_decay

    def _changing(self, within: Transaction | None) -> AbstractContextManager[Transaction]:
        """The transaction that a change is a part of, or one of its own."""
        return Transaction() if within is None else nullcontext(within)

    def _begin_log(self, rows: np.ndarray, changes: Transaction) -> UndoLog:
        """Lock the table, and open the undo log of an update of `rows`."""
        changes.lock(self.lock)
        log = UndoLog(rows, self._record_bytes, self._spare)
        changes.at_end(log.end)
        changes.on_undo(partial(self._undo, log, self.step, self.log_decay))
        return log

    def _undo(self, log: UndoLog, step: int, log_decay: float) -> None:
        """Restore rows, step and decay as they were before an update."""
        for rows, records in log.parts():
            self._undo_rows(rows, records)
        self.step, self.log_decay = step, log_decay

    def _check_result(self, log: UndoLog) -> None:
        """Raise NonFiniteError if an update has left a row that is not finite."""
        place = log.bad()
        if place is not None:
            raise NonFiniteError(
                f"table {self.name!r}: this push would make the row of key "
                f"{self._key_of(log.rows[place])} infinite or NaN, its weights or what its rule "
                "keeps; nothing was applied. A smaller learning rate, clipping or an eps above 0 "
                "may help"
            )

    def _key_of(self, row: np.int64) -> int:
        keys = np.empty(1, np.uint64)
        read_keys(np.array([row]), keys, self._rows.view)
        return int(keys[0])

    def _read_all(self, keys: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
        """`read`, for a caller that has the lock."""
        share(partial(self._read, keys, rows, out), keys.size)

    def _find(self, keys: np.ndarray, rows: np.ndarray, start: int, stop: int) -> None:
        """Write the rows of keys[start:stop], -1 where there is none."""
        scratch, state = self._rows.scratch(), self._index.state
        part, view = keys[start:stop], self._rows.view_with(scratch, self.log_decay)
        kernels.locate(part, 0, rows[start:stop], state, view, False)

    def _make(self, keys: np.ndarray) -> np.ndarray:
        """Find the rows of keys, making those that are missing."""
        rows = np.empty(keys.size, np.int64)

        def make(start: int, table: TableView) -> int:
            return kernels.make(keys, start, rows, self._index.state, table)

        self._run(make, keys.size)
        return rows

    def _run(
        self,
        call: Callable[[int, TableView], int],
        num_keys: int,
        log_decay: float | None = None,
    ) -> None:
        """Call a kernel, from key 0 on, that returns where it stopped; make room where it did.

        log_decay: that of the step it works for; None: the current one.
        """
        scratch = self._rows.scratch()
        log_decay = self.log_decay if log_decay is None else log_decay
        with self._structure_lock:
            done = 0
            while (done := call(done, self._rows.view_with(scratch, log_decay))) < num_keys:
                self._make_room()
            self._index.release_old()

    def _make_room(self) -> None:
        rows = len(self)
        if rows >= MAX_ROWS:
            raise TableError(
                f"table {self.name!r}: a shard holds at most {MAX_ROWS} rows: use more shards"
            )
        try:
            if rows < self._index.row_limit:
                self._index.grow()
                return
            if rows >= self._rows.capacity:
                self._rows.grow()
        except MemoryError as error:
            raise self._no_memory(error) from error
        self._index.set_row_limit(min(self._rows.capacity, MAX_ROWS))

    def _no_memory(self, error: MemoryError) -> OutOfMemoryError:
        return OutOfMemoryError(
            f"table {self.name!r}: there is no memory for more than its {len(self)} rows "
            f"({error}); nothing was applied. Use more servers, or machines with more memory"
        )

    def _rates(self, lr: Rates) -> tuple[float, ...]:
        """A learning rate for each part of a row."""
        num_parts = len(self.accessor.rules)
        rates = lr if isinstance(lr, tuple) else (lr,) * num_parts
        if len(rates) != num_parts:
            raise TableError(
                f"table {self.name!r}: lr must be a number{' or two' * (num_parts == 2)}, got {lr}"
            )
        return rates

    def _different(self, keys: np.ndarray, pushes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The different keys, and one push of each."""
        unique, inverse = dedup(keys)
        if unique.size < keys.size:
            pushes = self._merge(pushes, inverse, unique.size)
            self._check_finite(f"summed {self.pushed}", pushes, unique)
        return unique, pushes

    def _out(self, num_keys: int, out: np.ndarray | None) -> np.ndarray:
        shape = (num_keys, self.accessor.pull_dim)
        if out is None:
            return np.empty(shape, self._dtype)
        if out.shape != shape or out.dtype != self._dtype or not out.flags.c_contiguous:
            raise TableError(
                f"table {self.name!r}: out must be contiguous {self._dtype} {list(shape)}, got "
                f"{out.dtype} {list(out.shape)}"
            )
        return out

    def _checked_keys(self, keys: np.ndarray) -> np.ndarray:
        keys = np.asarray(keys)
        if keys.dtype not in (np.uint64, np.int64):
            raise TableError(
                f"table {self.name!r}: keys must be uint64, or int64 with the same bits, got "
                f"{keys.dtype}; convert them with .astype('uint64')"
            )
        if keys.ndim != 1:
            raise TableError(f"table {self.name!r}: keys must be [n], got {list(keys.shape)}")
        return np.ascontiguousarray(keys).view(np.uint64)

    def _checked_values(self, what: str, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        values = np.asarray(values)
        if values.dtype != self._dtype:
            raise TableError(
                f"table {self.name!r}: {what} must be {self._dtype}, got {values.dtype}; convert "
                f"them with .astype({self._dtype.name!r})"
            )
        if values.shape != shape:
            raise TableError(
                f"table {self.name!r}: {what} must be {list(shape)}, a row a key, got "
                f"{list(values.shape)}"
            )
        values = np.ascontiguousarray(values)
        self._check_finite(what, values, None)
        return values

    def _check_finite(self, what: str, values: np.ndarray, keys: np.ndarray | None) -> None:
        if is_finite(values):
            return
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        where = f"row {row}" if keys is None else f"key {keys[row]}"
        raise NonFiniteError(
            f"table {self.name!r}: {what} hold NaN or infinity, first in {where}; nothing was "
            "applied"
        )

    def _check_step(self, step: int, lr: Rates) -> None:
        if step < 1:
            raise TableError(f"table {self.name!r}: step counts from 1, got {step}")
        if not all(math.isfinite(rate) and rate >= 0.0 for rate in self._rates(lr)):
            raise TableError(f"table {self.name!r}: lr must be finite and >= 0, got {lr}")
        self._log_decay_of(lr)

    def require_empty(self) -> None:
        """Raise TableError where the table has rows, or a step has passed."""
        if len(self) or self.step:
            raise TableError(f"table {self.name!r}: restore needs an empty table, got {self!r}")
