"""The rules that servers of federated training step by, on rows and on dense tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import downpour as dp
from downpour import rules
from downpour.accessor import EmbeddingAccessor
from downpour.init import Uniform
from downpour.plan.plan import Plan
from downpour.plan.sections import moves_by_element
from downpour.schedules import Linear
from downpour.tables import DenseTable, SparseTable, sections_of
from tests.plans import ctr_table, dense_table, plain_table, small_plan

NUM_ROWS, DIM, NUM_STEPS = 6, 3, 12
KEYS = np.arange(NUM_ROWS, dtype=np.uint64)
BOTH: dict[str, Any] = {
    "momentum": rules.Momentum(0.1),
    "momentum settings": rules.Momentum(
        0.3, momentum=0.0, schedule=Linear(steps=9), weight_decay=0.1, batch_l2=0.2
    ),
    "uncorrected adam": rules.UncorrectedAdam(0.1),
    "uncorrected adam settings": rules.UncorrectedAdam(
        0.3, betas=(0.0, 0.5), tau=1 / 3, schedule=Linear(steps=9), weight_decay=0.1, batch_l2=0.2
    ),
}


def rows_of(rule: Any, dtype: str = "float64") -> SparseTable:
    accessor = EmbeddingAccessor(dim=DIM, rule=rule, init=Uniform(0.5), dtype=dtype)
    return SparseTable("rows", accessor, seed=3)


def block_of(rule: Any, weights: np.ndarray) -> DenseTable:
    sections = sections_of({"w": weights.shape})
    block = DenseTable("block", sections, rule, str(weights.dtype))
    block.set(weights.ravel())
    return block


def gradients(dtype: str = "float64") -> np.ndarray:
    """Of each step, [steps, rows, dim]; some are 0."""
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((NUM_STEPS, NUM_ROWS, DIM))
    return np.where(rng.random(grads.shape) < 0.2, 0.0, grads).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", BOTH)
def test_rows_that_are_all_pushed_move_as_a_dense_table(name: str, dtype: str) -> None:
    rule = BOTH[name]
    rows = rows_of(rule, dtype)
    block = block_of(rule, rows.pull(KEYS))
    for step, grads in enumerate(gradients(dtype), start=1):
        rows.push(KEYS, grads, step=step, lr=rule.lr_at(step))
        block.push(grads.ravel(), step=step, lr=rule.lr_at(step))
    rtol = 1e-5 if dtype == "float32" else 1e-12  # rows decay when they are next read
    np.testing.assert_allclose(rows.pull(KEYS), block.view("w"), rtol=rtol, atol=rtol / 10)


def test_momentum_of_rows_that_are_all_pushed_is_torchs() -> None:
    rows = rows_of(rules.Momentum(0.1, momentum=0.7))
    weight = torch.nn.Parameter(torch.tensor(rows.pull(KEYS)))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.7)
    for step, grads in enumerate(gradients(), start=1):
        weight.grad = torch.tensor(grads)
        optimizer.step()
        rows.push(KEYS, grads, step=step, lr=0.1)
    np.testing.assert_allclose(rows.pull(KEYS), weight.detach().numpy(), rtol=1e-12)


def test_momentum_of_a_dense_table_stays_torchs_to_the_bit() -> None:
    weights = np.linspace(-2.0, 2.0, NUM_ROWS * DIM, dtype=np.float32).reshape(NUM_ROWS, DIM)
    block = block_of(rules.Momentum(0.125, momentum=0.5), weights)  # products are exact
    weight = torch.nn.Parameter(torch.tensor(weights))
    optimizer = torch.optim.SGD([weight], lr=0.125, momentum=0.5)
    for step, grads in enumerate(gradients("float32"), start=1):
        weight.grad = torch.tensor(grads)
        optimizer.step()
        block.push(grads.ravel(), step=step, lr=0.125)
    assert np.array_equal(block.view("w"), weight.detach().numpy())


def test_without_momentum_it_is_plain_descent_to_the_bit() -> None:
    rows, plain = rows_of(rules.Momentum(0.3, momentum=0.0)), rows_of(rules.SGD(0.3))
    for step, grads in enumerate(gradients(), start=1):
        for table in (rows, plain):
            table.push(KEYS, grads, step=step, lr=0.3)
    assert np.array_equal(rows.pull(KEYS), plain.pull(KEYS))


@pytest.mark.parametrize("rule", [BOTH["momentum"], BOTH["uncorrected adam"]], ids=repr)
def test_a_row_moves_by_its_own_pushes_alone(rule: Any) -> None:
    often, alone = rows_of(rule), rows_of(rule)
    mine, others = KEYS[:1], KEYS[1:]
    for step, grads in enumerate(gradients(), start=1):
        often.push(others, grads[1:], step=step, lr=0.1)
        if step % 5 == 1:  # the steps between change neither the row nor its state
            often.push(mine, grads[:1], step=step, lr=0.1)
            alone.push(mine, grads[:1], step=1 + step // 5, lr=0.1)
    assert np.array_equal(often.pull(mine), alone.pull(mine))
    assert np.array_equal(often.export()[2][0], alone.export()[2][0])


@pytest.mark.parametrize("rule", [BOTH["momentum"], BOTH["uncorrected adam"]], ids=repr)
def test_no_step_is_counted(rule: Any) -> None:
    early, late = (block_of(rule, np.ones((NUM_ROWS, DIM))) for _ in range(2))
    for step, grads in enumerate(gradients(), start=1):
        early.push(grads.ravel(), step=step, lr=0.1)
        late.push(grads.ravel(), step=1000 * step, lr=0.1)
    assert np.array_equal(early.pull(), late.pull())


def test_algorithm_2_of_the_paper() -> None:
    # FedAdam of Reddi et al. 2021: Delta is the mean update, which servers take for -gradient.
    b1, b2, eta, tau = 0.8, 0.95, 0.2, 0.05
    x = np.linspace(-1.0, 1.0, NUM_ROWS * DIM).reshape(NUM_ROWS, DIM)
    m, v = np.zeros_like(x), np.full_like(x, tau**2)
    block = block_of(rules.UncorrectedAdam(eta, betas=(b1, b2), tau=tau), x)
    for step, delta in enumerate(gradients(), start=1):
        m = b1 * m + (1 - b1) * delta
        v = b2 * v + (1 - b2) * delta**2
        x = x + eta * m / (np.sqrt(v) + tau)
        block.push(-delta.ravel(), step=step, lr=eta)
    np.testing.assert_allclose(block.view("w"), x, rtol=1e-12)
    state = np.concatenate([-m.ravel(), v.ravel()])
    np.testing.assert_allclose(block.export()[1]["w"], state, rtol=1e-12, atol=1e-15)


def test_v_of_a_new_row_is_tau_squared_and_m_is_0() -> None:
    rows = rows_of(rules.UncorrectedAdam(0.1, tau=0.5))
    before = rows.pull(KEYS)
    assert rows.export()[2].tolist() == [[0.0] * DIM + [0.25] * DIM] * NUM_ROWS
    rows.push(KEYS, np.zeros((NUM_ROWS, DIM)), step=1, lr=0.1)
    assert np.array_equal(rows.pull(KEYS), before)


@given(
    grads=st.lists(st.floats(-100.0, 100.0, width=32), min_size=1, max_size=30),
    b1=st.sampled_from([0.0, 0.5, 0.9]),
    b2=st.sampled_from([0.0, 0.9, 0.99]),
)
def test_a_step_is_never_longer_than_tau_allows(grads: list[float], b1: float, b2: float) -> None:
    rule = rules.UncorrectedAdam(0.1, betas=(b1, b2), tau=0.25)
    weight, state = np.zeros(1), rule.initial_state(1)
    hyper = np.array(rule.hyper(1, rule.lr))
    for grad in grads:
        before = weight[0]
        rule.update(weight, state, np.array([grad]), hyper)
        assert abs(weight[0] - before) <= 0.1 * np.max(np.abs(grads)) / 0.25 + 1e-12
    assert state[1] >= 0.0


@pytest.mark.parametrize("name", BOTH)
def test_a_large_parameter_may_be_split_over_servers(name: str) -> None:
    assert moves_by_element(BOTH[name])


@pytest.mark.parametrize("name", BOTH)
def test_a_plan_with_the_rule_is_described_and_read_back(name: str) -> None:
    rule = BOTH[name]
    plan = small_plan(plain_table(rule=rule), dense=(dense_table(rule=rule),))
    text = str(plan.fleet_desc())
    assert Plan.from_fleet_desc(text) == plan
    assert Plan.from_fleet_desc(plan.fleet_desc()) == plan
    assert text.count(f'type: "{type(rule).__name__}"') == 2


@pytest.mark.parametrize("name", ["momentum", "uncorrected adam"])
def test_rows_that_count_are_described_and_read_back(name: str) -> None:
    plan = small_plan(ctr_table(rule=BOTH[name], embedx_rule=BOTH[name]))
    assert Plan.from_fleet_desc(str(plan.fleet_desc())) == plan


@pytest.mark.parametrize(
    ("of", "settings", "message"),
    [
        (dp.Momentum, {"momentum": 1.0}, r"Momentum.momentum must .* >= 0.0 and < 1.0, got 1.0"),
        (dp.Momentum, {"momentum": -0.1}, r"Momentum.momentum must be .*, got -0.1"),
        (dp.Momentum, {"momentum": "x"}, r"Momentum.momentum must be a finite number .*, got 'x'"),
        (dp.Momentum, {"lr": 0.0}, r"Momentum.lr must be a finite number > 0.0, got 0.0"),
        (dp.Momentum, {"weight_decay": 10.0}, r"Momentum: lr \* weight_decay must be < 1"),
        (dp.UncorrectedAdam, {"tau": 0.0}, r"Adam.tau must be a finite number > 0.0, got 0.0"),
        (dp.UncorrectedAdam, {"tau": math.inf}, r"Adam.tau must be a finite number .*, got inf"),
        (dp.UncorrectedAdam, {"betas": (1.0, 0.9)}, r"Adam.betas\[0\] must be .*, got 1.0"),
        (dp.UncorrectedAdam, {"betas": (0.9, -1)}, r"Adam.betas\[1\] must be .*, got -1"),
        (dp.UncorrectedAdam, {"betas": (0.9,)}, r"UncorrectedAdam.betas must be two numbers, as"),
        (dp.Adam, {"betas": 0.9}, r"Adam.betas must be two numbers, as \(0.9, 0.99\), got 0.9"),
    ],
)
def test_settings_are_refused(of: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(dp.SettingError, match=message):
        of(**{"lr": 0.1, **settings})
