"""What is done to a client's update before it leaves."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import downpour as dp
from downpour.federated.update import ClipUpdate, Update, sent_through
from tests.local_rounds import double, local_model, noted, rounds_of, twins
from tests.networks import everything

KEYS = np.array([3, 2**63], np.uint64)
(BATCHES,) = rounds_of(1)


def an_update(dense: Any = (3.0, 0.0), rows: Any = ((0.0, 4.0), (12.0, 0.0))) -> Update:
    block, change = np.array(dense, np.float32), np.array(rows, np.float64)
    return Update({"dense": block}, {"rows": (KEYS, change)}, 5)


def same(update: Update, other: Update) -> bool:
    pairs = zip(update.changes(), other.changes(), strict=True)
    return all(a == b and np.array_equal(x, y) for (a, x), (b, y) in pairs)


def test_the_norm_is_over_all_tables() -> None:
    assert an_update().norm == 13.0
    assert Update({}, {}, 0).norm == 0.0
    assert an_update(dense=[3e38, 0.0]).norm == pytest.approx(3e38)


def test_an_update_scales_and_keeps_dtypes_keys_and_samples() -> None:
    half = an_update().scaled(np.float64(0.5))
    assert same(half, an_update(dense=[1.5, 0.0], rows=[[0.0, 2.0], [6.0, 0.0]]))
    assert [change.dtype for _, change in half.changes()] == [np.float32, np.float64]
    assert np.array_equal(half.rows["rows"][0], KEYS)
    assert half.samples == 5


numbers = st.floats(-1e6, 1e6, width=32)


@given(
    dense=st.lists(numbers, max_size=9),
    rows=st.lists(numbers, min_size=4, max_size=4),
    max_norm=st.floats(1e-3, 1e6),
)
def test_a_clipped_update_is_at_most_as_long(
    dense: list[float], rows: list[float], max_norm: float
) -> None:
    update = an_update(dense, np.reshape(rows, (2, 2)))
    clipped = ClipUpdate(max_norm)(update)
    assert clipped.norm <= max_norm
    if update.norm <= max_norm:
        assert clipped is update
    else:
        assert clipped.norm == pytest.approx(max_norm, rel=1e-5)
        factor = max_norm / update.norm
        for (_, ours), (_, whole) in zip(clipped.changes(), update.changes(), strict=True):
            np.testing.assert_allclose(ours, whole * factor, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.inf, math.nan, True, "1"])
def test_a_norm_to_clip_to_is_a_number_above_zero(max_norm: Any) -> None:
    with pytest.raises(
        dp.SettingError, match=r"ClipUpdate\.max_norm must be a finite number above"
    ):
        ClipUpdate(max_norm)


def test_updates_and_what_clips_them_are_frozen() -> None:
    for value, name in ((an_update(), "samples"), (ClipUpdate(1.0), "max_norm")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, 1)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (({}, {}, -1), r"samples must be an int >= 0, got -1"),
        (({}, {}, 1.5), r"samples must be an int >= 0, got 1\.5"),
        (({"a": np.zeros((2, 2))}, {}, 1), r"table 'a' must be \[size\], got \[2, 2\]"),
        (({}, {"a": (KEYS, np.zeros((3, 2)))}, 1), r"got \[2\] and \[3, 2\]"),
    ],
    ids=["negative", "fraction", "dense", "rows"],
)
def test_an_update_of_other_shapes_is_refused(parts: Any, message: str) -> None:
    with pytest.raises(dp.SettingError, match=message):
        Update(*parts)


def test_functions_change_an_update_in_their_order() -> None:
    seen = []

    def doubled(update: Update) -> Update:
        seen.append(update.norm)
        return update.scaled(2.0)

    through = sent_through([doubled, ClipUpdate(1.0), doubled], an_update())
    assert seen == [13.0, pytest.approx(1.0)]
    assert through.norm == pytest.approx(2.0)


def test_what_a_function_gives_travels_in_the_dtype_of_its_table() -> None:
    def noisy(update: Update) -> Update:
        dense = {name: change + np.ones(2) for name, change in update.dense.items()}
        return replace(update, dense=dense)

    (change,) = sent_through([noisy], an_update()).dense.values()
    assert change.dtype == np.float32
    assert change.tolist() == [4.0, 1.0]


OTHERS: dict[str, tuple[Any, str]] = {
    "nothing": (lambda it: None, r"must give an Update, got None"),
    "another table": (
        lambda it: replace(it, dense={"other": it.dense["dense"]}),
        r"given dense tables {'dense': \[2\]} and gave {'other': \[2\]}",
    ),
    "another size": (
        lambda it: replace(it, dense={"dense": np.zeros(3)}),
        r"given dense tables {'dense': \[2\]} and gave {'dense': \[3\]}",
    ),
    "fewer rows": (
        lambda it: replace(it, rows={"rows": (KEYS[:1], it.rows["rows"][1][:1])}),
        r"given tables of rows {'rows': \[2, 2\]} and gave {'rows': \[1, 2\]}",
    ),
    "other keys": (
        lambda it: replace(it, rows={"rows": (KEYS[::-1], it.rows["rows"][1])}),
        r"gave other keys of table 'rows'",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_update_keeps_its_tables_keys_and_shapes(name: str) -> None:
    change, message = OTHERS[name]
    with pytest.raises(dp.SettingError, match=message):
        sent_through([change], an_update())


def test_an_update_that_is_not_finite_is_refused_with_whose_it_is() -> None:
    with pytest.raises(dp.NonFiniteError, match=r"table 'dense' .*nothing was sent.*'s training"):
        sent_through([], an_update(dense=[np.nan, 0.0]))

    def huge(update: Update) -> Update:
        return replace(update, dense={"dense": np.full(2, 1e300)})

    with pytest.raises(dp.NonFiniteError, match=r"after outgoing: .*huge"):
        sent_through([huge], an_update())


def test_a_client_sends_its_update_clipped() -> None:
    model = double()
    plan, ps, _ = twins(model)
    sent: list[Update] = []
    local = local_model(model, plan, ps, outgoing=[ClipUpdate(0.01), noted(sent)])
    before = ps.pull_dense("dense.click")
    local.recv(BATCHES)
    for batch in BATCHES:
        local.step("click", batch)
    local.send()
    (update,) = sent
    assert update.norm == pytest.approx(0.01)
    assert update.samples == sum(batch.size for batch in BATCHES)
    np.testing.assert_allclose(
        ps.pull_dense("dense.click") - before, update.dense["dense.click"], atol=1e-15
    )


def test_nothing_is_sent_where_a_function_raises() -> None:
    model = double()
    plan, ps, _ = twins(model)
    local = local_model(model, plan, ps, outgoing=[lambda it: None])
    before = everything(ps)
    local.recv(BATCHES)
    local.step("click", BATCHES[0])
    with pytest.raises(dp.SettingError, match=r"must give an Update"):
        local.send()
    assert everything(ps) == before
