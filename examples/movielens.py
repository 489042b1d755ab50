"""Will this user like this film? DeepFM on MovieLens-100K, trained on the past, tested on later.

    downpour train examples/movielens.py

85 % of the later ratings are by users that no earlier rating is from. So the model is not told who
the user is, which would teach it nothing about them. It is told what he did before (`taste`,
`rated`); all else it learns from ids, each a row of one table.
"""

import torch
from movielens_data import load, split
from torch.nn.functional import binary_cross_entropy_with_logits

import downpour as dp

FEATURES = ("item", "genres", "year", "age", "gender", "occupation")  # genres: several a film
PAST = ("taste", "rated")
SCHEMA = dp.Schema(features=FEATURES, dense=[dp.Dense("past", PAST)], labels=["liked"])


class DeepFM(torch.nn.Module):
    """Guo et al. 2017: a factorisation machine and a network that share their embeddings."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        # A row is an id's own weight and its factors. There is no vocabulary and no size to give.
        self.embedding = dp.SparseEmbedding(FEATURES, dim=1 + dim, init=dp.Uniform(0.01))
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(len(FEATURES) * dim + len(PAST), 64),
            torch.nn.ReLU(),
            torch.nn.Linear(64, 32),
            torch.nn.ReLU(),
            torch.nn.Linear(32, 1),
        )

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        rows = self.embedding(batch)  # [batch, features, 1 + dim]; a sample's genres are summed
        weight, factors = rows[:, :, 0], rows[:, :, 1:]
        # The sum of <v_i, v_j> over all pairs of features, in time linear in their number.
        pairs = (factors.sum(1).square() - factors.square().sum(1)).sum(1) / 2
        deep = self.mlp(torch.cat([factors.flatten(1), batch.dense["past"]], dim=1)).squeeze(1)
        return weight.sum(1) + pairs + deep  # [batch] logits


def like(model: DeepFM, batch: dp.Batch) -> torch.Tensor:
    return binary_cross_entropy_with_logits(model(batch), batch.label)


def run() -> dp.Run:
    train, test = split(load(), 0.8, 0.2)
    return dp.Run(
        model=DeepFM(),
        losses=[like],
        data=dp.Frame(train, SCHEMA, batch_size=256, shuffle_seed=0),
        eval_data=dp.Frame(test, SCHEMA, batch_size=4096),
        optimizer=dp.DownpourSGD(sparse=dp.Adagrad(lr=0.01), dense=dp.Adam(lr=3e-4)),
        epochs=3,
    )
