"""One shard of a sparse table: rows of weights by 64-bit key, in this process."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from downpour.errors import SettingError
from downpour.init import table_salt
from downpour.tables import kernels, update_kernels
from downpour.tables.batches import segment_sum
from downpour.tables.keyed import KEY_BYTES, KeyedTable
from downpour.tables.row_store import RowStore
from downpour.tables.rows import read_keys, read_state, write
from downpour.tables.undo import Transaction
from downpour.team import share

if TYPE_CHECKING:
    from downpour.accessor import EmbeddingAccessor, Rates
    from downpour.tables.undo import UndoLog
    from downpour.tables.views import TableView


class SparseTable(KeyedTable):
    """Rows of one table by key, made when first asked for.

    `name` and `seed` fix the initial rows together with the key: element i of a key's initial row
    is a function of (seed, name, key, i). `accessor` says what a row holds.

    Keys are uint64 [n] (int64 is taken as the same bits). Weights and gradients are [n, dim] in
    the accessor's dtype. Nothing depends on the order in which keys arrive but row numbers.

    Weight decay is lazy: `log_decay` is the sum over steps of log(1 - lr * weight_decay); a row
    remembers its value at its last update and is multiplied by exp(now - then) when read. Every
    key has its initial row from step 0, so a row that is made late has decayed as if it had been
    there, and nothing depends on when it was made.

    Calls may come from any thread: those that make rows take turns, and so do those that change
    rows. A read sees all of a change or nothing.
    """

    accessor: EmbeddingAccessor
    pushed: ClassVar[str] = "gradients"

    def __init__(self, name: str, accessor: EmbeddingAccessor, *, seed: int = 0) -> None:
        rows = RowStore(
            accessor.layout,
            accessor.rule,
            accessor.init,
            accessor.bounds,
            salt=table_salt(seed, name),
            dtype=accessor.numpy_dtype,
        )
        super().__init__(name, accessor, seed, rows)

    def update(
        self,
        rows: np.ndarray,
        grads: np.ndarray,
        *,
        step: int,
        lr: Rates,
        within: Transaction | None = None,
    ) -> None:
        """Apply the rule once to each of `rows` (all different, from `locate`), grads [n, dim].

        `step` counts from 1. Several calls with one step are parts of one push. Raises
        NonFiniteError if a row would become infinite or NaN, and MemoryError; then nothing has
        changed.
        """
        assert grads.dtype == self._dtype
        assert grads.shape == (rows.size, self.dim)
        hyper = self._rows.hyper(step, *self._rates(lr))
        with self._changing(within) as changes:
            log = self._begin_log(rows, changes)
            log_decay = self._log_decay_at(step, lr)
            share(partial(self._update, log, grads, hyper, log_decay), rows.size)
            self._check_result(log)
            self._pass(step, log_decay)

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

        with self.lock.read():
            self._run(pull, keys.size)
        return out

    def push(self, keys: np.ndarray, grads: np.ndarray, *, step: int, lr: Rates) -> None:
        """Apply gradients [n, dim] to any keys [n]; those of one key are summed in order.

        Unknown keys are made. `step` counts from 1; a push without keys still lets the step pass.
        Raises TableError, MemoryError, and NonFiniteError, also if a row would become infinite or
        NaN; then nothing has changed, but rows of unknown keys may have been made.
        """
        keys = self._checked_keys(keys)
        grads = self._checked_values("gradients", grads, (keys.size, self.dim))
        self._check_step(step, lr)
        unique, grads = self._different(keys, grads)
        hyper = self._rows.hyper(step, *self._rates(lr))
        rule, rows = self._rows.rule_with(hyper), np.empty(unique.size, np.int64)
        with Transaction() as changes:
            log = self._begin_log(rows, changes)
            log_decay = self._log_decay_at(step, lr)
            records, mark, state = log.address(), log.mark(), self._index.state

            def push(start: int, table: TableView) -> int:
                return update_kernels.push(
                    unique, start, rows, grads, records, mark, state, table, rule
                )

            self._run(push, unique.size, log_decay)
            self._check_result(log)
            self._pass(step, log_decay)

    def set(self, keys: np.ndarray, weights: np.ndarray, state: np.ndarray | None = None) -> None:
        """Write rows: weights [n, dim] and state [n, state_dim] (the rule's initial one if None).

        Of several rows for one key the last one stays. Raises TableError or NonFiniteError.
        """
        keys = self._checked_keys(keys)
        if state is None:
            width = self.accessor.state_dim
            state = np.broadcast_to(self._rows.initial_state, (keys.size, width))
        weights, state = self._checked_parts(keys, weights, state)
        rows = self.locate(keys, create=True)
        with self.lock.write():
            self._write(rows, weights, state)

    def replace(self, rows: np.ndarray, weights: np.ndarray) -> None:
        """Overwrite the weights [n, dim] of located rows, all different; the rule's state stays.

        Raises NonFiniteError, and then nothing has changed.
        """
        assert weights.dtype == self._dtype
        assert weights.shape == (rows.size, self.dim)
        weights = np.ascontiguousarray(weights)
        self._check_finite("weights", weights, None)
        state = np.empty((rows.size, self.accessor.state_dim), self._dtype)
        with self.lock.write():
            read_state(rows, state, self._rows.view)
            self._write(rows, weights, state)

    def export(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys uint64 [n] in rising order, their weights [n, dim] as of now, state [n, state_dim].

        The same for any order in which the keys arrived.
        """
        with self.lock.read():
            return self.export_rows(self.row_order())

    def export_rows(self, order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`export` of a part of `row_order`, for a caller that keeps the table unchanged."""
        rows = order.astype(np.int64)
        keys = np.empty(rows.size, np.uint64)
        read_keys(rows, keys, self._rows.view)
        state = np.empty((keys.size, self.accessor.state_dim), self._dtype)
        read_state(rows, state, self._rows.view)
        weights = np.empty((keys.size, self.dim), self._dtype)
        self._read_all(keys, rows, weights)
        return keys, weights, state

    def restore(
        self,
        keys: np.ndarray,
        weights: np.ndarray,
        state: np.ndarray,
        *,
        step: int,
        log_decay: float = 0.0,
    ) -> None:
        """Fill an empty table with what `export`, `step` and `log_decay` gave of another.

        Raises TableError, NonFiniteError, and MemoryError, which may leave new rows in the table.
        """
        self.require_empty()
        keys = self._checked_keys(keys)
        weights, state = self._checked_parts(keys, weights, state)
        rows = self.locate(keys, create=True)
        with self.lock.write():
            self.step, self.log_decay = step, log_decay
            self._write(rows, weights, state)

    def _checked_parts(
        self, keys: np.ndarray, weights: np.ndarray, state: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        shapes = (keys.size, self.dim), (keys.size, self.accessor.state_dim)
        return (
            self._checked_values("weights", weights, shapes[0]),
            self._checked_values("state", state, shapes[1]),
        )

    def append(self, keys: np.ndarray, weights: np.ndarray, state: np.ndarray) -> None:
        """Write rows of keys that have none, after some were restored."""
        self.set(keys, weights, state)

    def _read(
        self, keys: np.ndarray, rows: np.ndarray, out: np.ndarray, start: int, stop: int
    ) -> None:
        scratch = self._rows.scratch()
        view = self._rows.view_with(scratch, self.log_decay)
        kernels.read(keys[start:stop], rows[start:stop], out[start:stop], view)

    def _update(
        self,
        log: UndoLog,
        grads: np.ndarray,
        hyper: np.ndarray,
        log_decay: float,
        start: int,
        stop: int,
    ) -> None:
        scratch = self._rows.scratch()
        view, rule = self._rows.view_with(scratch, log_decay), self._rows.rule_with(hyper)
        rows, records, mark = log.rows[start:stop], log.address(start), log.mark(start)
        update_kernels.update(rows, grads[start:stop], records, mark, view, rule)

    def _undo_rows(self, rows: np.ndarray, records: np.uint64) -> None:
        update_kernels.undo(rows, records, self._rows.view)

    def _write(self, rows: np.ndarray, weights: np.ndarray, state: np.ndarray) -> None:
        """Overwrite rows, in order, for a caller that has the lock."""
        write(rows, weights, state, self._rows.view._replace(log_decay=self.log_decay))

    @property
    def _record_bytes(self) -> int:
        """A record holds all of a row but the key."""
        return self._rows.layout.num_bytes - KEY_BYTES

    def _merge(self, pushes: np.ndarray, inverse: np.ndarray, num_unique: int) -> np.ndarray:
        return segment_sum(pushes, inverse, num_unique)

    def _log_decay_of(self, lr: Rates) -> float:
        (rate,) = self._rates(lr)
        amount = rate * self.accessor.rule.weight_decay
        if not 0.0 <= amount < 1.0:
            raise SettingError(
                f"table {self.name!r}: lr * weight_decay must be in [0, 1), got {rate} * "
                f"{self.accessor.rule.weight_decay}"
            )
        return math.log1p(-amount)
