"""How long does it take to plan a large model, and is its plan still read at a glance?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

import downpour as dp
from benchmarks.results import Result, spread

if TYPE_CHECKING:
    from collections.abc import Callable

LAYERS, FEATURES, BATCH = 1000, 500, 256  # a layer has two parameters
QUESTION = (
    f"How long does it take to plan a model of {2 * LAYERS:,} dense parameters and {FEATURES} "
    "features, in one table or in one each, and to say its plan in each form?"
)
LIMIT_S = 2.0
MOST_LINES, WIDEST = 40, 120


class Large(torch.nn.Module):
    def __init__(self, num_layers: int, names: list[str], *, tables: bool) -> None:
        super().__init__()
        parts = [[name] for name in names] if tables else [names]
        self.embeddings = torch.nn.ModuleList(dp.SparseEmbedding(part, 8) for part in parts)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(num_layers))

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        rows = [embedding(batch) for embedding in self.embeddings]
        x: torch.Tensor = torch.cat(rows, dim=1).sum(1)
        for layer in self.layers:
            x = x + 0.001 * layer(x)
        return x.sum(1)


def fit(model: Large, batch: dp.Batch) -> torch.Tensor:
    scores: torch.Tensor = model(batch)
    return (scores - batch.label).square().mean()


def run(*, quick: bool = False) -> Result:
    """Time planning and each form of the plan."""
    num_layers, num_features, rounds = (50, 20, 2) if quick else (LAYERS, FEATURES, 9)
    names = [f"feature_{number}" for number in range(num_features)]
    random = np.random.default_rng(0)
    batch = dp.Batch(
        features={name: random.integers(0, 10_000, BATCH) for name in names},
        labels=random.random(BATCH),
    )
    figures: dict[str, object] = {}
    slowest, plan = 0.0, None
    for name, tables in (("one table", False), ("a table a feature", True)):
        model = Large(num_layers, names, tables=tables)

        def make(model: Large = model) -> dp.Plan:
            return dp.DownpourSGD().minimize(fit, model=model, example=batch)

        plan = plan or make()
        seconds = timed(make, rounds)
        slowest = max(slowest, *seconds)
        figures[f"plan, {name}"] = spread(seconds, "s")
    assert plan is not None
    figures["print"] = spread(timed(plan.__str__, rounds), "s")
    figures["to prototxt"] = spread(timed(lambda: str(plan.fleet_desc()), rounds), "s")
    text = str(plan.fleet_desc())
    figures["from prototxt"] = spread(timed(lambda: dp.Plan.from_fleet_desc(text), rounds), "s")
    lines = str(plan).splitlines()
    figures["lines printed"] = len(lines)
    return Result(
        name="planning",
        question=QUESTION,
        command="python -m benchmarks planning",
        figures=figures,
        checks={
            f"every planning took less than {LIMIT_S:g} s": slowest < LIMIT_S,
            f"the print has at most {MOST_LINES} lines of {WIDEST} characters": (
                len(lines) <= MOST_LINES and max(map(len, lines)) <= WIDEST
            ),
        },
    )


def timed(call: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each round, after one that is not counted."""
    call()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds
