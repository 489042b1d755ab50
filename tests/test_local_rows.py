"""The rows of a client's rounds: which are taken, which travel, and what is kept of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import downpour as dp
from downpour.federated.local_optimizer import KeptState, NewRows
from tests.local_rounds import (
    RULES,
    double,
    keys_held,
    local_model,
    noted,
    rounds_of,
    torch_rounds,
    train_rounds,
    twins,
)
from tests.networks import Network, a_batch, assert_same, click, everything, planned, rows_of

BATCHES = rounds_of(1)[0]


def one_table(**settings: Any) -> tuple[Any, dp.Plan, dp.Client]:
    """Rows of two numbers, whose loss is their sum: a gradient of 1 for each time an id is read."""
    init = dp.Constant(1.0)
    model = dp.SparseEmbedding("user", 2, table="users", init=init, dtype=torch.float64)
    plan = planned(model, {"sum": summed}, users(1), **RULES, **settings)
    return model, plan, dp.embedded(plan)


def summed(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model(batch).sum()


def users(*ids: int) -> dp.Batch:
    return dp.Batch(features={"user": [*ids]})


def train(local: Any, *batches: dp.Batch, unread: tuple[dp.Batch, ...] = ()) -> None:
    local.recv([*batches, *unread])
    for batch in batches:
        local.step("sum", batch)
    local.send()


def first_of(ps: dp.Client, *ids: int) -> list[float]:
    return [round(value, 10) for value in ps.pull("users", [*ids])[:, 0].tolist()]


def test_state_of_rows_goes_on_where_a_key_comes_again() -> None:
    model, plan, ps = one_table()
    make = partial(torch.optim.SGD, lr=1.0, momentum=0.5)
    local = local_model(model, plan, ps, optimizer=make)
    train(local, users(5))  # velocity 1
    train(local, users(7))  # 7 is new; 5 is not here, and stays as it is
    assert first_of(ps, 5, 7) == [0.0, 0.0]
    train(local, users(5, 7, 9))  # of 5 and 7: 0.5 * 1 + 1; of 9, which is new: 1
    assert first_of(ps, 5, 7, 9) == [-1.5, -1.5, 0.0]


def test_a_count_of_steps_goes_on_for_all_rows_of_a_table() -> None:
    model, plan, ps = one_table()
    local = local_model(model, plan, ps, optimizer=partial(torch.optim.Adam, lr=0.1, eps=0.0))
    train(local, users(5))
    train(local, users(7))
    # One gradient, at step 2: m is 0.1 / (1 - 0.9^2), and v 0.001 / (1 - 0.999^2).
    second = 1.0 - 0.1 * (0.1 / 0.19) / (0.001 / 0.001999) ** 0.5
    assert first_of(ps, 5, 7) == [0.9, round(second, 10)]


def test_a_fresh_optimizer_knows_nothing_of_earlier_rounds() -> None:
    model, plan, ps = one_table()
    make, method = (
        partial(torch.optim.SGD, lr=1.0, momentum=0.5),
        dp.FedAvg(optimizer_state="fresh"),
    )
    local = local_model(model, plan, ps, optimizer=make, method=method)
    for _ in range(3):
        train(local, users(5))
    assert first_of(ps, 5) == [-2.0]


def test_state_that_is_not_of_the_weights_shape_is_kept_by_row_or_whole() -> None:
    """Adafactor has a number a row, [n, 1], and one a column, [1, dim]."""
    model, rounds = double(), rounds_of(3, with_all_ids=True)
    plan, ps, theirs = twins(model)
    make = partial(torch.optim.Adafactor, lr=0.1)
    train_rounds(local_model(model, plan, ps, optimizer=make), rounds)
    torch_rounds(theirs, rounds, make)
    assert_same(model, ps, theirs, rtol=1e-9)
    apart, plan, ps = one_table()
    local = local_model(apart, plan, ps, optimizer=make)
    for batch in (users(5), users(5, 7), users(9)):
        train(local, batch)
    assert all(value < 1.0 for value in first_of(ps, 5, 7, 9))


@given(rounds=st.lists(st.dictionaries(st.integers(0, 9), st.integers(-9, 9)), max_size=6))
def test_kept_state_is_that_of_each_keys_last_round(rounds: list[dict[int, int]]) -> None:
    kept, expected = KeptState(NewRows({"sum": torch.tensor([0.25, 0.25])})), dict[int, float]()
    for number, values in enumerate(rounds):
        keys = np.array(sorted(values), np.uint64)
        own = torch.tensor([[float(values[int(key)])] * 2 for key in keys]).reshape(-1, 2)
        state = {"sum": own, "square": own**2, "step": number}
        kept.take(keys, own, state)
        expected |= values
    given = kept.give(np.arange(12, dtype=np.uint64), torch.device("cpu"))
    if not rounds:
        assert not given
        return
    sums = [expected.get(key, 0.25) for key in range(12)]
    assert given["sum"][:, 1].tolist() == sums
    squares = [expected.get(key, 0.0) ** 2 for key in range(12)]  # nobody said what is new
    assert given["square"][:, 0].tolist() == squares
    assert given["step"] == len(rounds) - 1


def test_rows_travel_that_a_step_has_read_whether_they_changed_or_not() -> None:
    model, plan, ps = one_table()
    sent: list[Any] = []
    make = partial(torch.optim.SGD, lr=0.0)
    local = local_model(model, plan, ps, optimizer=make, outgoing=[noted(sent)])
    train(local, users(5, 7, 5), unread=(users(8),))
    ((keys, change),) = (update.rows["users"] for update in sent)
    assert len(keys) == keys_held(ps, "users") == 2
    assert not change.any()


def test_rows_that_no_step_has_read_do_not_travel_though_weight_decay_moved_them() -> None:
    model, plan, ps = one_table()
    make = partial(torch.optim.SGD, lr=0.25, weight_decay=1.0)
    local = local_model(model, plan, ps, optimizer=make)
    train(local, users(5), unread=(users(5, 8),))
    assert first_of(ps, 5, 8) == [0.5, 1.0]
    assert keys_held(ps, "users") == 1
    train(local, users(5), users(8))  # a row that is read in the second step decays in the first
    assert first_of(ps, 8) == [0.3125]


def test_what_is_not_sent_is_forgotten() -> None:
    model, plan, ps = one_table()
    before = everything(ps)
    local = local_model(model, plan, ps)
    local.recv([users(5)])
    local.step("sum", users(5))
    local.recv([users(5)])
    assert local.samples == 0
    local.send()
    assert everything(ps) == before


def test_dense_parameters_are_taken_anew_in_each_round() -> None:
    model = double()
    plan, ps, _ = twins(model)
    local = local_model(model, plan, ps)
    with torch.no_grad():
        model.out.weight.fill_(3.0)
    local.recv(BATCHES)
    flat = ps.pull_dense("dense.click")
    assert sorted(flat) == sorted([*model.out.weight.flatten().tolist(), *model.out.bias.tolist()])
    local.step("click", BATCHES[0])
    assert np.array_equal(ps.pull_dense("dense.click"), flat)
    local.send()
    assert not np.array_equal(ps.pull_dense("dense.click"), flat)


def test_parameters_that_no_program_has_trained_are_not_sent() -> None:
    model = double()
    plan, ps, _ = twins(model)
    local = local_model(model, plan, ps)
    local.recv(BATCHES)
    assert local.send() == 1.0
    assert ps.steps == {"embedding": 0, "dense.click": 0}


def test_a_round_counts_its_samples_once_and_sums_the_losses_of_each_program() -> None:
    model = Network()
    plan = planned(model, {"click": click, "again": click}, **RULES)
    local = local_model(model, plan, dp.embedded(plan))
    local.recv(BATCHES)
    losses = [local.step(program, it).loss * it.size for it in BATCHES for program in plan.programs]
    assert local.samples == sum(batch.size for batch in BATCHES)
    assert local.losses == {
        "click": pytest.approx(sum(losses[::2])),
        "again": pytest.approx(sum(losses[1::2])),
    }


def test_rows_of_no_grad_are_read_and_do_not_move() -> None:
    model = double()
    plan = dp.DownpourSGD(**RULES).minimize(
        click, model=model, example=a_batch(), no_grad_set=["embedding", "out.bias"]
    )
    ps = dp.embedded(plan)
    before, bias = rows_of(ps, "embedding", ["user", "item"]), model.out.bias.clone()
    weight = model.out.weight.clone()
    make = partial(torch.optim.SGD, lr=0.5, momentum=0.9, weight_decay=0.1)
    train_rounds(local_model(model, plan, ps, optimizer=make), [BATCHES] * 2)
    assert np.array_equal(rows_of(ps, "embedding", ["user", "item"]), before)
    assert keys_held(ps) == 0
    assert torch.equal(model.out.bias, bias)
    assert not torch.equal(model.out.weight, weight)


def test_a_step_trains_nothing_that_another_losss_list_has_alone() -> None:
    model = double()
    lists = {"click": ["out.weight"], "again": ["out.weight", "out.bias"]}
    plan = dp.DownpourSGD(**RULES).minimize(
        {"click": click, "again": click}, model=model, example=a_batch(), parameter_list=lists
    )
    local = local_model(model, plan, dp.embedded(plan))
    local.recv(BATCHES)
    bias = model.out.bias.clone()
    local.step("click", BATCHES[0])
    assert torch.equal(model.out.bias, bias)
    local.step("again", BATCHES[0])
    assert not torch.equal(model.out.bias, bias)


def detached(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model.users(batch).square().mean() + model.items(batch).square().mean()


class Sides(torch.nn.Module):
    """Users and items of one table, by modules of their own."""

    def __init__(self) -> None:
        super().__init__()
        settings: dict[str, Any] = {"table": "rows", "init": dp.Constant(1.0)}
        self.users = dp.SparseEmbedding("user", 2, **settings)
        self.items = dp.SparseEmbedding("item", 2, **settings)


def test_outputs_of_detached_modules_train_nothing() -> None:
    model = Sides()
    plan = dp.DownpourSGD(**RULES).minimize(
        detached, model=model, example=a_batch(), no_grad_set=["items"]
    )
    ps = dp.embedded(plan)
    train_rounds(local_model(model, plan, ps), [BATCHES])
    ids = np.unique(np.concatenate([it.features["item"].values for it in BATCHES]))
    assert (ps.pull("rows", ids, feature="item") == 1.0).all()
    users = np.unique(np.concatenate([it.features["user"].values for it in BATCHES]))
    assert (ps.pull("rows", users, feature="user") < 1.0).all()
    assert keys_held(ps, "rows") == len(users)


def test_between_steps_the_model_sees_the_rounds_rows_and_the_tables_others() -> None:
    model, plan, ps = one_table()
    local = local_model(model, plan, ps)
    seen = users(5, 6)
    local.recv([users(5)])
    local.step("sum", users(5))
    with torch.inference_mode():
        np.testing.assert_allclose(model(seen)[:, 0, 0], [0.7, 1.0])
    ps.set("users", [5], np.full((1, 2), 4.0))
    np.testing.assert_allclose(model(seen).detach()[:, 0, 0], [0.7, 1.0])
    local.recv([])
    np.testing.assert_allclose(model(seen).detach()[:, 0, 0], [4.0, 1.0])
    assert keys_held(ps, "users") == 1


def test_ids_of_a_rounds_batches_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = double()
    plan, ps, _ = twins(model)
    local = local_model(model, plan, ps)
    local.recv([*BATCHES, *BATCHES])
    monkeypatch.delattr("downpour.federated.local_lookups.table_keys")
    for batch in [*BATCHES, *BATCHES]:
        local.step("click", batch)


def test_a_batch_that_was_not_given_may_be_stepped_if_its_ids_were() -> None:
    model, plan, ps = one_table()
    local = local_model(model, plan, ps)
    local.recv([users(5, 6, 7)])
    local.step("sum", users(7, 5, 7))
    local.send()
    np.testing.assert_allclose(first_of(ps, 5, 7, 6), [0.7, 0.4, 1.0])
    assert keys_held(ps, "users") == 2
