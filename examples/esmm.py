"""Several losses: will he like the film, and will he give it all five stars? On MovieLens-100K.

    downpour train examples/esmm.py

Whoever gives five stars likes the film, so the second chance is the first times that of five stars
among likes (ESMM, Ma et al. 2018). Each loss is a program with a dense table of its own; the rows
and the first tower are trained by both.
"""

import torch
from movielens_data import load, split
from torch.nn.functional import binary_cross_entropy

import downpour as dp

FEATURES = ("item", "genres", "year", "age", "gender", "occupation")
SCHEMA = dp.Schema(
    features=FEATURES,
    dense=[dp.Dense("past", ("taste", "rated"))],
    labels=["liked", dp.Label("five", column="stars", at_least=5)],
)


def tower(inputs: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Linear(inputs, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1), torch.nn.Sigmoid()
    )


class ESMM(torch.nn.Module):
    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.embedding = dp.SparseEmbedding(FEATURES, dim=dim, init=dp.Uniform(0.05))
        inputs = len(FEATURES) * dim + 2
        self.liked, self.five = tower(inputs), tower(inputs)

    def forward(self, batch: dp.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.embedding(batch).flatten(1)
        inputs = torch.cat([rows, batch.dense["past"]], dim=1)
        like = self.liked(inputs).squeeze(1)  # [batch] chance that he likes it
        return like, like * self.five(inputs).squeeze(1)


def liked(model: ESMM, batch: dp.Batch) -> torch.Tensor:
    return binary_cross_entropy(model(batch)[0], batch.labels["liked"])


def five(model: ESMM, batch: dp.Batch) -> torch.Tensor:
    return binary_cross_entropy(model(batch)[1], batch.labels["five"])


def chance(model: ESMM, batch: dp.Batch) -> torch.Tensor:
    return model(batch)[0]


def run() -> dp.Run:
    train, test = split(load(), 0.8, 0.2)
    return dp.Run(
        model=ESMM(),
        losses=[liked, five],
        data=dp.Frame(train, SCHEMA, batch_size=256, shuffle_seed=0),
        eval_data=dp.Frame(test, SCHEMA, batch_size=4096),
        predict=chance,
        label="liked",
        optimizer=dp.DownpourSGD(sparse=dp.Adagrad(lr=0.01), dense=dp.Adam(lr=3e-4)),
        epochs=3,
    )
