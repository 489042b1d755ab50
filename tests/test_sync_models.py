"""Sync training of windows, several losses, CTR rows and data-norm tables equals one process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import downpour as dp
from downpour.remote.connect import connect
from tests.networks import NUM_IDS, Counted, Network, click, head, planned, random_batches
from tests.plain_ctr import assert_same_rows
from tests.plain_training import PlainTraining
from tests.servers import (
    assert_close,
    assert_same_bits,
    joined,
    servers,
    train_embedded,
    train_on,
)

if TYPE_CHECKING:
    from collections.abc import Callable

LENGTHS = (8, 5, 0)  # batches of the workers
FLOAT: dict[str, Any] = {"dtype": torch.float64}
NORMAL: dict[str, Any] = {**FLOAT, "init": dp.Normal(0.5)}
HALVING = dp.StepDecay(every=2, factor=0.5)


def simple(rank: int, num_batches: int) -> list[dp.Batch]:
    return random_batches(rank, num_batches)


def of_one_label(rank: int, num_batches: int) -> list[dp.Batch]:
    """Each of one label; in some steps all workers have the same one, in some they differ."""
    return [
        dp.Batch(features=batch.features, labels=np.full(batch.size, (step + rank * step // 2) % 2))
        for step, batch in enumerate(random_batches(rank, num_batches))
    ]


def counted(rank: int, num_batches: int) -> list[dp.Batch]:
    """With numbers and two labels."""
    rng = np.random.default_rng(rank)
    made = []
    for batch in random_batches(rank, num_batches):
        labels = {name: rng.integers(0, 2, batch.size) for name in ("clicked", "bought")}
        dense = {"x": rng.normal([3.0, -1.0], [2.0, 0.5], (batch.size, 2))}
        made.append(dp.Batch(features=batch.features, dense=dense, labels=labels))
    return made


class Heads(Network):
    """A head for each of two losses."""

    def __init__(self) -> None:
        super().__init__(**NORMAL)
        self.other = torch.nn.Linear(8, 1, **FLOAT)


def buy(model: Any, batch: dp.Batch) -> torch.Tensor:
    rows = model.embedding(batch).flatten(1)
    return (model.other(rows) - model.out(rows)).square().mean()


class Towers(torch.nn.Module):
    """A table and a layer for samples of label 0, others for those of label 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.user, self.item = (dp.SparseEmbedding(it, 3, **NORMAL) for it in ("user", "item"))
        self.layers = torch.nn.ModuleList(torch.nn.Linear(3, 1, **FLOAT) for _ in range(2))


def by_tower(model: Any, batch: dp.Batch) -> torch.Tensor:
    value = torch.zeros(batch.size, dtype=torch.float64)
    for label, tower in enumerate((model.user, model.item)):
        here = batch.label == label
        if here.any():  # else neither the table nor the layer is reached
            value = value + here * model.layers[label](tower(batch)[:, 0]).squeeze(1).square()
    return value.mean()


@dataclass(frozen=True)
class Case:
    """A model, its losses and how its plan is made; what its workers train on."""

    model: Callable[[], Any]
    losses: Any = click
    batches: Callable[[int, int], list[dp.Batch]] = simple
    settings: dict[str, Any] = field(default_factory=dict)

    def made(self) -> tuple[Any, dp.Plan]:
        model = self.model()
        settings = {"sparse": dp.Adagrad(0.3), "dense": dp.Adam(0.05), **self.settings}
        return model, planned(model, self.losses, dp.Batch.concat(self.batches(9, 2)), **settings)

    def shares(self, num_workers: int) -> list[list[dp.Batch]]:
        return [self.batches(rank, LENGTHS[rank]) for rank in range(num_workers)]


