"""What a table of CTR rows costs beside a plain one that trains as many weights by the same rule.

Of one CTR table all rows have their embedx, so that each is in two places; of another none has.
The tables take turns on keys of their own; rows to update are located before the pulls, which push
them out of the caches as the rest of a training step would. A ratio is the median of the rounds'
ratios of two times. Seconds are the thread's own. `main` prints a JSON object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.results import print_answer, spread
from benchmarks.tables import SPREAD, thread_seconds, uniform_ids
from downpour.accessor import CtrAccessor, EmbeddingAccessor
from downpour.rules import G2SumAdagrad
from downpour.tables import sparse_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from downpour.accessor import Accessor
    from downpour.tables import CtrTable, SparseTable

EMBEDX_DIM, BATCH, LR, BOUNDS = 16, 100_000, 0.05, (-10.0, 10.0)
RULE = G2SumAdagrad(LR)
CTR = CtrAccessor(embedx_dim=EMBEDX_DIM, rule=RULE, bounds=BOUNDS, embedx_threshold=0.0)
COLD = CtrAccessor(embedx_dim=EMBEDX_DIM, rule=RULE, bounds=BOUNDS, embedx_threshold=1e30)
PLAIN = EmbeddingAccessor(dim=1 + EMBEDX_DIM, rule=RULE, bounds=BOUNDS)
AIM = 2.0


def make_pushes(accessor: Accessor, num_keys: int, rng: np.random.Generator) -> np.ndarray:
    """Gradients; of CTR rows a slot, one to three shows, at most a click, and places before."""
    pushes = rng.standard_normal((num_keys, accessor.push_dim), np.float32)
    if isinstance(accessor, CtrAccessor):
        pushes[:, 0] = 3
        pushes[:, 1] = rng.integers(1, 4, num_keys)
        pushes[:, 2] = rng.integers(0, 2, num_keys)
        pushes[:, 3] = pushes[:, 1]
    return pushes


def make_table(accessor: Accessor, num_rows: int) -> SparseTable | CtrTable:
    """A table of `num_rows` that have been pushed once."""
    table, rng = sparse_table("bench", accessor), np.random.default_rng(0)
    for start in range(0, num_rows, BATCH):
        ids = np.arange(start, min(start + BATCH, num_rows), dtype=np.uint64)
        table.push(ids * SPREAD, make_pushes(accessor, ids.size, rng), step=1, lr=LR)
    return table


def draw_keys(table: SparseTable | CtrTable, rng: np.random.Generator) -> np.ndarray:
    """Different keys in random order."""
    return uniform_ids(len(table), rng).astype(np.uint64) * SPREAD


def time_calls(table: SparseTable | CtrTable, rng: np.random.Generator) -> dict[str, float]:
    """Nanoseconds a key of each call."""
    located, pulled, pushed = (draw_keys(table, rng) for _ in range(3))
    rows = table.locate(located, create=False)
    pushes = make_pushes(table.accessor, max(rows.size, pushed.size), rng)
    out = np.ones((pulled.size, table.accessor.pull_dim), np.float32)  # no page faults in the time
    step = table.step + 1
    calls = {
        "pull": (pulled.size, lambda: table.pull(pulled, out=out)),
        "update": (rows.size, lambda: table.update(rows, pushes[: rows.size], step=step, lr=LR)),
        "push": (
            pushed.size,
            lambda: table.push(pushed, pushes[: pushed.size], step=step + 1, lr=LR),
        ),
    }
    return {name: 1e9 * thread_seconds(call) / size for name, (size, call) in calls.items()}


def compare(tables: Mapping[str, SparseTable | CtrTable], rounds: int) -> dict[str, Any]:
    """Costs of each call in every round, by table: they take turns."""
    rng = np.random.default_rng(1)
    costs: dict[str, Any] = {name: {} for name in tables}
    for table in tables.values():
        time_calls(table, rng)  # compiles
    for _ in range(rounds):
        for name, table in tables.items():
            for call, cost in time_calls(table, rng).items():
                costs[name].setdefault(call, []).append(cost)
    return costs


def figures_of(table: SparseTable | CtrTable, costs: Mapping[str, list[float]]) -> dict[str, Any]:
    """Costs with their spread, and the memory of a row without the index."""
    num_bytes = {"value": round(table.stats().arena_bytes / len(table), 1), "unit": "bytes"}
    return {**{call: spread(values, "ns") for call, values in costs.items()}, "row": num_bytes}


def run(*, quick: bool = False) -> Mapping[str, object]:
    """Measure the three tables."""
    num_rows, rounds = (100_000, 3) if quick else (1_000_000, 25)
    tables = {
        "plain rows": make_table(PLAIN, num_rows),
        "CTR rows": make_table(CTR, num_rows),
        "CTR rows without embedx": make_table(COLD, num_rows),
    }
    costs = compare(tables, rounds)
    ratios: dict[str, Any] = {}
    for call, plain in costs["plain rows"].items():
        ratio = np.array(costs["CTR rows"][call]) / np.array(plain)
        ratios[f"{call} of CTR rows / of plain rows"] = spread(list(ratio), "")
    aimed = {call: ratios[f"{call} of CTR rows / of plain rows"] for call in ("pull", "update")}
    for ratio in aimed.values():
        ratio |= {"aim": AIM, "met": ratio["value"] <= AIM}
    checks = {f"{call} takes at most {AIM:g}x": ratio["met"] for call, ratio in aimed.items()}
    return {
        "figures": {name: figures_of(table, costs[name]) for name, table in tables.items()},
        "ratios": ratios,
        "checks": {} if quick else checks,
        "settings": {
            "embedx_dim": EMBEDX_DIM,
            "batch": BATCH,
            "rows": num_rows,
            "rule": repr(RULE),
        },
    }


if __name__ == "__main__":
    print_answer(run, __doc__)
