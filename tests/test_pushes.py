"""Counting a batch's ids into pushes, and merging pushes, against plain numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from downpour.tables import add_shows, dedup, merge_pushes

if TYPE_CHECKING:
    from collections.abc import Sequence

NUM_ROWS, PUSH_DIM = 6, 7
bags = st.lists(st.lists(st.integers(0, NUM_ROWS - 1), max_size=4), max_size=12)


def counted(
    pushes: np.ndarray, bags: Sequence[Sequence[int]], clicks: np.ndarray | None, slot: int
) -> np.ndarray:
    """What `add_shows` makes of pushes, id by id; without clicks none is counted."""
    pushes = pushes.copy()
    for sample, rows in enumerate(bags):
        for row in rows:
            pushes[row, 0] = slot
            pushes[row, 3] += 1
            if clicks is not None:
                pushes[row, 1] += 1
                pushes[row, 2] += clicks[sample]
    return pushes


def some_pushes(dtype: str, num_rows: int = NUM_ROWS) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 9, (num_rows, PUSH_DIM)).astype(dtype)


def offsets_of(bags: Sequence[Sequence[int]]) -> np.ndarray:
    return np.cumsum([0, *(len(rows) for rows in bags)], dtype=np.int64)


@pytest.mark.parametrize("rows_dtype", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(bags, st.booleans(), st.integers(0, 1000))
def test_bags_are_counted(
    dtype: str, rows_dtype: Any, bags: list[list[int]], counts: bool, slot: int
) -> None:
    clicks = np.arange(len(bags), dtype=dtype) % 2 if counts else None
    pushes = some_pushes(dtype)
    expected = counted(pushes, bags, clicks, slot)
    ids = np.array([row for rows in bags for row in rows], rows_dtype)
    add_shows(pushes, ids, offsets_of(bags), clicks, slot, counts=counts)
    np.testing.assert_array_equal(pushes, expected)


@pytest.mark.parametrize("clicks_dtype", [np.float32, np.float64])
@given(st.lists(st.integers(0, NUM_ROWS - 1)), st.booleans())
def test_one_id_a_sample_needs_no_offsets(clicks_dtype: Any, rows: list[int], counts: bool) -> None:
    clicks = np.linspace(0, 1, len(rows)).astype(clicks_dtype) if counts else None
    pushes = some_pushes("float64")
    expected = counted(pushes, [[row] for row in rows], clicks, 7)
    add_shows(pushes, np.array(rows, np.int32), None, clicks, 7, counts=counts)
    np.testing.assert_allclose(pushes, expected, rtol=1e-12)


def test_features_are_counted_one_after_the_other() -> None:
    pushes = np.zeros((3, PUSH_DIM), np.float32)
    rows, clicks = np.array([0, 1, 1]), np.array([1.0, 0.0])
    add_shows(pushes, rows, np.array([0, 1, 3]), clicks, 4, counts=True)
    add_shows(pushes, np.array([1, 2]), None, clicks, 5, counts=True)
    assert pushes[:, :4].tolist() == [[4, 1, 1, 1], [5, 3, 1, 3], [5, 1, 0, 1]]
    assert not pushes[:, 4:].any()


def test_a_feature_that_another_program_counts_adds_places_alone() -> None:
    pushes, clicks = np.zeros((3, PUSH_DIM)), np.array([1.0, 1.0])
    add_shows(pushes, np.array([0, 1]), None, clicks, 4, counts=True)
    add_shows(pushes, np.array([1, 2]), None, clicks, 5, counts=False)
    assert pushes[:, :4].tolist() == [[4, 1, 1, 1], [5, 1, 1, 2], [5, 0, 0, 1]]


def test_clicks_may_be_a_column_of_labels() -> None:
    pushes, labels = np.zeros((2, PUSH_DIM)), np.array([[1.0, 9.0], [0.0, 9.0]])
    add_shows(pushes, np.array([0, 1]), None, labels[:, 0], 1, counts=True)
    assert pushes[:, 2].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(st.lists(st.integers(0, 5), max_size=60))
def test_pushes_of_a_key_are_summed_but_for_the_slot(dtype: str, values: list[int]) -> None:
    rng = np.random.default_rng(len(values))
    pushes = rng.standard_normal((len(values), PUSH_DIM)).astype(dtype)
    unique, inverse = dedup(np.array(values, np.uint64))
    expected = np.zeros((unique.size, PUSH_DIM), dtype)
    for place, push in zip(inverse, pushes, strict=True):
        expected[place, 1:] += push[1:]
        expected[place, 0] = push[0]
    np.testing.assert_array_equal(merge_pushes(pushes, inverse, unique.size), expected)


@pytest.mark.parametrize("counts", [True, False])
def test_what_is_counted_at_once_is_what_is_merged(counts: bool) -> None:
    rng = np.random.default_rng(1)
    rows, clicks = rng.integers(0, 50, 1000), rng.integers(0, 2, 1000).astype(np.float32)
    single = np.zeros((1000, PUSH_DIM), np.float32)
    add_shows(single, np.arange(1000), None, clicks, 3, counts=counts)
    together = np.zeros((50, PUSH_DIM), np.float32)
    add_shows(together, rows, None, clicks, 3, counts=counts)
    np.testing.assert_array_equal(merge_pushes(single, rows, 50), together)
