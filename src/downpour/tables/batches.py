"""Loops over a batch that need no table: unique keys, sums by key, split over shards."""

from __future__ import annotations

import numpy as np

from downpour.jit import kernel
from downpour.tables.memory import load, prefetch, store

U = np.uint64
BLOCK = 64
STRIDE = 4096  # elements between two looks whether anything differs
ZERO, ONE, WORD, TAG_SHIFT, LOW_32 = U(0), U(1), U(8), U(32), U(0xFFFFFFFF)
# Multipliers and shifts of MurmurHash3's finaliser (Appleby 2011): bits apart from the index's.
MIX_A, MIX_B, SHIFT = U(0xFF51AFD7ED558CCD), U(0xC4CEB9FE1A85EC53), U(33)


@kernel
def _mix(key: np.uint64) -> np.uint64:
    key = (key ^ (key >> SHIFT)) * MIX_A
    key = (key ^ (key >> SHIFT)) * MIX_B
    return key ^ (key >> SHIFT)


@kernel
def _dedup(keys: np.ndarray, unique: np.ndarray, inverse: np.ndarray, scratch: np.ndarray) -> int:
    tags = np.empty(BLOCK, np.uint64)
    base, capacity = U(scratch.ctypes.data), U(scratch.size)
    count = 0
    for start in range(0, keys.size, BLOCK):
        stop = min(start + BLOCK, keys.size)
        for i in range(start, stop):
            # Two thirds of the mix: the upper half of this product depends on every bit of a key.
            half = keys[i] * MIX_A
            tag = ((half ^ (half >> SHIFT)) * MIX_B) >> TAG_SHIFT
            tags[i - start] = tag
            prefetch(base + ((tag * capacity) >> TAG_SHIFT) * WORD)
        for i in range(start, stop):
            tag = tags[i - start]
            slot = (tag * capacity) >> TAG_SHIFT
            while True:
                entry = load(base + slot * WORD)
                if entry == ZERO:
                    store(base + slot * WORD, (tag << TAG_SHIFT) | U(count + 1))
                    unique[count] = keys[i]
                    inverse[i] = count
                    count += 1
                    break
                if entry >> TAG_SHIFT == tag:
                    position = np.int64((entry & LOW_32) - ONE)
                    if unique[position] == keys[i]:
                        inverse[i] = position
                        break
                slot += ONE
                if slot == capacity:
                    slot = ZERO
    return count


def dedup(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different keys in first-seen order, and each position's place among them.

    keys: uint64 [n], n < 2^31. Returns unique uint64 [u] and inverse int32 [n]:
    unique[inverse] == keys.
    """
    assert keys.size < 2**31
    unique = np.empty_like(keys)
    inverse = np.empty(keys.size, np.int32)  # not slower than int64, and later loops are faster
    count = _dedup(keys, unique, inverse, np.zeros(2 * keys.size + 1, np.uint64))
    return unique[:count], inverse


@kernel
def _segment_sum(grads: np.ndarray, inverse: np.ndarray, out: np.ndarray) -> None:
    for i in range(inverse.size):
        k = inverse[i]
        for j in range(grads.shape[1]):
            out[k, j] += grads[i, j]


def segment_sum(grads: np.ndarray, inverse: np.ndarray, num_unique: int) -> np.ndarray:
    """Sum rows of grads [n, dim] that share a place, in order of position: [num_unique, dim].

    `inverse` int32 or int64 [n], as `dedup` gives it, values below num_unique.
    """
    out = np.zeros((num_unique, grads.shape[1]), grads.dtype)
    _segment_sum(grads, inverse, out)
    return out


@kernel
def _shards(keys: np.ndarray, num_shards: int, shards: np.ndarray, counts: np.ndarray) -> None:
    for i in range(keys.size):
        shard = ((_mix(keys[i]) >> TAG_SHIFT) * U(num_shards)) >> TAG_SHIFT
        shards[i] = shard
        counts[shard] += 1


@kernel
def _order_by_shard(shards: np.ndarray, counts: np.ndarray, order: np.ndarray) -> None:
    next_place = np.cumsum(counts) - counts
    for i in range(shards.size):
        shard = shards[i]
        order[next_place[shard]] = i
        next_place[shard] += 1


def shard_of(keys: np.ndarray, num_shards: int) -> np.ndarray:
    """The shard of each key, int32 [n]: a mixed hash, so that consecutive ids spread evenly."""
    shards = np.empty(keys.size, np.int32)
    _shards(keys, num_shards, shards, np.zeros(num_shards, np.int64))
    return shards


def partition(keys: np.ndarray, num_shards: int) -> tuple[np.ndarray, np.ndarray]:
    """Group keys by shard, each shard's in their order.

    Returns order int64 [n] (keys[order] is shard 0's keys, then shard 1's, ...) and counts int64
    [num_shards].
    """
    shards = np.empty(keys.size, np.int32)
    counts = np.zeros(num_shards, np.int64)
    order = np.empty(keys.size, np.int64)
    _shards(keys, num_shards, shards, counts)
    _order_by_shard(shards, counts, order)
    return order, counts


@kernel
def same_bits(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two contiguous arrays [n], as `bits_of` gives them, are equal."""
    for start in range(0, ours.size, STRIDE):
        differs = ours[start] ^ theirs[start]  # of the arrays' own type
        for i in range(start, min(start + STRIDE, ours.size)):
            differs |= ours[i] ^ theirs[i]  # without a branch, so that it is one loop of vectors
        if differs != 0:
            return False
    return True


def bits_of(floats: np.ndarray) -> np.ndarray:
    """The bits of contiguous floats [n], uint32 or uint64 [n] in the same memory."""
    return floats.view(np.uint32 if floats.itemsize == 4 else np.uint64)


def is_finite(values: np.ndarray) -> bool:
    """Whether no element of a float array is NaN or infinite."""
    return bool(np.isfinite(values).all())
