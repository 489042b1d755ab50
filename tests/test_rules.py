"""Rules on sparse tables against torch's optimizers and against their formulas, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch

from downpour import rules
from downpour.accessor import EmbeddingAccessor
from downpour.errors import SettingError
from downpour.init import Uniform
from downpour.schedules import Cosine, Warmup
from downpour.tables import SparseTable
from downpour.tables.rows import clamp

NUM_KEYS, DIM, NUM_STEPS = 60, 5, 200
ALL_KEYS = np.arange(NUM_KEYS, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
SCHEDULE = Warmup(steps=20, start=0.1, after=Cosine(steps=150, end=0.05))


def make_table(rule: Any, dtype: str = "float64", **kwargs: Any) -> SparseTable:
    accessor = EmbeddingAccessor(dim=DIM, rule=rule, init=Uniform(0.5), dtype=dtype, **kwargs)
    return SparseTable("table", accessor, seed=3)


def batches(seed: int, dtype: str = "float64") -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and gradients a step: some ids twice, some never, some steps without any."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 30, NUM_STEPS)
    return [
        (rng.integers(0, NUM_KEYS - 5, n), rng.standard_normal((n, DIM)).astype(dtype))
        for n in sizes
    ]


def train(table: SparseTable, seed: int) -> np.ndarray:
    rule = table.accessor.rule
    for step, (ids, grads) in enumerate(batches(seed, table.accessor.dtype), start=1):
        table.push(ALL_KEYS[ids], grads, step=step, lr=rule.lr_at(step))
    return table.pull(ALL_KEYS, create=False)


def train_torch(initial: np.ndarray, rule: Any, make: Any, *, sparse: bool, seed: int) -> Any:
    weight = torch.nn.Parameter(torch.tensor(initial))
    optimizer = make([weight])
    with torch.sparse.check_sparse_tensor_invariants(False):
        for step, (ids, grads) in enumerate(batches(seed), start=1):
            optimizer.param_groups[0]["lr"] = rule.lr_at(step)
            places, values = torch.tensor(ids[None]), torch.tensor(grads)
            grad = torch.sparse_coo_tensor(places, values, initial.shape)
            weight.grad = grad.coalesce() if sparse else grad.to_dense()
            optimizer.step()
    return weight.detach().numpy()


TORCH_TWINS: dict[str, Any] = {
    "sgd": (rules.SGD(0.1), lambda p: torch.optim.SGD(p, lr=0.1), True),
    "sgd decay": (
        rules.SGD(0.1, weight_decay=0.3),
        lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.3),
        False,
    ),
    "adagrad": (
        rules.Adagrad(0.1, lr_decay=0.01, initial_accumulator_value=0.2, eps=1e-6),
        lambda p: torch.optim.Adagrad(
            p, lr=0.1, lr_decay=0.01, initial_accumulator_value=0.2, eps=1e-6
        ),
        True,
    ),
    "sparse adam": (
        rules.Adam(0.01, betas=(0.8, 0.99), eps=1e-6),
        lambda p: torch.optim.SparseAdam(p, lr=0.01, betas=(0.8, 0.99), eps=1e-6),
        True,
    ),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("schedule", [None, SCHEDULE], ids=["constant", "scheduled"])
@pytest.mark.parametrize("name", TORCH_TWINS)
def test_equals_torch(name: str, schedule: Any, seed: int) -> None:
    rule, make, sparse = TORCH_TWINS[name]
    rule = type(rule)(**{**vars(rule), "schedule": schedule})
    table = make_table(rule)
    expected = train_torch(make_table(rule).pull(ALL_KEYS), rule, make, sparse=sparse, seed=seed)
    np.testing.assert_allclose(train(table, seed), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TORCH_TWINS)
def test_float32_stays_near_float64(name: str) -> None:
    rule, _, _ = TORCH_TWINS[name]
    narrow, wide = train(make_table(rule, "float32"), 0), train(make_table(rule), 0)
    np.testing.assert_allclose(narrow, wide, rtol=1e-3, atol=1e-4)


def formula_rows(rule: Any, step_of: Any) -> np.ndarray:
    """Every row moved by vectorised numpy, gradients summed by id."""
    weights = make_table(rule).pull(ALL_KEYS)
    states: dict[int, dict[str, Any]] = {i: {} for i in range(NUM_KEYS)}
    for ids, grads in batches(0):
        for i in np.unique(ids):
            grad = np.zeros(DIM)
            for g in grads[ids == i]:
                grad += g
            weights[i] = step_of(weights[i], states[i], grad)
    return weights


# The formulas as their sources have them. g2sum, per element, row and shared Adam: the Sparse- and
# StdAdaGradSGDRule, Sparse- and SparseSharedAdamSGDRule of Paddle at scale 1
# (paddle/fluid/distributed/ps/table/sparse_sgd_rule.cc, 0610216b). Row-wise Adagrad: fbgemm_gpu's
# EXACT_ROWWISE_ADAGRAD. FTRL-proximal: McMahan et al. 2013, algorithm 1. Uncorrected Adam: Reddi et
# al. 2021, algorithm 2, where Delta is minus the gradient.


def g2sum_step(w: np.ndarray, s: dict[str, Any], g: np.ndarray) -> Any:
    total = s.get("g2", 0.0)
    s["g2"] = total + np.mean(g**2)
    return w - 0.05 * g * math.sqrt(3.0 / (3.0 + total))


def g2sum_element_step(w: np.ndarray, s: dict[str, Any], g: np.ndarray) -> Any:
    total = s.get("g2", np.zeros(DIM))
    s["g2"] = total + g**2
    return w - 0.05 * g * np.sqrt(3.0 / (3.0 + total))


def rowwise_step(w: np.ndarray, s: dict[str, Any], g: np.ndarray) -> Any:
    s["sum"] = s.get("sum", 0.5) + np.mean(g**2)
    return w - 0.1 * g / (math.sqrt(s["sum"]) + 1e-10)


def row_adam_step(w: np.ndarray, s: dict[str, Any], g: np.ndarray) -> Any:
    b1, b2 = 0.9, 0.999
    s["t"] = s.get("t", 0) + 1
    s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g**2
    rate = 0.01 * math.sqrt(1 - b2 ** s["t"]) / (1 - b1 ** s["t"])
    return w - rate * s["m"] / (np.sqrt(s["v"]) + 1e-8)


def shared_adam_step(w: np.ndarray, s: dict[str, Any], g: np.ndarray) -> Any:
    b1, b2 = 0.9, 0.999
    s["t"] = s.get("t", 0) + 1
    m = b1 * s.get("m", 0.0) + (1 - b1) * g
    v = b2 * s.get("v", 0.0) + (1 - b2) * g**2
    s["m"], s["v"] = m.mean(), v.mean()
    rate = 0.01 * math.sqrt(1 - b2 ** s["t"]) / (1 - b1 ** s["t"])
    return w - rate * m / (np.sqrt(v) + 1e-8)


def ftrl_step(w: np.ndarray, s: dict[str, Any], g: np.ndarray) -> Any:
    alpha, l1, l2, beta = 0.1, 0.3, 0.1, 1.0
    n = s.get("n", np.zeros(DIM))
    sigma = (np.sqrt(n + g**2) - np.sqrt(n)) / alpha
    z = s.get("z", np.zeros(DIM)) + g - sigma * w
    s["n"], s["z"] = n + g**2, z
    moved = (np.sign(z) * l1 - z) / ((beta + np.sqrt(s["n"])) / alpha + l2)
    return np.where(np.abs(z) <= l1, 0.0, moved)


def momentum_step(w: np.ndarray, s: dict[str, Any], g: np.ndarray) -> Any:
    s["v"] = 0.8 * s.get("v", 0.0) + g
    return w - 0.1 * s["v"]


def uncorrected_adam_step(w: np.ndarray, s: dict[str, Any], g: np.ndarray) -> Any:
    b1, b2, tau = 0.9, 0.99, 0.01
    s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", tau**2) + (1 - b2) * g**2
    return w - 0.05 * s["m"] / (np.sqrt(s["v"]) + tau)


FORMULAS: dict[str, Any] = {
    "g2sum": (rules.G2SumAdagrad(), g2sum_step),
    "g2sum per element": (rules.G2SumAdagrad(per_element=True), g2sum_element_step),
    "row-wise": (rules.RowwiseAdagrad(0.1, initial_accumulator_value=0.5), rowwise_step),
    "row adam": (rules.RowAdam(0.01), row_adam_step),
    "shared adam": (rules.SharedAdam(0.01), shared_adam_step),
    "ftrl": (rules.Ftrl(0.1, l1=0.3, l2=0.1), ftrl_step),
    "momentum": (rules.Momentum(0.1, momentum=0.8), momentum_step),
    "uncorrected adam": (rules.UncorrectedAdam(0.05, tau=0.01), uncorrected_adam_step),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_equals_formula(name: str) -> None:
    rule, step_of = FORMULAS[name]
    rows = train(make_table(rule), 0)
    np.testing.assert_allclose(rows, formula_rows(rule, step_of), rtol=1e-9, atol=1e-12)


def test_ftrl_l1_makes_weights_zero() -> None:
    rows = train(make_table(rules.Ftrl(0.1, l1=8.0)), 0)
    touched = rows[: NUM_KEYS - 5]
    assert 0.1 < np.mean(touched == 0.0) < 1.0


DECAYING: dict[str, Any] = {
    "sgd": rules.SGD(0.1, weight_decay=0.2, schedule=SCHEDULE),
    "adagrad": rules.Adagrad(0.1, weight_decay=0.2, schedule=SCHEDULE),
    "row-wise": rules.RowwiseAdagrad(0.1, weight_decay=0.2, schedule=SCHEDULE),
    "adam": rules.Adam(0.01, weight_decay=2.0, schedule=SCHEDULE),
    "row adam": rules.RowAdam(0.01, weight_decay=2.0, schedule=SCHEDULE),
    "momentum": rules.Momentum(0.1, weight_decay=0.2, schedule=SCHEDULE),
    "uncorrected adam": rules.UncorrectedAdam(0.01, weight_decay=2.0, schedule=SCHEDULE),
}


@pytest.mark.parametrize("name", DECAYING)
def test_lazy_decay_equals_a_table_swept_each_step(name: str) -> None:
    rule = DECAYING[name]
    lazy, swept = make_table(rule), make_table(type(rule)(**{**vars(rule), "weight_decay": 0.0}))
    swept.pull(ALL_KEYS)
    for step, (ids, grads) in enumerate(batches(0), start=1):
        lr = rule.lr_at(step)
        keys, weights, state = swept.export()
        swept.set(keys, weights * (1.0 - lr * rule.weight_decay), state)
        for table in (lazy, swept):
            table.push(ALL_KEYS[ids], grads, step=step, lr=lr)
    expected = swept.pull(ALL_KEYS)
    np.testing.assert_allclose(lazy.pull(ALL_KEYS, create=False), expected, rtol=1e-9)
    np.testing.assert_allclose(lazy.pull(ALL_KEYS), expected, rtol=1e-9)


def test_steps_without_keys_and_steps_passed_over_decay_too() -> None:
    table = make_table(rules.SGD(0.1, weight_decay=0.5))
    before = table.pull(ALL_KEYS)
    table.push(ALL_KEYS[:0], np.empty((0, DIM)), step=1, lr=0.1)
    table.push(ALL_KEYS[:0], np.empty((0, DIM)), step=4, lr=0.1)
    table.push(ALL_KEYS[:0], np.empty((0, DIM)), step=3, lr=0.1)
    np.testing.assert_allclose(table.pull(ALL_KEYS), before * 0.95**4, rtol=1e-12)


def test_batch_l2_penalises_pushed_rows_alone() -> None:
    table, plain = make_table(rules.Adagrad(0.1, batch_l2=0.5)), make_table(rules.Adagrad(0.1))
    before = table.pull(ALL_KEYS)
    grads = np.ones((3, DIM))
    table.push(ALL_KEYS[:3], grads, step=1, lr=0.1)
    plain.push(ALL_KEYS[:3], grads + 0.5 * before[:3], step=1, lr=0.1)
    np.testing.assert_array_equal(table.pull(ALL_KEYS), plain.pull(ALL_KEYS))


def test_bounds_clamp_new_rows() -> None:
    free, bound = make_table(rules.SGD(1.0)), make_table(rules.SGD(1.0), bounds=(-0.25, 0.125))
    expected = np.clip(free.pull(ALL_KEYS), -0.25, 0.125)
    assert np.any(expected == 0.125)
    np.testing.assert_array_equal(bound.pull(ALL_KEYS, create=False), expected)
    np.testing.assert_array_equal(bound.pull(ALL_KEYS), expected)


def test_a_weight_that_is_not_a_number_becomes_the_lower_bound() -> None:
    weights = np.array([np.nan, -9.0, -0.5, 0.25, np.inf])
    clamp(weights, -0.5, 2.0)
    np.testing.assert_array_equal(weights, [-0.5, -0.5, -0.5, 0.25, 2.0])


def test_bounds_clamp_after_the_update() -> None:
    table = make_table(rules.SGD(1.0), bounds=(-0.25, 0.75))
    grads = np.full((2, DIM), 9.0) * [[1.0], [-1.0]]
    table.push(ALL_KEYS[:2], grads, step=1, lr=1.0)
    np.testing.assert_array_equal(table.pull(ALL_KEYS[:2]), [[-0.25] * DIM, [0.75] * DIM])


def sign_sgd(weight: Any, state: Any, grad: Any, hyper: Any) -> None:
    for i in range(weight.size):
        weight[i] -= hyper[0] * np.sign(grad[i])


@dataclass(frozen=True, kw_only=True)
class SignSGD(rules.BaseRule):
    update = staticmethod(sign_sgd)


def test_a_new_rule_is_its_equation() -> None:
    table = make_table(SignSGD(0.125), "float32")
    before = table.pull(ALL_KEYS)
    grads = np.random.default_rng(0).standard_normal((NUM_KEYS, DIM)).astype(np.float32)
    table.push(ALL_KEYS, grads, step=1, lr=0.125)
    np.testing.assert_allclose(table.pull(ALL_KEYS), before - 0.125 * np.sign(grads), atol=1e-7)


SPARSE_RULES: dict[str, Any] = {name: twin[0] for name, twin in {**TORCH_TWINS, **FORMULAS}.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SPARSE_RULES)
def test_compiled_update_equals_the_plain_function(name: str, dtype: str) -> None:
    rule = SPARSE_RULES[name]
    table = make_table(rule, dtype)
    grads = np.random.default_rng(1).standard_normal((3, DIM)).astype(dtype)
    weight = table.pull(ALL_KEYS[:1])[0]
    state = rule.initial_state(DIM).astype(dtype)
    decay = np.dtype(dtype).type(1.0 - rule.lr * rule.weight_decay)
    for step, grad in enumerate(grads, start=1):
        table.push(ALL_KEYS[:1], grad[None], step=step, lr=rule.lr)
        weight *= decay
        rule.update(weight, state, grad, np.array(rule.hyper(step, rule.lr), dtype))
    rtol = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(table.pull(ALL_KEYS[:1])[0], weight, rtol=rtol)
    np.testing.assert_allclose(table.export()[2][0], state, rtol=rtol)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rules.SGD(0.0), r"SGD.lr must be a finite number > 0.0, got 0.0"),
        (lambda: rules.SGD(math.nan), "SGD.lr"),
        (lambda: rules.SGD(cast("float", "fast")), "SGD.lr .* got 'fast'"),
        (lambda: rules.SGD(1.0, weight_decay=1.0), "lr \\* weight_decay must be < 1"),
        (lambda: rules.Adagrad(0.1, eps=-1.0), "Adagrad.eps .* >= 0.0, got -1.0"),
        (lambda: rules.Adam(0.1, betas=(0.9, 1.0)), r"Adam.betas\[1\] .* < 1.0, got 1.0"),
        (lambda: rules.G2SumAdagrad(initial_g2sum=0.0), "G2SumAdagrad.initial_g2sum"),
        (lambda: rules.Ftrl(0.1, weight_decay=0.1), "Ftrl.weight_decay must be 0"),
        (lambda: rules.AdamD2Sum(ada_decay=1.0), "AdamD2Sum.ada_decay"),
        (lambda: make_table(rules.AdamD2Sum()), "AdamD2Sum updates dense tables only"),
        (lambda: rules.SGD(0.1, schedule=lambda step: -1.0).lr_at(1), "SGD.schedule gave"),
        (lambda: make_table(rules.SGD(0.1), bounds=(1.0, 0.0)), "bounds must be finite"),
        (
            lambda: make_table(rules.SGD(0.1, weight_decay=0.1), bounds=(1.0, 2.0)),
            "bounds must hold 0",
        ),
        (lambda: EmbeddingAccessor(dim=0, rule=rules.SGD(0.1)), "dim must be an int >= 1, got 0"),
        (lambda: make_table(rules.SGD(0.1), "float16"), "dtype must be one of float32, float64"),
    ],
)
def test_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()


def test_rules_are_values() -> None:
    assert rules.Adagrad(0.1) == rules.Adagrad(0.1, eps=1e-10)
    assert hash(rules.SGD(0.1, schedule=SCHEDULE)) == hash(rules.SGD(0.1, schedule=SCHEDULE))
    assert repr(rules.RowAdam(0.1)).startswith("RowAdam(lr=0.1")
