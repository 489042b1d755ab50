"""A client's rounds equal plain torch: its tables are `nn.Embedding`s to any torch optimizer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

import downpour as dp
from tests.devices import any_device
from tests.local_rounds import (
    RULES,
    SGD,
    double,
    local_model,
    rounds_of,
    torch_rounds,
    train_rounds,
    twins,
)
from tests.networks import NUM_IDS, Network, a_batch, assert_same, click, plain, planned

if TYPE_CHECKING:
    from tests.local_rounds import Rounds

device = any_device  # a fixture
OPTIMIZERS: dict[str, Any] = {
    "sgd": SGD,
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "dampened": partial(torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.5),
    "adam": partial(torch.optim.Adam, lr=0.05),
    "adam of one tensor after the other": partial(torch.optim.Adam, lr=0.05, foreach=False),
    "amsgrad": partial(torch.optim.Adam, lr=0.05, amsgrad=True, weight_decay=0.1),
    "adamw": partial(torch.optim.AdamW, lr=0.05, weight_decay=0.1),
    "nadam": partial(torch.optim.NAdam, lr=0.05),
    "adagrad": partial(torch.optim.Adagrad, lr=0.3),
    "adagrad of a first sum": partial(torch.optim.Adagrad, lr=0.3, initial_accumulator_value=0.1),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.05, momentum=0.5),
    "rprop": partial(torch.optim.Rprop, lr=0.05),
}
LEAVES_OTHERS = {"sgd", "adagrad", "adagrad of a first sum"}  # rows without a gradient


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rounds_of_all_ids_equal_plain_training(optimizer: str) -> None:
    model, rounds = double(), rounds_of(3, with_all_ids=True)
    plan, ps, theirs = twins(model)
    losses = train_rounds(local_model(model, plan, ps, optimizer=OPTIMIZERS[optimizer]), rounds)
    np.testing.assert_allclose(
        losses, torch_rounds(theirs, rounds, OPTIMIZERS[optimizer]), rtol=1e-12
    )
    assert_same(model, ps, theirs, rtol=1e-12)
    assert ps.steps == {"embedding": 3, "dense.click": 3}


@pytest.mark.parametrize("optimizer", sorted(LEAVES_OTHERS))
def test_rounds_of_other_keys_equal_plain_training(optimizer: str) -> None:
    model, rounds = double(), rounds_of(6, steps=2)
    plan, ps, theirs = twins(model)
    train_rounds(local_model(model, plan, ps, optimizer=OPTIMIZERS[optimizer]), rounds)
    torch_rounds(theirs, rounds, OPTIMIZERS[optimizer])
    assert_same(model, ps, theirs, rtol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adagrad"])
def test_float32_equals_plain_training_to_rounding(optimizer: str) -> None:
    model, rounds = Network(init=dp.Normal(0.5)), rounds_of(3, with_all_ids=True)
    plan, ps, theirs = twins(model)
    train_rounds(local_model(model, plan, ps, optimizer=OPTIMIZERS[optimizer]), rounds)
    torch_rounds(theirs, rounds, OPTIMIZERS[optimizer])
    assert_same(model, ps, theirs, rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_a_fresh_optimizer_begins_each_round(optimizer: str) -> None:
    model, rounds = double(), rounds_of(3, with_all_ids=True)
    plan, ps, theirs = twins(model)
    method = dp.FedAvg(optimizer_state="fresh")
    train_rounds(
        local_model(model, plan, ps, optimizer=OPTIMIZERS[optimizer], method=method), rounds
    )
    torch_rounds(theirs, rounds, OPTIMIZERS[optimizer], is_kept=False)
    assert_same(model, ps, theirs, rtol=1e-12)


def proximal(mu: float, model: Any, first: Any) -> torch.Tensor:
    return (
        mu / 2 * sum((own - begun).square().sum() for own, begun in zip(model, first, strict=True))
    )


def test_fedprox_adds_its_term_to_the_loss() -> None:
    model, rounds = double(), rounds_of(3, with_all_ids=True)
    plan, ps, theirs = twins(model)
    make = OPTIMIZERS["momentum"]
    train_rounds(local_model(model, plan, ps, optimizer=make, method=dp.FedProx(mu=0.5)), rounds)
    parameters = [*theirs.parameters()]
    optimizer = make(parameters)
    for batches in rounds:
        first = [it.detach().clone() for it in parameters]
        for batch in batches:
            optimizer.zero_grad()
            (click(theirs, batch) + proximal(0.5, parameters, first)).backward()
            optimizer.step()
    assert_same(model, ps, theirs, rtol=1e-12)


class Wide(Network):
    """Two tables, bags with weights and without pooling, and rows that two modules share."""

    def __init__(self) -> None:
        settings: dict[str, Any] = {"dtype": torch.float64, "init": dp.Normal(0.5)}
        super().__init__(pooling="mean", spaces={"user": "id", "item": "id"}, **settings)
        self.again = dp.SparseEmbedding(
            "item", 4, table="embedding", spaces={"item": "id"}, pooling="none", **settings
        )
        self.other = dp.SparseEmbedding("user", 8, **settings)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        seen = self.again(batch)["item"]
        own = (seen.values.sum() + self.other(batch).sum((1, 2))).tanh()
        return super().forward(batch) + own


def with_weights(rounds: Rounds) -> Rounds:
    """The items of batches with a weight an id."""
    for number, batch in enumerate(batch for batches in rounds for batch in batches):
        items = batch.features["item"]
        weights = np.random.default_rng(number).random(len(items.values), np.float32) + 0.1
        own = {"user": batch.features["user"], "item": dp.Jagged.of(items, weights=weights)}
        rounds[number // len(rounds[0])][number % len(rounds[0])] = dp.Batch(
            features=own, labels=dict(batch.labels)
        )
    return rounds


def squares(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model.other(batch).square().mean() + model(batch).square().mean()


def plain_wide(model: Wide, ps: dp.Client) -> Any:
    theirs = plain(model, ps)
    theirs.again.share(theirs.embedding)
    return theirs


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_tables_features_and_losses_may_be_several(optimizer: str) -> None:
    model, rounds = Wide(), with_weights(rounds_of(3, with_all_ids=True))
    plan = planned(model, [click, squares], rounds[0][0], **RULES)
    ps = dp.embedded(plan)
    theirs = plain_wide(model, ps)
    losses = train_rounds(local_model(model, plan, ps, optimizer=OPTIMIZERS[optimizer]), rounds)
    expected = torch_rounds(theirs, rounds, OPTIMIZERS[optimizer], [click, squares])
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    assert_same(model, ps, theirs, rtol=1e-11)
    assert ps.steps == {"embedding": 3, "other": 3, "dense.click": 3}


class Heads(Network):
    """A head a loss."""

    def __init__(self) -> None:
        super().__init__(dtype=torch.float64, init=dp.Normal(0.5))
        self.head = torch.nn.Linear(8, 1, dtype=torch.float64)


def buy(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model.head(model.embedding(batch).flatten(1)).square().mean()


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_a_step_moves_no_parameter_of_another_loss(optimizer: str) -> None:
    model, rounds = Heads(), rounds_of(2, with_all_ids=True)
    plan, ps, theirs = twins(model, [click, buy])
    train_rounds(local_model(model, plan, ps, optimizer=OPTIMIZERS[optimizer]), rounds)
    torch_rounds(theirs, rounds, OPTIMIZERS[optimizer], [click, buy])
    assert_same(model, ps, theirs, rtol=1e-12)
    local = local_model(model, plan, ps, optimizer=OPTIMIZERS[optimizer])
    local.recv(rounds[0])
    head, out = model.head.weight.detach().clone(), model.out.weight.detach().clone()
    local.step("click", rounds[0][0])
    local.step("click", rounds[0][1])
    assert torch.equal(model.head.weight, head)
    assert not torch.equal(model.out.weight, out)


def shifted(model: Any, batch: dp.Batch) -> torch.Tensor:
    """It makes a batch of its own, of the ids of its batch, and reads it twice."""
    other = dp.Batch(
        features={
            "item": batch.features["item"],
            "user": batch.features["user"].select(np.roll(np.arange(batch.size), 1)),
        }
    )
    return (model(batch) - model(other)).exp().mean() + model.embedding(other).square().mean()


def test_a_loss_may_make_batches_of_the_ids_of_its_own() -> None:
    model, rounds = double(), rounds_of(3)
    plan, ps, theirs = twins(model, shifted)
    train_rounds(local_model(model, plan, ps), rounds)
    torch_rounds(theirs, rounds, SGD, [shifted])
    assert_same(model, ps, theirs, rtol=1e-12)


class Checkpointed(Network):
    use_reentrant = False

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        start = torch.zeros(1, requires_grad=True)
        return checkpoint(
            lambda _: Network.forward(self, batch), start, use_reentrant=self.use_reentrant
        )


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_changes_no_result(use_reentrant: bool) -> None:
    model, rounds = Checkpointed(dtype=torch.float64, init=dp.Normal(0.5)), rounds_of(2)
    model.use_reentrant = use_reentrant
    plan, ps, theirs = twins(model)
    train_rounds(local_model(model, plan, ps), rounds)
    torch_rounds(theirs, rounds, SGD)
    assert_same(model, ps, theirs, rtol=1e-12)


class Positions(Network):
    """An ordinary embedding whose gradients are sparse, which Adam refuses."""

    def __init__(self) -> None:
        super().__init__(dtype=torch.float64, init=dp.Normal(0.5))
        self.position = torch.nn.Embedding(NUM_IDS, 1, sparse=True, dtype=torch.float64)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        return super().forward(batch) + self.position(torch.arange(batch.size)).squeeze(1)


def test_sparse_gradients_of_a_model_are_dense_to_its_optimizer() -> None:
    model, rounds = Positions(), rounds_of(2, with_all_ids=True)
    plan, ps, theirs = twins(model)
    train_rounds(local_model(model, plan, ps, optimizer=OPTIMIZERS["adam"]), rounds)
    theirs.position.sparse = False
    torch_rounds(theirs, rounds, OPTIMIZERS["adam"])
    assert_same(model, ps, theirs, rtol=1e-12)


@settings(max_examples=20)
@given(ids=st.lists(st.lists(st.integers(0, NUM_IDS - 1), max_size=4), min_size=1, max_size=6))
def test_any_bags_learn_as_in_torch(ids: list[list[int]]) -> None:
    batch = a_batch([bag[::-1] for bag in ids], ids)
    model = double()
    plan, ps, theirs = twins(model, example=batch)
    train_rounds(local_model(model, plan, ps), [[batch] * 3] * 2)
    torch_rounds(theirs, [[batch] * 3] * 2, SGD)
    assert_same(model, ps, theirs, rtol=1e-12)


@pytest.mark.parametrize("optimizer", ["momentum", "adagrad"])
def test_a_model_on_another_device_learns_the_same(device: torch.device, optimizer: str) -> None:
    rounds, held = rounds_of(3), []
    for where in (torch.device("cpu"), device):
        model: Any = double()
        plan, ps, _ = twins(model)
        local = local_model(
            model.to(where), plan, ps, optimizer=OPTIMIZERS[optimizer], method=dp.FedProx(mu=0.1)
        )
        assert local.device == where
        train_rounds(local, rounds)
        held.append((ps.export("embedding").weights, ps.pull_dense("dense.click")))
    np.testing.assert_allclose(held[0][0], held[1][0], rtol=1e-12)
    np.testing.assert_allclose(held[0][1], held[1][1], rtol=1e-12)
