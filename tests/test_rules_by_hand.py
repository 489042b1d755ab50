"""Rules whose formulas torch does not have: two steps worked by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from downpour import rules
from downpour.accessor import EmbeddingAccessor
from downpour.errors import SettingError
from downpour.tables import DenseTable, SparseTable, sections_of

# One row of two weights, 1 and -2, pushed the gradients (0.6, -0.8) and (0.3, 0.4); worked by hand.
# Mean squares: 0.5, then 0.125. Moments of the two steps with b1 = 0.5, b2 = 0.75, so that the
# rates are lr * sqrt(1/4) / (1/2) = lr, then lr * sqrt(7/16) / (3/4).
# FTRL's weights after the first step, where z = (-5.4, 15.2), are 4.9 / 16 and -14.7 / 18.
ROOT_N = (math.sqrt(0.45), math.sqrt(0.8))
FTRL_Z = (-5.1 - (ROOT_N[0] - 0.6) * 10 * 4.9 / 16, 15.6 + (ROOT_N[1] - 0.8) * 10 * 14.7 / 18)
BY_HAND: dict[str, Any] = {
    "g2sum": (
        rules.G2SumAdagrad(0.1, initial_g2sum=3.0),
        [1 - 0.06 - 0.03 * math.sqrt(3 / 3.5), -2 + 0.08 - 0.04 * math.sqrt(3 / 3.5)],
        [0.625],
    ),
    "g2sum per element": (
        rules.G2SumAdagrad(0.1, initial_g2sum=3.0, per_element=True),
        [1 - 0.06 - 0.03 * math.sqrt(3 / 3.36), -2 + 0.08 - 0.04 * math.sqrt(3 / 3.64)],
        [0.45, 0.8],
    ),
    "row-wise": (
        rules.RowwiseAdagrad(0.1, eps=0.0),
        [
            1 - 0.06 / math.sqrt(0.5) - 0.03 / math.sqrt(0.625),
            -2 + 0.08 / math.sqrt(0.5) - 0.04 / math.sqrt(0.625),
        ],
        [0.625],
    ),
    "row adam": (
        rules.RowAdam(0.1, betas=(0.5, 0.75), eps=0.0),
        [
            1 - 0.1 * 0.3 / 0.3 - 0.1 * math.sqrt(7) / 3 * 0.3 / math.sqrt(0.09),
            -2 + 0.1 * 0.4 / 0.4 - 0.1 * math.sqrt(7) / 3 * 0.0 / math.sqrt(0.16),
        ],
        [0.3, 0.0, 0.09, 0.16, 0.125, 0.421875],
    ),
    "shared adam": (
        rules.SharedAdam(0.1, betas=(0.5, 0.75), eps=0.0),
        [
            1 - 0.1 * 0.3 / 0.3 - 0.1 * math.sqrt(7) / 3 * 0.125 / math.sqrt(0.11625),
            -2 + 0.1 * 0.4 / 0.4 - 0.1 * math.sqrt(7) / 3 * 0.175 / math.sqrt(0.13375),
        ],
        [0.15, 0.125, 0.125, 0.421875],
    ),
    "ftrl": (
        rules.Ftrl(0.1, l1=0.5),
        [(-0.5 - FTRL_Z[0]) / (10 + 10 * ROOT_N[0]), (0.5 - FTRL_Z[1]) / (10 + 10 * ROOT_N[1])],
        [*FTRL_Z, 0.45, 0.8],
    ),
    "momentum": (rules.Momentum(0.1, momentum=0.5), [1 - 0.06 - 0.06, -2 + 0.08], [0.6, 0.0]),
    "uncorrected adam": (
        rules.UncorrectedAdam(0.1, betas=(0.5, 0.75), tau=0.5),
        [
            1 - 0.03 / (math.sqrt(0.2775) + 0.5) - 0.03 / (math.sqrt(0.230625) + 0.5),
            -2 + 0.04 / (math.sqrt(0.3475) + 0.5),
        ],
        [0.3, 0.0, 0.230625, 0.300625],
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_equals_two_steps_worked_by_hand(name: str) -> None:
    rule, weights, state = BY_HAND[name]
    table = SparseTable("table", EmbeddingAccessor(dim=2, rule=rule, dtype="float64"))
    key = np.array([7], np.uint64)
    table.set(key, np.array([[1.0, -2.0]]))
    for step, grad in enumerate([[0.6, -0.8], [0.3, 0.4]], start=1):
        table.push(key, np.array([grad]), step=step, lr=rule.lr)
    np.testing.assert_allclose(table.pull(key)[0], weights, rtol=1e-12)
    np.testing.assert_allclose(table.export()[2][0], state, rtol=1e-12, atol=1e-15)


def test_summary_equals_two_steps_worked_by_hand() -> None:
    table = DenseTable("table", sections_of({"size": (2,)}), rules.Summary(0.5), "float64")
    table.set(np.array([1.0, -2.0]))
    for step, grad in enumerate([[0.6, -0.8], [0.3, 0.4]], start=1):
        table.push(np.array(grad), step=step, lr=1.0)
    np.testing.assert_allclose(table.pull(), [0.25 + 0.3 + 0.3, -0.5 - 0.4 + 0.4], rtol=1e-15)


def test_a_plain_sum_forgets_nothing() -> None:
    table = DenseTable("table", sections_of({"size": (1,)}), rules.Summary(1.0))
    for step in range(1, 1001):
        table.push(np.ones(1, np.float32), step=step, lr=1.0)
    assert table.pull().tolist() == [1000.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 0.0}, "Summary.decay must be a finite number > 0.0, got 0.0"),
        ({"decay": 1.5}, "Summary.decay must be at most 1, got 1.5"),
        ({"batch_l2": 0.1}, "Summary.batch_l2 must not be set, got 0.1"),
        ({"weight_decay": 0.1}, "Summary.weight_decay must not be set"),
        ({"schedule": abs}, "Summary.schedule must not be set"),
    ],
)
def test_settings_that_a_sum_has_no_use_for_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        rules.Summary(**settings)
