"""Federated methods: frozen values, what they refuse, and how servers step by their rules."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import downpour as dp
from downpour.accessor import EmbeddingAccessor
from downpour.tables import DenseTable, SparseTable, sections_of

METHODS: dict[str, Any] = {
    "FedAvg": dp.FedAvg,
    "FedProx": dp.FedProx,
    "FedAvgM": dp.FedAvgM,
    "FedAdam": dp.FedAdam,
}
KEYS = np.array([7, 9], np.uint64)
NUMBERS = st.floats(-1e3, 1e3, width=32)


def stepped(
    method: dp.FedAvg, weights: Any, updates: Any, dtype: str = "float64"
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [2, 2] of rows and of a dense table after mean updates [rounds, 2, 2]."""
    rule = method.rule
    start = np.array(weights, dtype)
    rows = SparseTable("rows", EmbeddingAccessor(dim=2, rule=rule, dtype=dtype))
    rows.set(KEYS, start)
    block = DenseTable("block", sections_of({"w": (2, 2)}), rule, dtype)
    block.set(start.ravel())
    for number, update in enumerate(np.array(updates, dtype), start=1):
        rows.push(KEYS, -update, step=number, lr=rule.lr_at(number))
        block.push(-update.ravel(), step=number, lr=rule.lr_at(number))
    return rows.pull(KEYS), block.view("w")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_frozen(name: str) -> None:
    method = METHODS[name]()
    with pytest.raises(FrozenInstanceError):
        method.server_lr = 0.5


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_equal_by_value(name: str) -> None:
    of = METHODS[name]
    assert of() == of(local_epochs=1, weighting="samples", rows_over="all", optimizer_state="kept")
    assert hash(of(local_steps=3)) == hash(of(local_steps=3))
    assert of() != of(server_lr=0.5)
    assert of() != of(local_epochs=2)
    assert [kind for kind, other in METHODS.items() if other() == of()] == [name]


@pytest.mark.parametrize("name", METHODS)
def test_a_round_is_one_epoch_unless_it_is_said(name: str) -> None:
    of = METHODS[name]
    assert (of().local_steps, of().local_epochs) == (None, 1)
    assert (of(local_steps=5).local_steps, of(local_steps=5).local_epochs) == (5, None)
    assert (of(local_epochs=3).local_steps, of(local_epochs=3).local_epochs) == (None, 3)


@pytest.mark.parametrize("name", METHODS)
def test_steps_and_epochs_exclude_each_other(name: str) -> None:
    with pytest.raises(
        dp.SettingError,
        match=rf"^{name}: a round has local_steps or local_epochs, got 5 and 1; give one, or None",
    ):
        METHODS[name](local_steps=5, local_epochs=1)


def test_a_method_with_other_settings_is_made_of_one() -> None:
    method = dp.FedAdam(local_steps=5, tau=0.1)
    assert replace(method, server_lr=0.5) == dp.FedAdam(local_steps=5, tau=0.1, server_lr=0.5)
    assert replace(dp.FedAvg(), local_steps=5, local_epochs=None) == dp.FedAvg(local_steps=5)
    with pytest.raises(dp.SettingError, match="got 5 and 1; give one, or None for the other"):
        replace(dp.FedAvg(), local_steps=5)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("local_steps", 0, "must be an int >= 1, got 0"),
        ("local_steps", 2.0, "must be an int >= 1, got 2.0"),
        ("local_epochs", -1, "must be an int >= 1, got -1"),
        ("local_epochs", True, "must be an int >= 1, got True"),
        ("weighting", "rows", "must be one of samples, equal, got 'rows'"),
        ("weighting", None, "must be one of samples, equal, got None"),
        ("rows_over", "some", "must be one of all, touched, got 'some'"),
        ("optimizer_state", ["kept"], "must be one of kept, fresh, got ['kept']"),
        ("server_lr", 0.0, "must be a finite number > 0, got 0.0"),
        ("server_lr", math.inf, "must be a finite number > 0, got inf"),
        ("server_lr", "1", "must be a finite number > 0, got '1'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", METHODS)
def test_a_setting_that_all_have_is_refused_by_the_methods_name(
    name: str, setting: str, value: Any, message: str
) -> None:
    with pytest.raises(dp.SettingError) as caught:
        METHODS[name](**{setting: value})
    assert str(caught.value) == f"{name}.{setting} {message}"


BETAS = "must be a tuple of two numbers in [0, 1), as (0.9, 0.99), got"


