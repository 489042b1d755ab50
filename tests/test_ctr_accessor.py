"""The accessor of CTR rows: its defaults, what it refuses, and where a row's parts are."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from downpour import rules
from downpour.accessor import CtrAccessor, EmbeddingAccessor, Lifecycle
from downpour.errors import SettingError
from downpour.init import Constant, Uniform

RULE = rules.G2SumAdagrad(0.1)


def test_defaults_are_the_references() -> None:
    accessor = CtrAccessor()
    assert (accessor.init, accessor.embedx_init) == (Constant(0.0), Uniform(1e-4))
    assert accessor.bounds == accessor.embedx_bounds == (-10.0, 10.0)
    assert (accessor.nonclk_coeff, accessor.click_coeff) == (0.1, 1.0)
    assert accessor.embedx_threshold == 10.0
    assert (accessor.show_scale, accessor.slots) == (True, True)
    assert accessor.lifecycle == Lifecycle(show_click_decay_rate=0.98, delete_threshold=0.8)


def test_embedx_has_the_rule_and_bounds_of_w_unless_given() -> None:
    accessor = CtrAccessor(embedx_dim=2, rule=RULE, bounds=(-1.0, 1.0))
    assert accessor.rules == (RULE, RULE)
    assert accessor.embedx_bounds == (-1.0, 1.0)
    other = replace(accessor, embedx_rule=rules.SGD(0.1), embedx_bounds=(0.0, 2.0))
    assert other.rules == (RULE, rules.SGD(0.1))
    assert (other.bounds, other.embedx_bounds) == ((-1.0, 1.0), (0.0, 2.0))
    assert CtrAccessor(rule=RULE, bounds=None).embedx_bounds is None


def test_a_rule_and_a_width_may_be_given_later() -> None:
    planned = replace(CtrAccessor(), rule=RULE, embedx_dim=8)
    assert planned == CtrAccessor(rule=RULE, embedx_dim=8)
    assert (planned.dim, planned.pull_dim, planned.push_dim) == (9, 11, 13)
    assert hash(planned) == hash(CtrAccessor(rule=RULE, embedx_dim=8))


@pytest.mark.parametrize(
    ("show", "click", "score"), [(0, 0, 0.0), (10, 0, 1.0), (10, 4, 4.6), (3, 3, 3.0)]
)
def test_score(show: float, click: float, score: float) -> None:
    # ShowClickScore of Paddle's ctr_accessor.cc, a883f87f
    assert CtrAccessor().score(show, click) == pytest.approx(score)
    doubled = CtrAccessor(nonclk_coeff=0.2, click_coeff=2.0)
    assert doubled.score(show, click) == pytest.approx(2 * score)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layout(dtype: str) -> None:
    accessor = CtrAccessor(
        embedx_dim=3, rule=rules.SharedAdam(0.1), embedx_rule=rules.RowAdam(0.1), dtype=dtype
    )
    item = 4 if dtype == "float32" else 8
    short, embedx = accessor.layout, accessor.embedx_layout
    assert (short.weight_offset, short.weight_bytes) == (40, item)
    assert (short.state_offset, short.state_dim) == (40 + item, 4)
    assert short.num_bytes == (64 if dtype == "float32" else 80)
    assert (embedx.weight_offset, embedx.weight_bytes) == (0, 3 * item)
    assert (embedx.state_offset, embedx.state_dim) == (3 * item, 8)
    assert embedx.num_bytes == (48 if dtype == "float32" else 88)  # 44, in whole words
    assert (short.decay_offset, embedx.decay_offset) == (-1, -1)
    assert accessor.state_dim == 12


def test_a_row_that_clicks_once_takes_48_bytes() -> None:
    assert CtrAccessor(embedx_dim=16, rule=RULE).layout.num_bytes == 48


@pytest.mark.parametrize("accessor", [EmbeddingAccessor, CtrAccessor])
@pytest.mark.parametrize("rule", [rules.Summary(), rules.AdamD2Sum()])
def test_rules_of_dense_tables_are_refused(accessor: Any, rule: Any) -> None:
    width = {"dim": 2} if accessor is EmbeddingAccessor else {"embedx_dim": 2}
    message = f"{type(rule).__name__} updates dense tables only"
    with pytest.raises(SettingError, match=message):
        accessor(rule=rule, **width)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedx_dim": 0}, "CtrAccessor.embedx_dim must be an int >= 1 or None, got 0"),
        ({"embedx_dim": True}, "embedx_dim must be an int >= 1 or None, got True"),
        ({"dtype": "float16"}, "CtrAccessor.dtype must be one of float32, float64"),
        ({"embedx_rule": rules.Summary()}, "Summary updates dense tables only"),
        ({"rule": rules.SGD(0.1, weight_decay=0.1)}, "take neither weight_decay nor batch_l2"),
        ({"embedx_rule": rules.SGD(0.1, batch_l2=0.1)}, "take neither weight_decay nor batch_l2"),
        ({"bounds": (1.0, 0.0)}, "CtrAccessor.bounds must be finite"),
        ({"embedx_bounds": (0.0, math.inf)}, "CtrAccessor.embedx_bounds must be finite"),
        ({"embedx_threshold": -1.0}, "embedx_threshold must be a finite number >= 0.0, got -1.0"),
        ({"nonclk_coeff": math.nan}, "nonclk_coeff must be a finite number"),
        ({"click_coeff": "1"}, "click_coeff must be a finite number >= 0.0, got '1'"),
        ({"show_scale": 1}, "CtrAccessor.show_scale must be a bool, got 1"),
        ({"slots": None}, "CtrAccessor.slots must be a bool, got None"),
        ({"rule": 3}, "CtrAccessor.rule must be a rule such as .*, got 3"),
        ({"init": 0.1}, "CtrAccessor.init must be an initialiser such as .*, got 0.1"),
        ({"bounds": (1,)}, "CtrAccessor.bounds must be"),
        ({"lifecycle": 3}, "CtrAccessor.lifecycle must be a Lifecycle, got 3"),
        ({"click": ""}, "CtrAccessor.click must be a name or None, got ''"),
        ({"counted_by": 3}, "CtrAccessor.counted_by must be a name or None, got 3"),
    ],
)
def test_settings_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        CtrAccessor(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delta_threshold": -0.5}, "Lifecycle.delta_threshold must be a finite number >= 0.0"),
        ({"delete_after_unseen_days": math.inf}, "Lifecycle.delete_after_unseen_days"),
        ({"ssd_unseenday_threshold": 1.5}, "ssd_unseenday_threshold must be"),
        ({"show_click_decay_rate": 1.5}, "show_click_decay_rate must be at most 1, got 1.5"),
    ],
)
def test_lifecycles_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Lifecycle(**settings)
