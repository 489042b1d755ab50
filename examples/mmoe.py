"""Several losses with data-norm and click statistics in the rows: MMoE on MovieLens-100K.

    downpour train examples/mmoe.py

Two questions, liked and five stars, share experts and weigh them by gates of their own (Ma et al.
2018). Each loss has its own program and dense table. The numbers about the user are normalised by
statistics that a data-norm table keeps. An id's row counts how often it was shown and liked; the
model sees both as logarithms (`use_cvm`), and the row gets its vector once it was seen enough.
"""

import torch
from movielens_data import load, split
from torch.nn.functional import binary_cross_entropy_with_logits

import downpour as dp

FEATURES = ("item", "genres", "year", "age", "gender", "occupation")
NUMBERS = ("likes", "dislikes", "taste", "rated")
SCHEMA = dp.Schema(
    features=FEATURES,
    dense=[dp.Dense("numbers", NUMBERS)],
    labels=["liked", dp.Label("five", column="stars", at_least=5)],
)
TASKS = ("liked", "five")


class MMoE(torch.nn.Module):
    def __init__(self, embedx_dim: int = 8, experts: int = 3, width: int = 32) -> None:
        super().__init__()
        dim = 3 + embedx_dim  # log show, log click rate, w, embedx
        self.embedding = dp.SparseEmbedding(FEATURES, dim=dim, use_cvm=True)
        self.norm = dp.DataNorm(len(NUMBERS))
        inputs = len(FEATURES) * dim + len(NUMBERS)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(inputs, width) for _ in range(experts))
        self.gates = torch.nn.ModuleDict({task: torch.nn.Linear(inputs, experts) for task in TASKS})
        self.heads = torch.nn.ModuleDict({task: torch.nn.Linear(width, 1) for task in TASKS})

    def forward(self, batch: dp.Batch, task: str) -> torch.Tensor:
        rows = self.embedding(batch).flatten(1)
        inputs = torch.cat([rows, self.norm(batch.dense["numbers"])], dim=1)
        opinions = torch.stack([expert(inputs).relu() for expert in self.experts], dim=1)
        weights = self.gates[task](inputs).softmax(1)  # [batch, experts]
        mixed = (weights.unsqueeze(2) * opinions).sum(1)
        return self.heads[task](mixed).squeeze(1)  # [batch] logits


def liked(model: MMoE, batch: dp.Batch) -> torch.Tensor:
    return binary_cross_entropy_with_logits(model(batch, "liked"), batch.labels["liked"])


def five(model: MMoE, batch: dp.Batch) -> torch.Tensor:
    return binary_cross_entropy_with_logits(model(batch, "five"), batch.labels["five"])


def chance(model: MMoE, batch: dp.Batch) -> torch.Tensor:
    return torch.sigmoid(model(batch, "liked"))


def run() -> dp.Run:
    train, test = split(load(), 0.8, 0.2)
    return dp.Run(
        model=MMoE(),
        losses=[liked, five],
        data=dp.Frame(train, SCHEMA, batch_size=256, shuffle_seed=0),
        eval_data=dp.Frame(test, SCHEMA, batch_size=4096),
        predict=chance,
        label="liked",
        optimizer=dp.DownpourSGD(
            sparse=dp.CtrAccessor(
                rule=dp.G2SumAdagrad(0.05),
                embedx_init=dp.Uniform(0.01),
                embedx_threshold=5.0,
                click="liked",
            ),
            dense=dp.Adam(lr=1e-3),
            data_norm=dp.Summary(decay=0.9999),
            scale_sparse_gradient_with_batch_size=True,  # rows take the mean over their shows
        ),
        epochs=3,
    )