@pytest.mark.parametrize(
    ("of", "setting", "value", "message"),
    [
        (dp.FedProx, "mu", -0.1, "must be a finite number >= 0, got -0.1"),
        (dp.FedProx, "mu", math.nan, "must be a finite number >= 0, got nan"),
        (dp.FedAvgM, "momentum", 1.0, "must be a number in [0, 1), got 1.0"),
        (dp.FedAvgM, "momentum", -0.5, "must be a number in [0, 1), got -0.5"),
        (dp.FedAvgM, "momentum", None, "must be a number in [0, 1), got None"),
        (dp.FedAdam, "betas", (0.9, 1.0), f"{BETAS} (0.9, 1.0)"),
        (dp.FedAdam, "betas", (0.9,), f"{BETAS} (0.9,)"),
        (dp.FedAdam, "betas", [0.9, 0.99], f"{BETAS} [0.9, 0.99]"),
        (dp.FedAdam, "betas", 0.9, f"{BETAS} 0.9"),
        (dp.FedAdam, "tau", 0.0, "must be a finite number > 0, got 0.0"),
        (dp.FedAdam, "tau", True, "must be a finite number > 0, got True"),
    ],
)
def test_a_setting_of_a_method_is_refused_by_its_name(
    of: Any, setting: str, value: Any, message: str
) -> None:
    with pytest.raises(dp.SettingError) as caught:
        of(**{setting: value})
    assert str(caught.value) == f"{of.__name__}.{setting} {message}"


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        (dp.FedAvg(), dp.SGD(1.0)),
        (dp.FedAvg(server_lr=0.5), dp.SGD(0.5)),
        (dp.FedProx(mu=0.1), dp.SGD(1.0)),
        (dp.FedAvgM(), dp.Momentum(1.0, momentum=0.9)),
        (dp.FedAvgM(server_lr=0.5, momentum=0.0), dp.Momentum(0.5, momentum=0.0)),
        (dp.FedAdam(), dp.UncorrectedAdam(0.01, betas=(0.9, 0.99), tau=1e-3)),
        (
            dp.FedAdam(server_lr=0.1, betas=(0.0, 0.5), tau=0.1),
            dp.UncorrectedAdam(0.1, betas=(0.0, 0.5), tau=0.1),
        ),
    ],
    ids=repr,
)
def test_servers_step_by_the_rule_of_a_method(method: dp.FedAvg, rule: Any) -> None:
    assert method.rule == rule
    assert method.rule.on_sparse
    assert method.rule.on_dense


def test_only_fedprox_has_a_proximal_term() -> None:
    assert [of().proximal for of in METHODS.values()] == [0.0, 0.01, 0.0, 0.0]
    assert dp.FedProx(mu=0).proximal == 0.0
    assert dp.FedProx(mu=2.5).proximal == 2.5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(numbers=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=4, max_size=4))
def test_plain_averaging_adds_the_mean_update_to_the_bit(
    dtype: str, numbers: list[tuple[float, float]]
) -> None:
    weights, update = np.array(numbers, dtype).T.reshape(2, 2, 2)
    for moved in stepped(dp.FedAvg(), weights, [update], dtype):
        assert moved.tobytes() == (weights + update).tobytes()


def test_a_server_lr_makes_a_part_of_the_mean_change() -> None:
    weights, updates = [[1.0, -2.0], [0.5, 4.0]], [[[2.0, 4.0], [0.0, -1.0]]]
    for moved in stepped(dp.FedAvg(server_lr=0.5), weights, updates):
        assert moved.tolist() == [[2.0, 0.0], [0.5, 3.5]]


def test_momentum_goes_on_in_the_direction_of_the_updates() -> None:
    updates = [[[1.0, -2.0], [0.0, 4.0]], [[0.0, 2.0], [0.0, -2.0]], [[0.0, 0.0], [1.0, 0.0]]]
    for moved in stepped(dp.FedAvgM(momentum=0.5), np.zeros((2, 2)), updates):
        # the steps of the first element are 1, 1/2, 1/4
        assert moved.tolist() == [[1.75, -0.5], [1.0, 4.0]]


def test_adam_steps_along_the_updates_as_its_docstring_says() -> None:
    method = dp.FedAdam(server_lr=0.1, betas=(0.5, 0.75), tau=0.5)
    updates = np.random.default_rng(0).standard_normal((5, 2, 2))
    weights, m, v = np.ones((2, 2)), np.zeros((2, 2)), np.full((2, 2), 0.25)
    for update in updates:
        m = 0.5 * m + 0.5 * update
        v = 0.75 * v + 0.25 * update**2
        weights = weights + 0.1 * m / (np.sqrt(v) + 0.5)
    for moved in stepped(method, np.ones((2, 2)), updates):
        np.testing.assert_allclose(moved, weights, rtol=1e-12)
