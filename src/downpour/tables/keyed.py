"""What sparse tables have in common: rows by 64-bit key, made when first asked for."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from downpour.errors import NonFiniteError, TableError
from downpour.tables import kernels
from downpour.tables.batches import dedup, is_finite
from downpour.tables.index import MAX_ROWS, Index
from downpour.tables.stats import TableStats
from downpour.team import share

if TYPE_CHECKING:
    from collections.abc import Callable

    from downpour.accessor import Accessor, Rates
    from downpour.tables.row_store import RowStore
    from downpour.tables.views import TableView


class KeyedTable(ABC):
    """The index, the rows that it points to, and the checks of what comes from outside."""

    pushed: ClassVar[str]  # what a push brings, in messages

    def __init__(self, name: str, accessor: Accessor, seed: int, rows: RowStore) -> None:
        self.name = name
        self.accessor = accessor
        self.seed = seed
        self.step = 0
        self.log_decay = 0.0
        self._dtype = accessor.numpy_dtype
        self._rows = rows
        self._index = Index()
        self._structure_lock = threading.Lock()
        self._step_lock = threading.Lock()

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
        """The row number of each key, int64 [n]; where there is none, made or -1."""
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
        share(partial(self._read, keys, rows, out), keys.size)
        return out

    def advance(self, *, step: int, lr: Rates) -> None:
        """Let `step` pass, also for rows that get no gradient: all weights decay by its lr.

        A step seen before changes nothing; steps passed over decay by this lr too.
        """
        with self._step_lock:
            passed = step - self.step
            if passed <= 0:
                return
            self.log_decay += passed * self._log_decay_of(lr)
            self.step = step

    # The calls for anyone: checked, and refused whole.

    def stats(self) -> TableStats:
        """Rows and memory, of this moment."""
        return TableStats(
            rows=len(self),
            row_bytes=self._rows.layout.num_bytes,
            arena_bytes=self._rows.touched_bytes(len(self)),
            index_bytes=self._index.num_bytes,
            load=len(self) / self._index.num_slots,
            growths=self._index.growths,
        )

    # What tables differ in.

    @abstractmethod
    def _read(
        self, keys: np.ndarray, rows: np.ndarray, out: np.ndarray, start: int, stop: int
    ) -> None:
        """Write what a pull gives of rows[start:stop] to out[start:stop]."""

    @abstractmethod
    def _merge(self, pushes: np.ndarray, inverse: np.ndarray, num_unique: int) -> np.ndarray:
        """One push a key from pushes [n, push_dim] with repeats."""

    def _log_decay_of(self, lr: Rates) -> float:
        """The logarithm of what a step leaves of a weight; 0: all of it."""
        return 0.0

    # What they share.

    def _find(self, keys: np.ndarray, rows: np.ndarray, start: int, stop: int) -> None:
        """Write the rows of keys[start:stop], -1 where there is none."""
        scratch, state = self._rows.scratch(), self._index.state
        part, view = keys[start:stop], self._rows.view_with(scratch, self.log_decay)
        kernels.locate(part, 0, rows[start:stop], state, view, False)

    def _make(self, keys: np.ndarray) -> np.ndarray:
        """Find the rows of keys, making those that are missing."""
        rows = np.empty(keys.size, np.int64)

        def make(start: int, table: TableView) -> int:
            first_new = len(self)
            done = kernels.locate(keys, start, rows, self._index.state, table, True)
            kernels.fill(np.uint64(first_new), np.uint64(len(self)), table)
            return done

        self._run(make, keys.size)
        return rows

    def _run(self, call: Callable[[int, TableView], int], num_keys: int) -> None:
        """Call a kernel, from key 0 on, that returns where it stopped; make room where it did."""
        scratch = self._rows.scratch()
        with self._structure_lock:
            done = 0
            while (done := call(done, self._rows.view_with(scratch, self.log_decay))) < num_keys:
                self._make_room()
            self._index.release_old()

    def _make_room(self) -> None:
        rows = len(self)
        if rows >= MAX_ROWS:
            raise TableError(
                f"table {self.name!r}: a shard holds at most {MAX_ROWS} rows: use more shards"
            )
        if rows < self._rows.capacity:
            self._index.grow()
        else:
            self._rows.grow()
            self._index.set_row_limit(min(self._rows.capacity, MAX_ROWS))

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

    def _check_empty(self) -> None:
        if len(self) or self.step:
            raise TableError(f"table {self.name!r}: restore needs an empty table, got {self!r}")
