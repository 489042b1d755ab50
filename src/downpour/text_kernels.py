"""Kernels over the bytes of texts: XXH64, whole numbers, splitting. See `downpour.hashing`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from downpour.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUMBER_OR_HASH, HASH, NUMBER = 0, 1, 2
"""How a text becomes a key: see `text_keys`."""

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
_ZERO, _TEN = np.uint64(0), np.uint64(10)


# Positions are uint64, so that numba leaves out its test for negative indices.


@kernel
def _rotate(word: np.uint64, count: np.uint64) -> np.uint64:
    return (word << count) | (word >> (np.uint64(64) - count))


@kernel
def _round(state: np.uint64, lane: np.uint64) -> np.uint64:
    return _rotate(state + lane * _P2, np.uint64(31)) * _P1


@kernel
def _merge(state: np.uint64, lane: np.uint64) -> np.uint64:
    return (state ^ _round(_ZERO, lane)) * _P1 + _P4


@kernel
def _finish(state: np.uint64) -> np.uint64:
    state = (state ^ (state >> np.uint64(33))) * _P2
    state = (state ^ (state >> np.uint64(29))) * _P3
    return state ^ (state >> np.uint64(32))


@kernel
def _read(data: NDArray[np.uint8], at: np.uint64, size: np.uint64) -> np.uint64:
    """Read `size` bytes, the lowest first; LLVM makes one load of it."""
    word = _ZERO
    for i in range(size):
        word |= np.uint64(data[at + np.uint64(i)]) << (np.uint64(i) << np.uint64(3))
    return word


@kernel
def _stripes(data: NDArray[np.uint8], at: np.uint64, stop: np.uint64, seed: np.uint64) -> np.uint64:
    """Digest the whole 32-byte stripes of a long text."""
    one, two, three, four = seed + _P1 + _P2, seed + _P2, seed, seed - _P1
    eight = np.uint64(8)
    while at + np.uint64(32) <= stop:
        one = _round(one, _read(data, at, eight))
        two = _round(two, _read(data, at + eight, eight))
        three = _round(three, _read(data, at + np.uint64(16), eight))
        four = _round(four, _read(data, at + np.uint64(24), eight))
        at += np.uint64(32)
    state = _rotate(one, np.uint64(1)) + _rotate(two, np.uint64(7))
    state += _rotate(three, np.uint64(12)) + _rotate(four, np.uint64(18))
    return _merge(_merge(_merge(_merge(state, one), two), three), four)


@kernel
def _xxh64(data: NDArray[np.uint8], at: np.uint64, stop: np.uint64, seed: np.uint64) -> np.uint64:
    """XXH64 (Collet) of data[at:stop]."""
    size = stop - at
    state = seed + _P5
    if size >= np.uint64(32):
        state = _stripes(data, at, stop, seed)
        at += size & ~np.uint64(31)
    state += size
    while at + np.uint64(8) <= stop:
        state ^= _round(_ZERO, _read(data, at, np.uint64(8)))
        state = _rotate(state, np.uint64(27)) * _P1 + _P4
        at += np.uint64(8)
    if at + np.uint64(4) <= stop:
        state ^= _read(data, at, np.uint64(4)) * _P1
        state = _rotate(state, np.uint64(23)) * _P2 + _P3
        at += np.uint64(4)
    while at < stop:
        state ^= np.uint64(data[at]) * _P5
        state = _rotate(state, np.uint64(11)) * _P1
        at += np.uint64(1)
    return _finish(state)


@kernel
def _number(data: NDArray[np.uint8], at: np.uint64, stop: np.uint64) -> tuple[bool, np.uint64]:
    """Read a whole number written the one way that it is printed; (is one, its 64 bits)."""
    negative = at < stop and data[at] == 45
    if negative:
        at += np.uint64(1)
    size = stop - at
    if size == 0 or size > 20 or (data[at] == 48 and (size > 1 or negative)):
        return False, _ZERO
    value, before, worst = _ZERO, _ZERO, _ZERO
    for i in range(size):  # no way out of the loop: where letters begin cannot be predicted
        digit = np.uint64(data[at + np.uint64(i)]) - np.uint64(48)  # below "0" wraps to huge
        worst = max(worst, digit)
        before = value
        value = value * _TEN + digit
    last = np.uint64(data[stop - np.uint64(1)]) - np.uint64(48)
    limit = np.uint64(1) << np.uint64(63) if negative else ~_ZERO
    if worst > np.uint64(9) or (size > 18 and before > (limit - last) // _TEN):
        return False, _ZERO
    return True, _ZERO - value if negative else value


@kernel
def _key(
    data: NDArray[np.uint8], at: np.uint64, stop: np.uint64, seed: np.uint64, mode: int
) -> tuple[bool, np.uint64]:
    if mode != HASH:
        is_number, value = _number(data, at, stop)
        if is_number or mode == NUMBER:
            return is_number, value
    return True, _xxh64(data, at, stop, seed)


@kernel
def hash_rows(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    seeds: NDArray[np.uint64],
    mode: int,
    out: NDArray[np.uint64],
) -> int:
    """Fill `out` with one key a text; the first row refused, or -1."""
    step = 0 if len(seeds) == 1 else 1
    for row in range(len(out)):
        at, stop = np.uint64(offsets[row]), np.uint64(offsets[row + 1])
        good, out[row] = _key(data, at, stop, seeds[row * step], mode)
        if not good:
            return row
    return -1


@kernel
def cross_rows(
    left: NDArray[np.uint64], right: NDArray[np.uint64], out: NDArray[np.uint64]
) -> None:
    """Fill `out` with XXH64 of the 16 bytes of each pair of keys."""
    for row in range(len(out)):
        state = _P5 + np.uint64(16)
        for lane in (left[row], right[row]):
            state = _rotate(state ^ _round(_ZERO, lane), np.uint64(27)) * _P1 + _P4
        out[row] = _finish(state)


@kernel
def _part_end(
    data: NDArray[np.uint8], at: np.uint64, stop: np.uint64, mark: NDArray[np.uint8]
) -> np.uint64:
    """Find the next separator at or after `at`; `stop` where there is none."""
    width = np.uint64(len(mark))
    while at + width <= stop:
        same = np.uint64(0)
        while same < width and data[at + same] == mark[same]:
            same += np.uint64(1)
        if same == width:
            return at
        at += np.uint64(1)
    return stop


@kernel
def count_parts(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    mark: NDArray[np.uint8],
    offsets: NDArray[np.int64],
) -> None:
    """Write the number of non-empty parts of row i to offsets[i + 1]."""
    for row in range(len(starts) - 1):
        at, stop, count = np.uint64(starts[row]), np.uint64(starts[row + 1]), 0
        while at < stop:
            end = _part_end(data, at, stop, mark)
            count += 1 if end > at else 0
            at = end + np.uint64(len(mark))
        offsets[row + 1] = count


@kernel
def split_rows(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    mark: NDArray[np.uint8],
    mode: int,
    offsets: NDArray[np.int64],
    out: NDArray[np.uint64],
) -> int:
    """Fill `out` with one key a part, row after row; the first row refused, or -1."""
    for row in range(len(starts) - 1):
        at, stop = np.uint64(starts[row]), np.uint64(starts[row + 1])
        place = int(offsets[row])
        while at < stop:
            end = _part_end(data, at, stop, mark)
            if end > at:
                good, out[place] = _key(data, at, end, _ZERO, mode)
                if not good:
                    return row
                place += 1
            at = end + np.uint64(len(mark))
    return -1
