"""Federated trainers that run transpiled programs learn as models of plain torch, averaged."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import downpour as dp
from tests.local_rounds import ALL_IDS, torch_rounds
from tests.networks import NUM_IDS, a_batch, assert_same, click, plain, planned, random_batches
from tests.servers import Jittery, assert_same_bits, joined, servers
from tests.transpiled_runs import HASHED, SPLIT, WHOLE, Layers, reading, trained, transpiled

if TYPE_CHECKING:
    from collections.abc import Sequence

    Rounds = list[list[dp.Batch]]

CONFIGS = {"whole": WHOLE, "split": SPLIT, "hashed": HASHED}
SGD = partial(torch.optim.SGD, lr=0.3)
OPTIMIZERS: dict[str, Any] = {
    "sgd": SGD,
    "adagrad": partial(torch.optim.Adagrad, lr=0.2),
    "adamw": partial(torch.optim.AdamW, lr=0.05, weight_decay=0.1),
}
METHODS: dict[str, Any] = {
    "fedavg": dp.FedAvg(),
    "half of the mean": dp.FedAvg(server_lr=0.5),
    "each alike": dp.FedAvg(weighting="equal"),
    "over those that touched": dp.FedAvg(rows_over="touched"),
    "touched, each alike": dp.FedAvg(rows_over="touched", weighting="equal"),
    "fedprox": dp.FedProx(mu=0.5),
    "fedavgm": dp.FedAvgM(momentum=0.8, server_lr=0.7),
    "fedadam": dp.FedAdam(server_lr=0.05),
}


def rounds_of(num_trainers: int, num_rounds: int = 3, steps: int = 3) -> list[Rounds]:
    """The rounds of each trainer, of batches of 2 to 7 samples; the first trains a step more."""
    return [
        [
            random_batches(100 * rank + number, steps + (rank == 0 and steps > 1))
            for number in range(num_rounds)
        ]
        for rank in range(num_trainers)
    ]


class Averaged:
    """A model of plain torch, of which each trainer trains a copy; the change is averaged by hand.

    Rows are moved where a trainer has touched them in the round, as dense parameters always are.
    """

    def __init__(self, theirs: Any, num_trainers: int, make: Any, method: Any) -> None:
        self.model, self.method = theirs, method
        self.own = [copy.deepcopy(theirs) for _ in range(num_trainers)]
        self.optimizers = [make(it.parameters()) for it in self.own]
        self.state = [(np.zeros(it.shape), np.zeros(it.shape)) for it in theirs.parameters()]
        if isinstance(method, dp.FedAdam):
            self.state = [(m, v + method.tau**2) for m, v in self.state]

    def round(self, batches: Sequence[Sequence[dp.Batch]]) -> None:
        for rank, own in enumerate(batches):
            self._train(rank, own)
        samples = [float(sum(batch.size for batch in own)) for own in batches]
        if self.method.weighting == "equal":
            samples = [min(1.0, count) for count in samples]
        shares = np.array(samples) / sum(samples)
        touched = [self._touched(own) for own in batches]
        every = [[*it.parameters()] for it in self.own]
        for place, (name, weight) in enumerate(self.model.named_parameters()):
            own = [parameters[place] for parameters in every]
            changes = [(it - weight).detach().numpy() for it in own]
            masks = touched if name.startswith("embedding") else [np.ones(1)] * len(own)
            mean = sum(share * it for share, it in zip(shares, changes, strict=True))
            heard = sum(share * it for share, it in zip(shares, masks, strict=True))
            if self.method.rows_over == "touched":
                mean = np.where(heard > 0, mean / np.where(heard > 0, heard, 1.0), 0.0)
            moved = self._moved(weight.detach().numpy(), mean, place, heard > 0)
            weight.data = torch.from_numpy(moved)

    def _train(self, rank: int, batches: Sequence[dp.Batch]) -> None:
        own, optimizer = self.own[rank], self.optimizers[rank]
        own.load_state_dict(self.model.state_dict())
        mu = getattr(self.method, "mu", 0.0)
        first = [it.detach().clone() for it in own.parameters()]
        for batch in batches:
            optimizer.zero_grad()
            away = sum(
                (it - w0).square().sum() for it, w0 in zip(own.parameters(), first, strict=True)
            )
            (click(own, batch) + mu / 2 * away).backward()
            optimizer.step()

    def _touched(self, batches: Sequence[dp.Batch]) -> np.ndarray:
        """Which rows any of the batches has, [rows, 1]."""
        places = self.model.embedding.place
        touched = np.zeros((2 * NUM_IDS, 1))
        for batch, name in ((batch, name) for batch in batches for name in ("user", "item")):
            touched[batch.features[name].values.astype(int) + places[name]] = 1.0
        return touched

    def _moved(self, weight: np.ndarray, mean: np.ndarray, place: int, heard: Any) -> np.ndarray:
        method, (m, v) = self.method, self.state[place]
        step: Any = mean
        if isinstance(method, dp.FedAvgM):
            m = step = np.where(heard, method.momentum * m + mean, m)
        if isinstance(method, dp.FedAdam):
            (first, second) = method.betas
            m = np.where(heard, first * m + (1 - first) * mean, m)
            v = np.where(heard, second * v + (1 - second) * mean**2, v)
            step = m / (np.sqrt(v) + method.tau)
        self.state[place] = m, v
        return np.where(heard, weight + method.server_lr * step, weight)


def compare(
    method: Any, optimizer: Any, rounds: list[Rounds], num_servers: int, **config: Any
) -> None:
    """Train over servers and by hand: the same but for rounding."""
    model = Layers()
    plan = planned(model)
    theirs = Averaged(plain(model, dp.embedded(plan)), len(rounds), optimizer, method)
    for number in range(len(rounds[0])):
        theirs.round([own[number] for own in rounds])
    config = {"federation": method, **config}
    with servers(num_servers) as addresses:
        given = {"optimizer": optimizer}
        made = trained(addresses, plan, model, rounds, given=given, **config)
        with reading(transpiled(plan, addresses, **config)) as ps:
            for own in made.models:
                assert_same(own, ps, theirs.model, rtol=1e-11)


@pytest.mark.parametrize(("num_trainers", "num_servers"), [(1, 2), (2, 1), (3, 3)])
@pytest.mark.parametrize("method", METHODS)
def test_trainers_learn_as_models_of_plain_torch_averaged_by_hand(
    method: str, num_trainers: int, num_servers: int
) -> None:
    compare(METHODS[method], SGD, rounds_of(num_trainers), num_servers, **SPLIT)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("config", CONFIGS)
def test_any_optimizer_over_any_split(config: str, optimizer: str) -> None:
    whole = a_batch(ALL_IDS, ALL_IDS[::-1].copy())  # what moves all rows of a round moves all there
    rounds = [[[*own, whole] for own in trainer] for trainer in rounds_of(2)]
    compare(dp.FedAvg(), OPTIMIZERS[optimizer], rounds, 2, **CONFIGS[config])


@pytest.mark.parametrize("num_trainers", [1, 3])
def test_rounds_of_one_step_are_steps_on_the_joint_batch(num_trainers: int) -> None:
    model, rounds = Layers(), rounds_of(num_trainers, num_rounds=5, steps=1)
    plan = planned(model)
    theirs = plain(model, dp.embedded(plan))
    steps = joined([[batch for own in trainer for batch in own] for trainer in rounds])
    torch_rounds(theirs, [steps], SGD)
    config = {"federation": dp.FedAvg(), **SPLIT}
    with servers(2) as addresses:
        made = trained(addresses, plan, model, rounds, given={"optimizer": SGD}, **config)
        with reading(transpiled(plan, addresses, **config)) as ps:
            for own in made.models:
                assert_same(own, ps, theirs, rtol=1e-12)


@pytest.mark.parametrize("num_servers", [1, 2, 3])
def test_no_bit_depends_on_the_servers_or_on_how_variables_are_split(num_servers: int) -> None:
    model, rounds = Layers(dtype=torch.float32), rounds_of(2)
    plan, given = planned(model), {"optimizer": OPTIMIZERS["adagrad"]}
    method = dp.FedAdam(rows_over="touched")
    with servers() as addresses:
        one = trained(addresses, plan, model, rounds, given=given, federation=method, **WHOLE)
    for config in CONFIGS.values():
        with servers(num_servers, Jittery) as addresses:
            made = trained(addresses, plan, model, rounds, given=given, federation=method, **config)
        assert_same_bits(made, one)


def buy(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model.hidden(model.embedding(batch).flatten(1)).square().mean()


def test_each_loss_makes_a_step_of_its_own() -> None:
    model, (rounds,) = Layers(), rounds_of(1)
    plan = planned(model, [click, buy])
    theirs = plain(model, dp.embedded(plan))
    losses = torch_rounds(theirs, rounds, SGD, [click, buy])
    config = {"federation": dp.FedAvg()}
    with servers(2) as addresses:
        made = trained(addresses, plan, model, [rounds], given={"optimizer": SGD}, **config)
        with reading(transpiled(plan, addresses, **config)) as ps:
            assert_same(made.models[0], ps, theirs, rtol=1e-12)
    np.testing.assert_allclose(made.losses[0], losses, rtol=1e-12)


def test_a_trainer_without_a_batch_counts_for_nothing_and_may_leave() -> None:
    model, (rounds,) = Layers(), rounds_of(1)
    plan, config = planned(model), {"federation": dp.FedAvg(weighting="equal")}
    made = []
    cases: list[list[Rounds]] = [[], [[[], []]]]  # without any others, or with one of two rounds
    for others in cases:
        with servers(2) as addresses:
            given = {"optimizer": SGD}
            run = trained(addresses, plan, model, [rounds, *others], given=given, **config)
            made.append(run.tables)
    assert made[0] == made[1]


def test_an_update_goes_through_what_is_outgoing() -> None:
    model, (rounds,) = Layers(), rounds_of(1, num_rounds=1)
    plan, config = planned(model), {"federation": dp.FedAvg()}
    given = {"optimizer": SGD, "outgoing": [dp.ClipUpdate(0.01)]}
    own = dp.embedded(plan)
    with servers(2) as addresses:
        (learned,) = trained(addresses, plan, model, [rounds], given=given, **config).models
        with reading(transpiled(plan, addresses, **config)) as ps:
            rows = [
                it.pull("embedding", ALL_IDS, feature=name)
                for it in (own, ps)
                for name in ("user", "item")
            ]
    pairs = [*zip(model.parameters(), learned.parameters(), strict=True)]
    squares = sum((one - other).square().sum().item() for one, other in pairs)
    squares += sum(np.square(rows[place] - rows[place + 2]).sum() for place in range(2))
    np.testing.assert_allclose(squares**0.5, 0.01, rtol=1e-6)
