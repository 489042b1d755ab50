"""The hot loops of a CTR table: read, update and grow rows that are in two places.

A short row has the key, the statistics, w and its state at the places that `CtrAccessor.layout`
gives, and the number + 1 of its embedx in an arena of its own. While a row is worked on, the embedx
of the row AHEAD is asked for, and the short row 2 * AHEAD; to ask row by row and not in blocks as
`tables.kernels` does is 5 to 10 ns a row faster here, where there is more to do meanwhile.

The undo log is that of `tables.update_kernels`: a record is a short row without its key, and an
embedx, which means nothing where the row has none.

What is inlined from `tables.kernels`, `tables.update_kernels`, `tables.rows` and `tables.finite`
numba does not notice: after an edit there, remove the `__pycache__` folders.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from downpour.jit import inlined, kernel
from downpour.tables.finite import all_finite
from downpour.tables.kernels import fill_weights
from downpour.tables.memory import array_at, call, copy, load
from downpour.tables.pushes import PUSH_CLICK, PUSH_HEAD, PUSH_PLACES, PUSH_SHOW, PUSH_SLOT
from downpour.tables.rows import clamp, lend, prefetch_row, row_address
from downpour.tables.update_kernels import BAD, COUNT, copy_words

if TYPE_CHECKING:
    from downpour.tables.views import CtrView, RuleView, TableView

    Array: TypeAlias = np.ndarray
    Word: TypeAlias = np.uint64
    Row: TypeAlias = int | np.integer
    Size: TypeAlias = int | np.integer

U = np.uint64
# The statistics of a short row, from its start.
SHOW, CLICK, DELTA_SCORE, UNSEEN_DAYS, SLOT, EMBEDX = map(U, (8, 16, 24, 28, 32, 36))
F64, F32, I32, U32 = np.float64(0), np.float32(0), np.int32(0), np.uint32(0)  # types for array_at
NO_EMBEDX: Row = -1
AHEAD = 32
WORD = U(8)


@kernel
def embedx_number(address: Word, ctr: CtrView) -> Row:
    """The number of a row's embedx; NO_EMBEDX also for one made after the call began."""
    number = np.int64(array_at(address + EMBEDX, 1, U32)[0]) - 1
    return number if number < ctr.num_embedx else NO_EMBEDX


@inlined
def ask_ahead(rows: Array, i: int, table: TableView, embedx: TableView, ctr: CtrView) -> None:
    """Ask for the short row of rows[i + 2 * AHEAD] and the embedx of rows[i + AHEAD]."""
    near, far = i + AHEAD, i + 2 * AHEAD
    if far < rows.size and rows[far] >= 0:
        prefetch_row(table, rows[far])
    if 0 <= near < rows.size and rows[near] >= 0:
        number = embedx_number(row_address(table, rows[near]), ctr)
        if number >= 0:
            prefetch_row(embedx, number)


