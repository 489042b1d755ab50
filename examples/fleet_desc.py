"""A description file of Paddle's parameter server, taken as it is, on MovieLens-100K.

    downpour train examples/fleet_desc.py

`fleet_desc.prototxt` says the tables and what a trainer skips; what it leaves out is planned. The
model is that of examples/fleet_strategy.py without what rows count: `use_cvm` is off, so the model
sees w and embedx alone.
"""

from pathlib import Path

import torch
from movielens_data import load, split
from torch.nn.functional import binary_cross_entropy_with_logits

import downpour as dp

FEATURES = ("item", "genres", "year", "age", "gender", "occupation")
SCHEMA = dp.Schema(
    features=FEATURES, dense=[dp.Dense("past", ("taste", "rated"))], labels=["liked"]
)
FILE = Path(__file__).with_suffix(".prototxt")


class Clicks(torch.nn.Module):
    def __init__(self, embedx_dim: int = 8) -> None:
        super().__init__()
        dim = embedx_dim + 1  # w, embedx
        self.embedding = dp.SparseEmbedding(FEATURES, dim=dim)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(len(FEATURES) * dim + 2, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)
        )

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        rows = self.embedding(batch).flatten(1)
        return self.mlp(torch.cat([rows, batch.dense["past"]], dim=1)).squeeze(1)


def like(model: Clicks, batch: dp.Batch) -> torch.Tensor:
    return binary_cross_entropy_with_logits(model(batch), batch.label)


def run() -> dp.Run:
    train, test = split(load(), 0.8, 0.2)
    return dp.Run(
        model=Clicks(),
        losses=[like],
        data=dp.Frame(train, SCHEMA, batch_size=256, shuffle_seed=0),
        eval_data=dp.Frame(test, SCHEMA, batch_size=4096),
        optimizer=dp.DownpourSGD(),
        strategy={"fleet_desc_file": FILE},
        epochs=3,
    )
