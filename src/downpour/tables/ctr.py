"""One shard of a table of click-through rows, in this process."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from downpour.errors import TableError
from downpour.init import table_salt
from downpour.tables import ctr_kernels
from downpour.tables.ctr_records import (
    FIELDS,
    STATISTICS,
    embedx_numbers,
    let_a_day_pass,
    put_statistics,
    statistics_of,
)
from downpour.tables.keyed import KEY_BYTES, KeyedTable
from downpour.tables.pushes import check_pushes, merge_pushes
from downpour.tables.row_store import RowStore
from downpour.tables.undo import Transaction
from downpour.tables.views import CtrView
from downpour.team import share

if TYPE_CHECKING:
    from downpour.accessor import CtrAccessor, Rates
    from downpour.tables.stats import TableStats
    from downpour.tables.undo import UndoLog
    from downpour.tables.views import TableView

ROWS_AT_ONCE = 1 << 18  # that are copied from one table to another


class CtrTable(KeyedTable):
    """Rows of `CtrAccessor` by key, made when first asked for; an embedx takes memory when earned.

    `name`, `seed` and the key fix a row's first w and embedx; neither they nor anything else
    depends on the order in which keys arrive. Keys are uint64 [n] (int64 is taken as the same
    bits). A pull gives show, click, w, embedx: [n, pull_dim]; a push brings slot, show, click,
    places and gradients: [n, push_dim], in the accessor's dtype.

    A push adds its show and click (0 where another program counts), trains w, and embedx if the row
    has one. A row without one whose score has then reached the threshold gets its first embedx,
    which this push does not train.

    Calls may come from any thread: those that make rows take turns, and so do those that change
    rows. A read sees all of a change or nothing.
    """

    accessor: CtrAccessor
    pushed: ClassVar[str] = "pushes"

    def __init__(self, name: str, accessor: CtrAccessor, *, seed: int = 0) -> None:
        rule, embedx_rule = accessor.rules
        dtype = accessor.numpy_dtype
        rows = RowStore(
            accessor.layout,
            rule,
            accessor.init,
            accessor.bounds,
            salt=table_salt(seed, name),
            dtype=dtype,
            fields=FIELDS,
        )
        super().__init__(name, accessor, seed, rows)
        self._embedx = RowStore(
            accessor.embedx_layout,
            embedx_rule,
            accessor.embedx_init,
            accessor.embedx_bounds,
            salt=table_salt(seed, f"{name}/embedx"),
            dtype=dtype,
        )
        self._ctr = CtrView(
            nonclk_coeff=float(accessor.nonclk_coeff),
            click_coeff=float(accessor.click_coeff),
            embedx_threshold=float(accessor.embedx_threshold),
            takes_mean=accessor.show_scale and rule.takes_mean,
            embedx_takes_mean=accessor.show_scale and embedx_rule.takes_mean,
            keeps_slot=accessor.slots,
            num_embedx=0,
        )
        self._num_embedx = 0

    # The trusted calls, and those for anyone.

    def update(
        self,
        rows: np.ndarray,
        pushes: np.ndarray,
        *,
        step: int,
        lr: Rates,
        within: Transaction | None = None,
    ) -> None:
        """Apply one push to each of `rows` (all different, from `locate`): pushes [n, push_dim].

        `step` counts from 1. Several calls with one step are parts of one push. Raises
        NonFiniteError if a row would become infinite or NaN, and MemoryError; then nothing has
        changed.
        """
        assert pushes.dtype == self._dtype
        assert pushes.shape == (rows.size, self.accessor.push_dim)
        stores, rates = (self._rows, self._embedx), self._rates(lr)
        hypers = [store.hyper(step, rate) for store, rate in zip(stores, rates, strict=True)]
        due = np.empty(rows.size, np.bool_)
        with self._changing(within) as changes:
            log = self._begin_log(rows, changes)
            share(partial(self._update, log, pushes, due, hypers), rows.size)
            self._check_result(log)
            if due.any():
                self._grow(rows[due], changes)
            self._pass(step, self._log_decay_at(step, lr))

    def pull(
        self, keys: np.ndarray, *, create: bool = True, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Show, click, w, embedx of any keys, [n, pull_dim]; embedx is 0 where there is none.

        Without `create` unknown keys stay unknown. Raises TableError for keys that are not 64-bit
        integers [n] or an `out` that does not fit.
        """
        keys = self._checked_keys(keys)
        out = self._out(keys.size, out)
        return self.read(keys, self.locate(keys, create=create), out)

    def push(self, keys: np.ndarray, pushes: np.ndarray, *, step: int, lr: Rates) -> None:
        """Apply pushes [n, push_dim] to any keys [n]; those of one key are summed in order.

        The slot is that of a key's last. Unknown keys are made first. `step` counts from 1; a push
        without keys still lets the step pass. Raises TableError, MemoryError, and NonFiniteError,
        also if a row would become infinite or NaN; then nothing has changed, but rows of unknown
        keys may have been made.
        """
        keys = self._checked_keys(keys)
        pushes = self._checked_values(self.pushed, pushes, (keys.size, self.accessor.push_dim))
        check_pushes(self.name, pushes)
        self._check_step(step, lr)
        unique, pushes = self._different(keys, pushes)
        rows = self.locate(unique, create=True)
        self.update(rows, pushes, step=step, lr=lr)

    def set(self, keys: np.ndarray, weights: np.ndarray, state: np.ndarray | None = None) -> None:
        """Write w and embedx, [n, dim], and their state [n, state_dim] (the initial if None).

        Every row gets an embedx; its statistics stay. Of several rows for one key the last one
        stays. Raises TableError or NonFiniteError.
        """
        keys = self._checked_keys(keys)
        weights, state = self._checked_parts(keys, weights, state)
        rows = self.locate(keys, create=True)
        with Transaction() as changes:
            changes.lock(self.lock)
            self._grow(rows, changes)
            self._write(rows, weights, state, None)

    def export(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Keys uint64 [n] in rising order, weights [n, dim], state [n, state_dim], statistics [n].

        The last are of the dtype STATISTICS. Embedx and its state are 0 where there is none. The
        same for any order in which the keys arrived.
        """
        with self.lock.read():
            return self.export_rows(self.row_order())

    def export_rows(
        self, order: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """`export` of a part of `row_order`, for a caller that keeps the table unchanged."""
        short = self._rows.records(order.astype(np.int64))
        numbers, split = embedx_numbers(short), self._split
        has_embedx = numbers >= 0
        embedx = self._embedx.records(numbers[has_embedx])
        weights = np.zeros((short.size, self.dim), self._dtype)
        weights[:, :1], weights[has_embedx, 1:] = short["weights"], embedx["weights"]
        state = np.zeros((short.size, self.accessor.state_dim), self._dtype)
        state[:, :split], state[has_embedx, split:] = short["state"], embedx["state"]
        return short["key"].copy(), weights, state, statistics_of(short)

    def restore(
        self,
        keys: np.ndarray,
        weights: np.ndarray,
        state: np.ndarray,
        statistics: np.ndarray,
        *,
        step: int,
        log_decay: float = 0.0,
    ) -> None:
        """Fill an empty table with what `export`, `step` and `log_decay` gave of another.

        Raises TableError, NonFiniteError, and MemoryError, which may leave new rows in the table.
        """
        self.require_empty()
        self.append(keys, weights, state, statistics)
        with self.lock.write():
            self.step, self.log_decay = step, log_decay

    def append(
        self, keys: np.ndarray, weights: np.ndarray, state: np.ndarray, statistics: np.ndarray
    ) -> None:
        """Write rows of keys that have none, after some were restored."""
        keys = self._checked_keys(keys)
        weights, state = self._checked_parts(keys, weights, state)
        self._check_statistics(keys, statistics)
        rows = self.locate(keys, create=True)
        with Transaction() as changes:
            changes.lock(self.lock)
            self._grow(rows[statistics["has_embedx"]], changes)
            self._write(rows, weights, state, statistics)

    def shrunk(self) -> tuple[CtrTable, int]:
        """This table a day older, as a new one, and the number of rows that are gone from it.

        See `Lifecycle`. What stays of a row but show, click and unseen_days is the same bit for
        bit. Rows may be made meanwhile, which the new table lacks; nothing else may be changed.
        """
        fresh = CtrTable(self.name, self.accessor, seed=self.seed)
        fresh.step = self.step
        with self._structure_lock:
            num_rows = len(self)
        for start in range(0, num_rows, ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, num_rows))
            short = self._rows.records(rows)
            short = short[let_a_day_pass(short, self.accessor)]
            numbers = embedx_numbers(short)
            fresh._take(short, self._embedx.records(numbers[numbers >= 0]))
        return fresh, num_rows - len(fresh)

    def stats(self) -> TableStats:
        """Rows and memory, of this moment."""
        stats, num_embedx = super().stats(), self._num_embedx
        num_bytes = stats.arena_bytes + self._embedx.touched_bytes(num_embedx)
        return replace(
            stats,
            arena_bytes=num_bytes,
            embedx_rows=num_embedx,
            embedx_bytes=self._embedx.layout.num_bytes,
        )

    def _views(
        self, scratch: np.ndarray, embedx_scratch: np.ndarray
    ) -> tuple[TableView, TableView, CtrView]:
        """For one call of a kernel, which must not outlive the scratches."""
        # The number comes first: then the memory that kernels are told of holds as many, though
        # another thread may add to both.
        ctr = self._ctr._replace(num_embedx=self._num_embedx)
        return self._rows.view_with(scratch), self._embedx.view_with(embedx_scratch), ctr

    def _read(
        self, keys: np.ndarray, rows: np.ndarray, out: np.ndarray, start: int, stop: int
    ) -> None:
        scratches = self._rows.scratch(), self._embedx.scratch()
        views = self._views(*scratches)
        ctr_kernels.read(keys[start:stop], rows[start:stop], out[start:stop], *views)

    def _update(
        self,
        log: UndoLog,
        pushes: np.ndarray,
        due: np.ndarray,
        hypers: list[np.ndarray],
        start: int,
        stop: int,
    ) -> None:
        """Count and train rows[start:stop]; due: which of them are to get an embedx."""
        scratches = self._rows.scratch(), self._embedx.scratch()
        table, embedx, ctr = self._views(*scratches)
        rules = self._rows.rule_with(hypers[0]), self._embedx.rule_with(hypers[1])
        part = slice(start, stop)
        notes = log.address(start), log.mark(start)
        ctr_kernels.update(
            log.rows[part], pushes[part], due[part], *notes, table, embedx, *rules, ctr
        )

    def _undo_rows(self, rows: np.ndarray, records: np.uint64) -> None:
        ctr_kernels.undo(rows, records, self._rows.view, self._embedx.view)

    def _grow(self, rows: np.ndarray, changes: Transaction) -> None:
        """Give each of `rows` that has none an embedx, in their order."""
        scratch = self._embedx.scratch()
        with self._structure_lock:
            try:
                while self._embedx.capacity < self._num_embedx + rows.size:
                    self._embedx.grow()
            except MemoryError as error:
                raise self._no_memory(error) from error
            views = self._rows.view, self._embedx.view_with(scratch)
            changes.on_undo(partial(self._ungrow, rows, self._num_embedx))
            self._num_embedx = ctr_kernels.grow(rows, self._num_embedx, *views)

    def _ungrow(self, rows: np.ndarray, number: int) -> None:
        """Undo a `_grow` of rows, before which there were `number` embedx."""
        with self._structure_lock:
            ctr_kernels.ungrow(rows, number, self._rows.view)
            self._num_embedx = number

    def _write(
        self,
        rows: np.ndarray,
        weights: np.ndarray,
        state: np.ndarray,
        statistics: np.ndarray | None,
    ) -> None:
        """Overwrite w, embedx where there is one, their state, and statistics if given."""
        short, split = self._rows.records(rows), self._split
        short["weights"], short["state"] = weights[:, :1], state[:, :split]
        if statistics is not None:
            put_statistics(short, statistics)
        numbers = embedx_numbers(short)
        has_embedx = numbers >= 0
        numbers = numbers[has_embedx]
        embedx = np.zeros(numbers.size, self._embedx.record)
        embedx["weights"], embedx["state"] = weights[has_embedx, 1:], state[has_embedx, split:]
        self._rows.write_records(rows, short)  # all that needs memory has been done
        self._embedx.write_records(numbers, embedx)

    def _take(self, short: np.ndarray, embedx: np.ndarray) -> None:
        """Add whole rows of another table, all new, and the embedx of those that have one."""
        has_embedx = short["embedx"] > 0
        rows = self.locate(np.ascontiguousarray(short["key"]), create=True)
        with Transaction() as changes:
            self._grow(rows[has_embedx], changes)
        short["embedx"] = self._rows.records(rows)["embedx"]  # their numbers here
        self._rows.write_records(rows, short)
        self._embedx.write_records(embedx_numbers(short)[has_embedx], embedx)

    def _merge(self, pushes: np.ndarray, inverse: np.ndarray, num_unique: int) -> np.ndarray:
        return merge_pushes(pushes, inverse, num_unique)

    @property
    def _record_bytes(self) -> int:
        """A record holds the short row without its key, and an embedx."""
        return self._rows.layout.num_bytes - KEY_BYTES + self._embedx.layout.num_bytes

    @property
    def _split(self) -> int:
        """Where the state of embedx begins in that of a row."""
        return self._rows.layout.state_dim

    def _checked_parts(
        self, keys: np.ndarray, weights: np.ndarray, state: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        weights = self._checked_values("weights", weights, (keys.size, self.dim))
        width = self.accessor.state_dim
        if state is None:
            initial = np.concatenate([self._rows.initial_state, self._embedx.initial_state])
            state = np.broadcast_to(initial, (keys.size, width))
        return weights, self._checked_values("state", state, (keys.size, width))

    def _check_statistics(self, keys: np.ndarray, statistics: np.ndarray) -> None:
        if statistics.dtype != STATISTICS or statistics.shape != keys.shape:
            raise TableError(
                f"table {self.name!r}: statistics must be [{keys.size}] of {STATISTICS}, got "
                f"{list(statistics.shape)} of {statistics.dtype}"
            )
        for name in ("show", "click", "delta_score"):
            self._check_finite(name, statistics[name][:, None], keys)
