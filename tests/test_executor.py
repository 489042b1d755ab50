"""Trainers that run transpiled programs learn as one process of plain torch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import downpour as dp
from tests.devices import any_device
from tests.networks import NUM_IDS, assert_same, click, planned, random_batches, weights_of
from tests.servers import Jittery, assert_close, assert_same_bits, held, joined, servers
from tests.torch_rules import RULES
from tests.transpiled_runs import (
    HASHED,
    SPLIT,
    WHOLE,
    Layers,
    reading,
    run_steps,
    torch_trained,
    trained,
    transpiled,
)

device = any_device  # a fixture
CONFIGS = {"whole": WHOLE, "split": SPLIT, "hashed": HASHED}
IDS = np.arange(NUM_IDS)


@pytest.fixture(autouse=True)
def quiet_sparse_checks() -> None:
    # torch warns where it is left open whether sparse tensors are checked.
    torch.sparse.check_sparse_tensor_invariants.disable()


def shares_of(num_trainers: int, num_batches: int = 5) -> list[list[dp.Batch]]:
    """The batches of each trainer, of 2 to 7 samples."""
    return [random_batches(rank, num_batches) for rank in range(num_trainers)]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("num_trainers", "num_servers"), [(1, 3), (2, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize("rule", RULES)
def test_trainers_learn_as_plain_torch_on_their_joint_batches(
    rule: str, num_trainers: int, num_servers: int, config: str
) -> None:
    model, shares = Layers(), shares_of(num_trainers)
    plan = planned(model, **RULES[rule][0])
    theirs = torch_trained(model, plan, rule, joined(shares))
    with servers(num_servers) as addresses:
        made = trained(addresses, plan, model, shares, **CONFIGS[config])
        with reading(transpiled(plan, addresses, **CONFIGS[config])) as ps:
            for own in made.models:
                assert_same(own, ps, theirs, rtol=1e-12)


@pytest.mark.parametrize("num_servers", [1, 2, 3])
def test_no_bit_depends_on_the_servers_or_on_how_variables_are_split(num_servers: int) -> None:
    model, shares = Layers(dtype=torch.float32), shares_of(2)
    plan = planned(model, **RULES["adam"][0])
    with servers() as addresses:
        one = trained(addresses, plan, model, shares, **WHOLE)
    for config in CONFIGS.values():
        with servers(num_servers, Jittery) as addresses:
            assert_same_bits(trained(addresses, plan, model, shares, **config), one)


def test_a_trainer_with_fewer_batches_leaves_and_the_others_go_on() -> None:
    model, shares = Layers(), [random_batches(0, 2), random_batches(1, 5)]
    plan = planned(model, **RULES["adagrad"][0])
    theirs = torch_trained(model, plan, "adagrad", joined(shares))
    with servers(2) as addresses:
        made = trained(addresses, plan, model, shares)
        with reading(transpiled(plan, addresses)) as ps:
            assert_same(made.models[0], ps, theirs, rtol=1e-12)
            assert ps.steps == {"embedding": 5, "dense.click": 5}


# Several losses.


def buy(model: Any, batch: dp.Batch) -> torch.Tensor:
    """It reaches the table, the hidden layer, and not the last one."""
    return model.hidden(model.embedding(batch).flatten(1)).square().mean()


@pytest.mark.parametrize("sync_mode", [True, False], ids=["sync", "async"])
@pytest.mark.parametrize("rule", RULES)
def test_losses_make_one_step_by_the_sum_of_their_gradients(rule: str, sync_mode: bool) -> None:
    model, shares = Layers(), shares_of(2 if sync_mode else 1)
    plan = planned(model, [click, buy], **RULES[rule][0])
    theirs = torch_trained(model, plan, rule, joined(shares), [click, buy])
    with servers(2) as addresses:
        made = trained(addresses, plan, model, shares, sync_mode=sync_mode, **SPLIT)
        with reading(transpiled(plan, addresses, **SPLIT)) as ps:
            for own in made.models:
                assert_same(own, ps, theirs, rtol=1e-12)
            assert {*ps.steps.values()} == {5}


def test_a_model_on_another_device_learns_the_same(device: torch.device) -> None:
    model, (share,), tables = Layers(), shares_of(1), []
    plan = planned(model, [click, buy], **RULES["adam"][0])
    for where in (torch.device("cpu"), device):
        with servers(2) as addresses:
            made = transpiled(plan, addresses)
            with dp.Executor(made, copy.deepcopy(model).to(where)) as executor:
                executor.run(made.trainer_startup)
                run_steps(executor, share)
            with reading(made) as ps:
                tables.append(held(ps))
    assert_close(tables[1], tables[0], rtol=1e-12)


def test_one_program_of_a_plan_trains_its_loss_alone() -> None:
    model, (share,) = Layers(), shares_of(1)
    plan = planned(model, [click, buy], **RULES["adam"][0])
    theirs = torch_trained(model, plan, "adam", share, [buy])
    with servers(2) as addresses:
        made = transpiled(plan.programs["buy"], addresses, plan=plan)
        trained(addresses, made.plan, model, [share])
        with reading(made) as ps:
            hidden = ps.pull_dense("dense.click")
    expected = torch.cat([theirs.hidden.bias, theirs.hidden.weight.flatten()]).detach()
    np.testing.assert_allclose(hidden, expected, rtol=1e-12)


# Async.


@pytest.mark.parametrize("rule", RULES)
def test_an_async_trainer_alone_learns_as_plain_torch(rule: str) -> None:
    model, (share,) = Layers(), shares_of(1)
    plan = planned(model, **RULES[rule][0])
    theirs = torch_trained(model, plan, rule, share)
    with servers(2, Jittery) as addresses:
        made = trained(addresses, plan, model, [share], sync_mode=False, **SPLIT)
        with reading(transpiled(plan, addresses, **SPLIT)) as ps:
            assert_same(made.models[0], ps, theirs, rtol=1e-12)


def linear(model: Any, batch: dp.Batch) -> torch.Tensor:
    """Its gradients are whole numbers, and the same whatever the weights are."""
    return model.embedding(batch).sum() + batch.size * sum(it.sum() for it in model.parameters())


@pytest.mark.parametrize("num_servers", [1, 3])
def test_each_push_of_async_trainers_is_applied_once(num_servers: int) -> None:
    model, shares = Layers(init=dp.Constant(0.0)), shares_of(3, 20)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    plan = planned(model, {"linear": linear}, sparse=dp.SGD(1.0), dense=dp.SGD(1.0))
    with servers(num_servers, Jittery) as addresses:
        made = trained(addresses, plan, model, shares, sync_mode=False, **SPLIT)
        with reading(transpiled(plan, addresses, **SPLIT)) as ps:
            assert ps.steps == {"embedding": 60, "dense.linear": 60}
            rows = ps.pull("embedding", IDS, feature="item")
    every = [batch for share in shares for batch in share]
    size = sum(batch.size for batch in every)
    assert all((it == -size).all() for it in weights_of(made.models[0]).values())
    places = np.concatenate([batch.features["item"].values for batch in every])
    np.testing.assert_array_equal(
        rows, -np.bincount(places.astype(int), minlength=NUM_IDS)[:, None] * np.ones(4)
    )


# What goes wrong.


def fragile(model: Any, batch: dp.Batch) -> torch.Tensor:
    return click(model, batch) * (torch.nan if batch.label.max() > 1 else 1.0)


def shares_that_fail(num_trainers: int) -> list[list[dp.Batch]]:
    """The third batch of the last trainer makes its loss NaN."""
    shares = shares_of(num_trainers)
    failing = shares[-1][2]
    shares[-1][2] = dp.Batch(features=failing.features, labels=np.full(failing.size, 2.0))
    return shares


def test_a_loss_that_is_not_finite_is_not_applied_and_stops_the_others() -> None:
    model, shares = Layers(), shares_that_fail(2)
    plan = planned(model, {"buy": buy, "fragile": fragile}, **RULES["sgd"][0])
    expected = torch_trained(model, plan, "sgd", joined(shares)[:2], [buy, click])
    with servers(2) as addresses:
        with pytest.raises(ExceptionGroup) as raised:
            trained(addresses, plan, model, shares)
        with reading(transpiled(plan, addresses)) as ps:
            assert {*ps.steps.values()} == {2}
            dp.Worker(plan, model, ps).pull_dense()
            assert_same(model, ps, expected, rtol=1e-12)
    stopped, failed = raised.value.exceptions
    assert isinstance(failed, dp.NonFiniteError)
    assert isinstance(stopped, dp.WorkerLostError)
    assert "worker 1 failed at step 2, and the run stops: NonFiniteError" in str(stopped)


def test_where_a_loss_is_not_finite_no_other_has_pushed() -> None:
    model, shares = Layers(), shares_that_fail(1)
    plan = planned(model, {"buy": buy, "fragile": fragile}, **RULES["sgd"][0])
    with servers(2) as addresses:
        with pytest.raises(ExceptionGroup) as raised:
            trained(addresses, plan, model, shares, sync_mode=False)
        assert isinstance(raised.value.exceptions[0], dp.NonFiniteError)
        with reading(transpiled(plan, addresses)) as ps:
            assert {*ps.steps.values()} == {2}