TWO = {label: head(label) for label in ("clicked", "bought")}
ROWS = {
    "sparse": dp.CtrAccessor(
        rule=dp.G2SumAdagrad(0.3), embedx_threshold=1.2, click="clicked", init=dp.Normal(0.1)
    ),
    "data_norm": dp.Summary(0.9),
}
CASES = {
    "window": Case(lambda: Network(**NORMAL), settings={"window": 3}),
    "losses": Case(Heads, [click, buy]),
    "losses with windows": Case(Heads, [click, buy], settings={"window": 3}),
    "towers": Case(Towers, {"by_tower": by_tower}, of_one_label),
    "counted": Case(Counted, TWO, counted, ROWS),
    "counted times batch size": Case(
        Counted, TWO, counted, {**ROWS, "scale_sparse_gradient_with_batch_size": True}
    ),
    "counted with windows": Case(Counted, TWO, counted, {**ROWS, "window": 3}),
}
CASES["towers with schedules"] = Case(
    Towers,
    {"by_tower": by_tower},
    of_one_label,
    {"sparse": dp.Adagrad(0.3, schedule=HALVING), "dense": dp.SGD(0.1, schedule=HALVING)},
)


@pytest.mark.parametrize(("num_servers", "num_workers"), [(1, 2), (3, 3)])
@pytest.mark.parametrize("name", CASES)
def test_workers_learn_as_one_process(name: str, num_servers: int, num_workers: int) -> None:
    model, plan = CASES[name].made()
    shares = CASES[name].shares(num_workers)
    one = train_embedded(plan, model, joined(shares))
    with servers(num_servers) as addresses:
        made = train_on(addresses, plan, model, shares)
    assert_close(made.tables, one.tables, rtol=1e-9)
    for own in made.models:
        assert_close(parameters(own), parameters(one.models[0]), rtol=1e-9)


SCALED = Case(Counted, TWO, counted, {**ROWS, "scale_datanorm": 0.25})


@pytest.mark.parametrize("num_servers", [1, 3])
@pytest.mark.parametrize("case", [*CASES.values(), SCALED], ids=[*CASES, "counted and scaled"])
def test_a_worker_alone_learns_bit_for_bit_as_embedded(case: Case, num_servers: int) -> None:
    model, plan = case.made()
    (share,) = case.shares(1)
    with servers(num_servers) as addresses:
        made = train_on(addresses, plan, model, [share])
    assert_same_bits(made, train_embedded(plan, model, share))


@pytest.mark.parametrize("scale", [False, True], ids=["mean", "times batch size"])
def test_rows_that_count_and_statistics_learn_as_in_plain_torch(scale: bool) -> None:
    case = CASES["counted times batch size" if scale else "counted"]
    model, plan = case.made()
    shares, ids = case.shares(2), np.arange(NUM_IDS)
    theirs = PlainTraining(model, plan, {"user": ids, "item": ids}, scale=scale)
    theirs.train(joined(shares))
    with servers(2) as addresses:
        made = train_on(addresses, plan, model, shares)
        with connect(plan, addresses) as ps:
            assert_same_rows(ps, theirs.rows, rtol=1e-9)
    others = parameters(theirs.model)
    del others["embedding.weight"]
    assert_close(parameters(made.models[0]), others, rtol=1e-9)
    has_embedx = theirs.rows.has_embedx
    assert has_embedx.any()
    assert not has_embedx.all()


# What each worker scales by its own batch is averaged by samples. The square sum of a joint batch
# would be another one, as scale_datanorm counts in it by the size of a batch.
@pytest.mark.parametrize("num_workers", [2, 3])
def test_scaled_statistics_are_the_mean_of_what_workers_have_scaled(num_workers: int) -> None:
    scale, decay = 0.25, 0.9
    model, plan = SCALED.made()
    shares = SCALED.shares(num_workers)
    size, total, square = np.full(2, 1e4), np.zeros(2), np.full(2, 1e4)
    for step, whole in enumerate(joined(shares)):
        for _ in TWO:
            mean, own = total / size, np.zeros((3, 2))
            for batch in (share[step] for share in shares if step < len(share)):
                x, n = batch.dense["x"].double().numpy(), batch.size
                squares = ((x - mean) ** 2).sum(0) + n * model.norm.eps
                added = [np.ones(2), x.mean(0), squares / n - scale + n * scale]
                own += np.stack(added) * (n / whole.size)
            size, total, square = np.stack([size, total, square]) * decay + own
    with servers(2) as addresses:
        norm = train_on(addresses, plan, model, shares).models[0].norm
    expected = {"batch_size": size, "batch_sum": total, "batch_square_sum": square}
    assert_close(parameters(norm), expected, rtol=1e-9)


def parameters(model: torch.nn.Module) -> dict[str, Any]:
    return {name: it.detach().numpy() for name, it in model.named_parameters()}
