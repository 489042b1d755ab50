"""What a sparse table costs beside `np.take` of rows of the same width, on one thread.

Every call has keys of its own, so that none finds its rows in the caches because of the one before
it; a training step has the same ones from pull to push, done in both ways: by keys, and by the row
numbers that `locate` gives. A ratio is the median of the rounds' ratios. Seconds are the thread's
own, so that other work on the machine counts less. `main` prints a JSON object.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.results import print_answer, spread
from downpour.accessor import EmbeddingAccessor
from downpour.rules import RowwiseAdagrad
from downpour.tables import SparseTable, dedup, segment_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

DIM, BATCH, LR = 16, 100_000, 0.05
SPREAD = np.uint64(0x9E3779B97F4A7C15)  # odd: a bijection from row numbers to open keys
TARGETS = {"pull": 0.6, "locate + update": 0.4}  # the latter: a push of different keys


class Batch(NamedTuple):
    """Row numbers, their keys and gradients [n, DIM]."""

    ids: np.ndarray
    keys: np.ndarray
    grads: np.ndarray


def make_table() -> SparseTable:
    """An empty table of the reference job's rows."""
    return SparseTable("bench", EmbeddingAccessor(dim=DIM, rule=RowwiseAdagrad(LR)))


def grow(table: SparseTable, num_rows: int) -> None:
    """Make rows until there are `num_rows`."""
    for start in range(len(table), num_rows, BATCH):
        ids = np.arange(start, min(start + BATCH, num_rows), dtype=np.uint64)
        table.locate(ids * SPREAD, create=True)


