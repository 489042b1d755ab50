"""A CTR row worked by hand: score, growth, scale, bounds.

After Paddle's ctr_accessor.cc (a883f87f) and sparse_sgd_rule.cc (0610216b): lr 0.1, G0 3, score =
0.1 (show - click) + click, an embedx from 1 on.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from downpour.accessor import CtrAccessor, EmbeddingAccessor
from downpour.init import Uniform
from downpour.rules import G2SumAdagrad
from downpour.tables import CtrTable, SparseTable

RULE = G2SumAdagrad(0.1, initial_g2sum=3.0)
KEY = np.array([7], np.uint64)


def make_table(**kwargs: Any) -> CtrTable:
    settings = {"embedx_threshold": 1.0, "dtype": "float64", **kwargs}
    return CtrTable("table", CtrAccessor(embedx_dim=2, rule=RULE, **settings))


def first_embedx() -> np.ndarray:
    """That of the key, for which a plain table of the right name stands in."""
    plain = EmbeddingAccessor(dim=2, rule=RULE, init=Uniform(1e-4), dtype="float64")
    return SparseTable("table/embedx", plain).pull(KEY)[0]


def push(table: CtrTable, *numbers: float) -> None:
    """Slot, show, click, places and gradients."""
    table.push(KEY, np.array([numbers], np.float64), step=table.step + 1, lr=0.1)


def statistics_of(table: CtrTable) -> Any:
    return table.export()[3][0].item()


def test_a_new_row_is_zero_and_has_no_embedx() -> None:
    table = make_table()
    np.testing.assert_array_equal(table.pull(KEY), np.zeros((1, 5)))
    assert statistics_of(table) == (0.0, 0.0, 0.0, 0, -1, False)
    assert (len(table), table.stats().embedx_rows) == (1, 0)


def test_three_pushes_worked_by_hand() -> None:
    table = make_table()
    push(table, 4, 2, 0, 2, 0.6, 1, 1)  # score 0.2; h = 0.3, of w alone
    np.testing.assert_allclose(table.pull(KEY), [[2, 0, -0.03, 0, 0]], rtol=1e-12)
    assert statistics_of(table) == (2.0, 0.0, pytest.approx(0.2), 0, 4, False)
    push(table, 5, 1, 1, 1, 0.5, 1, 1)  # score 0.2 + 1: an embedx, which this push does not train
    w = -0.03 - 0.1 * 0.5 * math.sqrt(3 / 3.09)
    embedx = first_embedx()
    np.testing.assert_allclose(table.pull(KEY), [[3, 1, w, *embedx]], rtol=1e-12)
    assert statistics_of(table) == (3.0, 1.0, pytest.approx(0.2 + 1.0), 0, 5, True)
    push(table, 5, 2, 0, 2, 0, 0.6, -0.8)  # h = (0.3, -0.4)
    np.testing.assert_allclose(table.pull(KEY)[0, 3:], embedx - [0.03, -0.04], rtol=1e-12)
    np.testing.assert_allclose(table.export()[2], [[0.09 + 0.25, 0.125]], rtol=1e-12)


def test_a_push_without_places_is_not_divided() -> None:
    table = make_table()
    push(table, 0, 2, 0, 0, 0.5, 0, 0)
    np.testing.assert_allclose(table.pull(KEY)[0, 2], -0.05, rtol=1e-12)
    assert statistics_of(table)[4] == 0


def test_another_programs_push_is_scaled_but_not_counted() -> None:
    table = make_table()
    push(table, 4, 2, 0, 2, 0.6, 0, 0)
    before = statistics_of(table)
    push(table, -1, 0, 0, 4, 2.0, 0, 0)
    assert statistics_of(table) == before
    w = -0.03 - 0.1 * 0.5 * math.sqrt(3 / 3.09)
    np.testing.assert_allclose(table.pull(KEY)[0, 2], w, rtol=1e-12)


def test_an_id_is_divided_by_its_places_and_counted_by_its_show() -> None:
    table = make_table(embedx_threshold=0.0)
    push(table, 4, 0, 0, 1, 0, 0, 0)
    push(table, 4, 1, 1, 3, 0.9, 0.9, -1.2)  # one of three features counts: h = 0.3, (0.3, -0.4)
    row = [1, 1, -0.03, *(first_embedx() - [0.03, -0.04])]
    np.testing.assert_allclose(table.pull(KEY), [row], rtol=1e-12)
    assert statistics_of(table)[:3] == (1.0, 1.0, 1.0)


def test_pushes_of_one_key_add_their_shows_and_their_places() -> None:
    table, keys = make_table(), np.repeat(KEY, 2)
    pushes = np.array([[4, 1, 1, 1, 0.5, 0, 0], [5, 0, 0, 2, 0.4, 0, 0]], np.float64)
    table.push(keys, pushes, step=1, lr=0.1)
    np.testing.assert_allclose(table.pull(KEY)[0, :3], [1, 1, -0.03], rtol=1e-12)
    assert statistics_of(table) == (1.0, 1.0, 1.0, 0, 5, True)


@pytest.mark.parametrize("show", [0, 1])
def test_a_push_makes_the_row_seen(show: int) -> None:
    table, aged = make_table(), make_table()
    push(table, 4, 2, 0, 2, 0.6, 0, 0)
    keys, weights, state, statistics = table.export()
    statistics["unseen_days"] = 9
    aged.restore(keys, weights, state, statistics, step=1)
    push(aged, 4, show, 0, 1, 0.0, 0, 0)
    assert statistics_of(aged)[3] == 0


def test_bounds_hold_after_each_part() -> None:
    table = make_table(embedx_threshold=0.0, bounds=(-0.5, 0.25), embedx_bounds=(-2.0, 1.0))
    push(table, 0, 1, 0, 1, 0, 0, 0)
    push(table, 0, 1, 0, 1, 99, 99, -99)
    np.testing.assert_array_equal(table.pull(KEY), [[2, 0, -0.5, -2.0, 1.0]])
