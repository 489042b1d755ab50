"""The chief promise: embedded tables learn what plain PyTorch learns on the same batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import downpour as dp
from tests.networks import PlainRows, assert_same, plain, planned, random_batches, rows_of
from tests.networks import click as plain_click

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_IDS, DIM, STEPS = 40, 4, 200
FEATURES = ("user", "history")  # history: bags of 0 to 4 ids
Rules = tuple[Any, Any]


def batches(seed: int, dtype: torch.dtype, steps: int = STEPS) -> list[dp.Batch]:
    """Batches of 1 to 9 samples; ids are spread over all 64 bits."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(steps):
        size = int(rng.integers(1, 10))
        lengths = rng.integers(0, 5, size)
        made.append(
            dp.Batch(
                features={
                    "user": spread(rng.integers(0, NUM_IDS, size)),
                    "history": dp.Jagged.from_lengths(
                        spread(rng.integers(0, NUM_IDS, lengths.sum())),
                        lengths,
                        weights=rng.random(lengths.sum(), np.float32),
                    ),
                },
                dense={"x": torch.from_numpy(rng.standard_normal((size, 3))).to(dtype)},
                labels={"click": torch.from_numpy((rng.random(size) < 0.4) * 1.0).to(dtype)},
            )
        )
    return made


def spread(ids: np.ndarray) -> np.ndarray:
    return ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


