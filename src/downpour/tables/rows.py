"""Rows by number: where one is, and its parts in and out, beside what `tables.kernels` does.

The first four are inlined into those kernels, which numba does not notice when this file changes:
after an edit here, remove the `__pycache__` folders.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from downpour.jit import kernel
from downpour.tables.memory import array_at, copy, load, prefetch

if TYPE_CHECKING:
    from downpour.tables.views import TableView

    Array: TypeAlias = np.ndarray
    Word: TypeAlias = np.uint64
    Row: TypeAlias = int | np.integer

U = np.uint64
ZERO, ONE, WORD, LINE, TWO_LINES = U(0), U(1), U(8), U(64), U(128)


@kernel
def row_address(table: TableView, row: Row) -> Word:
    """The address of a row by its number."""
    row = U(row)
    in_chunk = row & ((ONE << table.shift) - ONE)
    return load(table.chunks + (row >> table.shift) * WORD) + in_chunk * table.row_bytes


@kernel
def prefetch_row(table: TableView, row: Row) -> None:
    """Ask for all lines of a row."""
    address = row_address(table, row)
    last = address + table.row_bytes - ONE
    prefetch(address)
    prefetch(last)
    if table.row_bytes > TWO_LINES:
        address += LINE
        while address < last:
            prefetch(address)
            address += LINE


@kernel
def lend(array: Array, item: float | np.number) -> Array:
    """The same elements, of the type of `item` and flat, in an array that nobody owns."""
    return array_at(U(array.ctypes.data), array.size, item)


@kernel
def clamp(weight: Array, low: float | np.floating, high: float | np.floating) -> None:
    """Keep weights within the bounds; a NaN becomes low."""
    for j in range(weight.size):
        if not weight[j] >= low:
            weight[j] = low
        elif weight[j] > high:
            weight[j] = high


@kernel
def write(rows: Array, weights: Array, state: Array, table: TableView) -> None:
    """Overwrite weights [n, dim] and state [n, state_dim], as of now, in order."""
    for i in range(rows.size):
        address = row_address(table, rows[i])
        source = U(weights.ctypes.data) + U(i) * table.weight_bytes
        copy(address + table.weight_offset, source, table.weight_bytes)
        source = U(state.ctypes.data) + U(i) * table.state_bytes
        copy(address + table.state_offset, source, table.state_bytes)
        if table.decay_offset != ZERO:
            array_at(address + table.decay_offset, 1, table.log_decay)[0] = table.log_decay


@kernel
def read_keys(rows: Array, keys: Array, table: TableView) -> None:
    """The keys of `rows` into keys [n]."""
    for i in range(rows.size):
        keys[i] = load(row_address(table, rows[i]))


@kernel
def read_state(rows: Array, state: Array, table: TableView) -> None:
    """The rule state of `rows` into state [n, state_dim]."""
    for i in range(rows.size):
        target = U(state.ctypes.data) + U(i) * table.state_bytes
        copy(target, row_address(table, rows[i]) + table.state_offset, table.state_bytes)


@kernel
def gather(rows: Array, out: Array, table: TableView) -> None:
    """The bytes of whole `rows` into out [n, row_bytes]."""
    for i in range(rows.size):
        target = U(out.ctypes.data) + U(i) * table.row_bytes
        copy(target, row_address(table, rows[i]), table.row_bytes)


@kernel
def scatter(rows: Array, content: Array, table: TableView) -> None:
    """Overwrite whole `rows` with the bytes of content [n, row_bytes], in order."""
    for i in range(rows.size):
        source = U(content.ctypes.data) + U(i) * table.row_bytes
        copy(row_address(table, rows[i]), source, table.row_bytes)
