"""Is what Downpour trains as good as what plain PyTorch trains? Retrieval over all places.

Both sides train examples/gowalla.py with the same batches, initial rows and rule. The settings
were chosen on a tenth of the training check-ins that was held back; the test file had no say.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

import downpour as dp
from benchmarks.quality_downpour import Trainee
from benchmarks.quality_torch import TorchEmbedding, load_example, train
from benchmarks.results import Result

QUESTION = (
    "How good is in-batch softmax retrieval on Gowalla (all users, all places, those of the "
    "training left out), trained by Downpour and by plain PyTorch (nn.EmbeddingBag and "
    "torch.optim.Adagrad) on the same batches from the same initial rows?"
)
LEAST_RECALL = 0.160  # matrix factorisation with dense Adam in plain PyTorch: 0.162 in 6 epochs
EPOCHS, LR, BATCH_SIZE = 3, 0.1, 1024


def run(*, quick: bool = False) -> Result:
    """Train and score both sides."""
    torch.set_num_threads(2)
    example = load_example("gowalla")
    seen, wanted = example.load()
    figures = compare(example, seen, wanted, 1 if quick else EPOCHS)
    recalls = {side: figure["recall@20"] for side, figure in figures.items()}
    return Result(
        name="quality_gowalla",
        question=QUESTION,
        command="python -m benchmarks quality_gowalla",
        figures=figures,
        ratios={
            "Recall@20 of Downpour less that of PyTorch": recalls["downpour"] - recalls["torch"]
        },
        checks={f"Recall@20 at least {LEAST_RECALL}": recalls["downpour"] >= LEAST_RECALL},
        settings={
            "epochs": EPOCHS,
            "batch_size": BATCH_SIZE,
            "lr": LR,
            "dim": example.DIM,
            "temperature": example.TEMPERATURE,
        },
    )


def compare(example: Any, seen: Any, wanted: Any, epochs: int) -> dict[str, dict[str, float]]:
    """Train both sides from the same rows; the figures of each."""
    data = example.CheckIns(seen, batch_size=BATCH_SIZE)
    places = np.arange(1 + max(seen.places.max(), wanted.places.max()), dtype=np.uint64)
    ours = example.TwoTowers()
    theirs = copy.deepcopy(ours)
    trainee = Trainee(ours, example.visit, data, dp.DownpourSGD(sparse=dp.Adagrad(lr=LR)))
    rows = nn.Parameter(trainee.initial_rows("place", {"place": places}))
    theirs.place = TorchEmbedding({"place": places}, rows, "sum")
    theirs.history = TorchEmbedding({"history": places}, rows, "mean")
    adagrad = torch.optim.Adagrad([rows], lr=LR)
    train(theirs, example.visit, data, epochs=epochs, sparse=adagrad)
    trainee.train(epochs)
    return {
        "torch": example.recall(theirs, seen, wanted),
        "downpour": example.recall(ours, seen, wanted),
    }
