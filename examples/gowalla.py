"""Where will this user go? Retrieval on Gowalla check-ins, scored over all 40,981 places.

    DOWNPOUR_DATA=FOLDER downpour train examples/gowalla.py

reads FOLDER/gowalla/train.txt.gz and test.txt.gz: a line a user, `user place place ...`, the split
of NGCF and LightGCN. The data is SNAP's loc-gowalla: cite Cho, Myers and Leskovec, KDD 2011.

Two towers over one table: a place is its row, a user the mean of the places that he has been to.
So a user who was never trained on, or who has been somewhere since, needs no training.
"""

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize

import downpour as dp

DIM, HISTORY, TEMPERATURE = 64, 20, 0.09


class Visits:
    """All check-ins of a file: user u has been to places[first[u]:first[u + 1]]."""

    def __init__(self, path: Path) -> None:
        with gzip.open(path, "rt") as lines:
            by_user = [np.array(line.split()[1:], np.int64) for line in lines]
        self.places = np.concatenate(by_user)
        self.counts = np.array([len(places) for places in by_user])
        self.first = np.concatenate([[0], np.cumsum(self.counts)])

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The user and the place of each check-in."""
        return np.repeat(np.arange(len(self.counts)), self.counts), self.places

    def history(self, start: int, stop: int) -> dp.Jagged:
        """All places of the users start to stop."""
        places = self.places[self.first[start] : self.first[stop]]
        return dp.Jagged.from_lengths(places, self.counts[start:stop])


class CheckIns:
    """One sample a check-in: the place, and places drawn from the rest of its user's."""

    def __init__(self, visits: Visits, batch_size: int, seed: int = 0) -> None:
        self.visits, self.batch_size, self.seed = visits, batch_size, seed
        self.users, self.places = visits.pairs()
        self.rows = np.flatnonzero(visits.counts[self.users] > 1)  # one visit has no rest
        share = np.bincount(self.places) / len(self.places)
        self.log_share = np.log(share[self.places]).astype(np.float32)

    def __repr__(self) -> str:  # in metrics.json and the report
        return f"CheckIns({len(self.rows):,}, batch_size={self.batch_size}, seed={self.seed})"

    def num_batches(self) -> int:
        return len(self.rows) // self.batch_size

    def batches(self, epoch: int = 0) -> Iterator[dp.Batch]:
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(self.rows)
        for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
            yield self.batch(order[start : start + self.batch_size], random)

    def batch(self, rows: np.ndarray, random: np.random.Generator) -> dp.Batch:
        users = self.users[rows]
        first, count = self.visits.first[users], self.visits.counts[users]
        others = random.integers(0, count[:, None] - 1, (len(rows), HISTORY))
        others += others >= (rows - first)[:, None]  # never the check-in to be guessed
        return dp.Batch(
            features={"place": self.places[rows], "history": self.places[first[:, None] + others]},
            dense={"log_share": self.log_share[rows]},
        )


class TwoTowers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        init = dp.Uniform(0.1)
        self.place = dp.SparseEmbedding("place", DIM, table="place", init=init)
        self.history = dp.SparseEmbedding(
            "history", DIM, table="place", spaces={"history": "place"}, pooling="mean", init=init
        )

    def places(self, batch: dp.Batch) -> torch.Tensor:
        return normalize(self.place(batch).squeeze(1), dim=1)  # [batch, dim]

    def users(self, batch: dp.Batch) -> torch.Tensor:
        return normalize(self.history(batch).squeeze(1), dim=1)  # [batch, dim]


def visit(model: TwoTowers, batch: dp.Batch) -> torch.Tensor:
    """Softmax over the places of the batch, corrected for how often a place is in one."""
    ids, target = torch.unique(batch.features["place"].tensor, return_inverse=True)
    sample = torch.empty_like(ids).scatter_(0, target, torch.arange(len(target)))
    scores = model.users(batch) @ model.places(batch)[sample].T / TEMPERATURE
    return cross_entropy(scores - batch.dense["log_share"][sample], target)


@torch.no_grad()
def recall(model: TwoTowers, seen: Visits, wanted: Visits, top: int = 20) -> dict[str, float]:
    """Recall and NDCG of each user's best places, of all but the seen ones, over all users."""
    num_places = 1 + int(max(seen.places.max(), wanted.places.max()))
    places = model.places(dp.Batch(features={"place": np.arange(num_places)}))
    discount = 1 / np.log2(np.arange(2, top + 2))
    recalls, gains = [], []
    for start in range(0, len(seen.counts), 1024):
        stop = min(start + 1024, len(seen.counts))
        history = seen.history(start, stop)
        scores = model.users(dp.Batch(features={"history": history})) @ places.T
        user = np.repeat(np.arange(stop - start), history.lengths)
        scores[torch.from_numpy(user), history.tensor] = -torch.inf
        hits = np.zeros((stop - start, num_places), bool)
        to_find = wanted.history(start, stop)
        hits[np.repeat(np.arange(stop - start), to_find.lengths), to_find.values] = True
        found = np.take_along_axis(hits, scores.topk(top).indices.numpy(), axis=1)
        recalls.append(found.sum(1) / to_find.lengths)
        ideal = np.cumsum(discount)[np.minimum(to_find.lengths, top) - 1]
        gains.append((found * discount).sum(1) / ideal)
    means = [float(np.concatenate(parts).mean()) for parts in (recalls, gains)]
    return {f"recall@{top}": means[0], f"ndcg@{top}": means[1]}


def load() -> tuple[Visits, Visits]:
    folder = Path(os.environ.get("DOWNPOUR_DATA", "data")) / "gowalla"
    files = [folder / "train.txt.gz", folder / "test.txt.gz"]
    if not all(file.is_file() for file in files):
        raise dp.DataError(f"{files[0]} or {files[1].name} is missing; see examples/gowalla.py")
    return Visits(files[0]), Visits(files[1])


def run() -> dp.Run:
    train, test = load()
    return dp.Run(
        model=TwoTowers(),
        losses=[visit],
        data=CheckIns(train, batch_size=1024),
        optimizer=dp.DownpourSGD(sparse=dp.Adagrad(lr=0.1)),
        evaluate=lambda model: recall(model, train, test),
        epochs=3,
    )
