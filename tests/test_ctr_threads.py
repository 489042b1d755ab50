"""Tables of CTR rows on several threads: rows that are made and grow beside what is read."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from downpour.accessor import CtrAccessor
from downpour.init import Normal
from downpour.rules import G2SumAdagrad
from downpour.tables import CtrTable, arena, ctr_kernels
from downpour.team import with_torch_threads
from tests.ctr_tables import same_bits, some_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

DIM = 3


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of chunks, so that the table of their addresses is outgrown, too."""
    monkeypatch.setattr(arena, "_chunk_shift", lambda row_bytes: 8)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def make_table(threshold: float = 1.0) -> CtrTable:
    rule, init = G2SumAdagrad(0.1), Normal(0.1)
    accessor = CtrAccessor(embedx_dim=DIM, rule=rule, embedx_init=init, embedx_threshold=threshold)
    return CtrTable("table", accessor, seed=1)


def some_pushes(num_keys: int, seed: int = 0) -> np.ndarray:
    """A show and a place each, a click of three: a row grows at its first click or tenth show."""
    rng = np.random.default_rng(seed)
    pushes = rng.standard_normal((num_keys, 5 + DIM)).astype(np.float32)
    pushes[:, 0], pushes[:, 1], pushes[:, 3] = 2, 1, 1
    pushes[:, 2] = rng.integers(0, 3, num_keys) == 0
    return pushes


def test_rows_grow_on_one_thread_while_others_make_and_read_them() -> None:
    busy, alone = make_table(), make_table()
    keys = some_keys(60_000)
    rows, done = busy.locate(keys, create=True), threading.Event()

    def read_others(seed: int) -> None:
        i = 0
        while not done.is_set() or i < 3:
            busy.locate(some_keys(5_000, 50 + seed * 100 + i % 100), create=True)
            pulled = busy.pull(keys, create=False)
            assert np.all(np.abs(pulled[:, 2:]) < 9.0)
            assert np.all(pulled[:, 0] <= 12.0)
            i += 1

    with ThreadPoolExecutor(2) as threads:
        others = [threads.submit(read_others, seed) for seed in range(2)]
        for step in range(1, 13):
            busy.update(rows, some_pushes(keys.size, step), step=step, lr=0.1)
        done.set()
        for other in others:
            other.result()
    for step in range(1, 13):
        alone.push(keys, some_pushes(keys.size, step), step=step, lr=0.1)
    same_bits([busy.pull(keys, create=False)], [alone.pull(keys, create=False)])
    assert busy.stats().embedx_rows == 60_000


def test_a_read_under_way_leaves_out_what_has_grown_since() -> None:
    table, keys = make_table(threshold=0.0), some_keys(20_000)
    rows, out = table.locate(keys, create=True), np.ones((20_000, 3 + DIM), np.float32)
    scratches = table._rows.scratch(), table._embedx.scratch()
    views = table._views(*scratches)
    table.update(rows, some_pushes(20_000), step=1, lr=0.1)
    ctr_kernels.read(keys, rows, out, *views)
    assert np.all(out[:, 0] == 1.0)
    assert not out[:, 3:].any()
    assert table.read(keys, rows)[:, 3:].all()


def test_different_rows_are_updated_and_grow_on_different_threads() -> None:
    halves, alone = make_table(), make_table()
    keys = some_keys(40_000)
    rows = halves.locate(keys, create=True)
    with ThreadPoolExecutor(2) as threads:
        for step in range(1, 9):
            pushes = some_pushes(keys.size, step)
            parts = [
                threads.submit(halves.update, rows[part], pushes[part], step=step, lr=0.1)
                for part in (slice(0, 20_000), slice(20_000, None))
            ]
            for part in parts:
                part.result()
            alone.push(keys, pushes, step=step, lr=0.1)
    same_bits(halves.export(), alone.export())
    assert 0 < halves.stats().embedx_rows < 40_000


@pytest.mark.usefixtures("two_threads")
def test_an_update_that_torchs_threads_share_is_the_same() -> None:
    shared, alone = make_table(), make_table()
    keys = some_keys(30_000)
    for step in range(1, 5):
        pushes = some_pushes(keys.size, step)
        with with_torch_threads():
            rows = shared.locate(keys, create=True)
            shared.update(rows, pushes, step=step, lr=0.1)
            pulled = shared.read(keys, rows)
        alone.push(keys, pushes, step=step, lr=0.1)
        same_bits([pulled], [alone.pull(keys)])
    same_bits(shared.export(), alone.export())


def test_rows_located_a_batch_ahead_on_another_thread_are_the_serial_ones() -> None:
    ahead, serial = make_table(), make_table()
    rng, pool = np.random.default_rng(3), some_keys(50_000)
    batches = [rng.choice(pool, 4_000, replace=False) for _ in range(30)]
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(ahead.locate, batches[0], create=True)
        for step, keys in enumerate(batches, start=1):
            rows = coming.result()
            coming = thread.submit(ahead.locate, batches[step % 30], create=True)
            ahead.update(rows, some_pushes(keys.size, step), step=step, lr=0.1)
    for step, keys in enumerate(batches, start=1):
        serial.push(keys, some_pushes(keys.size, step), step=step, lr=0.1)
    same_bits(ahead.export(), serial.export())
