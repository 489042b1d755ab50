"""Latencies: percentiles within a bucket's width of numpy's, sums, differences, round trips."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from downpour.errors import DataError, SettingError
from downpour.metrics.latency import LONGEST_S, SHORTEST_S, WIDTH, Latency

ROUNDING = 1e-9
RESOLVED = st.lists(st.floats(SHORTEST_S, LONGEST_S), min_size=1, max_size=60)
ANY = st.lists(st.floats(0.0, 1e5), max_size=60)


def latency(seconds: list[float]) -> Latency:
    made = Latency()
    for each in seconds:
        made.add(each)
    return made


@given(seconds=RESOLVED, q=st.floats(0, 100))
def test_a_percentile_is_that_of_numpy_within_a_bucket(seconds: list[float], q: float) -> None:
    exact = float(np.percentile(seconds, q, method="inverted_cdf"))
    percentile = latency(seconds).percentile(q)
    assert exact * (1 - ROUNDING) <= percentile <= exact * WIDTH * (1 + ROUNDING)


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, 1e-5), (3e-6, 1e-5), (5e4, 1e3)])
def test_what_is_out_of_range_counts_as_the_end_of_it(seconds: float, shown: float) -> None:
    assert latency([seconds]).percentile(50) == pytest.approx(shown)


def test_none_has_no_percentile() -> None:
    assert Latency().percentile(50) is None
    assert Latency().count == 0


@pytest.mark.parametrize("q", [-1, 100.5, math.nan])
def test_a_percentile_is_from_0_to_100(q: float) -> None:
    with pytest.raises(SettingError, match="q must be from 0 to 100, got"):
        latency([1.0]).percentile(q)


@given(ones=ANY, others=ANY)
def test_a_sum_is_that_of_one_histogram(ones: list[float], others: list[float]) -> None:
    merged = latency(ones) + latency(others)
    assert merged == latency([*others, *ones])
    assert merged.count == len(ones) + len(others)
    assert merged.total_s == pytest.approx(sum(ones) + sum(others), abs=1e-7)


@given(before=ANY, since=ANY)
def test_a_difference_is_what_came_since(before: list[float], since: list[float]) -> None:
    assert latency([*before, *since]) - latency(before) == latency(since)


def test_a_sum_leaves_its_parts() -> None:
    one = latency([1.0])
    merged = one + one
    merged.add(2.0)
    assert (one.count, merged.count) == (1, 3)


@pytest.mark.parametrize("now", [[], [0.5], [2.0, 2.0]])
def test_after_a_restart_all_is_new(now: list[float]) -> None:
    assert latency(now) - latency([1.0, 2.0]) == latency(now)


@given(seconds=ANY)
def test_a_round_trip_through_json_changes_nothing(seconds: list[float]) -> None:
    before = latency(seconds)
    text = json.dumps(before.as_dict(), allow_nan=False)
    assert Latency.from_dict(json.loads(text)) == before


def test_only_buckets_in_use_travel() -> None:
    assert len(json.dumps(latency([0.001] * 1000).as_dict())) < 60
    assert Latency().as_dict() == {"buckets": [], "total_ns": 0}
    assert Latency.from_dict({}) == Latency()


@given(seconds=ANY)
def test_cumulative_counts_rise_to_the_count(seconds: list[float]) -> None:
    edges, counts = zip(*latency(seconds).cumulative(), strict=True)
    assert list(edges) == sorted(set(edges))
    assert list(counts) == sorted(counts)
    assert edges[-1] == math.inf
    assert counts[-1] == len(seconds)
    for edge, count in zip(edges[:-1], counts, strict=False):
        assert sum(each <= edge * (1 - 1e-3) for each in seconds) <= count
        assert count <= sum(each <= edge * (1 + 1e-3) for each in seconds)


def test_cumulative_counts_come_three_a_decade() -> None:
    edges = [edge for edge, _ in Latency().cumulative()]
    assert edges[:4] == [1e-5, 2.154e-5, 4.642e-5, 1e-4]
    assert edges[-2] == 1000
    assert len(edges) == 8 * 3 + 2


REFUSED: list[tuple[Any, str]] = [
    (None, "must be a dict, got None"),
    ([], "must be a dict"),
    ({"buckets": {"3": 1}}, r"must be \[bucket, count\] pairs"),
    ({"buckets": [3, 1]}, "pairs"),
    ({"buckets": [[3]]}, "pairs"),
    ({"buckets": [[3, 1.0]]}, "pairs"),
    ({"buckets": [[True, 1]]}, "pairs"),
    ({"buckets": [[-1, 1]]}, "buckets 0 to 385"),
    ({"buckets": [[386, 1]]}, "buckets 0 to 385"),
    ({"buckets": [[3, -1]]}, "counts below"),
    ({"buckets": [[3, 2**53]]}, "counts below"),
    ({"total_ns": -1}, r"total_ns must be an int >= 0, below.*got -1"),
    ({"total_ns": 1.5}, r"total_ns must be an int.*got 1.5"),
    ({"total_ns": 2**63}, "total_ns must be an int"),
]


@pytest.mark.parametrize(("data", "message"), REFUSED)
def test_nonsense_is_refused(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Latency.from_dict(data)


def test_it_says_what_it_holds() -> None:
    assert repr(latency([0.25, 0.5])) == "Latency(count=2, total_s=0.75)"
