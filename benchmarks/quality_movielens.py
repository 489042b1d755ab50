"""Is what Downpour trains as good as what plain PyTorch trains? A click model, by time.

Both sides train examples/movielens.py with the same seeds: the same batches in the same order,
the same initial weights and rows, the same rules. The slice that scores is later than all of the
training and had no say in any setting.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

import downpour as dp
from benchmarks.quality_downpour import Trainee
from benchmarks.quality_torch import TorchEmbedding, load_example, train
from benchmarks.results import Result
from downpour.metrics import AUC, LogLoss

if TYPE_CHECKING:
    from downpour.data import Frame

QUESTION = (
    "How good is DeepFM on the last {share:.0%} of MovieLens-100K's time, trained on the rest by "
    "Downpour and by plain PyTorch (nn.EmbeddingBag, torch.optim.Adagrad and Adam) on the same "
    "batches from the same initial values?"
)
SHARE = 0.2
LIMIT = 0.002  # the most by which the AUC of a seed may differ
EPOCHS, ROW_LR, DENSE_LR, BATCH_SIZE = 3, 0.01, 3e-4, 256


def run(*, quick: bool = False) -> Result:
    """Train and score each seed on both sides."""
    torch.set_num_threads(2)
    example = load_example("movielens")
    table = example.load()
    figures: dict[str, Any] = {}
    for seed in range(1 if quick else 3):
        scores = compare(example, table, seed, 1 if quick else EPOCHS)
        figures |= {f"{side}, seed {seed}": figure for side, figure in scores.items()}
    gaps = {
        f"AUC of Downpour less that of PyTorch, seed {seed}": figures[f"downpour, seed {seed}"][
            "auc"
        ]
        - figures[f"torch, seed {seed}"]["auc"]
        for seed in range(len(figures) // 2)
    }
    return Result(
        name="quality_movielens",
        question=QUESTION.format(share=SHARE),
        command="python -m benchmarks quality_movielens",
        figures=figures,
        ratios=gaps,
        checks={f"every AUC within {LIMIT}": max(map(abs, gaps.values())) <= LIMIT},
        settings={
            "epochs": EPOCHS,
            "batch_size": BATCH_SIZE,
            "row_lr": ROW_LR,
            "dense_lr": DENSE_LR,
        },
    )


def compare(example: Any, table: Any, seed: int, epochs: int) -> dict[str, dict[str, float]]:
    """Train both sides from one seed; the figures of each."""
    past, later = example.split(table, 1 - SHARE, SHARE)
    data = dp.Frame(past, example.SCHEMA, batch_size=BATCH_SIZE, shuffle_seed=seed)
    test = dp.Frame(later, example.SCHEMA, batch_size=4096)
    features = example.SCHEMA.batch(table).features
    keys = {name: np.unique(features[name].values) for name in example.FEATURES}

    torch.manual_seed(seed)
    ours = example.DeepFM()
    theirs = copy.deepcopy(ours)
    optimizer = dp.DownpourSGD(sparse=dp.Adagrad(lr=ROW_LR), dense=dp.Adam(lr=DENSE_LR))
    trainee = Trainee(ours, example.like, data, optimizer)
    rows = nn.Parameter(trainee.initial_rows("embedding", keys))
    theirs.embedding = TorchEmbedding(keys, rows, "sum")
    train(
        theirs,
        example.like,
        data,
        epochs=epochs,
        sparse=torch.optim.Adagrad([rows], lr=ROW_LR),
        dense=torch.optim.Adam(theirs.mlp.parameters(), lr=DENSE_LR),
    )
    trainee.train(epochs)
    return {"torch": score(theirs, test), "downpour": score(ours, test)}


@torch.no_grad()
def score(model: nn.Module, test: Frame) -> dict[str, float]:
    """AUC and logloss of the whole slice."""
    model.eval()
    auc, logloss = AUC(), LogLoss()
    for batch in test.batches():
        chances = torch.sigmoid(model(batch)).numpy()
        auc.update(batch.label.numpy(), chances)
        logloss.update(batch.label.numpy(), chances)
    return {"auc": auc.result() or 0.0, "logloss": logloss.result() or 0.0}