@inlined
def read_row(
    key: Word, row: Row, target: Word, table: TableView, embedx: TableView, ctr: CtrView
) -> None:
    """Write show, click, w, embedx to an address; for row < 0 those of a new row."""
    item, number = table.item_bytes, NO_EMBEDX
    counts = array_at(target, 2, table.like)
    target += item + item
    if row < 0:
        counts[0], counts[1] = table.like, table.like
        fill_weights(key, target, table)
    else:
        address = row_address(table, row)
        totals = array_at(address + SHOW, 2, F64)
        counts[0], counts[1] = totals[0], totals[1]
        weight = array_at(address + table.weight_offset, 1, table.like)
        array_at(target, 1, table.like)[0] = weight[0]
        number = embedx_number(address, ctr)
    target += item
    if number >= 0:
        copy(target, row_address(embedx, number), embedx.weight_bytes)
    else:
        zeros = array_at(target, np.int64(embedx.weight_bytes // item), table.like)
        for j in range(zeros.size):
            zeros[j] = table.like


@kernel
def read(
    keys: Array, rows: Array, out: Array, table: TableView, embedx: TableView, ctr: CtrView
) -> None:
    """Write show, click, w, embedx of `rows` to out [n, pull_dim]; for row < 0 of a new row."""
    target, num_bytes = U(out.ctypes.data), U(out.shape[1]) * table.item_bytes
    keys, rows = lend(keys, U(0)), lend(rows, np.int64(0))
    for i in range(-2 * AHEAD, rows.size):
        ask_ahead(rows, i, table, embedx, ctr)
        if i >= 0:
            read_row(keys[i], rows[i], target, table, embedx, ctr)
            target += num_bytes


@kernel
def score(show: float, click: float, ctr: CtrView) -> float:
    """See `CtrAccessor.score`."""
    return (show - click) * ctr.nonclk_coeff + click * ctr.click_coeff


@kernel
def is_due(address: Word, ctr: CtrView) -> bool:
    """Whether a row's score has reached the threshold."""
    totals = array_at(address + SHOW, 2, F64)
    return score(totals[0], totals[1], ctr) >= ctr.embedx_threshold


@inlined
def count(address: Word, push: Array, ctr: CtrView) -> None:
    """Let a push's show, click and slot into the row's statistics."""
    show, click = np.float64(push[PUSH_SHOW]), np.float64(push[PUSH_CLICK])
    totals = array_at(address + SHOW, 2, F64)
    totals[0] += show
    totals[1] += click
    array_at(address + DELTA_SCORE, 1, F32)[0] += score(show, click, ctr)
    array_at(address + UNSEEN_DAYS, 1, I32)[0] = 0
    if ctr.keeps_slot and push[PUSH_SLOT] >= 0:
        array_at(address + SLOT, 1, I32)[0] = np.int32(push[PUSH_SLOT]) + 1


@kernel
def widths(table: TableView) -> tuple[Size, Size]:
    """Numbers of weights and of state; a division each, so not for every row."""
    dim = np.int64(table.weight_bytes // table.item_bytes)
    return dim, np.int64(table.state_bytes // table.item_bytes)


@inlined
def move(
    address: Word,
    gradient: Word,
    places: np.floating,
    width: tuple[Size, Size],
    table: TableView,
    rule: RuleView,
) -> bool:
    """Apply the rule to one part of a row, its gradient divided by `places` if above 0.

    Returns whether that leaves it finite.
    """
    weight = array_at(address + table.weight_offset, width[0], table.like)
    state = array_at(address + table.state_offset, width[1], table.like)
    grad = array_at(gradient, width[0], table.like)
    hyper = array_at(rule.hyper, rule.num_hyper, table.like)
    if places > 0.0:
        mean = array_at(table.scratch, width[0], table.like)
        for j in range(width[0]):
            mean[j] = grad[j] / places
        grad = mean
    call(rule.update, weight, state, grad, hyper)
    is_finite = all_finite(weight) and all_finite(state)
    if table.is_bounded:
        clamp(weight, table.low, table.high)
    return is_finite


@inlined
def keep(address: Word, number: Row, record: Word, table: TableView, embedx: TableView) -> None:
    """Write the record of a row, with its embedx if it has one."""
    num_bytes = table.row_bytes - WORD
    copy_words(record, address + WORD, num_bytes)
    if number >= 0:
        copy_words(record + num_bytes, row_address(embedx, number), embedx.row_bytes)


@kernel
def undo(rows: Array, log: Word, table: TableView, embedx: TableView) -> None:
    """Restore rows from the log; they lose an embedx that they got since."""
    num_bytes = table.row_bytes - WORD
    for i in range(rows.size):
        address, record = row_address(table, rows[i]), log + U(i) * (num_bytes + embedx.row_bytes)
        copy_words(address + WORD, record, num_bytes)
        number = np.int64(array_at(address + EMBEDX, 1, U32)[0]) - 1
        if number >= 0:
            copy_words(row_address(embedx, number), record + num_bytes, embedx.row_bytes)


@inlined
def has_finite_counts(address: Word) -> bool:
    """Whether show, click and delta_score are finite."""
    totals = array_at(address + SHOW, 2, F64)
    return all_finite(totals) and all_finite(array_at(address + DELTA_SCORE, 1, F32))


@inlined
def update_row(
    address: Word,
    push: Array,
    width: tuple[Size, Size],
    embedx_width: tuple[Size, Size],
    number: Row,
    table: TableView,
    embedx: TableView,
    rule: RuleView,
    embedx_rule: RuleView,
    ctr: CtrView,
) -> bool:
    """Count and train one row; returns whether that leaves it finite."""
    gradient = U(push.ctypes.data) + U(PUSH_HEAD) * table.item_bytes
    count(address, push, ctr)
    places = push[PUSH_PLACES] if ctr.takes_mean else table.like
    is_finite = move(address, gradient, places, width, table, rule)
    if number >= 0:
        places = push[PUSH_PLACES] if ctr.embedx_takes_mean else table.like
        at, gradient = row_address(embedx, number), gradient + table.item_bytes
        is_finite &= move(at, gradient, places, embedx_width, embedx, embedx_rule)
    return is_finite and has_finite_counts(address)


@kernel
def update(
    rows: Array,
    pushes: Array,
    due: Array,
    log: Word,
    mark: Array,
    table: TableView,
    embedx: TableView,
    rule: RuleView,
    embedx_rule: RuleView,
    ctr: CtrView,
) -> None:
    """Count and train each of `rows`, all different, with pushes [n, push_dim].

    Writes due [n]: which of them have reached the threshold and wait for `grow`. `log` and `mark`
    are as in `update_kernels.update`.
    """
    item, width, embedx_width = table.item_bytes, widths(table), widths(embedx)
    pushed, num_bytes = U(pushes.ctypes.data), U(pushes.shape[1]) * item
    record_bytes = table.row_bytes - WORD + embedx.row_bytes
    rows, due, mark = lend(rows, np.int64(0)), lend(due, False), lend(mark, np.int64(0))
    for i in range(-2 * AHEAD, rows.size):
        ask_ahead(rows, i, table, embedx, ctr)
        if i < 0:
            continue
        push = array_at(pushed + U(i) * num_bytes, PUSH_HEAD, table.like)
        address = row_address(table, rows[i])
        number = embedx_number(address, ctr)
        keep(address, number, log + U(i) * record_bytes, table, embedx)
        is_finite = update_row(
            address, push, width, embedx_width, number, table, embedx, rule, embedx_rule, ctr
        )
        due[i] = number < 0 and is_due(address, ctr)
        mark[COUNT] = i + 1
        if not is_finite:
            mark[BAD] = i + 1
            return


@kernel
def grow(rows: Array, number: int, table: TableView, embedx: TableView) -> int:
    """Give each of `rows` that has none an embedx, from `number` on; the next free number."""
    for i in range(rows.size):
        address = row_address(table, rows[i])
        link = array_at(address + EMBEDX, 1, U32)
        if link[0] == 0:
            place = row_address(embedx, number)
            fill_weights(load(address), place + embedx.weight_offset, embedx)
            copy(place + embedx.state_offset, embedx.initial_state, embedx.state_bytes)
            number += 1
            link[0] = number
    return number


@kernel
def ungrow(rows: Array, number: int, table: TableView) -> None:
    """Take from `rows` each embedx that was given since there were `number`."""
    for i in range(rows.size):
        link = array_at(row_address(table, rows[i]) + EMBEDX, 1, U32)
        if np.int64(link[0]) > number:
            link[0] = 0
