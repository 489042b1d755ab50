"""Loops over a batch and the index against plain numpy and a dictionary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downpour.accessor import EmbeddingAccessor
from downpour.rules import SGD
from downpour.tables import SparseTable, dedup, partition, segment_sum, shard_of
from downpour.tables.batches import is_finite
from downpour.tables.kernels import mix

MASK = 2**64 - 1
quick = settings(max_examples=50, deadline=None)  # the first call may compile
key_lists = st.lists(st.one_of(st.integers(0, 5), st.integers(0, MASK)), max_size=300)


def as_keys(values: list[int]) -> np.ndarray:
    return np.array(values, np.uint64)


def unmix(hash_: int) -> int:
    """The key with a given hash: the inverse of `mix`."""

    def unshift(value: int, shift: int) -> int:
        for _ in range(64 // shift):
            value = hash_of_step ^ (value >> shift)
        return value

    for shift, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
        hash_of_step = hash_
        hash_ = unshift(hash_, shift) * pow(factor, -1, 2**64) & MASK
    return hash_


@quick
@given(key_lists)
def test_dedup(values: list[int]) -> None:
    unique, inverse = dedup(as_keys(values))
    assert inverse.dtype == np.int32
    assert unique.tolist() == list(dict.fromkeys(values))
    np.testing.assert_array_equal(unique[inverse], as_keys(values))


@pytest.mark.parametrize("keys", [np.zeros(10_000, np.uint64), np.arange(10_000, dtype=np.uint64)])
def test_dedup_of_many(keys: np.ndarray) -> None:
    unique, inverse = dedup(keys)
    assert unique.size == np.unique(keys).size
    np.testing.assert_array_equal(unique[inverse], keys)


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_segment_sum_adds_in_order(dtype: str, index: type) -> None:
    rng = np.random.default_rng(0)
    grads = (rng.standard_normal((500, 3)) * 10.0 ** rng.integers(-6, 6, (500, 1))).astype(dtype)
    inverse: np.ndarray = rng.integers(0, 40, 500).astype(index)
    expected = np.zeros((41, 3), dtype)
    np.add.at(expected, inverse, grads)
    np.testing.assert_array_equal(segment_sum(grads, inverse, 41), expected)


@quick
@given(key_lists, st.integers(1, 2000))
def test_shard_of_scales_a_murmur_hash(values: list[int], num_shards: int) -> None:
    keys = as_keys(values)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        keys = (keys ^ (keys >> np.uint64(33))) * np.uint64(factor)
    hashes = (keys ^ (keys >> np.uint64(33))) >> np.uint64(32)
    expected = hashes * np.uint64(num_shards) >> np.uint64(32)
    assert shard_of(as_keys(values), num_shards).tolist() == expected.tolist()


@quick
@given(key_lists, st.integers(1, 9))
def test_partition_groups_by_shard_in_order(values: list[int], num_shards: int) -> None:
    keys = as_keys(values)
    order, counts = partition(keys, num_shards)
    shards = shard_of(keys, num_shards)
    np.testing.assert_array_equal(order, np.argsort(shards, kind="stable"))
    np.testing.assert_array_equal(counts, np.bincount(shards, minlength=num_shards))


@pytest.mark.parametrize("stride", [1, 2, 1000, 2**32, 2**47])
def test_shards_of_regular_ids_are_even(stride: int) -> None:
    counts = partition(np.arange(70_000, dtype=np.uint64) * np.uint64(stride), 7)[1]
    assert counts.max() < 1.05 * counts.mean()


def test_a_shards_keys_still_fill_all_segments() -> None:
    keys = np.arange(80_000, dtype=np.uint64)
    segments = np.array([mix(key) >> np.uint64(56) for key in keys[shard_of(keys, 8) == 3]])
    counts = np.bincount(segments.astype(np.int64), minlength=256)
    assert counts.min() > 15
    assert counts.max() < 75


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_is_finite_finds_one(dtype: str, bad: float) -> None:
    values = np.full((100, 101), np.finfo(dtype).max, dtype)
    assert is_finite(values)
    values[99, 57] = bad
    assert not is_finite(values)
    assert not is_finite(values.T)


@pytest.mark.parametrize("key", [0, 1, 12345, 2**63, MASK])
def test_unmix_is_the_inverse(key: int) -> None:
    assert unmix(int(mix(np.uint64(key)))) == key


def make_table() -> SparseTable:
    return SparseTable("t", EmbeddingAccessor(dim=2, rule=SGD(0.1)))


def check_index(batches: list[np.ndarray]) -> SparseTable:
    """Locate batches in a table and in a dictionary."""
    table, rows = make_table(), dict[int, int]()
    for keys in batches:
        known = [rows.get(key, -1) for key in keys.tolist()]
        assert table.locate(keys, create=False).tolist() == known
        expected = [rows.setdefault(key, len(rows)) for key in keys.tolist()]
        assert table.locate(keys, create=True).tolist() == expected
    every = np.fromiter(rows, np.uint64)
    assert table.locate(every, create=False).tolist() == list(rows.values())
    assert len(table) == len(rows)
    return table


@quick
@given(st.lists(key_lists, max_size=8))
def test_locate(batches: list[list[int]]) -> None:
    check_index([as_keys(values) for values in batches])


@pytest.mark.parametrize("num_keys", [1, 63, 64, 65, 5000])
@pytest.mark.parametrize("kind", ["sequential", "random"])
def test_locate_through_growth(kind: str, num_keys: int) -> None:
    rng = np.random.default_rng(0)
    keys = np.arange(60_000, dtype=np.uint64)
    if kind == "random":
        keys = rng.integers(0, MASK, 60_000, dtype=np.uint64, endpoint=True)
    batches = [keys[i : i + num_keys] for i in range(0, min(keys.size, 200 * num_keys), num_keys)]
    check_index(batches)


HASHES: dict[str, Any] = {
    "one segment": lambda i: (7 << 56) | (i * 0x9E3779B1 & 0xFFFFFFFF),
    "one home slot": lambda i: (7 << 56) | (i << 32) | 0xDEADBEEF,
    "last slots": lambda i: (i << 56) | 0xFFFFFFFF - i // 256,
    "tag zero": lambda i: (i % 256 << 56) | (i << 32),
}


@pytest.mark.parametrize("kind", HASHES)
def test_keys_that_collide_are_told_apart(kind: str) -> None:
    keys = as_keys([unmix(HASHES[kind](i) & MASK) for i in range(600)])
    assert np.unique(keys).size == 600
    check_index([keys[:200], keys[100:], keys[::-1].copy()])