class Network(torch.nn.Module):
    """One text for both sides: only what `embedding` is differs."""

    def __init__(self, embedding: torch.nn.Module, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = embedding
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(len(FEATURES) * DIM + 3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
        ).to(dtype)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        rows = self.embedding(batch).flatten(1)
        return self.mlp(torch.cat([rows, batch.dense["x"]], dim=1)).squeeze(1)


def click(model: Network, batch: dp.Batch) -> torch.Tensor:
    return binary_cross_entropy_with_logits(model(batch), batch.label)


class Bags(torch.nn.Module):
    """`nn.EmbeddingBag` over the ids of both features, user ids first."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.bag = torch.nn.EmbeddingBag.from_pretrained(
            weight, freeze=False, mode="sum", sparse=True
        )
        self.place = {int(key): i for i, key in enumerate(spread(np.arange(NUM_IDS)))}

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        pooled = []
        for number, feature in enumerate(FEATURES):
            jagged = batch.features[feature]
            ids = [self.place[int(key)] + number * NUM_IDS for key in jagged.values]
            ones = torch.ones(len(ids), dtype=self.bag.weight.dtype)
            weights = ones if jagged.weights is None else torch.from_numpy(jagged.weights).to(ones)
            pooled.append(
                self.bag(torch.tensor(ids, dtype=torch.int64), jagged.offsets_tensor[:-1], weights)
            )
        return torch.stack(pooled, dim=1)


@dataclass
class Trained:
    losses: list[float]
    rows: np.ndarray  # [2 * NUM_IDS, DIM]
    dense: np.ndarray


def with_downpour(
    rules: Rules, dtype: torch.dtype, seed: int, *, num_shards: int = 1, prefetch: bool = False
) -> tuple[torch.Tensor, Trained]:
    """Train; the initial rows as well."""
    data = batches(seed, dtype)
    model = Network(dp.SparseEmbedding(FEATURES, DIM, dtype=dtype), dtype, seed)
    optimizer = dp.DownpourSGD(sparse=rules[0], dense=rules[1])
    plan = optimizer.minimize(click, model=model, example=data[0], seed=seed)
    ids = spread(np.arange(NUM_IDS))

    def rows() -> np.ndarray:
        return np.concatenate([ps.pull("embedding", ids, feature=name) for name in FEATURES])

    with dp.embedded(plan, num_shards=num_shards) as ps:
        initial = torch.from_numpy(rows())
        losses = []
        with dp.Worker(plan, model, ps) as worker:
            for i, batch in enumerate(data):
                if prefetch and i + 1 < len(data):
                    worker.prefetch("click", data[i + 1])
                losses.append(worker.step("click", batch).loss)
            worker.pull_dense()
        return initial, Trained(losses, rows(), flat(model.mlp))


def with_torch(
    make: Callable[..., Any],
    make_dense: Callable[..., Any],
    dtype: torch.dtype,
    seed: int,
    initial: torch.Tensor,
) -> Trained:
    model = Network(Bags(initial.clone()), dtype, seed)
    optimizers = [make(model.embedding.parameters()), make_dense(model.mlp.parameters())]
    losses = []
    for batch in batches(seed, dtype):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = click(model, batch)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return Trained(losses, model.embedding.bag.weight.detach().numpy(), flat(model.mlp))


def flat(module: torch.nn.Module) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).numpy().copy()


PAIRS = {
    "sgd": (
        (dp.SGD(0.1), dp.SGD(0.1)),
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1),
    ),
    "adagrad": (
        (dp.Adagrad(0.1), dp.Adagrad(0.05)),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
        lambda p: torch.optim.Adagrad(p, lr=0.05),
    ),
    "adam": (
        (dp.Adam(0.01), dp.Adam(0.003)),
        lambda p: torch.optim.SparseAdam(list(p), lr=0.01),
        lambda p: torch.optim.Adam(p, lr=0.003),
    ),
}
# In float32 two orders of the same sums part by rounding, and 200 steps carry it on.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}


@pytest.fixture(autouse=True)
def quiet_sparse_checks() -> None:
    # torch warns where it is left open whether sparse tensors are checked.
    torch.sparse.check_sparse_tensor_invariants.disable()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("pair", PAIRS)
def test_200_steps_equal_plain_torch(pair: str, seed: int, dtype: torch.dtype) -> None:
    rules, make, make_dense = PAIRS[pair]
    initial, ours = with_downpour(rules, dtype, seed)
    theirs = with_torch(make, make_dense, dtype, seed, initial)
    rtol = TOLERANCE[dtype]
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=rtol)
    np.testing.assert_allclose(ours.rows, theirs.rows, rtol=rtol, atol=rtol * 1e-2)
    np.testing.assert_allclose(ours.dense, theirs.dense, rtol=rtol, atol=rtol * 1e-2)
    assert not np.array_equal(ours.rows, initial.numpy())  # they learned at all


@pytest.mark.parametrize("num_shards", [2, 3, 7])
@pytest.mark.parametrize("pair", PAIRS)
def test_shards_change_no_bit(pair: str, num_shards: int) -> None:
    rules = PAIRS[pair][0]
    _, one = with_downpour(rules, torch.float32, 3)
    _, many = with_downpour(rules, torch.float32, 3, num_shards=num_shards)
    assert one.losses == many.losses
    assert np.array_equal(one.rows, many.rows)
    assert np.array_equal(one.dense, many.dense)


@pytest.mark.parametrize("pair", PAIRS)
def test_prefetching_changes_no_bit(pair: str) -> None:
    rules = PAIRS[pair][0]
    _, plain = with_downpour(rules, torch.float32, 4)
    _, ahead = with_downpour(rules, torch.float32, 4, prefetch=True)
    assert plain.losses == ahead.losses
    assert np.array_equal(plain.rows, ahead.rows)


def weighted(seed: int) -> list[dp.Batch]:
    """Batches whose items have weights of their own, some of them 0."""
    rng = np.random.default_rng(seed)
    made = []
    for batch in random_batches(seed, 30):
        items = batch.features["item"]
        weights = rng.integers(0, 4, len(items.values)).astype(np.float32)
        features = {**batch.features, "item": dp.Jagged(items.values, items.offsets, weights)}
        made.append(dp.Batch(features=features, labels=batch.labels))
    return made


class Modules(torch.nn.Module):
    """Any SparseEmbeddings of users and items, and a layer over what they give."""

    def __init__(self, **modules: dp.SparseEmbedding) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, module in modules.items():
            self.add_module(name, module)
        width = sum(module.dim * len(module.features) for module in modules.values())
        self.out = torch.nn.Linear(width, 1, dtype=torch.float64)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        given = [module(batch) for name, module in self.named_children() if name != "out"]
        return self.out(torch.cat([self.flat(rows) for rows in given], dim=1)).squeeze(1)

    @staticmethod
    def flat(rows: Any) -> torch.Tensor:
        if isinstance(rows, torch.Tensor):
            return rows.flatten(1)
        return torch.cat([it.to_padded(3)[0].tanh().sum(1) for it in rows.values()], dim=1)


def embedding(features: Any = ("user", "item"), dim: int = 3, **settings: Any) -> Any:
    settings = {"dtype": torch.float64, "init": dp.Normal(0.3), **settings}
    return dp.SparseEmbedding(features, dim, **settings)


def assert_learns_as_torch(
    model: Modules, data: list[dp.Batch], rules: dict[str, tuple[Any, Any]]
) -> None:
    """`rules`: by table, ours and torch's. Dense parameters learn by Adam."""
    sparse = {table: rule for table, (rule, _) in rules.items()}
    plan = planned(model, plain_click, data[0], sparse=sparse, dense=dp.Adam(0.02))
    ps = dp.embedded(plan, num_shards=2)
    theirs = plain(model, ps)
    homes: dict[str, Any] = {}
    for module in theirs.children():
        if isinstance(module, PlainRows):
            module.share(homes.setdefault(module.table, module))
    optimizers = [make([homes[table].weight]) for table, (_, make) in rules.items()]
    optimizers.append(torch.optim.Adam(theirs.out.parameters(), lr=0.02))
    with dp.Worker(plan, model, ps) as worker:
        for batch in data:
            theirs.zero_grad()
            loss = plain_click(theirs, batch)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            assert worker.step("click", batch).loss == pytest.approx(loss.item(), rel=1e-9)
    assert_same(model, ps, theirs)


ADAGRAD = (dp.Adagrad(0.2), lambda p: torch.optim.Adagrad(p, lr=0.2, eps=1e-10))
SGD = (dp.SGD(0.3), lambda p: torch.optim.SGD(p, lr=0.3))


@pytest.mark.parametrize("pooling", ["sum", "mean", "none"])
@pytest.mark.parametrize("make", [weighted, lambda seed: random_batches(seed, 30)])
def test_every_pooling_learns_as_torch_with_and_without_weights(make: Any, pooling: Any) -> None:
    model = Modules(embedding=embedding(pooling=pooling))
    assert_learns_as_torch(model, make(5), {"embedding": ADAGRAD})


def test_tables_of_other_dims_and_rules_learn_side_by_side() -> None:
    model = Modules(
        wide=embedding(dim=1, pooling="mean"), deep=embedding(dim=7), lone=embedding("item", 2)
    )
    assert_learns_as_torch(model, weighted(6), {"wide": SGD, "deep": ADAGRAD, "lone": ADAGRAD})


@pytest.mark.parametrize("spaces", [{}, {"item": "thing"}, {"item": "user"}, None])
def test_modules_that_share_a_table_give_a_row_one_gradient(spaces: Any) -> None:
    model = Modules(
        first=embedding(table="ids", spaces=spaces),
        second=embedding("item", table="ids", spaces=spaces, pooling="mean"),
    )
    assert_learns_as_torch(model, weighted(7), {"ids": ADAGRAD})


@pytest.mark.parametrize("rule", [dp.SGD(0.3), dp.Adagrad(0.2), dp.Adam(0.1, weight_decay=0.1)])
def test_the_order_in_which_keys_arrive_changes_no_bit(rule: Any) -> None:
    data = weighted(8)

    def rows_after(arrival: list[int]) -> np.ndarray:
        model = Modules(embedding=embedding())
        plan = planned(model, plain_click, data[0], sparse=rule)
        ps = dp.embedded(plan)
        for feature in ("user", "item"):
            ps.pull("embedding", arrival, feature=feature, create=True)
        with dp.Worker(plan, model, ps) as worker:
            for batch in data:
                worker.step("click", batch)
        return rows_of(ps, "embedding", ["user", "item"])

    rising = rows_after([])
    for seed in range(3):
        shuffled = np.random.default_rng(seed).permutation(NUM_IDS // 2).tolist()
        assert np.array_equal(rows_after(shuffled), rising)
