"""The other side of the quality questions: the examples' networks trained by plain PyTorch."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.peers import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    from downpour.data import Source
    from downpour.features import Batch

Keys: TypeAlias = npt.NDArray[np.uint64]


def load_example(name: str) -> ModuleType:
    """Import examples/NAME.py; it finds the modules beside it as it does when it is run."""
    folder = str(ROOT / "examples")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


class TorchEmbedding(nn.Module):
    """Stands in for a `SparseEmbedding`: `nn.EmbeddingBag` over keys that are known in advance.

    keys: {feature: its distinct keys, rising}; the rows of `weight` [all keys, dim] are theirs,
    the features one after the other. Modules may share a weight.
    """

    def __init__(self, keys: Mapping[str, Keys], weight: nn.Parameter, pooling: str) -> None:
        super().__init__()
        self.keys = keys
        size, dim = weight.shape
        self.bag = nn.EmbeddingBag(size, dim, mode=pooling, sparse=True, _weight=weight.data)
        self.bag.weight = weight

    def forward(self, batch: Batch) -> Tensor:
        """Pool the rows of each feature: [batch, features, dim]."""
        ids, offsets, num_rows, num_ids = [], [], 0, 0
        for feature, keys in self.keys.items():
            jagged = batch.features[feature]
            ids.append(np.searchsorted(keys, jagged.values) + num_rows)
            offsets.append(jagged.offsets[:-1] + num_ids)
            num_rows, num_ids = num_rows + len(keys), num_ids + len(jagged.values)
        where = (torch.from_numpy(np.concatenate(part)) for part in (ids, offsets))
        pooled: Tensor = self.bag(*where)
        return pooled.view(len(self.keys), batch.size, -1).transpose(0, 1)


def train(
    model: nn.Module,
    loss: Callable[[Any, Batch], Tensor],
    data: Source,
    *,
    epochs: int,
    sparse: torch.optim.Optimizer,
    dense: torch.optim.Optimizer | None = None,
) -> None:
    """Train as every tutorial does."""
    # Said aloud, as torch warns where it is left open.
    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
    optimizers = [sparse] if dense is None else [sparse, dense]
    for epoch in range(epochs):
        for batch in data.batches(epoch):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss(model, batch).backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()
