"""Downpour embedded in `train_step`: open 64-bit ids, tables inside the process.

The ids of the job are spread over all 64 bits first, so that nothing here can profit from ids
that start at 0 and end at a known number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import downpour as dp
from benchmarks.train_step_job import Batches, Job, make_mlp, score
from downpour.tables import TableStats

if TYPE_CHECKING:
    from collections.abc import Sequence

TABLE = "embedding"


class Network(nn.Module):
    """The reference network over Downpour's table; all features share one id space."""

    def __init__(self, job: Job, features: Sequence[str]) -> None:
        super().__init__()
        self.embedding = dp.SparseEmbedding(
            features=tuple(features),
            dim=job.dim,
            table=TABLE,
            spaces=None,
            init=dp.Uniform(job.init_bound),
        )
        self.mlp = make_mlp(job)

    def forward(self, batch: dp.Batch) -> Tensor:
        rows: Tensor = self.embedding(batch)  # [batch, features, dim]
        return score(self.mlp, rows.flatten(1), batch.dense["dense"])


def click(model: Network, batch: dp.Batch) -> Tensor:
    return binary_cross_entropy_with_logits(model(batch), batch.label)


def open_keys(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Map ids to 64-bit keys one to one (the finaliser of splitmix64)."""
    keys = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = keys ^ (keys >> np.uint64(31))
    return mixed


class Downpour:
    """A worker on embedded tables; warm ones hold every id of the job before the first step."""

    rule: type[dp.Adagrad] | type[dp.RowwiseAdagrad]
    warm: bool

    def __init__(self, job: Job, batches: Batches) -> None:
        self.batches = [make_batch(*columns) for columns in zip(*batches, strict=True)]
        features = list(self.batches[0].features)
        self.model = Network(job, features)
        optimizer = dp.DownpourSGD(
            sparse=self.rule(lr=job.embedding_lr, eps=job.eps), dense=dp.Adam(lr=job.dense_lr)
        )
        plan = optimizer.minimize([click], model=self.model, example=self.batches[0])
        self.ps = dp.embedded(plan)
        if self.warm:
            for ids in np.array_split(np.arange(job.num_ids), max(1, job.num_ids // 100_000)):
                self.ps.pull(TABLE, open_keys(ids), create=True)
        self.worker = dp.Worker(plan, self.model, self.ps)

    def step(self, index: int) -> float:
        """Train on a batch; the keys of the next are found meanwhile, as the trainer does it."""
        following = self.batches[(index + 1) % len(self.batches)]
        self.worker.prefetch("click", following)
        return float(self.worker.step("click", self.batches[index]).loss)

    def facts(self) -> dict[str, object]:
        stats = self.ps.stats()[TABLE]
        assert isinstance(stats, TableStats)
        return {
            "table_rows": stats.rows,
            "table_bytes": stats.bytes,
            "phases": {name: round(s, 3) for name, s in self.worker.phases_s.items()},
        }


class WarmAdagrad(Downpour):
    rule, warm = dp.Adagrad, True


class EmptyAdagrad(Downpour):
    rule, warm = dp.Adagrad, False


class WarmRowwise(Downpour):
    rule, warm = dp.RowwiseAdagrad, True


class EmptyRowwise(Downpour):
    rule, warm = dp.RowwiseAdagrad, False


def make_batch(
    ids: npt.NDArray[np.int64], dense: npt.NDArray[np.float32], labels: npt.NDArray[np.float32]
) -> dp.Batch:
    columns = np.ascontiguousarray(open_keys(ids).T)  # [features, batch]
    return dp.Batch(
        features={f"c{number}": column for number, column in enumerate(columns)},
        dense={"dense": torch.from_numpy(np.array(dense))},
        labels={"click": torch.from_numpy(np.array(labels))},
    )
