"""A small model, its losses and batches, for tests of what plans and runs them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import downpour as dp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

NUM_IDS = 20
USERS, ITEMS = [5, 7, 5, 9], [[5, 6], [], [6], [5, 8, 8]]


def a_batch(users: Any = USERS, items: Any = ITEMS, labels: Any = None) -> dp.Batch:
    labels = np.arange(len(users)) % 2 if labels is None else labels
    return dp.Batch(features={"user": users, "item": items}, labels=labels)


def random_batches(seed: int, num_batches: int) -> list[dp.Batch]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(num_batches):
        size = int(rng.integers(2, 8))
        lengths = rng.integers(0, 4, size)
        items = dp.Jagged.from_lengths(rng.integers(0, NUM_IDS, lengths.sum()), lengths)
        made.append(a_batch(rng.integers(0, NUM_IDS, size), items, rng.integers(0, 2, size)))
    return made


class Network(torch.nn.Module):
    """One table for users and items, and a linear layer."""

    out: Any

    def __init__(self, dim: int = 4, **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = dp.SparseEmbedding(("user", "item"), dim, **settings)
        dtype = settings.get("dtype", torch.float32)
        self.out = torch.nn.Linear(2 * dim, 1, dtype=dtype)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        return self.out(self.embedding(batch).flatten(1)).squeeze(1)


def click(model: torch.nn.Module, batch: dp.Batch) -> torch.Tensor:
    scores = model(batch)
    return binary_cross_entropy_with_logits(scores, batch.label.to(scores.dtype))


def planned(
    model: torch.nn.Module, losses: Any = click, example: dp.Batch | None = None, **settings: Any
) -> dp.Plan:
    example = a_batch() if example is None else example
    settings = {"sparse": dp.SGD(0.5), "dense": dp.SGD(0.5), **settings}
    return dp.DownpourSGD(**settings).minimize(losses, model=model, example=example)


def weights_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Copies of everything in the model's state dict."""
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def everything(ps: dp.Client) -> dict[str, Any]:
    """All that the tables hold, as values that compare."""
    held: dict[str, Any] = dict(ps.steps)
    for spec in ps.plan.sparse:
        rows = ps.export(spec.name)
        held[f"rows of {spec.name}"] = (
            rows.keys.tolist(), rows.weights.tolist(), rows.state.tolist(), rows.log_decay,
        )  # fmt: skip
    for block in ps.plan.dense:
        dense = ps.export_dense(block.name)
        state = {name: values.tolist() for name, values in dense.state.items()}
        held[f"weights of {block.name}"] = (dense.weights.tolist(), state, dict(dense.updates))
    return held


class PlainRows(torch.nn.Module):
    """A SparseEmbedding of plain torch: the rows of ids below NUM_IDS, space after space.

    `readers` are features, one for each space; `place` is where the rows of a feature begin.
    """

    def __init__(self, ps: dp.Client, module: dp.SparseEmbedding, table: str) -> None:
        super().__init__()
        self.table, self.features, self.pooling = table, module.features, module.pooling
        spaces = [module.space_of(feature) for feature in module.features]
        known = list(dict.fromkeys(spaces))
        self.readers = [module.features[spaces.index(space)] for space in known]
        self.place = {
            feature: known.index(space) * NUM_IDS
            for feature, space in zip(module.features, spaces, strict=True)
        }
        self.weight = torch.nn.Parameter(torch.from_numpy(rows_of(ps, table, self.readers)))

    def share(self, other: PlainRows) -> None:
        """Read the other's rows."""
        self.weight, self.place, self.readers = other.weight, other.place, other.readers

    def forward(self, batch: dp.Batch) -> Any:
        if self.pooling == "none":
            return {name: self.unpooled(batch, name) for name in self.features}
        return torch.stack([self.pooled(batch, name) for name in self.features], dim=1)

    def unpooled(self, batch: dp.Batch, feature: str) -> dp.JaggedRows:
        bags = batch.features[feature]
        rows = self.weight[bags.tensor + self.place[feature]]
        return dp.JaggedRows(rows * self.factors(bags)[:, None], bags.offsets_tensor)

    def pooled(self, batch: dp.Batch, feature: str) -> torch.Tensor:
        bags = batch.features[feature]
        samples = torch.arange(batch.size).repeat_interleave(bags.offsets_tensor.diff())
        rows = self.unpooled(batch, feature).values
        total = rows.new_zeros(batch.size, rows.shape[1]).index_add(0, samples, rows)
        if self.pooling == "sum":
            return total
        weight = rows.new_zeros(batch.size).index_add(0, samples, self.factors(bags))
        return total / weight.where(weight > 0, 1.0)[:, None]

    def factors(self, bags: dp.Jagged) -> torch.Tensor:
        ones = self.weight.new_ones(len(bags.values))
        return ones if bags.weights is None else torch.from_numpy(bags.weights).to(ones)


def rows_of(ps: dp.Client, table: str, features: Iterable[str]) -> np.ndarray:
    """The rows of ids below NUM_IDS, [len(features) * NUM_IDS, dim]."""
    ids = np.arange(NUM_IDS)
    return np.concatenate([ps.pull(table, ids, feature=feature) for feature in features])


def plain(model: Any, ps: dp.Client) -> Any:
    """A copy of a model with plain torch in place of its tables."""
    own = copy.deepcopy(model)
    for name, module in model.named_children():
        if isinstance(module, dp.SparseEmbedding):
            setattr(own, name, PlainRows(ps, module, module.table or name))
    return own


def sparse_parameters(model: Any) -> Iterator[torch.nn.Parameter]:
    """Those that stand for rows."""
    for module in model.modules():
        if isinstance(module, PlainRows):
            yield module.weight


def dense_parameters(model: Any) -> list[torch.nn.Parameter]:
    """The others."""
    rows = {id(weight) for weight in sparse_parameters(model)}
    return [parameter for parameter in model.parameters() if id(parameter) not in rows]


def assert_same(model: Any, ps: dp.Client, theirs: Any, rtol: float = 1e-9) -> None:
    """The tables and the model (its worker closed) hold what plain torch holds."""
    for module in theirs.children():
        if isinstance(module, PlainRows):
            rows = rows_of(ps, module.table, module.readers)
            np.testing.assert_allclose(rows, module.weight.detach(), rtol=rtol, atol=rtol * 1e-2)
    others = dense_parameters(theirs)
    for ours, other in zip(model.parameters(), others, strict=True):
        np.testing.assert_allclose(
            ours.detach(), other.detach(), rtol=rtol, atol=rtol * 1e-2, err_msg=str(ours.shape)
        )


class Counted(torch.nn.Module):
    """CTR rows, normalised numbers, and a head for each loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = dp.SparseEmbedding(("user", "item"), 6, use_cvm=True, dtype=torch.float64)
        self.norm = dp.DataNorm(2, dtype=torch.float64)
        self.clicked = torch.nn.Linear(2 * 6 + 2, 1, dtype=torch.float64)
        self.bought = torch.nn.Linear(2 * 6 + 2, 1, dtype=torch.float64)


def head(label: str) -> Callable[[Any, dp.Batch], torch.Tensor]:
    def loss(model: Any, batch: dp.Batch) -> torch.Tensor:
        normed = model.norm(batch.dense["x"].double())
        seen = torch.cat([model.embedding(batch).flatten(1), normed], 1)
        logits = model.get_submodule(label)(seen).squeeze(1)
        return binary_cross_entropy_with_logits(logits, batch.labels[label].double())

    return loss
