"""A fleet strategy, as jobs for Paddle's parameter server have it, on MovieLens-100K.

    downpour train examples/fleet_strategy.py

The strategy is the dict that the third `minimize` of the Downpour optimizer takes: settings of the
sparse table by its name, of the dense table, and `use_cvm`. docs/paddle.md has every key.
"""

import torch
from movielens_data import load, split
from torch.nn.functional import binary_cross_entropy_with_logits

import downpour as dp

FEATURES = ("item", "genres", "year", "age", "gender", "occupation")
SCHEMA = dp.Schema(
    features=FEATURES, dense=[dp.Dense("past", ("taste", "rated"))], labels=["liked"]
)
EMBEDX_DIM = 8
STRATEGY = {
    "use_cvm": True,
    "embedding": {
        "sparse_accessor_class": "DownpourCtrAccessor",
        "sparse_learning_rate": 0.05,
        "sparse_initial_g2sum": 3.0,
        "sparse_initial_range": 0.01,
        "sparse_weight_bounds": [-10.0, 10.0],
        "sparse_embedx_dim": EMBEDX_DIM,
        "sparse_embedx_threshold": 5,
    },
    "dense_table": {"dense_optimizer": "adam", "dense_learning_rate": 0.001},
}


class Clicks(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        dim = EMBEDX_DIM + 3  # log show, log click rate, w, embedx
        self.embedding = dp.SparseEmbedding(FEATURES, dim=dim, use_cvm=True)
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
        strategy=STRATEGY,
        epochs=3,
    )
