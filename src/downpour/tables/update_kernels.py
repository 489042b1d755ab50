"""The hot loops that change rows of a sparse table: update, and push, which locates them as well.

An update first copies the rows of a block to an undo log (see `tables.undo`), and then checks the
result: no row may become infinite or NaN. docs/design.md says what that costs.

What is inlined from `tables.kernels`, `tables.rows` and `tables.finite` numba does not notice:
after an edit there, remove the `__pycache__` folders.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from downpour.jit import kernel
from downpour.tables.finite import all_finite
from downpour.tables.kernels import BLOCK, ROWS, ask, begin, fill, locate_block
from downpour.tables.memory import array_at, call, copy, load, store
from downpour.tables.rows import clamp, lend, row_address

if TYPE_CHECKING:
    from downpour.tables.views import RuleView, TableView

    Array: TypeAlias = np.ndarray
    Word: TypeAlias = np.uint64

U = np.uint64
ZERO, WORD, LINE = U(0), U(8), U(64)
# Places in the mark that an update leaves of its part: its first row, how many rows it has changed,
# and 1 + the place of the first that is not finite, 0 if all are.
FIRST, COUNT, BAD = range(3)


@kernel
def copy_words(target: Word, source: Word, num_bytes: Word) -> None:
    """Copy whole words, whatever their number, without a call."""
    while num_bytes >= LINE:
        copy(target, source, LINE)
        target, source, num_bytes = target + LINE, source + LINE, num_bytes - LINE
    while num_bytes > ZERO:
        store(target, load(source))
        target, source, num_bytes = target + WORD, source + WORD, num_bytes - WORD


@kernel
def keep(rows: Array, start: int, stop: int, log: Word, table: TableView) -> None:
    """Copy what rows[start:stop] hold beside their keys to the log, one record per row."""
    num_bytes = table.row_bytes - WORD
    for i in range(start, stop):
        copy_words(log + U(i) * num_bytes, row_address(table, rows[i]) + WORD, num_bytes)


@kernel
def undo(rows: Array, log: Word, table: TableView) -> None:
    """Restore rows from the log."""
    num_bytes = table.row_bytes - WORD
    for i in range(rows.size):
        copy_words(row_address(table, rows[i]) + WORD, log + U(i) * num_bytes, num_bytes)


@kernel
def decay(weight: Array, touched: Word, log_decay: float) -> None:
    """Catch up on the decay since the row was touched, as the float64 at `touched` tells."""
    at_touch = array_at(touched, 1, log_decay)
    factor = np.exp(log_decay - at_touch[0])
    at_touch[0] = log_decay
    for j in range(weight.size):
        weight[j] = weight[j] * factor


@kernel
def update_block(
    rows: Array, start: int, stop: int, gradient: Word, table: TableView, rule: RuleView
) -> None:
    """Apply the rule to rows[start:stop] with gradients from an address.

    A row catches up on its decay, the penalty joins the gradient, the rule moves it.
    """
    dim = np.int64(table.weight_bytes // table.item_bytes)
    state_dim = np.int64(table.state_bytes // table.item_bytes)
    hyper = array_at(rule.hyper, rule.num_hyper, table.like)
    penalised = array_at(table.scratch, dim, table.like)
    for i in range(start, stop):
        address = row_address(table, rows[i])
        weight = array_at(address + table.weight_offset, dim, table.like)
        state = array_at(address + table.state_offset, state_dim, table.like)
        grad = array_at(gradient + U(i) * table.weight_bytes, dim, table.like)
        if table.decay_offset != ZERO:
            decay(weight, address + table.decay_offset, table.log_decay)
        if rule.batch_l2 != 0.0:
            for j in range(dim):
                penalised[j] = grad[j] + rule.batch_l2 * weight[j]
            grad = penalised
        call(rule.update, weight, state, grad, hyper)


@kernel
def settle_block(rows: Array, start: int, stop: int, table: TableView) -> int:
    """Check that the rule has left rows[start:stop] finite, and clamp them to the bounds.

    It stops at the first row that is not finite and returns 1 + its place; 0 if all are.
    """
    dim = np.int64(table.weight_bytes // table.item_bytes)
    width = np.int64((table.weight_bytes + table.state_bytes) // table.item_bytes)
    for i in range(start, stop):
        address = row_address(table, rows[i]) + table.weight_offset
        if not all_finite(array_at(address, width, table.like)):
            return i + 1
        if table.is_bounded:
            clamp(array_at(address, dim, table.like), table.low, table.high)
    return 0


@kernel
def update(
    rows: Array, grads: Array, log: Word, mark: Array, table: TableView, rule: RuleView
) -> None:
    """Apply the rule once to each of `rows`, all different, with grads [n, dim].

    `log` is the address of one record per row. `mark`: COUNT becomes the number of rows that were
    changed, fewer than all if one of them, noted at BAD, is not finite.
    """
    rows, mark = lend(rows, np.int64(0)), lend(mark, np.int64(0))
    gradient = U(grads.ctypes.data)
    ask(rows, 0, table)
    for start in range(0, rows.size, BLOCK):
        ask(rows, start + BLOCK, table)
        stop = min(start + BLOCK, rows.size)
        keep(rows, start, stop, log, table)
        update_block(rows, start, stop, gradient, table, rule)
        mark[COUNT], mark[BAD] = stop, settle_block(rows, start, stop, table)
        if mark[BAD] != 0:
            return


@kernel
def push(
    keys: Array,
    start: int,
    rows: Array,
    grads: Array,
    log: Word,
    mark: Array,
    state: Array,
    table: TableView,
    rule: RuleView,
) -> int:
    """Locate, fill and update at once, a block at a time; keys are all different.

    Returns where it stopped; if that is not the end, make room. The mark is as `update` leaves it.
    """
    keys, rows, state = lend(keys, ZERO), lend(rows, np.int64(0)), lend(state, ZERO)
    mark, gradient = lend(mark, np.int64(0)), U(grads.ctypes.data)
    create = keys.size > 0  # a literal True would compile all that is below once more
    begin(keys, start, rows, state, table)
    while start < keys.size:
        first_new = state[ROWS]
        done = locate_block(keys, start, rows, state, table, create)
        fill(first_new, state[ROWS], table)
        keep(rows, start, done, log, table)
        update_block(rows, start, done, gradient, table, rule)
        mark[COUNT], mark[BAD] = done, settle_block(rows, start, done, table)
        if mark[BAD] != 0:
            return keys.size
        start += BLOCK
        if done < min(start, keys.size):
            return done
    return keys.size