def uniform_ids(num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Different row numbers in random order."""
    batch = min(BATCH, num_rows // 2)
    return rng.permutation(np.unique(rng.integers(0, num_rows, 2 * batch)))[:batch]


def zipf_ids(num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Row numbers by Zipf's law with exponent 1.05, many repeated, the same ones in every batch."""
    ids = rng.zipf(1.05, 4 * BATCH)
    spread = ids[ids <= num_rows][:BATCH].astype(np.uint64) * SPREAD
    return (spread % np.uint64(num_rows)).astype(np.int64)


def thread_seconds(call: Callable[[], object]) -> float:
    """Seconds of this thread's processor time that a call takes."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def time_calls(
    table: SparseTable, draw: Callable[..., np.ndarray], rounds: int
) -> dict[str, list[float]]:
    """Nanoseconds a key of each call, a list over rounds."""
    rng = np.random.default_rng(0)
    taken = np.ones((len(table), table.stats().row_bytes // 4), np.float32)
    nanoseconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for time_one in (time_take, time_pull, time_push, time_unique, time_keys, time_rows):
            ids = draw(len(table), rng)
            keys = ids.astype(np.uint64) * SPREAD
            batch = Batch(ids, keys, rng.standard_normal((ids.size, DIM), np.float32))
            for name, seconds in time_one(table, taken, batch).items():
                nanoseconds.setdefault(name, []).append(1e9 * seconds / ids.size)
    return nanoseconds


def time_take(table: SparseTable, taken: np.ndarray, batch: Batch) -> dict[str, float]:
    """The yardstick: rows of the same width by their number."""
    out = np.ones((batch.ids.size, taken.shape[1]), np.float32)  # or page faults would be timed
    take = partial(np.take, taken, batch.ids, axis=0, out=out, mode="clip")
    return {"np.take": thread_seconds(take)}


def time_pull(table: SparseTable, taken: np.ndarray, batch: Batch) -> dict[str, float]:
    """The weights of all keys, repeated ones too."""
    out = np.ones_like(batch.grads)
    return {"pull": thread_seconds(lambda: table.pull(batch.keys, out=out))}


def time_push(table: SparseTable, taken: np.ndarray, batch: Batch) -> dict[str, float]:
    """The whole push: checks, different keys, sums, and the rule on each."""
    push = partial(table.push, batch.keys, batch.grads, step=table.step + 1, lr=LR)
    return {"push": thread_seconds(push)}


def time_unique(table: SparseTable, taken: np.ndarray, batch: Batch) -> dict[str, float]:
    """A push of keys that are known to be different; not measured where they are not."""
    if np.unique(batch.keys).size < batch.keys.size:
        return {}
    step = table.step + 1

    def update() -> None:
        table.update(table.locate(batch.keys, create=False), batch.grads, step=step, lr=LR)

    return {"locate + update": thread_seconds(update)}


def time_keys(table: SparseTable, taken: np.ndarray, batch: Batch) -> dict[str, float]:
    """The table's part of a training step, each call by keys."""
    step = table.step + 1
    pull = thread_seconds(lambda: table.pull(batch.keys))
    push = thread_seconds(lambda: table.push(batch.keys, batch.grads, step=step, lr=LR))
    return {"step by keys": pull + push}


def time_rows(table: SparseTable, taken: np.ndarray, batch: Batch) -> dict[str, float]:
    """The same by row numbers, as training does it: the first two can be done a batch ahead."""
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        start = time.thread_time()
        result = call()
        seconds[name] = time.thread_time() - start
        return result

    step = table.step + 1
    unique, inverse = timed("dedup", lambda: dedup(batch.keys))
    rows = timed("locate", lambda: table.locate(unique, create=True))
    timed("read", lambda: table.read(unique, rows))
    sums = timed("segment sum", lambda: segment_sum(batch.grads, inverse, unique.size))
    timed("update", lambda: table.update(rows, sums, step=step, lr=LR))
    return {"step by rows": sum(seconds.values()), **seconds}


def compare_to_take(
    table: SparseTable, draw: Callable[..., np.ndarray], rounds: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures in million keys a second, and ratios to `np.take` (1: as fast, 0.5: half)."""
    nanoseconds = time_calls(table, draw, rounds)
    figures = {
        name: spread([1e3 / ns for ns in values], "M keys/s")
        for name, values in nanoseconds.items()
    }
    take = np.array(nanoseconds.pop("np.take"))
    ratios = {
        name: spread(list(take / np.array(values)), "of np.take")
        for name, values in nanoseconds.items()
    }
    return figures, ratios


def compare_steps(tables: Sequence[SparseTable], rounds: int) -> np.ndarray:
    """Nanoseconds a key to pull a batch of uniform keys and push its gradients, [round, table]."""
    rng = np.random.default_rng(1)
    costs = np.empty((rounds, len(tables)))
    for i in range(rounds):
        for j, table in enumerate(tables):
            ids = uniform_ids(len(table), rng)
            grads = rng.standard_normal((ids.size, DIM), np.float32)
            batch = Batch(ids, ids.astype(np.uint64) * SPREAD, grads)
            costs[i, j] = 1e9 * time_keys(table, ids, batch)["step by keys"] / ids.size
    return costs


def run(*, quick: bool = False) -> Mapping[str, object]:
    """Measure a table that grows, and beside it one that stays small."""
    few, some, many = (100_000, 400_000, 1_000_000) if quick else (10**6, 10**7, 5 * 10**7)
    rounds = 3 if quick else 25
    small, table = make_table(), make_table()
    grow(small, few)
    grow(table, some)
    compare_to_take(small, zipf_ids, 1)  # compiles
    uniform, uniform_ratios = compare_to_take(table, uniform_ids, rounds)
    zipf, zipf_ratios = compare_to_take(table, zipf_ids, rounds)
    at_some = np.median(compare_steps([table], rounds), axis=0)
    grow(table, many)
    at_many = compare_steps([small, table], rounds)
    costs = dict(zip((few, many, some), [*np.median(at_many, axis=0), *at_some], strict=True))
    growth: dict[str, Any] = spread(list(at_many[:, 1] / at_many[:, 0]), "")
    growth |= {"aim": 2, "met": growth["value"] <= 2}
    reached = {}
    for name, target in TARGETS.items():
        ratio = uniform_ratios[name]
        ratio |= {"aim": target, "met": ratio["value"] >= target}
        reached[f"{name} at least {target} of np.take"] = ratio["met"]
    reached["a step costs at most 2x at 50 M rows"] = growth["met"]
    return {
        "figures": {
            "uniform keys": uniform,
            "Zipf 1.05 keys": zipf,
            "pull and push, ns a key": {f"{n:,} rows": round(costs[n], 1) for n in sorted(costs)},
        },
        "ratios": {
            "uniform keys": uniform_ratios,
            "Zipf 1.05 keys": zipf_ratios,
            f"cost of a step, {many:,} rows to {few:,}": growth,
        },
        "checks": {} if quick else reached,
        "settings": {"dim": DIM, "batch": BATCH, "rows": some, "rule": "RowwiseAdagrad"},
    }


if __name__ == "__main__":
    print_answer(run, __doc__)
