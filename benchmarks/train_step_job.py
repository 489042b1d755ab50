"""The reference job of `train_step`: what every engine trains, on which batches.

An engine's process needs numpy and torch for it and nothing else, so that it also runs in
TorchRec's own environment.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pathlib import Path

HIDDEN = (256, 128)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Sizes, seeds and learning rates; the same for every engine."""

    batch_size: int = 4096
    num_features: int = 26
    num_dense: int = 13
    num_ids: int = 10_000_000
    exponent: float = 1.05
    dim: int = 16
    num_batches: int = 128
    seed: int = 0
    embedding_lr: float = 0.05
    dense_lr: float = 1e-3
    eps: float = 1e-10
    init_bound: float = 0.01
    threads: int = 2

    def save(self, folder: Path) -> None:
        (folder / "job.json").write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(folder: Path) -> Job:
        return Job(**json.loads((folder / "job.json").read_text()))


class Batches(NamedTuple):
    """Every batch of the job, stacked."""

    ids: npt.NDArray[np.int64]  # [num_batches, batch_size, num_features], in [0, num_ids)
    dense: npt.NDArray[np.float32]  # [num_batches, batch_size, num_dense]
    labels: npt.NDArray[np.float32]  # [num_batches, batch_size], 0 or 1


def make_batches(job: Job) -> Batches:
    """Draw ids by Zipf's law and labels from a hidden linear model of ids and dense columns.

    Popularity and id are unrelated (a permutation), as they are for hashed ids.
    """
    rng = np.random.default_rng(job.seed)
    shape = (job.num_batches, job.batch_size)
    mass = np.cumsum(np.arange(1, job.num_ids + 1, dtype=np.float64) ** -job.exponent)
    drawn = rng.random(shape[0] * shape[1] * job.num_features) * mass[-1]
    ranks = np.searchsorted(mass, drawn)
    ids = rng.permutation(job.num_ids)[ranks].reshape(*shape, job.num_features)
    dense = rng.standard_normal((*shape, job.num_dense), dtype=np.float32)
    effect = rng.standard_normal(1 << 16, dtype=np.float32)  # of an id, by its low bits
    logits = 0.35 * effect[ids & 0xFFFF].sum(axis=2)
    logits += dense @ (0.3 * rng.standard_normal(job.num_dense, dtype=np.float32))
    labels = rng.random(shape) < 1.0 / (1.0 + np.exp(1.0 - logits))
    return Batches(ids, dense, labels.astype(np.float32))


def save_batches(batches: Batches, folder: Path) -> None:
    for name, column in batches._asdict().items():
        np.save(folder / f"{name}.npy", column)


def load_batches(folder: Path) -> Batches:
    """Map the saved batches; the processes share the pages."""
    return Batches(*(np.load(folder / f"{name}.npy", mmap_mode="c") for name in Batches._fields))


def make_mlp(job: Job) -> nn.Sequential:
    """The dense network 429-256-128-1, with the same initial weights in every engine."""
    torch.manual_seed(job.seed)
    width = job.num_features * job.dim + job.num_dense
    layers: list[nn.Module] = []
    for hidden in HIDDEN:
        layers += [nn.Linear(width, hidden), nn.ReLU()]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, 1))


def score(mlp: nn.Module, rows: Tensor, dense: Tensor) -> Tensor:
    """Logits [batch] of pooled rows [batch, features * dim] and dense columns."""
    logits: Tensor = mlp(torch.cat([rows, dense], dim=1)).squeeze(1)
    return logits
