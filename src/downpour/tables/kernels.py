"""The hot loops of a sparse table: locate, fill and read rows; `update_kernels` has the others.

Keys go through a pipeline in blocks of 64: a block is hashed and its index lines are prefetched,
a block later its tags are probed and the rows prefetched, a block later the keys are compared and
the rows used. By then the memory has come, and it is busy all the time.

The index maps a key to its row number. Its 256 segments are open-addressing tables of equal
capacity with linear probing; an entry is 8 bytes, a 32-bit tag and the row number + 1, 0 when
empty. The top bits of a key's hash pick its segment; the low 32 bits are the tag, and the tag
scaled to the capacity is the key's home slot, so that a segment can move to a larger memory without
looking at rows. While the index grows, segments before CURSOR are in the new memory, the others
still in the old; each new row pays for moving a few entries (see `tables.index`).

Keys, hashes, entries and addresses are uint64 throughout: one plain int would make them floats.
Inner functions take numbers, tuples of numbers and arrays that nobody owns (`lend`): numba counts
references to all others, which cost 6 of 34 ns a key here. `tables.update_kernels` and
`tables.ctr_kernels` have some of them inlined, which numba does not notice when this file changes:
remove the `__pycache__` folders then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from downpour.jit import kernel
from downpour.tables.memory import array_at, call, copy, load, load_float, prefetch, store
from downpour.tables.rows import clamp, lend, prefetch_row, row_address

if TYPE_CHECKING:
    from downpour.tables.views import TableView

    Array: TypeAlias = np.ndarray
    Word: TypeAlias = np.uint64  # a key, hash, entry, address or number of bytes
    Row: TypeAlias = int | np.integer

U = np.uint64
BLOCK = 64
SEGMENTS = 256
NO_ROW = -1
NO_ROOM = -2

# Places in the index's state array; the rows a segment follow at COUNTS.
ROWS, CURSOR, OLD_BASE, OLD_CAPACITY, NEW_BASE, NEW_CAPACITY = range(6)
GROW_AT, NEXT_GROW_AT, GROWTH_START, GROWTH_SPAN, ROW_LIMIT, COUNTS = range(6, 12)
NEVER = U(2**63)

RING = 256  # places for the keys of three blocks on their way: a hash and a home slot each
RING_BYTES = 16 * RING
ZERO, ONE, WORD, NUM_SEGMENTS = U(0), U(1), U(8), U(SEGMENTS)
SEGMENT_SHIFT, TAG_SHIFT, SIXTEENTH = U(56), U(32), U(4)
LOW_32 = U(0xFFFFFFFF)
GOLDEN = U(0x9E3779B97F4A7C15)
# Multipliers and shifts of splitmix64's finaliser (Steele, Lea and Flood 2014).
MIX_A, MIX_B = U(0xBF58476D1CE4E5B9), U(0x94D049BB133111EB)
SHIFT_A, SHIFT_B, SHIFT_C = U(30), U(27), U(31)


@kernel
def mix(key: Word) -> Word:
    """A bijection of 64 bits in which every bit depends on every other."""
    key = (key ^ (key >> SHIFT_A)) * MIX_A
    key = (key ^ (key >> SHIFT_B)) * MIX_B
    return key ^ (key >> SHIFT_C)


@kernel
def segment_memory(state: Array, segment: Word) -> tuple[Word, Word]:
    """Where a segment is now: its base address and capacity; no branch, it would be a coin toss."""
    at = OLD_BASE + (NEW_BASE - OLD_BASE) * (segment < state[CURSOR])
    base, capacity = state[at], state[at + 1]
    return base + segment * capacity * WORD, capacity


@kernel
def move_segments(state: Array, stop: Word) -> None:
    """Move segments from CURSOR to stop to the new memory; the last one ends the growth."""
    old_capacity, capacity = state[OLD_CAPACITY], state[NEW_CAPACITY]
    while state[CURSOR] < stop:
        old_base = state[OLD_BASE] + state[CURSOR] * old_capacity * WORD
        base = state[NEW_BASE] + state[CURSOR] * capacity * WORD
        for i in range(old_capacity):
            entry = load(old_base + U(i) * WORD)
            if entry != ZERO:
                slot = ((entry >> TAG_SHIFT) * capacity) >> TAG_SHIFT
                while load(base + slot * WORD) != ZERO:
                    slot += ONE
                    if slot == capacity:
                        slot = ZERO
                store(base + slot * WORD, entry)
        state[CURSOR] += ONE
    if state[CURSOR] == NUM_SEGMENTS:
        state[GROW_AT] = state[NEXT_GROW_AT]


@kernel
def find(key: Word, hash_: Word, state: Array, table: TableView, create: bool) -> np.int64:
    """The row of a key; where there is none, a new one, or NO_ROW; NO_ROOM if it does not fit.

    A new row has its key and nothing else yet.
    """
    segment = hash_ >> SEGMENT_SHIFT
    base, capacity = segment_memory(state, segment)
    tag = hash_ & LOW_32
    slot = (tag * capacity) >> TAG_SHIFT
    while True:
        entry = load(base + slot * WORD)
        if entry == ZERO:
            break
        if entry >> TAG_SHIFT == tag:
            row = np.int64((entry & LOW_32) - ONE)
            if load(row_address(table, row)) == key:
                return row
        slot += ONE
        if slot == capacity:
            slot = ZERO
    if not create:
        return np.int64(NO_ROW)
    new_row = state[ROWS]
    is_full = state[U(COUNTS) + segment] >= capacity - (capacity >> SIXTEENTH)
    if is_full or new_row >= state[ROW_LIMIT] or new_row >= state[GROW_AT]:
        return np.int64(NO_ROOM)
    store(base + slot * WORD, (tag << TAG_SHIFT) | (new_row + ONE))
    store(row_address(table, new_row), key)
    state[U(COUNTS) + segment] += ONE
    state[ROWS] = new_row + ONE
    if state[CURSOR] < NUM_SEGMENTS:
        due = ONE + (new_row - state[GROWTH_START]) * NUM_SEGMENTS // state[GROWTH_SPAN]
        move_segments(state, min(due, NUM_SEGMENTS))
    return np.int64(new_row)


@kernel
def announce(keys: Array, start: int, stop: int, state: Array, table: TableView) -> None:
    """Hash keys[start:stop] and ask for the index lines of their home slots."""
    ring = array_at(table.ring, 2 * RING, ZERO)
    for i in range(start, min(stop, keys.size)):
        hash_ = mix(keys[i])
        base, capacity = segment_memory(state, hash_ >> SEGMENT_SHIFT)
        slot = base + (((hash_ & LOW_32) * capacity) >> TAG_SHIFT) * WORD
        ring[i & (RING - 1)] = hash_
        ring[RING + (i & (RING - 1))] = slot
        prefetch(slot)


@kernel
def guess(start: int, stop: int, rows: Array, table: TableView) -> None:
    """Write the first row whose tag matches and ask for it; NO_ROW if there is none.

    A probe may run on from its segment into the next, or into memory that its segment has left, all
    of it mapped and ending in an empty entry: then the guess is wrong, and `settle` finds out.
    """
    ring = array_at(table.ring, 2 * RING, ZERO)
    for i in range(start, min(stop, rows.size)):
        tag, slot = ring[i & (RING - 1)] & LOW_32, ring[RING + (i & (RING - 1))]
        entry = load(slot)
        while entry != ZERO and entry >> TAG_SHIFT != tag:
            slot += WORD
            entry = load(slot)
        rows[i] = np.int64(entry & LOW_32) - 1
        if entry != ZERO:
            prefetch_row(table, rows[i])


@kernel
def settle(
    keys: Array,
    start: int,
    stop: int,
    rows: Array,
    state: Array,
    table: TableView,
    create: bool,
) -> int:
    """Compare keys[start:stop] with their guesses; find what differs, stop if there is no room."""
    ring = array_at(table.ring, 2 * RING, ZERO)
    for i in range(start, stop):
        if rows[i] < 0 or load(row_address(table, rows[i])) != keys[i]:
            row = find(keys[i], ring[i & (RING - 1)], state, table, create)
            if row == NO_ROOM:
                return i
            rows[i] = row
    return stop


@kernel
def begin(keys: Array, start: int, rows: Array, state: Array, table: TableView) -> None:
    """Fill the pipeline: what `locate_block` finds done when its first block is at `start`."""
    announce(keys, start, start + 2 * BLOCK, state, table)
    guess(start, start + BLOCK, rows, table)


@kernel
def locate_block(
    keys: Array, start: int, rows: Array, state: Array, table: TableView, create: bool
) -> int:
    """Find the rows of a block's keys, those of the next two on their way; where it stopped."""
    stop = start + BLOCK
    announce(keys, stop + BLOCK, stop + 2 * BLOCK, state, table)
    guess(stop, stop + BLOCK, rows, table)
    return settle(keys, start, min(stop, keys.size), rows, state, table, create)


