"""One shard of a sparse table: rows of weights by 64-bit key, in this process."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from downpour.errors import DownpourError, SettingError
from downpour.init import table_salt
from downpour.tables import kernels
from downpour.tables.batches import segment_sum
from downpour.tables.keyed import KeyedTable
from downpour.tables.row_store import RowStore
from downpour.tables.rows import read_keys, read_state, write
from downpour.team import share

if TYPE_CHECKING:
    from downpour.accessor import EmbeddingAccessor, Rates
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

    Safe together on different threads: `locate` and `pull` with `read` and `update`; `update` of
    different rows. Calls that may make rows wait for each other.
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

    def update(self, rows: np.ndarray, grads: np.ndarray, *, step: int, lr: Rates) -> None:
        """Apply the rule once to each of `rows` (all different, from `locate`), grads [n, dim].

        `step` counts from 1. Several calls with one step are parts of one push.
        """
        assert grads.dtype == self._dtype
        assert grads.shape == (rows.size, self.dim)
        hyper = self._begin_update(step, lr)
        share(partial(self._update, rows, grads, hyper), rows.size)

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

    def push(self, keys: np.ndarray, grads: np.ndarray, *, step: int, lr: Rates) -> None:
        """Apply gradients [n, dim] to any keys [n]; those of one key are summed in order.

        Unknown keys are made first. `step` counts from 1; a push without keys still lets the step
        pass. Raises TableError or NonFiniteError, and then nothing has changed.
        """
        keys = self._checked_keys(keys)
        grads = self._checked_values("gradients", grads, (keys.size, self.dim))
        self._check_step(step, lr)
        unique, grads = self._different(keys, grads)
        rows, hyper = np.empty(unique.size, np.int64), self._begin_update(step, lr)
        rule = self._rows.rule_with(hyper)

        def push(start: int, table: TableView) -> int:
            return kernels.push(unique, start, rows, grads, self._index.state, table, rule)

        self._run(push, unique.size)

    def set(self, keys: np.ndarray, weights: np.ndarray, state: np.ndarray | None = None) -> None:
        """Write rows: weights [n, dim] and state [n, state_dim] (the rule's initial one if None).

        Of several rows for one key the last one stays. Raises TableError or NonFiniteError.
        """
        keys = self._checked_keys(keys)
        weights = self._checked_values("weights", weights, (keys.size, self.dim))
        width = self.accessor.state_dim
        if state is None:
            state = np.broadcast_to(self._rows.initial_state, (keys.size, width))
        state = self._checked_values("state", state, (keys.size, width))
        rows = self.locate(keys, create=True)
        write(rows, weights, state, self._rows.view._replace(log_decay=self.log_decay))

    def replace(self, rows: np.ndarray, weights: np.ndarray) -> None:
        """Overwrite the weights [n, dim] of located rows, all different; the rule's state stays."""
        assert weights.dtype == self._dtype
        assert weights.shape == (rows.size, self.dim)
        state = np.empty((rows.size, self.accessor.state_dim), self._dtype)
        read_state(rows, state, self._rows.view)
        view = self._rows.view._replace(log_decay=self.log_decay)
        write(rows, np.ascontiguousarray(weights), state, view)

    def export(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys uint64 [n] in rising order, their weights [n, dim] as of now, state [n, state_dim].

        The same for any order in which the keys arrived.
        """
        with self._structure_lock:
            keys = np.empty(len(self), np.uint64)
            read_keys(np.arange(len(self)), keys, self._rows.view)
        rows = np.argsort(keys, kind="stable")
        keys = keys[rows]
        state = np.empty((keys.size, self.accessor.state_dim), self._dtype)
        read_state(rows, state, self._rows.view)
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
        self._check_empty()
        self.step, self.log_decay = step, log_decay
        try:
            self.set(keys, weights, state)
        except DownpourError:
            self.step, self.log_decay = 0, 0.0  # it refused them whole
            raise

    def _read(
        self, keys: np.ndarray, rows: np.ndarray, out: np.ndarray, start: int, stop: int
    ) -> None:
        scratch = self._rows.scratch()
        view = self._rows.view_with(scratch, self.log_decay)
        kernels.read(keys[start:stop], rows[start:stop], out[start:stop], view)

    def _update(
        self, rows: np.ndarray, grads: np.ndarray, hyper: np.ndarray, start: int, stop: int
    ) -> None:
        scratch = self._rows.scratch()
        view, rule = self._rows.view_with(scratch, self.log_decay), self._rows.rule_with(hyper)
        kernels.update(rows[start:stop], grads[start:stop], view, rule)

    def _merge(self, pushes: np.ndarray, inverse: np.ndarray, num_unique: int) -> np.ndarray:
        return segment_sum(pushes, inverse, num_unique)

    def _begin_update(self, step: int, lr: Rates) -> np.ndarray:
        """Let the step pass; the numbers that the rule reads in it."""
        hyper = self._rows.hyper(step, *self._rates(lr))
        self.advance(step=step, lr=lr)
        return hyper

    def _log_decay_of(self, lr: Rates) -> float:
        (rate,) = self._rates(lr)
        amount = rate * self.accessor.rule.weight_decay
        if not 0.0 <= amount < 1.0:
            raise SettingError(
                f"table {self.name!r}: lr * weight_decay must be in [0, 1), got {rate} * "
                f"{self.accessor.rule.weight_decay}"
            )
        return math.log1p(-amount)
