"""Our side of the quality questions: the examples' networks trained on embedded tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import downpour as dp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from benchmarks.quality_torch import Keys
    from downpour.data import Source


class Trainee:
    """A model, its tables and its worker, before and after training."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, dp.Batch], Tensor],
        data: Source,
        optimizer: dp.DownpourSGD,
    ) -> None:
        self.data, self.name = data, loss.__name__
        plan = optimizer.minimize([loss], model=model, example=next(iter(data.batches())))
        self.ps = dp.embedded(plan)
        self.worker = dp.Worker(plan, model, self.ps)

    def initial_rows(self, table: str, keys: Mapping[str, Keys]) -> Tensor:
        """Return the rows [all keys, dim] that the keys of each feature start from."""
        rows = [self.ps.pull(table, its, feature=name) for name, its in keys.items()]
        return torch.from_numpy(np.concatenate(rows))

    def train(self, epochs: int) -> None:
        """Train, one step a batch; then the model has its last dense weights, too."""
        for epoch in range(epochs):
            for batch in self.data.batches(epoch):
                self.worker.step(self.name, batch)
        self.worker.pull_dense()  # a step pulls before it pushes
