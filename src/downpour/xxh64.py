"""XXH64 (Collet) of texts and of pairs of keys, as kernels.

What it gives is published and never changes. So kernels of other files may call `xxh64`, against
the rule of `downpour.jit.kernel`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from downpour.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Keys = NDArray[np.uint64]

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
_ZERO = np.uint64(0)


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
def _read(data: Bytes, at: np.uint64, size: np.uint64) -> np.uint64:
    """Read `size` bytes, the lowest first; LLVM makes one load of it."""
    word = _ZERO
    for i in range(size):
        word |= np.uint64(data[at + np.uint64(i)]) << (np.uint64(i) << np.uint64(3))
    return word


@kernel
def _stripes(data: Bytes, at: np.uint64, stop: np.uint64, seed: np.uint64) -> np.uint64:
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
def xxh64(data: Bytes, at: np.uint64, stop: np.uint64, seed: np.uint64) -> np.uint64:
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
def hash_rows(data: Bytes, offsets: NDArray[np.int64], seeds: Keys, out: Keys) -> None:
    """Fill `out` with XXH64 of each text; seeds: uint64 [1] for all or [n]."""
    step = 0 if len(seeds) == 1 else 1
    for row in range(len(out)):
        at, stop = np.uint64(offsets[row]), np.uint64(offsets[row + 1])
        out[row] = xxh64(data, at, stop, seeds[row * step])


@kernel
def cross_rows(left: Keys, right: Keys, out: Keys) -> None:
    """Fill `out` with XXH64 of the 16 bytes of each pair of keys."""
    for row in range(len(out)):
        state = _P5 + np.uint64(16)
        for lane in (left[row], right[row]):
            state = _rotate(state ^ _round(_ZERO, lane), np.uint64(27)) * _P1 + _P4
        out[row] = _finish(state)
