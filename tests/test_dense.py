"""Dense tables against torch's optimizers and the reference's formulas, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from downpour import rules
from downpour.errors import NonFiniteError, SettingError, TableError
from downpour.schedules import Cosine
from downpour.tables import DenseTable, Section, sections_of

SHAPES = {"layer.weight": (4, 3), "layer.bias": (4,), "scale": ()}
SECTIONS = sections_of(SHAPES)
SIZE = 17
NUM_STEPS = 200


def make_table(rule: Any, dtype: str = "float64") -> DenseTable:
    table = DenseTable("dense", SECTIONS, rule, dtype)
    table.set(np.random.default_rng(5).standard_normal(SIZE).astype(dtype))
    return table


def steps(seed: int) -> list[tuple[np.ndarray, list[str]]]:
    """Gradients, and the names that have one: the bias now and then has none."""
    rng = np.random.default_rng(seed)
    grads = rng.standard_normal((NUM_STEPS, SIZE))
    return [
        (grad, [name for name in SHAPES if name != "layer.bias" or rng.random() < 0.7])
        for grad in grads
    ]


def train(rule: Any, seed: int) -> DenseTable:
    table = make_table(rule)
    for step, (grad, names) in enumerate(steps(seed), start=1):
        table.push(grad, step=step, lr=rule.lr_at(step), names=names)
    return table


TORCH_TWINS: dict[str, Any] = {
    "sgd": (rules.SGD(0.1), torch.optim.SGD, {}),
    "sgd decay": (rules.SGD(0.1, weight_decay=0.3), torch.optim.SGD, {"weight_decay": 0.3}),
    "momentum": (rules.Momentum(0.1, momentum=0.8), torch.optim.SGD, {"momentum": 0.8}),
    "momentum l2": (
        rules.Momentum(0.01, batch_l2=0.3),
        torch.optim.SGD,
        {"momentum": 0.9, "weight_decay": 0.3},
    ),
    "adagrad": (
        rules.Adagrad(0.1, lr_decay=0.02, eps=1e-6),
        torch.optim.Adagrad,
        {"lr_decay": 0.02, "eps": 1e-6},
    ),
    "adam": (
        rules.Adam(0.01, betas=(0.8, 0.99), eps=1e-4),
        torch.optim.Adam,
        {"betas": (0.8, 0.99), "eps": 1e-4},
    ),
    "adam l2": (rules.Adam(0.01, batch_l2=0.1), torch.optim.Adam, {"weight_decay": 0.1}),
    "adamw": (rules.Adam(0.01, weight_decay=0.1), torch.optim.AdamW, {"weight_decay": 0.1}),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("schedule", [None, Cosine(steps=150, end=0.1)], ids=["constant", "cosine"])
@pytest.mark.parametrize("name", TORCH_TWINS)
def test_equals_torch(name: str, schedule: Any, seed: int) -> None:
    rule, optimizer_class, settings = TORCH_TWINS[name]
    rule = type(rule)(**{**vars(rule), "schedule": schedule})
    start = make_table(rule)
    parameters = {
        name: torch.nn.Parameter(torch.tensor(start.view(name).copy())) for name in SHAPES
    }
    optimizer = optimizer_class(parameters.values(), lr=rule.lr, **settings)
    for step, (grad, names) in enumerate(steps(seed), start=1):
        optimizer.param_groups[0]["lr"] = rule.lr_at(step)
        for section in SECTIONS:
            part = torch.tensor(grad[section.span]).reshape(section.shape)
            parameters[section.name].grad = part if section.name in names else None
        optimizer.step()
    table = train(rule, seed)
    for name, parameter in parameters.items():
        expected = parameter.detach().numpy()
        np.testing.assert_allclose(table.view(name), expected, rtol=1e-9, atol=1e-12)


def test_the_references_adam_is_torchs() -> None:
    # Paddle's dense adam: paddle/fluid/distributed/ps/table/depends/dense.h, 0d4f783a
    b1, b2, eps, lr = 0.9, 0.999, 1e-8, 0.01
    weights, m, v = make_table(rules.SGD(0.1)).pull(), np.zeros(SIZE), np.zeros(SIZE)
    power1, power2 = 1.0, 1.0
    table = make_table(rules.Adam(lr))
    for step, (g, _) in enumerate(steps(0), start=1):
        power1, power2 = power1 * b1, power2 * b2
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        rate = lr * math.sqrt(1 - power2) / (1 - power1)
        weights -= rate * m / (np.sqrt(v) + eps * math.sqrt(1 - power2))
        table.push(g, step=step, lr=lr)
    np.testing.assert_allclose(table.pull(), weights, rtol=1e-9)


def test_adam_d2sum_is_the_references() -> None:
    # DAdamD2Sum of the same file
    rule = rules.AdamD2Sum(1e-3)
    weights = make_table(rule).pull()
    d2, g2, momentum = np.zeros(SIZE), np.zeros(SIZE), np.zeros(SIZE)
    table = make_table(rule)
    for step, (g, _) in enumerate(steps(0), start=1):
        d2 = d2 * 0.9999 + 1
        g2 = g2 * 0.9999 + g**2
        momentum = (momentum + g) * 0.99 - g  # mom_decay * momentum - (1 - mom_decay) * g
        weights += 1e-3 * momentum * np.sqrt((d2 + d2 * 1e-8) / (g2 + d2 * 1e-8))
        table.push(g, step=step, lr=1e-3)
    np.testing.assert_allclose(table.pull(), weights, rtol=1e-9)


def test_adam_d2sum_worked_by_hand() -> None:
    # w = 1, g = 2, a = b = 1/2, eps = 1, lr = 1. Step 1: D 1, G 4, M -1, w - sqrt(2/5);
    # step 2: D 1.5, G 6, M -1.5, w - 1.5 sqrt(3/7.5).
    rule = rules.AdamD2Sum(1.0, ada_decay=0.5, mom_decay=0.5, eps=1.0)
    table = DenseTable("one", sections_of({"w": (1,)}), rule, "float64")
    table.set(np.ones(1))
    for step in (1, 2):
        table.push(np.array([2.0]), step=step, lr=1.0)
    np.testing.assert_allclose(table.pull(), 1 - 2.5 * math.sqrt(0.4), rtol=1e-15)
    np.testing.assert_allclose(table.export()[1]["w"], [1.5, 6.0, -1.5], rtol=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_summary_is_a_decayed_sum(dtype: str) -> None:
    # DSummary of the same file
    table = make_table(rules.Summary(0.75), dtype)
    expected = table.pull()
    for step, (g, _) in enumerate(steps(0), start=1):
        expected = np.dtype(dtype).type(0.75) * expected + g.astype(dtype)
        table.push(g.astype(dtype), step=step, lr=float(step))  # which it does not read
    np.testing.assert_array_equal(table.pull(), expected)
    assert table.num_bytes == expected.nbytes


def test_summary_leaves_what_nothing_was_pushed_for() -> None:
    table = make_table(rules.Summary(0.5))
    before = table.pull()
    table.push(np.zeros(SIZE), step=1, lr=1.0, names=["layer.bias"])
    np.testing.assert_array_equal(table.pull()[:12], before[:12])
    np.testing.assert_array_equal(table.view("layer.bias"), before[12:16] / 2)


def test_ftrl_on_dense_is_ftrl_on_rows() -> None:
    table = make_table(rules.Ftrl(0.1, l1=0.2))
    weight, state = table.pull(), np.zeros(2 * SIZE)
    grad = np.linspace(-1.0, 1.0, SIZE)
    whole = DenseTable("whole", sections_of({"all": (SIZE,)}), rules.Ftrl(0.1, l1=0.2), "float64")
    whole.set(weight)
    whole.push(grad, step=1, lr=0.1)
    rules.Ftrl.update(weight, state, grad, np.array(rules.Ftrl(0.1, l1=0.2).hyper(1, 0.1)))
    table.push(grad, step=1, lr=0.1)
    np.testing.assert_allclose(table.pull(), weight, rtol=1e-12)
    np.testing.assert_allclose(whole.pull(), weight, rtol=1e-12)


def test_export_and_restore_continue_the_same_run() -> None:
    first = train(rules.Adam(0.01), 0)
    weights, state, counts = first.export()
    second = DenseTable("dense", SECTIONS, rules.Adam(0.01), "float64")
    second.restore(weights, state, counts, step=first.step)
    for table in (first, second):
        table.push(np.ones(SIZE), step=201, lr=0.01)
    np.testing.assert_array_equal(first.pull(), second.pull())
    assert first.steps == second.steps
    assert counts["layer.bias"] < counts["scale"] == NUM_STEPS
    assert second.num_bytes == 3 * SIZE * 8


def test_views_are_read_only_and_follow() -> None:
    table = make_table(rules.SGD(1.0))
    view, before = table.view("layer.bias"), table.pull()
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1.0
    table.push(np.ones(SIZE), step=1, lr=1.0)
    np.testing.assert_allclose(view, before[12:16] - 1.0)
    out = np.empty(SIZE)
    assert table.pull(out) is out
    np.testing.assert_array_equal(out[12:16], view)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t.push(np.zeros(3), step=1, lr=0.1), TableError, r"float64 \[17\], got"),
        (lambda t: t.push(np.zeros(SIZE, "f4"), step=1, lr=0.1), TableError, "got float32"),
        (lambda t: t.push(np.zeros(SIZE), step=0, lr=0.1), TableError, "step counts from 1"),
        (lambda t: t.push(np.zeros(SIZE), step=1, lr=math.nan), TableError, "lr is finite"),
        (
            lambda t: t.push(np.zeros(SIZE), step=1, lr=0.1, names=["head"]),
            TableError,
            "no section 'head', it has: layer.weight",
        ),
        (
            lambda t: t.push(np.where(np.arange(SIZE) == 13, np.nan, 0), step=1, lr=0.1),
            NonFiniteError,
            "gradient of 'layer.bias' hold NaN",
        ),
        (lambda t: t.set(np.full(SIZE, np.inf)), NonFiniteError, "weights of 'layer.weight'"),
        (lambda t: t.restore(t.pull(), {}, {}, step=1), TableError, "state of 'layer.weight'"),
        (lambda t: t.view("head"), TableError, "no section 'head'"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(call: Any, error: Any, message: str) -> None:
    table = make_table(rules.Adagrad(0.1))
    before = table.export()
    with pytest.raises(error, match=message):
        call(table)
    np.testing.assert_array_equal(table.pull(), before[0])
    assert (table.step, table.steps) == (0, before[2])


def test_a_gradient_that_is_not_named_is_not_read() -> None:
    table = make_table(rules.SGD(0.1))
    before = table.pull()
    table.push(np.full(SIZE, np.nan), step=1, lr=0.1, names=[])
    np.testing.assert_array_equal(table.pull(), before)
    assert table.step == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DenseTable("d", SECTIONS, rules.RowwiseAdagrad(0.1)), "updates sparse tables"),
        (lambda: DenseTable("d", SECTIONS[1:], rules.SGD(0.1)), "must begin at 0, got 12"),
        (
            lambda: DenseTable("d", [Section("a", 0, 1, ()), Section("a", 1, 1, ())], rules.SGD(1)),
            "two sections have one name",
        ),
        (lambda: Section("a", 0, 5, (2, 2)), "size must be the product"),
    ],
)
def test_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()
