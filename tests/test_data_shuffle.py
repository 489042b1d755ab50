from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downpour.data.shuffle import count_batches, rebatched, shuffled
from downpour.features import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator


def pieces_of(lengths: list[int]) -> list[Batch]:
    ends = np.cumsum([0, *lengths]).tolist()
    return [Batch(features={"id": np.arange(a, b)}) for a, b in pairwise(ends) if b > a]


def ids(batches: list[Batch]) -> list[int]:
    return [key for batch in batches for key in batch.features["id"].values.tolist()]


def shuffled_ids(lengths: list[int], window: int, seed: int = 0) -> list[int]:
    return ids(list(shuffled(pieces_of(lengths), window, np.random.default_rng(seed))))


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), max_size=8), st.integers(1, 12), st.booleans())
def test_batches_have_one_size_and_keep_the_order(lengths, batch_size, drop_last):
    batches = list(rebatched(pieces_of(lengths), batch_size, drop_last=drop_last))
    sizes = [len(batch) for batch in batches]
    total = sum(lengths) // batch_size * batch_size if drop_last else sum(lengths)
    assert ids(batches) == list(range(total))
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert len(batches) == count_batches(sum(lengths), batch_size, drop_last=drop_last)


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), max_size=8), st.integers(2, 30))
def test_a_shuffle_keeps_every_sample_and_holds_to_its_window(lengths, window):
    order = shuffled_ids(lengths, window)
    assert sorted(order) == list(range(sum(lengths)))
    assert all(sample - place < window for place, sample in enumerate(order))


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), max_size=8), st.integers(2, 30))
def test_a_shuffle_does_not_depend_on_how_samples_are_cut(lengths, window):
    assert shuffled_ids(lengths, window) == shuffled_ids([sum(lengths)], window)


def test_a_window_that_holds_all_shuffles_uniformly():
    places = np.array([shuffled_ids([5, 5], 64, seed) for seed in range(2000)])
    counts = np.array([np.bincount(column, minlength=10) for column in places.T])
    assert counts.min() > 140  # of 200 on average, standard deviation 13
    assert counts.max() < 260


def test_a_small_window_still_mixes_across_itself():
    order = np.array(shuffled_ids([100] * 100, 1000))
    moved = np.abs(order - np.arange(10_000))
    assert moved.mean() > 300
    assert moved.max() > 1000


def test_memory_is_bounded():
    waiting = 0

    def stream() -> Iterator[Batch]:
        nonlocal waiting
        for piece in pieces_of([10] * 100):
            waiting += len(piece)
            yield piece

    for part in shuffled(stream(), 50, np.random.default_rng(0)):
        waiting -= len(part)
        assert waiting <= 50 + 10


@pytest.mark.parametrize(
    ("rows", "drop_last", "count"), [(0, False, 0), (8, False, 2), (9, False, 3), (9, True, 2)]
)
def test_batches_are_counted(rows, drop_last, count):
    assert count_batches(rows, 4, drop_last=drop_last) == count
