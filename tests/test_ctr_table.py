"""Tables of CTR rows against a twin in plain Python, and what never changes a result."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from downpour import rules
from downpour.accessor import CtrAccessor, EmbeddingAccessor
from downpour.errors import TableError
from downpour.init import Constant, Uniform
from downpour.tables import CtrTable, SparseTable, partition, sparse_table
from downpour.tables.pages import HUGE_PAGE
from tests.ctr_tables import (
    DIM,
    NEVER,
    RULES,
    batches,
    make_accessor,
    make_table,
    push_all,
    same_bits,
    some_keys,
    some_pushes,
)
from tests.ctr_twin import CtrTwin

KEY = np.array([7], np.uint64)


def assert_equals_twin(table: CtrTable, twin: CtrTwin, rtol: float = 1e-9) -> None:
    keys, weights, state, statistics = table.export()
    expected = twin.export()
    assert keys.tolist() == expected[0].tolist()
    np.testing.assert_allclose(weights, expected[1], rtol=rtol, atol=rtol)
    np.testing.assert_allclose(state, expected[2], rtol=rtol, atol=rtol)
    assert statistics.tolist() == expected[3]
    counts = [(row[0], row[1]) for row in expected[3]]
    pulled = np.hstack([np.array(counts), expected[1]])
    np.testing.assert_allclose(table.pull(keys, create=False), pulled, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("threshold", [0.0, 2.5, NEVER])
@pytest.mark.parametrize("show_scale", [True, False], ids=["scaled", "unscaled"])
@pytest.mark.parametrize("name", RULES)
def test_equals_its_twin(name: str, show_scale: bool, threshold: float) -> None:
    table = make_table(name, show_scale=show_scale, embedx_threshold=threshold)
    twin = CtrTwin("table", table.accessor, seed=1)
    for step, (keys, pushes) in enumerate(batches(), start=1):
        if step % 4 == 0:
            pushes[:, 1:3] = 0.0  # another program counts
        table.push(keys, pushes, step=step, lr=(0.1, 0.05))
        twin.push(keys, pushes, lr=(0.1, 0.05))
    assert_equals_twin(table, twin)
    grown = table.stats().embedx_rows / len(table)
    assert (grown == 1.0) if threshold == 0.0 else (grown < 0.9)
    assert (grown > 0.1) == (threshold < NEVER)


def test_other_settings_equal_their_twin_too() -> None:
    table = make_table(
        init=Uniform(0.5),
        bounds=(-0.3, 0.2),
        embedx_bounds=(-0.125, 0.0625),
        nonclk_coeff=0.25,
        click_coeff=0.5,
        slots=False,
    )
    twin = CtrTwin("table", table.accessor, seed=1)
    for step, (keys, pushes) in enumerate(batches(), start=1):
        table.push(keys, pushes, step=step, lr=(0.1, 0.05))
        twin.push(keys, pushes, lr=(0.1, 0.05))
    assert_equals_twin(table, twin)
    assert np.all(table.export()[3]["slot"] == -1)
    for bound in (-0.3, 0.2, -0.125, 0.0625):
        assert np.any(table.export()[1] == bound)


@pytest.mark.parametrize("name", RULES)
def test_float32_stays_near_its_twin(name: str) -> None:
    table = make_table(name, dtype="float32")
    twin = CtrTwin("table", make_accessor(name), seed=1)
    push_all(table)
    for keys, pushes in batches(dtype="float32"):
        twin.push(keys, pushes.astype("float64"), lr=(0.1, 0.05))
    keys, weights, _, statistics = table.export()
    assert statistics.tolist() == twin.export()[3]
    np.testing.assert_allclose(weights, twin.export()[1], rtol=1e-3, atol=1e-4)


def test_rates_of_w_and_embedx_differ() -> None:
    table, same = (make_table("sgd, per element", embedx_threshold=0.0) for _ in range(2))
    for step in (1, 2):
        for it, lr in ((table, (0.5, 0.0)), (same, 0.5)):
            it.push(KEY, np.array([[0.0, 1, 0, 1, 1, 1, 1, 1]]), step=step, lr=lr)
    assert table.pull(KEY)[0, 2] == same.pull(KEY)[0, 2] == -1.0
    first = table.pull(KEY)[0, 3:]
    np.testing.assert_allclose(same.pull(KEY)[0, 3:], first - 0.5, rtol=1e-12)


def test_w_that_is_not_scaled_is_a_plain_row() -> None:
    table = make_table(show_scale=False, bounds=None)
    accessor = EmbeddingAccessor(dim=1, rule=RULES["g2sum"][0], init=Constant(), dtype="float64")
    plain = SparseTable("plain", accessor)
    for step, (keys, pushes) in enumerate(batches(), start=1):
        table.push(keys, pushes, step=step, lr=0.1)
        plain.push(keys, pushes[:, 4:5], step=step, lr=0.1)
    _, weights, state, _ = table.export()
    same_bits(plain.export()[1:], [weights[:, :1], state[:, :1]])


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7])
@pytest.mark.parametrize("name", RULES)
def test_any_number_of_shards_gives_the_same_bits(name: str, num_shards: int) -> None:
    whole = make_table(name, dtype="float32")
    shards = [make_table(name, dtype="float32") for _ in range(num_shards)]
    push_all(whole)
    for step, (keys, pushes) in enumerate(batches(dtype="float32"), start=1):
        order, counts = partition(keys, num_shards)
        for shard, part in zip(shards, np.split(order, np.cumsum(counts)[:-1]), strict=True):
            shard.push(keys[part], pushes[part], step=step, lr=(0.1, 0.05))
    parts = [shard.export() for shard in shards]
    together = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(together[0])
    same_bits(whole.export(), [column[order] for column in together])


@pytest.mark.parametrize("name", RULES)
def test_the_order_in_which_rows_are_made_changes_nothing(name: str) -> None:
    early, late, mixed = (make_table(name) for _ in range(3))
    every = np.unique(np.concatenate([keys for keys, _ in batches()]))
    early.pull(every[::-1].copy())
    for step, (keys, pushes) in enumerate(batches(), start=1):
        if step == 10:
            mixed.pull(every)
        for table in (early, late, mixed):
            table.push(keys, pushes, step=step, lr=0.1)
    same_bits(early.export(), late.export())
    same_bits(early.export(), mixed.export())


def test_keys_of_a_batch_may_come_in_any_order_but_for_their_own_sums() -> None:
    table, shuffled = (make_table(embedx_threshold=0.3) for _ in range(2))
    keys, pushes = some_keys(500), some_pushes(500)
    order = np.random.default_rng(4).permutation(500)
    for step in (1, 2):
        table.push(keys, pushes, step=step, lr=0.1)
        shuffled.push(keys[order], pushes[order], step=step, lr=0.1)
    same_bits(table.export(), shuffled.export())


def test_trusted_calls_are_push_and_pull_in_parts() -> None:
    table, parts = (make_table("row adam, shared", embedx_threshold=0.2) for _ in range(2))
    keys, pushes = some_keys(1000), some_pushes(1000)
    for step in (1, 2):
        table.push(keys, pushes, step=step, lr=0.1)
        rows = parts.locate(keys, create=True)
        parts.update(rows[:300], pushes[:300], step=step, lr=0.1)
        parts.update(rows[300:], pushes[300:], step=step, lr=0.1)
    same_bits(table.export(), parts.export())
    out = np.empty((1000, DIM + 3))
    assert parts.read(keys, rows, out) is out
    same_bits([table.pull(keys, create=False)], [out])


def test_pull_without_create_makes_no_row() -> None:
    table = make_table(init=Uniform(0.5), embedx_threshold=0.0)
    known, unknown = some_keys(100, 1), some_keys(100, 2)
    table.push(known, some_pushes(100), step=1, lr=0.1)
    rows = table.pull(unknown, create=False)
    assert len(table) == 100
    same_bits([rows], [table.pull(unknown)])
    assert len(table) == 200
    assert np.all(rows[:, 2] != 0.0)
    assert not rows[:, [0, 1, 3, 4, 5]].any()


def test_a_push_without_keys_is_a_step() -> None:
    table = make_table()
    table.push(np.empty(0, np.uint64), np.empty((0, 5 + DIM)), step=3, lr=0.1)
    assert (table.step, table.log_decay, len(table)) == (3, 0.0, 0)
    table.advance(step=5, lr=0.1)
    assert table.step == 5
    assert table.pull(np.empty(0, np.uint64)).shape == (0, 3 + DIM)


def test_set_writes_w_and_embedx_and_leaves_statistics() -> None:
    table = make_table("row adam, shared")
    keys = np.array([5, 6, 5], np.uint64)
    weights = np.arange(12.0).reshape(3, 4)
    table.push(keys[:1], np.ones((1, 5 + DIM)), step=1, lr=0.1)
    table.set(keys, weights)
    np.testing.assert_array_equal(table.pull(keys)[:, 2:], weights[[2, 1, 2]])
    assert table.export()[3]["show"].tolist() == [1.0, 0.0]
    assert table.stats().embedx_rows == 2
    np.testing.assert_array_equal(table.export()[2], [[0, 0, 0.9, 0.999] * 2] * 2)
    table.set(keys[:2], weights[:2], np.arange(16.0).reshape(2, 8))
    np.testing.assert_array_equal(table.export()[2], np.arange(16.0).reshape(2, 8))
    assert table.stats().embedx_rows == 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", RULES)
def test_export_and_restore_continue_bit_for_bit(name: str, dtype: str) -> None:
    first, second = (make_table(name, dtype=dtype) for _ in range(2))
    push_all(first)
    exported = first.export()
    second.restore(*exported, step=first.step, log_decay=first.log_decay)
    same_bits(exported, second.export())
    assert second.stats().embedx_rows == first.stats().embedx_rows > 0
    for table in (first, second):
        for step, (keys, pushes) in enumerate(batches(dtype=dtype), start=21):
            table.push(keys, pushes[::-1].copy(), step=step, lr=0.1)
    same_bits(first.export(), second.export())
    assert first.step == second.step == 40


def test_tables_of_different_names_and_seeds_differ() -> None:
    keys = some_keys(10)
    rows = []
    for name, seed in (("a", 0), ("b", 0), ("a", 1)):
        table = CtrTable(name, make_accessor(embedx_threshold=0.0), seed=seed)
        table.push(keys, np.zeros((10, 5 + DIM)), step=1, lr=0.1)
        rows.append(table.pull(keys).tobytes())
    assert len(set(rows)) == 3


@pytest.mark.parametrize("dim", [1, 2, 8, 16, 31, 32, 64, 200])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_any_width(dim: int, dtype: str) -> None:
    rule = rules.SGD(0.5)
    accessor = CtrAccessor(embedx_dim=dim, rule=rule, embedx_threshold=0.0, dtype=dtype)
    table, keys = CtrTable("table", accessor), some_keys(70)
    pushes = np.random.default_rng(0).uniform(size=(70, 5 + dim)).astype(dtype)
    table.push(keys, pushes, step=1, lr=0.5)
    before = table.pull(keys)
    table.push(keys, pushes, step=2, lr=0.5)
    np.testing.assert_allclose(table.pull(keys)[:, :2], 2 * before[:, :2], rtol=1e-6)
    np.testing.assert_allclose(table.pull(keys)[:, 2:], before[:, 2:] - 0.5 * pushes[:, 4:])


def test_cold_rows_take_no_memory_for_an_embedx() -> None:
    table = make_table(dtype="float32", embedx_threshold=10.0)
    keys, pushes = some_keys(100_000), some_pushes(100_000, dtype="float32")
    table.push(keys, pushes, step=1, lr=0.1)
    cold = table.stats()
    assert (cold.rows, cold.row_bytes, cold.embedx_rows) == (100_000, 48, 0)
    assert 0 <= cold.arena_bytes - 100_000 * 48 < HUGE_PAGE
    pushes[:30_000, 1:3] = 10.0
    table.push(keys, pushes, step=2, lr=0.1)
    grown = table.stats()
    assert grown.embedx_rows == 30_000
    assert 0 <= grown.arena_bytes - cold.arena_bytes - 30_000 * 16 < HUGE_PAGE


def test_the_factory_makes_the_table_of_the_accessor() -> None:
    plain = EmbeddingAccessor(dim=2, rule=rules.SGD(0.1))
    tables = [sparse_table("t", accessor, seed=3) for accessor in (plain, make_accessor())]
    assert [type(table) for table in tables] == [SparseTable, CtrTable]
    assert [(table.name, table.seed) for table in tables] == [("t", 3)] * 2
    assert repr(tables[1]) == "CtrTable('t', rows=0, dim=4, step=0)"


def test_a_plain_table_takes_a_push_alike() -> None:
    tables = [SparseTable("t", EmbeddingAccessor(dim=2, rule=rules.SGD(0.1))) for _ in range(2)]
    grads = np.ones((1, 2), np.float32)
    tables[0].push(KEY, grads, step=1, lr=0.1)
    tables[1].update(tables[1].locate(KEY, create=True), grads, step=1, lr=0.1)
    same_bits(tables[0].export(), tables[1].export())
    with pytest.raises(TableError, match=r"lr must be a number, got \(0.1, 0.1\)"):
        tables[0].push(KEY, grads, step=2, lr=(0.1, 0.1))


SECOND_PROCESS = """
import sys
import numpy as np
from downpour.accessor import CtrAccessor
from downpour.rules import G2SumAdagrad
from downpour.tables import CtrTable, add_shows, ctr_kernels, pushes, rows

accessor = CtrAccessor(embedx_dim=4, rule=G2SumAdagrad(0.1), embedx_threshold=0.0)
table, keys = CtrTable("t", accessor), np.arange(10, dtype=np.uint64)
push = np.zeros((10, 9), np.float32)
add_shows(push, np.arange(10, dtype=np.int32), None, np.ones(10, np.float32), 1, counts=True)
table.push(keys, push, step=1, lr=0.1)
table.set(keys, table.pull(keys)[:, 2:])
used = [ctr_kernels.read, ctr_kernels.update, ctr_kernels.grow, rows.gather, rows.scatter]
used.append(pushes._add_shows)
misses = sum(sum(kernel.stats.cache_misses.values()) for kernel in used)
print(misses, "torch" in sys.modules)
"""


def test_another_process_compiles_nothing_and_needs_no_torch() -> None:
    for expected in (None, "0 False"):  # the first one may have to compile
        done = subprocess.run(
            [sys.executable, "-c", SECOND_PROCESS], capture_output=True, text=True, check=True
        )
        assert expected in (None, done.stdout.strip())
