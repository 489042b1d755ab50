"""One shard of a sparse table: rows by 64-bit key, in this process."""

from __future__ import annotations

import math
import threading
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from downpour.errors import NonFiniteError, SettingError, TableError
from downpour.init import table_salt
from downpour.tables import kernels
from downpour.tables.arena import Arena
from downpour.tables.batches import dedup, is_finite, segment_sum
from downpour.tables.callback import address_of
from downpour.tables.index import MAX_ROWS, Index
from downpour.tables.rows import read_keys, read_state, write
from downpour.tables.stats import TableStats
from downpour.tables.views import RuleView, TableView
from downpour.team import share

if TYPE_CHECKING:
    from collections.abc import Callable

    from downpour.accessor import EmbeddingAccessor


class SparseTable:
    """Rows of one table by key, made when first asked for.

    `name` and `seed` fix the initial rows together with the key: element i of a key's initial row
    is a function of (seed, name, key, i). `accessor` says what a row holds.

    Keys are uint64 [n] (int64 is taken as the same bits). Weights and gradients are [n, dim] in
    the accessor's dtype. Nothing depends on the order in which keys arrive but row numbers.

    Weight decay is lazy: `log_decay` is the sum over steps of log(1 - lr * weight_decay); a row
    remembers its value at its last update and is multiplied by exp(now - then) when read. Every
    key has its initial row from step 0, so a row that is made late has decayed as if it had been
    there, and nothing depends on when it was made.

    Safe together on different threads: `locate` and `pull` with `read` and `update`; `update` of
    different rows. Calls that may make rows wait for each other.
    """

    def __init__(self, name: str, accessor: EmbeddingAccessor, *, seed: int = 0) -> None:
        self.name = name
        self.accessor = accessor
        self.seed = seed
        self.step = 0
        self.log_decay = 0.0
        self._dtype = accessor.numpy_dtype
        self._layout = accessor.layout
        self._index = Index()
        self._arena = Arena(self._layout.num_bytes)
        self._structure_lock = threading.Lock()
        self._step_lock = threading.Lock()
        # Kernels get the addresses of these two, so they stay.
        self._init_params = np.array(accessor.init.params(), self._dtype)
        self._initial_state = accessor.rule.initial_state(self.dim).astype(self._dtype)
        self._view = self._first_view()
        self._rule_view = RuleView(
            update=address_of(accessor.rule.update, self._dtype),
            hyper=np.uint64(0),
            num_hyper=0,
            batch_l2=self._dtype.type(accessor.rule.batch_l2),
        )

    def _first_view(self) -> TableView:
        layout, init = self._layout, self.accessor.init
        low, high = self.accessor.bounds or (0.0, 0.0)
        return TableView(
            chunks=np.uint64(self._arena.address),
            shift=np.uint64(self._arena.shift),
            row_bytes=np.uint64(layout.num_bytes),
            item_bytes=np.uint64(self._dtype.itemsize),
            weight_offset=np.uint64(layout.weight_offset),
            weight_bytes=np.uint64(layout.weight_bytes),
            state_offset=np.uint64(layout.state_offset),
            state_bytes=np.uint64(self._initial_state.nbytes),
            decay_offset=np.uint64(max(layout.decay_offset, 0)),
            fill=address_of(init.fill, self._dtype),
            salt=table_salt(self.seed, self.name),
            params=np.uint64(self._init_params.ctypes.data),
            num_params=self._init_params.size,
            num_uniforms=init.num_uniforms,
            initial_state=np.uint64(self._initial_state.ctypes.data),
            like=self._dtype.type(0.0),
            is_bounded=self.accessor.bounds is not None,
            low=self._dtype.type(low),
            high=self._dtype.type(high),
            log_decay=0.0,
            scratch=np.uint64(0),
            ring=np.uint64(0),
        )

    def __len__(self) -> int:
        return self._index.num_rows

    def __repr__(self) -> str:
        return f"SparseTable({self.name!r}, rows={len(self)}, dim={self.dim}, step={self.step})"

    @property
    def dim(self) -> int:
        """Weights a row."""
        return self.accessor.dim

    # The trusted calls: keys uint64 and contiguous, gradients of the table's dtype, rows unique.

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
        """The weights of located rows as of now, [n, dim]; row -1 gives the key's initial row."""
        assert keys.shape == rows.shape
        assert rows.dtype == np.int64
        out = self._out(keys.size, out)
        share(partial(self._read, keys, rows, out), keys.size)
        return out

    def update(self, rows: np.ndarray, grads: np.ndarray, *, step: int, lr: float) -> None:
        """Apply the rule once to each of `rows` (all different, from `locate`), grads [n, dim].

        `step` counts from 1. Several calls with one step are parts of one push.
        """
        assert grads.dtype == self._dtype
        assert grads.shape == (rows.size, self.dim)
        hyper = self._begin_update(step, lr)
        share(partial(self._update, rows, grads, hyper), rows.size)

    def advance(self, *, step: int, lr: float) -> None:
        """Let `step` pass, also for rows that get no gradient: all weights decay by its lr.

        A step seen before changes nothing; steps passed over decay by this lr too.
        """
        with self._step_lock:
            passed = step - self.step
            if passed <= 0:
                return
            if self._layout.decay_offset >= 0:
                self.log_decay += passed * self._log_decay_of(lr)
            self.step = step

    # The calls for anyone: checked, and refused whole.

    def pull(
        self, keys: np.ndarray, *, create: bool = True, out: np.ndarray | None = None
    ) -> np.ndarray:
        """The weights of any keys, [n, dim]; without `create` unknown keys stay unknown.

        Raises TableError for keys that are not 64-bit integers [n] or an `out` that does not fit.
        """
        keys = self._checked_keys(keys)
        out = self._out(keys.size, out)
        rows = np.empty(keys.size, np.int64)

        def pull(start: int, table: TableView) -> int:
            return kernels.pull(keys, start, rows, out, self._index.state, table, create)

        self._run(pull, keys.size)
        return out

    def push(self, keys: np.ndarray, grads: np.ndarray, *, step: int, lr: float) -> None:
        """Apply gradients [n, dim] to any keys [n]; those of one key are summed in order.

        Unknown keys are made first. `step` counts from 1; a push without keys still lets the step
        pass. Raises TableError or NonFiniteError, and then nothing has changed.
        """
        keys = self._checked_keys(keys)
        grads = self._checked_values("gradients", grads, (keys.size, self.dim))
        self._check_step(step, lr)
        unique, inverse = dedup(keys)
        if unique.size < keys.size:
            grads = segment_sum(grads, inverse, unique.size)
            self._check_finite("summed gradients", grads, unique)
        rows, hyper = np.empty(unique.size, np.int64), self._begin_update(step, lr)
        rule = self._rule_with(hyper)

        def push(start: int, table: TableView) -> int:
            return kernels.push(unique, start, rows, grads, self._index.state, table, rule)

        self._run(push, unique.size)

    def set(self, keys: np.ndarray, weights: np.ndarray, state: np.ndarray | None = None) -> None:
        """Write rows: weights [n, dim] and state [n, state_dim] (the rule's initial one if None).

        Of several rows for one key the last one stays. Raises TableError or NonFiniteError.
        """
        keys = self._checked_keys(keys)
        weights = self._checked_values("weights", weights, (keys.size, self.dim))
        width = self._layout.state_dim
        if state is None:
            state = np.broadcast_to(self._initial_state, (keys.size, width))
        state = self._checked_values("state", state, (keys.size, width))
        rows = self.locate(keys, create=True)
        write(rows, weights, state, self._view._replace(log_decay=self.log_decay))

    def export(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys uint64 [n] in rising order, their weights [n, dim] as of now, state [n, state_dim].

        The same for any order in which the keys arrived.
        """
        with self._structure_lock:
            keys = np.empty(len(self), np.uint64)
            read_keys(np.arange(len(self)), keys, self._view)
        rows = np.argsort(keys, kind="stable")
        keys = keys[rows]
        state = np.empty((keys.size, self._layout.state_dim), self._dtype)
        read_state(rows, state, self._view)
        return keys, self.read(keys, rows), state

    def restore(
        self,
        keys: np.ndarray,
        weights: np.ndarray,
        state: np.ndarray,
        *,
        step: int,
        log_decay: float = 0.0,
    ) -> None:
        """Fill an empty table with what `export`, `step` and `log_decay` gave of another."""
        if len(self) or self.step:
            raise TableError(f"table {self.name!r}: restore needs an empty table, got {self!r}")
        self.step, self.log_decay = step, log_decay
        self.set(keys, weights, state)

    def stats(self) -> TableStats:
        """Rows and memory, of this moment."""
        return TableStats(
            rows=len(self),
            row_bytes=self._layout.num_bytes,
            arena_bytes=self._arena.touched_bytes(len(self)),
            index_bytes=self._index.num_bytes,
            load=len(self) / self._index.num_slots,
            growths=self._index.growths,
        )

    def _find(self, keys: np.ndarray, rows: np.ndarray, start: int, stop: int) -> None:
        """Write the rows of keys[start:stop], -1 where there is none."""
        scratch, state = self._scratch(), self._index.state
        part, view = keys[start:stop], self._view_with(scratch)
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

    def _read(
        self, keys: np.ndarray, rows: np.ndarray, out: np.ndarray, start: int, stop: int
    ) -> None:
        scratch = self._scratch()
        view = self._view_with(scratch)
        kernels.read(keys[start:stop], rows[start:stop], out[start:stop], view)

    def _update(
        self, rows: np.ndarray, grads: np.ndarray, hyper: np.ndarray, start: int, stop: int
    ) -> None:
        scratch = self._scratch()
        view, rule = self._view_with(scratch), self._rule_with(hyper)
        kernels.update(rows[start:stop], grads[start:stop], view, rule)

    def _view_with(self, scratch: np.ndarray) -> TableView:
        """For one call of a kernel, which must not outlive `scratch`."""
        ring = np.uint64(scratch.ctypes.data)
        weights = ring + np.uint64(kernels.RING_BYTES)
        return self._view._replace(log_decay=self.log_decay, ring=ring, scratch=weights)

    def _rule_with(self, hyper: np.ndarray) -> RuleView:
        """For kernels that do not outlive `hyper`."""
        address = np.uint64(hyper.ctypes.data)
        return self._rule_view._replace(hyper=address, num_hyper=hyper.size)

    def _scratch(self) -> np.ndarray:
        """Memory for one call of a kernel: the ring and two rows of weights."""
        return np.empty(kernels.RING_BYTES + 2 * self._layout.weight_bytes, np.uint8)

    def _begin_update(self, step: int, lr: float) -> np.ndarray:
        """Let the step pass; the numbers that the rule reads in it."""
        hyper = np.array(self.accessor.rule.hyper(step, lr), self._dtype)
        self.advance(step=step, lr=lr)
        return hyper

    def _run(self, call: Callable[[int, TableView], int], num_keys: int) -> None:
        """Call a kernel, from key 0 on, that returns where it stopped; make room where it did."""
        scratch = self._scratch()
        with self._structure_lock:
            done = 0
            while (done := call(done, self._view_with(scratch))) < num_keys:
                self._make_room()
            self._index.release_old()

    def _make_room(self) -> None:
        rows = len(self)
        if rows >= MAX_ROWS:
            raise TableError(
                f"table {self.name!r}: a shard holds at most {MAX_ROWS} rows: use more shards"
            )
        if rows < self._arena.capacity:
            self._index.grow()
        else:
            self._arena.grow()
            self._view = self._view._replace(chunks=np.uint64(self._arena.address))
            self._index.set_row_limit(min(self._arena.capacity, MAX_ROWS))

    def _log_decay_of(self, lr: float) -> float:
        amount = lr * self.accessor.rule.weight_decay
        if not 0.0 <= amount < 1.0:
            raise SettingError(
                f"table {self.name!r}: lr * weight_decay must be in [0, 1), got {lr} * "
                f"{self.accessor.rule.weight_decay}"
            )
        return math.log1p(-amount)

    def _out(self, num_keys: int, out: np.ndarray | None) -> np.ndarray:
        shape = (num_keys, self.dim)
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

    def _check_step(self, step: int, lr: float) -> None:
        if step < 1:
            raise TableError(f"table {self.name!r}: step counts from 1, got {step}")
        if not (math.isfinite(lr) and lr >= 0.0):
            raise TableError(f"table {self.name!r}: lr must be finite and >= 0, got {lr}")
        if self._layout.decay_offset >= 0:
            self._log_decay_of(lr)