@kernel
def locate(
    keys: Array, start: int, rows: Array, state: Array, table: TableView, create: bool
) -> int:
    """Write the rows of keys[start:] to `rows`; where it stopped: before the end, make room.

    Rows from the former state[ROWS] on are new and wait for `fill`.
    """
    keys, rows, state = lend(keys, ZERO), lend(rows, np.int64(0)), lend(state, ZERO)
    begin(keys, start, rows, state, table)
    while start < keys.size:
        done = locate_block(keys, start, rows, state, table, create)
        start += BLOCK
        if done < min(start, keys.size):
            return done
    return keys.size


@kernel
def fill_uniform(stream: Word, out: Array) -> None:
    """Write numbers uniform in (0, 1], two from each 64 bits of the stream."""
    bits = ZERO
    for i in range(out.size):
        if i & 1 == 0:
            bits = mix(stream + U(i) * GOLDEN)
        out[i] = (np.float64(np.int64(bits & LOW_32)) + 0.5) * 2.0**-32
        bits >>= TAG_SHIFT


@kernel
def fill_weights(key: Word, address: Word, table: TableView) -> None:
    """Write the initial weights of a key at an address."""
    dim = np.int64(table.weight_bytes // table.item_bytes)
    u = array_at(table.scratch, dim * (table.num_uniforms > 0), table.like)
    v = array_at(table.scratch + table.weight_bytes, dim * (table.num_uniforms > 1), table.like)
    stream = mix(key ^ table.salt)
    fill_uniform(stream, u)
    fill_uniform(~stream, v)
    params = array_at(table.params, table.num_params, table.like)
    weight = array_at(address, dim, table.like)
    call(table.fill, weight, u, v, params)
    if table.is_bounded:
        clamp(weight, table.low, table.high)


@kernel
def fill(start: Word, stop: Word, table: TableView) -> None:
    """Write what rows start to stop hold when new: initial weights and state, no decay yet."""
    for row in range(start, stop):
        address = row_address(table, row)
        fill_weights(load(address), address + table.weight_offset, table)
        copy(address + table.state_offset, table.initial_state, table.state_bytes)
        if table.decay_offset != ZERO:
            store(address + table.decay_offset, ZERO)


@kernel
def make(keys: Array, start: int, rows: Array, state: Array, table: TableView) -> int:
    """Locate keys[start:], making the rows that are missing, whole; where it stopped."""
    first_new = state[ROWS]
    create = keys.size > 0  # a literal True would compile all that is below once more
    done = locate(keys, start, rows, state, table, create)
    fill(first_new, state[ROWS], table)
    return done


@kernel
def ask(rows: Array, start: int, table: TableView) -> None:
    """Ask for the rows of a block."""
    for i in range(start, min(start + BLOCK, rows.size)):
        if rows[i] >= 0:
            prefetch_row(table, rows[i])


@kernel
def read_block(
    keys: Array, start: int, stop: int, rows: Array, target: Word, table: TableView
) -> None:
    """Write weights as of now to an address; for row < 0 those of a new row."""
    target += U(start) * table.weight_bytes
    for i in range(start, stop):
        row_log_decay = 0.0
        if rows[i] < 0:
            fill_weights(keys[i], target, table)
        else:
            address = row_address(table, rows[i])
            copy(target, address + table.weight_offset, table.weight_bytes)
            if table.decay_offset != ZERO:
                row_log_decay = load_float(address + table.decay_offset)
        if table.decay_offset != ZERO:
            weight = array_at(target, np.int64(table.weight_bytes // table.item_bytes), table.like)
            factor = np.exp(table.log_decay - row_log_decay)
            for j in range(weight.size):
                weight[j] = weight[j] * factor
        target += table.weight_bytes


@kernel
def read(keys: Array, rows: Array, out: Array, table: TableView) -> None:
    """Write the weights of `rows` as of now to out [n, dim]; for row < 0 those of a new row."""
    keys, rows, target = lend(keys, ZERO), lend(rows, np.int64(0)), U(out.ctypes.data)
    ask(rows, 0, table)
    for start in range(0, rows.size, BLOCK):
        ask(rows, start + BLOCK, table)
        read_block(keys, start, min(start + BLOCK, rows.size), rows, target, table)


@kernel
def pull(
    keys: Array, start: int, rows: Array, out: Array, state: Array, table: TableView, create: bool
) -> int:
    """Locate, fill and read at once, a block at a time while it is in the cache."""
    keys, rows, state = lend(keys, ZERO), lend(rows, np.int64(0)), lend(state, ZERO)
    target = U(out.ctypes.data)
    begin(keys, start, rows, state, table)
    while start < keys.size:
        first_new = state[ROWS]
        done = locate_block(keys, start, rows, state, table, create)
        fill(first_new, state[ROWS], table)
        read_block(keys, start, done, rows, target, table)
        start += BLOCK
        if done < min(start, keys.size):
            return done
    return keys.size
