"""Plain PyTorch in `train_step`, and the network with an embedding that costs nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.train_step_job import Batches, Job, make_mlp, score


class DenseSide:
    """What the engines in plain PyTorch share: the MLP, its Adam and the tensors of a batch."""

    def __init__(self, job: Job, batches: Batches) -> None:
        self.mlp = make_mlp(job)
        self.adam = torch.optim.Adam(self.mlp.parameters(), lr=job.dense_lr)
        self.dense = torch.from_numpy(batches.dense)
        self.labels = torch.from_numpy(batches.labels)

    def loss(self, rows: Tensor, index: int) -> Tensor:
        logits = score(self.mlp, rows, self.dense[index])
        return binary_cross_entropy_with_logits(logits, self.labels[index])


class FreeEmbedding(DenseSide):
    """Rows that are there already and whose gradient goes nowhere: the floor under every engine."""

    def __init__(self, job: Job, batches: Batches) -> None:
        super().__init__(job, batches)
        width = job.num_features * job.dim
        self.rows = torch.empty(job.batch_size, width).uniform_(-job.init_bound, job.init_bound)

    def step(self, index: int) -> float:
        self.adam.zero_grad()
        loss = self.loss(self.rows.detach().requires_grad_(), index)
        loss.backward()  # type: ignore[no-untyped-call]
        self.adam.step()
        return loss.item()

    def facts(self) -> dict[str, object]:
        return {}


class TorchAdagrad(DenseSide):
    """`nn.EmbeddingBag(sparse=True)` with `torch.optim.Adagrad`."""

    def __init__(self, job: Job, batches: Batches) -> None:
        super().__init__(job, batches)
        self.job = job
        self.table = nn.EmbeddingBag(job.num_ids, job.dim, mode="sum", sparse=True)
        nn.init.uniform_(self.table.weight, -job.init_bound, job.init_bound)
        self.adagrad = torch.optim.Adagrad(
            self.table.parameters(), lr=job.embedding_lr, eps=job.eps
        )
        self.bags = torch.from_numpy(batches.ids).view(job.num_batches, -1)
        self.offsets = torch.arange(self.bags.shape[1])

    def step(self, index: int) -> float:
        self.adam.zero_grad()
        self.adagrad.zero_grad()
        rows = self.table(self.bags[index], self.offsets)  # [batch_size * num_features, dim]
        loss = self.loss(rows.view(self.job.batch_size, -1), index)
        loss.backward()  # type: ignore[no-untyped-call]
        self.adam.step()
        self.adagrad.step()
        return loss.item()

    def facts(self) -> dict[str, object]:
        state = self.adagrad.state[self.table.weight]["sum"]
        return {"table_bytes": self.table.weight.nbytes + state.nbytes}
