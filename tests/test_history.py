"""What metrics.json is made of."""

import numpy as np
import pytest

import downpour as dp
from downpour.evaluate import Evaluation
from downpour.history import MAX_POINTS, Curve, History


def curve_of(num: int) -> Curve:
    curve = Curve()
    for step in range(1, num + 1):
        curve.add(step, float(step))
    return curve


@pytest.mark.parametrize("num", [0, 1, MAX_POINTS - 1])
def test_a_short_curve_is_whole(num: int) -> None:
    assert curve_of(num).points() == [[step, step] for step in range(1, num + 1)]


@pytest.mark.parametrize("num", [MAX_POINTS, MAX_POINTS + 1, 10 * MAX_POINTS + 7, 10**5])
def test_a_long_curve_is_thinned_to_means_of_equal_spans(num: int) -> None:
    points = np.array(curve_of(num).points())
    assert MAX_POINTS / 2 <= len(points) <= MAX_POINTS
    assert points[-1, 0] == num
    spans = np.diff(np.concatenate([[0], points[:, 0]]))
    assert len(set(spans[:-1])) == 1
    np.testing.assert_allclose(points[:, 1], points[:, 0] - (spans - 1) / 2)


def evaluated(results: dict[str, float | None]) -> History:
    history = History("run", {}, "")
    history.add_step(0.5, 8, 0.1)
    history.add_evaluation(Evaluation(results=results, samples=100, seconds=2.0))
    return history


def test_an_evaluation_is_final_and_a_point() -> None:
    metrics = evaluated({"auc": 0.7, "auc_bucketed": 0.69, "logloss": None}).metrics(
        stopped=None, phases_s={}
    )
    assert metrics["final"] == {
        "auc": 0.7,
        "auc_bucketed": 0.69,
        "logloss": None,
        "samples": 100,
        "seconds": 2.0,
    }
    assert metrics["curves"]["auc"] == [[1, 0.7]]
    assert not {"auc_bucketed", "logloss"} & set(metrics["curves"])


def test_an_evaluation_hides_none_of_our_own_numbers() -> None:
    own: dict[str, float | None] = {"loss": 9.0, "samples": 8.0, "rows": 7.0}
    metrics = evaluated(own).metrics(stopped=None, phases_s={})
    assert metrics["final"]["samples"] == 100
    assert metrics["final"]["eval_samples"] == 8.0
    assert metrics["curves"]["loss"] == [[1, 0.5]]
    assert metrics["curves"]["eval_loss"] == [[1, 9.0]]
    assert metrics["curves"]["rows"] == {}


def test_keys_are_counted_by_feature() -> None:
    history = History("run", {}, "")
    for _ in range(2):
        history.count_features(
            dp.Batch(features={"user": [1, 2, 2], "tags": [[1, 2], [], [3]]}, labels=[0, 1, 0])
        )
    features = history.metrics(stopped=None, phases_s={})["features"]
    assert features["user"] == {"keys": 6, "unique": 2, "samples": 6}
    assert features["tags"] == {"keys": 6, "unique": 3, "samples": 6}


def test_a_history_of_nothing_is_told() -> None:
    metrics = History("run", {"seed": 0}, "plan").metrics(stopped=None, phases_s={})
    assert metrics["format"] == 1
    assert metrics["epochs"] == []
    assert metrics["samples_per_s"] is None
    assert metrics["machine"]["cores"] >= 1
    assert set(metrics["versions"]) == {"python", "downpour", "torch", "numba", "numpy"}
