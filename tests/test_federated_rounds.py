"""What a federation learns is what plain torch learns: models trained apart, and averaged."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import downpour as dp
from downpour.federated.local import LocalModel
from downpour.plan.sections import Sections
from tests.averaged import Averaged
from tests.federations import (
    MOMENTUM,
    SGD,
    Turning,
    assert_equal,
    federate,
    federation,
    values_of,
)
from tests.networks import NUM_IDS, Network, a_batch, click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ONE_STEP = dp.FedAvg(local_steps=1)
NUM_STEPS = 4


# One client, or clients with equal data, train what one process does.


def even_data(client: int, clients: int) -> Turning:
    """Batches of five samples."""
    random = np.random.default_rng(client)
    columns = random.integers(0, NUM_IDS, (NUM_STEPS, 2, 5))
    return Turning([a_batch(users, items) for users, items in columns])


def joint_batches(clients: int) -> list[dp.Batch]:
    shares = [even_data(client, clients).given for client in range(clients)]
    return [dp.Batch.concat([share[step] for share in shares]) for step in range(NUM_STEPS)]


def in_torch(batches: Sequence[dp.Batch], **settings: Any) -> list[np.ndarray]:
    """What plain torch makes of them, a step each."""
    plain = Averaged(federation(**settings))
    optimizer = SGD(plain.whole.parameters())
    for batch in batches:
        optimizer.zero_grad()
        click(plain.whole, batch).backward()
        optimizer.step()
    return plain.values()


def embedded(batches: Sequence[dp.Batch]) -> list[np.ndarray]:
    """What a run in one process makes of them."""
    made, rule = federation(), dp.SGD(0.3)
    run = dp.Run(
        model=made.model,
        losses=click,
        data=Turning(batches),
        optimizer=dp.DownpourSGD(sparse=rule, dense=rule),
    )
    trainer = dp.Trainer(run, quiet=True)
    trainer.train()
    return values_of(trainer.client)


@pytest.mark.parametrize("clients", [1, 2, 4])
def test_a_step_a_round_equals_central_training(clients: int) -> None:
    settings: dict[str, Any] = {"data": even_data, "clients": clients, "method": ONE_STEP}
    ours = federate(lambda: federation(rounds=NUM_STEPS, **settings))
    joint = joint_batches(clients)
    assert_equal(ours, in_torch(joint))
    assert_equal(ours, embedded(joint))


def test_float32_equals_central_training_to_rounding() -> None:
    settings = {"data": even_data, "method": ONE_STEP, "rounds": NUM_STEPS}
    ours = federate(lambda: federation(model=Network(init=dp.Normal(0.5)), **settings))
    theirs = in_torch(joint_batches(3), model=Network(init=dp.Normal(0.5)))
    assert_equal(ours, theirs, rtol=1e-5)


# Clients with data of their own, and more than a step.

METHODS: dict[str, dict[str, Any]] = {
    "steps": {"method": dp.FedAvg(local_steps=5)},
    "epochs": {"method": dp.FedAvg(local_epochs=2)},
    "equal": {"method": dp.FedAvg(weighting="equal")},
    "touched": {"method": dp.FedAvg(local_steps=1, rows_over="touched")},
    "touched equal": {"method": dp.FedAvg(local_steps=1, rows_over="touched", weighting="equal")},
    "half": {"method": dp.FedAvg(server_lr=0.5)},
    "kept": {"method": ONE_STEP, "optimizer": MOMENTUM, "data": lambda c, n: same_keys(c)},
    "fresh": {
        "method": dp.FedAvg(local_steps=3, optimizer_state="fresh"),
        "optimizer": MOMENTUM,
        "data": lambda c, n: same_keys(c),
    },
    "FedProx": {"method": dp.FedProx(mu=0.5)},
    "FedAvgM": {"method": dp.FedAvgM(local_steps=1, momentum=0.6)},
    "FedAdam": {"method": dp.FedAdam(local_steps=1, server_lr=0.05)},
}


def same_keys(client: int) -> Turning:
    """Batches that have all of the same ids, so that momentum moves the same rows everywhere."""
    random = np.random.default_rng(client)
    ids = random.permutation(NUM_IDS)[: 4 + client]
    return Turning([a_batch(ids, random.permutation(ids)) for _ in range(4)])


@pytest.mark.parametrize("method", METHODS)
def test_models_trained_apart_are_averaged(method: str) -> None:
    both(**METHODS[method])


def both(make: Callable[..., dp.Federation] = federation, **settings: Any) -> None:
    """A federation and plain torch leave the same."""
    ours = federate(lambda: make(**settings))
    made = make(**settings)
    everyone = [[*range(made.clients)]] * made.rounds
    assert ours.heard_from == everyone
    assert_equal(ours, Averaged(made).train(everyone))


class Heads(Network):
    """Two tables, one of which two features share, and a head a loss."""

    def __init__(self) -> None:
        settings: dict[str, Any] = {"dtype": torch.float64, "init": dp.Normal(0.5)}
        super().__init__(spaces={"user": "id", "item": "id"}, **settings)
        self.other = dp.SparseEmbedding("item", 8, **settings)
        self.head = torch.nn.Linear(8, 1, dtype=torch.float64)


def buy(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model.head(model.other(batch).flatten(1)).square().mean()


def test_tables_and_losses_may_be_several() -> None:
    both(lambda: federation(model=Heads(), losses=[click, buy]))


def test_a_row_that_nobody_touched_is_not_made() -> None:
    ours = federate(lambda: federation(data=lambda c, n: same_keys(c)))
    ids = {it for client in range(3) for it in same_keys(client).given[0].features["user"].values}
    assert ours.rows == 2 * len(ids) < 2 * NUM_IDS


# How servers share the tables, and when updates come, changes no bit.


def in_turn(monkeypatch: pytest.MonkeyPatch, order: Sequence[int]) -> None:
    """Let clients send one after the other in each round."""
    turn, changed, send = iter([*order] * 3), threading.Condition(), LocalModel.send
    now = [next(turn)]

    def sends(local: Any) -> float:
        with changed:
            changed.wait_for(lambda: now[0] == local.client.rank)
        share = send(local)
        with changed:
            now[0] = next(turn, -1)
            changed.notify_all()
        return share

    monkeypatch.setattr(LocalModel, "send", sends)


def test_servers_their_number_and_the_order_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"method": dp.FedAvgM(momentum=0.6), "optimizer": MOMENTUM}
    left = []
    for num_servers, min_size, order in (
        (1, 8192, (0, 1, 2)),
        (1, 2, (2, 1, 0)),
        (2, 8192, (1, 2, 0)),
        (2, 2, (0, 2, 1)),
        (3, 2, (2, 0, 1)),
    ):
        with monkeypatch.context() as patched:
            in_turn(patched, order)
            sections = Sections(min_size=min_size)
            made = federate(
                lambda: federation(**settings), num_servers=num_servers, sections=sections
            )
            left.append((made.values, [it["loss"] for it in made.metrics["rounds"]]))
    for values, losses in left:
        assert losses == left[0][1]
        for own, other in zip(values, left[0][0], strict=True):
            assert np.array_equal(own, other)
