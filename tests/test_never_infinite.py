"""No push makes a row or a weight infinite or NaN: it is refused whole, and changes nothing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from downpour import rules
from downpour.accessor import CtrAccessor, EmbeddingAccessor
from downpour.errors import NonFiniteError
from downpour.init import Normal
from downpour.tables import CtrTable, DenseTable, SparseTable, Transaction, sections_of
from downpour.team import LEAST, with_torch_threads
from tests.ctr_tables import some_keys
from tests.ctr_tables import some_pushes as some_ctr_pushes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DIM = 3
SPARSE: dict[str, Any] = {
    "sgd": rules.SGD(1.0),
    "sgd decay, l2": rules.SGD(0.5, weight_decay=0.5, batch_l2=0.5),
    "momentum": rules.Momentum(1.0),
    "adagrad": rules.Adagrad(0.1),
    "adagrad without eps": rules.Adagrad(0.1, eps=0.0),
    "row-wise": rules.RowwiseAdagrad(0.1),
    "g2sum": rules.G2SumAdagrad(0.1),
    "g2sum per element": rules.G2SumAdagrad(0.1, per_element=True),
    "adam": rules.Adam(0.1, weight_decay=0.1),
    "row adam": rules.RowAdam(0.1),
    "shared adam": rules.SharedAdam(0.1),
    "uncorrected adam": rules.UncorrectedAdam(0.1),
    "ftrl": rules.Ftrl(0.1, l1=0.1, beta=1.0),
}
DENSE = {
    **{name: rule for name, rule in SPARSE.items() if rule.on_dense},
    "adam d2sum": rules.AdamD2Sum(0.1),
    "summary": rules.Summary(1.0),
}
HUGE = {"float32": 3e38, "float64": 1.7e308}
MAGNITUDES = st.sampled_from([0.0, 1e-300, 1e-30, 1e-5, 1.0, 1e10, 1e19, 3e19, 1e30, 3e38])
VALUES = st.builds(lambda size, sign: size * sign, MAGNITUDES, st.sampled_from([1.0, -1.0]))


def make_table(name: str, dtype: str = "float32", **kwargs: Any) -> SparseTable:
    given = {"dim": DIM, "rule": SPARSE[name], "init": Normal(0.1), "dtype": dtype, **kwargs}
    return SparseTable("rows", EmbeddingAccessor(**given), seed=1)


def held(table: Any) -> Any:
    """All that a table holds, as values that compare bit for bit."""
    if isinstance(table, DenseTable):
        weights, state, steps = table.export()
        states = {name: values.tobytes() for name, values in state.items()}
        return weights.tobytes(), states, steps, table.step
    return [it.tobytes() for it in table.export()], table.step, table.log_decay


def are_finite(table: Any) -> bool:
    weights, state = table.export()[-3:-1] if isinstance(table, DenseTable) else table.export()[1:3]
    parts = state.values() if isinstance(state, dict) else [state]
    return all(np.isfinite(it).all() for it in (weights, *parts))


def refusal(table: Any, push: Callable[[], None]) -> str:
    """What a push is refused with, empty if it is taken; refused, it has changed nothing."""
    before = held(table)
    try:
        push()
    except NonFiniteError as error:
        text = str(error)
    else:
        text = ""
    assert are_finite(table)
    assert not text or held(table) == before
    return text


@pytest.mark.parametrize("dtype", HUGE)
@pytest.mark.parametrize("name", SPARSE)
def test_two_finite_pushes_do_not_make_a_row_infinite(name: str, dtype: str) -> None:
    table, keys = make_table(name, dtype), some_keys(1000)
    grads = np.random.default_rng(0).standard_normal((1000, DIM)).astype(dtype)
    table.push(keys, grads, step=1, lr=1.0)
    huge = grads.copy()
    huge[700] = HUGE[dtype]
    texts = [
        refusal(table, partial(table.push, keys, huge, step=step, lr=1.0)) for step in (2, 3, 4)
    ]
    row = f"table 'rows': this push would make the row of key {keys[700]} infinite or NaN"
    assert any(text.startswith(row) for text in texts)
    table.push(keys[:700], grads[:700], step=5, lr=1.0)
    assert table.step == 5


@pytest.mark.parametrize("name", SPARSE)
@settings(max_examples=30)
@given(data=st.data())
def test_a_push_is_refused_exactly_where_a_row_would_not_be_finite(name: str, data: Any) -> None:
    table, rule = make_table(name), SPARSE[name]
    keys = some_keys(70)
    rows = st.lists(VALUES, min_size=DIM, max_size=DIM)
    weights, state = (
        np.zeros((70, DIM), "f4"),
        np.tile(rule.initial_state(DIM).astype("f4"), (70, 1)),
    )
    weights[data.draw(st.integers(0, 69))] = data.draw(rows)
    table.set(keys, weights, state)
    for step in (1, 2):
        grads = np.full((70, DIM), 0.5, np.float32)
        with np.errstate(over="ignore"):
            grads[data.draw(st.integers(0, 69))] = np.array(data.draw(rows)).astype(np.float32)
        expected, expected_state = weights.copy(), state.copy()
        hyper = np.array(rule.hyper(step, 0.3), np.float32)
        with np.errstate(all="ignore"):
            for own, kept, grad in zip(expected, expected_state, grads, strict=True):
                own *= np.float32(1.0 - 0.3 * rule.weight_decay)
                rule.update(own, kept, grad + np.float32(rule.batch_l2) * own, hyper)
        is_finite = np.isfinite(expected).all() and np.isfinite(expected_state).all()
        text = refusal(table, partial(table.push, keys, grads, step=step, lr=0.3))
        assert (not text) == is_finite
        if text:
            return
        weights, state = expected, expected_state
        np.testing.assert_allclose(table.pull(keys), weights, rtol=1e-4)


def test_what_a_bound_would_hide_is_refused_too() -> None:
    table, keys = make_table("ftrl", bounds=(-1.0, 1.0)), some_keys(3)
    before = held(table)
    with pytest.raises(NonFiniteError, match="this push would make the row of key"):
        table.push(keys, np.full((3, DIM), 3e38, np.float32), step=1, lr=0.1)
    table.pull(keys)
    assert before[1:] == held(table)[1:]
    np.testing.assert_array_equal(table.pull(keys), make_table("ftrl", bounds=(-1, 1)).pull(keys))


def test_new_rows_of_a_push_that_is_refused_are_as_new_rows_are() -> None:
    table, known, unknown = make_table("adam"), some_keys(50, 1), some_keys(200, 2)
    table.push(known, np.ones((50, DIM), np.float32), step=1, lr=0.1)
    expected = [it[:50] for it in table.export()]
    grads = np.ones((250, DIM), np.float32)
    grads[249] = 3e38
    with pytest.raises(NonFiniteError, match=f"key {unknown[199]} infinite or NaN"):
        table.push(np.concatenate([known, unknown]), grads, step=2, lr=0.1)
    fresh = make_table("adam")
    fresh.push(known, np.ones((50, DIM), np.float32), step=1, lr=0.1)
    fresh.locate(unknown, create=True)
    assert held(table) == held(fresh)
    assert len(expected[0]) == 50


@pytest.mark.parametrize("dtype", HUGE)
@pytest.mark.parametrize("name", DENSE)
def test_two_finite_pushes_do_not_make_a_weight_infinite(name: str, dtype: str) -> None:
    shapes = sections_of({"weight": (5, 3), "bias": (3,), "other": (2,)})
    table = DenseTable("dense", shapes, DENSE[name], dtype)
    grads = np.random.default_rng(0).standard_normal(table.size).astype(dtype)
    table.push(grads, step=1, lr=1.0)
    huge = grads.copy()
    huge[16] = HUGE[dtype]
    texts = [refusal(table, partial(table.push, huge, step=step, lr=1.0)) for step in (2, 3, 4)]
    weight = "dense table 'dense': this push would make 'bias' infinite or NaN"
    assert any(text.startswith(weight) for text in texts)
    table.push(grads, step=5, lr=1.0, names=["weight"])


CTR: dict[str, tuple[dict[str, Any], int, float]] = {
    "w": ({}, 4, 3e38),
    "embedx": ({}, 6, 3e38),
    "delta_score": ({"nonclk_coeff": 1.0}, 1, 3e38),
    "few places": ({}, 3, 1e-45),
}


@pytest.mark.parametrize("name", CTR)
def test_ctr_rows_stay_finite(name: str) -> None:
    own, column, value = CTR[name]
    accessor = CtrAccessor(
        embedx_dim=DIM, rule=rules.G2SumAdagrad(0.1), embedx_threshold=3.0, bounds=None, **own
    )
    table, keys = CtrTable("rows", accessor, seed=1), some_keys(500)
    pushes = some_ctr_pushes(500, dtype="float32")
    pushes[:, 3] = 1.0
    for step in (1, 2):
        table.push(keys, pushes, step=step, lr=0.1)
    has_embedx = table.export()[3]["has_embedx"]
    place = np.flatnonzero(has_embedx[np.argsort(np.argsort(keys))])[100]
    huge = pushes.copy()
    huge[:, 1] = 5.0  # more rows are due for their embedx
    huge[place, column] = value
    embedx = table.stats().embedx_rows
    text = refusal(table, partial(table.push, keys, huge, step=3, lr=0.1))
    if not text:  # it takes two
        embedx = table.stats().embedx_rows
        text = refusal(table, partial(table.push, keys, huge, step=4, lr=0.1))
    assert f"make the row of key {keys[place]} infinite or NaN" in text
    assert table.stats().embedx_rows == embedx
    table.push(keys, pushes, step=5, lr=0.1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("place", [0, LEAST, 3 * LEAST - 1])
@pytest.mark.parametrize("kind", ["plain", "ctr"])
def test_all_parts_of_an_update_are_undone_where_one_refuses(kind: str, place: int) -> None:
    num_keys = 3 * LEAST
    keys = some_keys(num_keys)
    if kind == "plain":
        table: Any = make_table("adam")
        pushes = np.ones((num_keys, DIM), np.float32)
    else:
        accessor = CtrAccessor(embedx_dim=DIM, rule=rules.Adagrad(0.1), embedx_threshold=2.0)
        table, pushes = CtrTable("rows", accessor), some_ctr_pushes(num_keys, dtype="float32")
    rows = table.locate(keys, create=True)
    with with_torch_threads():
        table.update(rows, pushes, step=1, lr=0.1)
        before = held(table)
        pushes[place, -DIM - (kind == "ctr")] = 3e38
        pushes[place, 3 if kind == "ctr" else 0] = 1.0 if kind == "ctr" else 3e38
        with pytest.raises(NonFiniteError, match=f"key {keys[place]} infinite"):
            table.update(rows, pushes, step=2, lr=0.1)
    assert held(table) == before


def test_changes_of_several_tables_are_undone_together() -> None:
    plain = make_table("adam")
    ctr = CtrTable("ctr", CtrAccessor(embedx_dim=2, rule=rules.SGD(0.1), embedx_threshold=1.0))
    dense = DenseTable("dense", sections_of({"w": (4,)}), rules.Adam(0.1))
    keys = some_keys(300)
    rows = [it.locate(keys, create=True) for it in (plain, ctr)]
    shown = np.zeros((300, 7), np.float32)
    shown[:, 1] = 30.0  # all get their embedx

    def change(within: Transaction, grad: float) -> None:
        plain.update(rows[0], np.ones((300, DIM), np.float32), step=1, lr=0.1, within=within)
        plain.update(rows[0][:9], np.ones((9, DIM), np.float32), step=2, lr=0.1, within=within)
        ctr.update(rows[1], shown, step=1, lr=0.1, within=within)
        dense.push(np.ones(4, np.float32), step=1, lr=0.1, within=within)
        dense.push(np.full(4, grad, np.float32), step=2, lr=0.1, within=within)

    before = [held(it) for it in (plain, ctr, dense)]
    with pytest.raises(NonFiniteError, match="dense"), Transaction() as changes:
        change(changes, 3e38)
    assert [held(it) for it in (plain, ctr, dense)] == before
    assert ctr.stats().embedx_rows == 0
    with Transaction() as changes:
        change(changes, 1.0)
    assert (plain.step, ctr.step, dense.step) == (2, 1, 2)
    assert ctr.stats().embedx_rows == 300
