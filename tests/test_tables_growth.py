"""Growth: what it costs in memory, that it is spread out, and that nothing is lost."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest

from downpour.accessor import EmbeddingAccessor
from downpour.errors import TableError
from downpour.rules import SGD, Adagrad
from downpour.tables import SparseTable, kernels
from downpour.tables import keyed as keyed_module
from downpour.tables.arena import Arena
from downpour.tables.pages import HUGE_PAGE, Pages


def array_at_address(address: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint64 * 1).from_address(address))


def make_table(dim: int = 2) -> SparseTable:
    return SparseTable("t", EmbeddingAccessor(dim=dim, rule=SGD(0.1)))


def test_index_memory_while_growing() -> None:
    table = make_table()
    sizes = []
    for start in range(0, 600_000, 4_000):
        table.locate(np.arange(start, start + 4_000, dtype=np.uint64), create=True)
        stats = table.stats()
        assert stats.rows == start + 4_000
        assert stats.index_bytes_per_key == pytest.approx(8 / stats.load)
        sizes.append((stats.rows, stats.index_bytes_per_key))
    grown = np.array([size for rows, size in sizes if rows >= 20_000])
    assert grown.max() < 27.0
    assert grown.mean() < 18.0


def test_a_growth_is_spread_over_many_batches() -> None:
    table = make_table()
    state, moved = table._index.state, []
    for start in range(0, 400_000, 1_000):
        before = int(state[kernels.CURSOR]), int(state[kernels.NEW_CAPACITY])
        table.locate(np.arange(start, start + 1_000, dtype=np.uint64), create=True)
        after = int(state[kernels.CURSOR]), int(state[kernels.NEW_CAPACITY])
        same_growth = before[1] == after[1]
        moved.append(after[0] - (before[0] if same_growth else 0))
    assert table.stats().growths == 6 + math.ceil(math.log2(400_000 / 0.7 / 256 / 16 / 64))
    assert max(moved[100:]) < kernels.SEGMENTS // 5


def test_stats_count_the_memory() -> None:
    table = SparseTable("t", EmbeddingAccessor(dim=16, rule=Adagrad(0.1)))
    empty = table.stats()
    assert (empty.rows, empty.arena_bytes, empty.load, empty.growths) == (0, 0, 0.0, 0)
    assert empty.index_bytes_per_key == math.inf
    table.pull(np.arange(100_000, dtype=np.uint64))
    stats = table.stats()
    assert stats.row_bytes == 8 + 16 * 4 + 16 * 4
    assert stats.bytes == stats.arena_bytes + stats.index_bytes
    assert 0 <= stats.arena_bytes - 100_000 * stats.row_bytes < HUGE_PAGE


@pytest.mark.parametrize("row_bytes", [16, 24, 80, 96, 136, 520, 8200, 300 << 20])
def test_chunks_are_whole_huge_pages_where_they_can_be(row_bytes: int) -> None:
    arena = Arena(row_bytes)
    chunk_bytes = row_bytes << arena.shift
    assert chunk_bytes <= max(128 << 20, row_bytes)
    assert chunk_bytes >= 4 << 20
    assert chunk_bytes % HUGE_PAGE == 0 or chunk_bytes > 32 << 20


def test_chunks_stay_where_they_are() -> None:
    arena = Arena(8 << 20)
    addresses = []
    for _ in range(40):
        arena.grow()
        addresses.append(arena._chunks[-1].address)
    assert arena.capacity == 40
    assert arena._tables[-1][:40].tolist() == addresses
    assert arena._tables[0].tolist() == addresses[:16]


def test_pages_are_zero_aligned_and_given_back() -> None:
    pages = Pages(3 * HUGE_PAGE)
    assert pages.address % HUGE_PAGE == 0
    first, last = (array_at_address(pages.address + at) for at in (0, 3 * HUGE_PAGE - 8))
    assert (first[0], last[0]) == (0, 0)
    first[0], last[0] = 7, 8
    pages.release(HUGE_PAGE + 5)
    pages.release(5)
    assert (first[0], last[0]) == (0, 8)


def test_a_full_shard_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = np.arange(2000, dtype=np.uint64)
    expected = make_table().pull(keys)
    monkeypatch.setattr(keyed_module, "MAX_ROWS", 1000)
    table = make_table()
    with pytest.raises(TableError, match="at most 1000 rows: use more shards"):
        table.locate(keys, create=True)
    np.testing.assert_array_equal(table.pull(keys, create=False), expected)
    assert len(table) == 1000
