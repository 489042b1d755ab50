"""Runs that train in a moment, for the tests of what trains, keeps and uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import downpour as dp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

FEATURES = ("user", "item")
SCHEMA = dp.Schema(features=FEATURES, labels=["click"])


def columns(rows: int, seed: int = 0) -> dict[str, Any]:
    """A log whose items of even id are clicked more."""
    random = np.random.default_rng(seed)
    item = random.integers(0, 30, rows)
    click = (random.random(rows) < np.where(item % 2 == 0, 0.8, 0.2)).astype(np.int64)
    return {"user": random.integers(0, 20, rows), "item": item, "click": click}


def frame(rows: int = 256, seed: int = 0, batch_size: int = 32) -> dp.Frame:
    return dp.Frame(columns(rows, seed), SCHEMA, batch_size=batch_size, shuffle_seed=0)


def batches(num: int, size: int = 8, seed: int = 0) -> list[dp.Batch]:
    return list(frame(num * size, seed, size).batches())


@dataclass
class Stream:
    """Batches whose number is not told; after them an error, if there is one."""

    given: Sequence[dp.Batch]
    error: Exception | None = None

    def batches(self, epoch: int = 0) -> Iterator[dp.Batch]:
        yield from self.given
        if self.error is not None:
            raise self.error

    def num_batches(self) -> int | None:
        return None


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = dp.SparseEmbedding(FEATURES, dim=4)
        self.top = torch.nn.Linear(8, 1)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        logits: torch.Tensor = self.top(self.embedding(batch).flatten(1)).squeeze(1)
        return logits


def click(model: torch.nn.Module, batch: dp.Batch) -> torch.Tensor:
    return binary_cross_entropy_with_logits(model(batch), batch.label)


def small_run(make: Callable[[], torch.nn.Module] = Net, **settings: Any) -> dp.Run:
    """A run of the model that `make` gives, or with other settings; the same one each time."""
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "model": make(),
        "losses": click,
        "data": frame(),
        "optimizer": dp.DownpourSGD(sparse=dp.Adagrad(0.1), dense=dp.Adam(0.01)),
    }
    return dp.Run(**defaults | settings)
