"""Sparse tables on several threads: what is made beside what is read and updated."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from downpour import rules
from downpour.accessor import EmbeddingAccessor
from downpour.init import Normal
from downpour.tables import SparseTable, arena

DIM = 4
RULES = {
    "sgd decay": rules.SGD(0.1, weight_decay=0.1),
    "row-wise": rules.RowwiseAdagrad(0.1),
    "adam": rules.Adam(0.01, weight_decay=0.1),
}


def make_table(rule: Any) -> SparseTable:
    return SparseTable("table", EmbeddingAccessor(dim=DIM, rule=rule, init=Normal(0.1)), seed=1)


def some_keys(num_keys: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, num_keys, dtype=np.uint64)


def some_grads(num_keys: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_keys, DIM)).astype(np.float32)


def same_bits(first: Any, second: Any) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


def test_rows_are_made_on_one_thread_while_another_updates() -> None:
    table, alone = make_table(RULES["row-wise"]), make_table(RULES["row-wise"])
    keys, grads = some_keys(20_000), some_grads(20_000)
    rows = table.locate(keys, create=True)
    maker = threading.Thread(
        target=lambda: [table.locate(some_keys(30_000, 100 + i), create=True) for i in range(30)]
    )
    maker.start()
    step = 0
    while maker.is_alive() or step < 5:
        step += 1
        halves = [
            threading.Thread(
                target=table.update,
                args=(rows[half], grads[half]),
                kwargs={"step": step, "lr": 0.1},
            )
            for half in (slice(0, 10_000), slice(10_000, None))
        ]
        for thread in halves:
            thread.start()
        for thread in halves:
            thread.join()
    maker.join()
    for i in range(1, step + 1):
        alone.push(keys, grads, step=i, lr=0.1)
    same_bits([table.pull(keys, create=False)], [alone.pull(keys, create=False)])
    assert len(table) == 20_000 + 30 * 30_000


def hot_batches(num_steps: int) -> list[np.ndarray]:
    """Different keys a step, half of them seen before: the table grows all the way."""
    rng = np.random.default_rng(3)
    new = some_keys(num_steps * 4000).reshape(num_steps, 4000)
    return [
        np.unique(np.concatenate([new[i], rng.choice(new[: i + 1].ravel(), 4000)]))
        for i in range(num_steps)
    ]


def move(table: SparseTable, keys: np.ndarray, rows: np.ndarray, step: int) -> None:
    """A step whose gradient depends on what was read."""
    grads = np.cos(table.read(keys, rows) * np.float32(step))
    table.update(rows, grads, step=step, lr=0.1)


@pytest.mark.parametrize("name", ["sgd decay", "row-wise", "adam"])
def test_rows_located_a_batch_ahead_on_another_thread_are_the_serial_ones(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arena, "_chunk_shift", lambda row_bytes: 10)  # hundreds of chunks
    ahead, serial = (make_table(RULES[name]) for _ in range(2))
    batches = hot_batches(60)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(ahead.locate, batches[0], create=True)
        for step, keys in enumerate(batches, start=1):
            rows = coming.result()
            following = batches[step] if step < len(batches) else keys
            coming = thread.submit(ahead.locate, following, create=True)
            move(ahead, keys, rows, step)
    for step, keys in enumerate(batches, start=1):
        move(serial, keys, serial.locate(keys, create=True), step)
    assert serial.stats().growths > 5
    assert len(ahead._rows._arena._chunks) == 240_000 // 1024 + 1
    same_bits(ahead.export(), serial.export())


def test_many_threads_pull_and_locate_while_one_trains() -> None:
    busy, alone = make_table(RULES["adam"]), make_table(RULES["adam"])
    keys, grads = some_keys(5_000), some_grads(5_000)
    rows = busy.locate(keys, create=True)

    def read_others(seed: int) -> None:
        for i in range(8):
            busy.locate(some_keys(20_000, 50 + seed * 8 + i), create=True)
            unknown = busy.pull(some_keys(20_000, 1000 + seed), create=False)
            assert np.all(np.isfinite(unknown))

    with ThreadPoolExecutor(4) as threads:
        others = [threads.submit(read_others, seed) for seed in range(3)]
        for step in range(1, 60):
            busy.update(rows, grads, step=step, lr=0.01)
        for other in others:
            other.result()
    for step in range(1, 60):
        alone.push(keys, grads, step=step, lr=0.01)
    same_bits([busy.pull(keys, create=False)], [alone.pull(keys, create=False)])
    assert len(busy) == 5_000 + 24 * 20_000
