from __future__ import annotations

import math
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from downpour.errors import DataError, SettingError
from downpour.metrics import (
    AUC,
    COPC,
    MAE,
    RMSE,
    BucketedAUC,
    Calibration,
    CalibrationBin,
    LogLoss,
    MetricSet,
    calibration_error,
    click_metrics,
    require_binary,
)
from downpour.metrics.auc import joined_error

if TYPE_CHECKING:
    from downpour.metrics.samples import Array

ALL = [AUC, BucketedAUC, LogLoss, COPC, MAE, RMSE, Calibration]
FLOATS = [AUC, BucketedAUC, LogLoss, COPC, MAE, RMSE]

LABELS = [0, 0, 1, 0, 1, 1]
SCORES = [0.1, 0.4, 0.4, 0.5, 0.6, 0.9]

# Scores on a coarse grid, so that ties are common; weights with zeros.
samples = st.lists(
    st.tuples(
        st.booleans(), st.integers(0, 8).map(lambda i: i / 8), st.sampled_from([0, 1, 0.3, 7])
    ),
    min_size=1,
    max_size=40,
)


def columns(rows: list[tuple[bool, float, float]]) -> tuple[Array, ...]:
    return tuple(np.array(column, float) for column in zip(*rows, strict=True))


def brute_auc(labels: Array, scores: Array, weights: Array) -> float | None:
    """Every pair by hand."""
    won, pairs = 0.0, 0.0
    for label, score, weight in zip(labels, scores, weights, strict=True):
        for other_label, other_score, other_weight in zip(labels, scores, weights, strict=True):
            if label == 1 and other_label == 0:
                pairs += weight * other_weight
                won += (
                    weight
                    * other_weight
                    * (1.0 * (score > other_score) + 0.5 * (score == other_score))
                )
    return won / pairs if pairs else None


def test_auc_by_hand():
    # Pairs won of 9: 0.4 beats 0.1, ties 0.4, loses to 0.5 (1.5); 0.6 and 0.9 beat all (6).
    auc = AUC()
    auc.update(LABELS, SCORES)
    assert auc.result() == pytest.approx(7.5 / 9)
    assert len(auc) == 6


def test_auc_by_hand_with_weights():
    # Positive 0.5 (weight 2) against negatives 0.2 (3) and 0.5 (1): 2*3 + 2*1/2 of 2*4.
    auc = AUC()
    auc.update([1, 0, 0], [0.5, 0.2, 0.5], weights=[2, 3, 1])
    assert auc.result() == pytest.approx(7 / 8)


@settings(deadline=None, max_examples=50)
@given(samples)
def test_auc_is_every_pair(rows):
    auc = AUC()
    auc.update(*columns(rows))
    expected = brute_auc(*columns(rows))
    assert auc.result() == (None if expected is None else pytest.approx(expected))


@settings(deadline=None, max_examples=50)
@given(samples)
def test_bucketed_auc_is_exact_where_buckets_part_the_scores(rows):
    bucketed = BucketedAUC(num_buckets=64)
    bucketed.update(*columns(rows))
    expected = brute_auc(*columns(rows))
    assert bucketed.result() == (None if expected is None else pytest.approx(expected))


@settings(deadline=None, max_examples=50)
@given(samples, st.integers(2, 7))
def test_bucketed_auc_is_within_its_error(rows, num_buckets):
    exact, bucketed = AUC(), BucketedAUC(num_buckets=num_buckets)
    exact.update(*columns(rows))
    bucketed.update(*columns(rows))
    true, rounded, bound = exact.result(), bucketed.result(), bucketed.max_error()
    if true is None or rounded is None or bound is None:
        assert true is rounded is bound
    else:
        assert abs(true - rounded) <= bound + 1e-12


def test_bucketed_auc_of_many_scores_is_close():
    rng = np.random.default_rng(0)
    scores = rng.random(20_000).astype(np.float32)
    labels = rng.random(20_000) < scores
    exact, bucketed = AUC(), BucketedAUC()
    exact.update(labels, scores)
    bucketed.update(labels, scores)
    assert bucketed.result() == pytest.approx(exact.result(), abs=1e-6)
    assert bucketed.max_error() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1]])
@pytest.mark.parametrize("kind", [AUC, BucketedAUC])
def test_auc_of_one_class_is_none(kind, labels):
    auc = kind()
    auc.update(labels, [0.5] * len(labels))
    assert auc.result() is None


def test_auc_takes_logits():
    auc = AUC()
    auc.update([0, 1], [-3.0, 12.0])
    assert auc.result() == 1.0


def test_auc_keeps_its_own_copy():
    auc, scores = AUC(), np.array([0.1, 0.9], np.float32)
    auc.update([0, 1], scores)
    scores[:] = 0
    assert auc.result() == 1.0


@settings(deadline=None, max_examples=50)
@given(samples)
def test_logloss_is_torchs(rows):
    labels, scores, weights = (torch.tensor(column) for column in columns(rows))
    loss = LogLoss(eps=1e-7)
    loss.update(labels, scores, weights)
    terms = torch.nn.functional.binary_cross_entropy(
        scores.clamp(1e-7, 1 - 1e-7), labels, weight=weights, reduction="sum"
    )
    total = float(weights.sum())
    assert loss.result() == (pytest.approx(float(terms) / total) if total else None)


def test_logloss_by_hand():
    loss = LogLoss()
    loss.update([1, 0], np.array([0.5, 0.75], np.float32))
    assert loss.result() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_logloss_clips_sure_scores():
    loss = LogLoss(eps=1e-6)
    loss.update([1, 0], [0.0, 1.0])
    assert loss.result() == pytest.approx(-math.log(1e-6))


def test_copc_by_hand():
    copc = COPC()
    copc.update([1, 0, 1], [0.5, 0.25, 0.25], weights=[1, 2, 1])
    assert copc.result() == pytest.approx(2 / 1.25)
    assert copc.actual == pytest.approx(2 / 4)
    assert copc.predicted == pytest.approx(1.25 / 4)


def test_copc_without_predicted_clicks_is_none():
    copc = COPC()
    copc.update([1, 0], [0, 0])
    assert copc.result() is None
    assert copc.actual == 0.5


def test_mae_and_rmse_by_hand():
    for kind, expected in [(MAE, (0.5 + 3 * 0.25) / 4), (RMSE, math.sqrt((0.25 + 3 * 0.0625) / 4))]:
        error = kind()
        error.update([1, 0], [0.5, 0.25], weights=[1, 3])
        assert error.result() == pytest.approx(expected)


def test_calibration_by_hand():
    calibration = Calibration(num_bins=2)
    calibration.update([0, 0, 1, 1, 0, 1], [0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
    low, high = calibration.result()
    assert (low.predicted, low.actual, low.count) == pytest.approx((0.2, 1 / 3, 3))
    assert (high.predicted, high.actual, high.count) == pytest.approx((0.8, 2 / 3, 3))
    assert calibration_error([low, high]) == pytest.approx(2 / 15)


@settings(deadline=None, max_examples=50)
@given(samples, st.integers(1, 6))
def test_calibration_keeps_every_sum(rows, num_bins):
    labels, scores, weights = columns(rows)
    calibration = Calibration(num_bins=num_bins, num_buckets=64)
    calibration.update(labels, scores, weights)
    bins = calibration.result()
    assert len(bins) <= num_bins
    assert [b.predicted for b in bins] == sorted(b.predicted for b in bins)
    assert sum(b.count for b in bins) == pytest.approx(weights.sum())
    assert sum(b.count * b.actual for b in bins) == pytest.approx(weights @ labels)
    assert sum(b.count * b.predicted for b in bins) == pytest.approx(weights @ scores)


def test_calibration_parts_scores_that_crowd_near_zero():
    rng = np.random.default_rng(0)
    scores = rng.random(20_000) * 0.01
    calibration = Calibration()
    calibration.update(rng.random(20_000) < scores, scores)
    counts = [each.count for each in calibration.result()]
    assert len(counts) == 20
    assert max(counts) < 1.2 * min(counts)


def test_calibration_error_without_samples_is_none():
    assert Calibration().result() == ()
    assert calibration_error([]) is None
    assert calibration_error([CalibrationBin(predicted=0.5, actual=0.5, count=0)]) is None


def plain_bucket_error(
    positives: Array, negatives: Array, max_span: float, max_deviation: float
) -> tuple[float, float]:
    """The twin of the kernel: one bucket after another, in Python floats."""
    error = weight = shows = clicks = score_sum = 0.0
    start = -1.0
    for bucket in range(len(positives)):
        score = bucket / len(positives)
        if abs(score - start) > max_span:
            start, shows, clicks, score_sum = score, 0.0, 0.0, 0.0
        here = float(positives[bucket] + negatives[bucket])
        shows, clicks = shows + here, clicks + float(positives[bucket])
        score_sum += score * here
        if score_sum > 0:
            rate = score_sum / shows
            if math.sqrt((1 - rate) / (rate * shows)) < max_deviation:
                error += abs(clicks / shows / rate - 1) * shows
                weight, start = weight + shows, -1.0
    return error, weight


@pytest.mark.parametrize("seed", range(5))
def test_bucket_error_kernel_is_its_twin(seed):
    rng = np.random.default_rng(seed)
    positives, negatives = rng.poisson(rng.random((2, 500)) * 300).astype(float)
    expected = plain_bucket_error(positives, negatives, 0.01, 0.05)
    assert expected[1] > 0
    assert joined_error(positives, negatives, 0.01, 0.05) == pytest.approx(expected)


def test_bucket_error_by_hand():
    # 1600 samples at 0.5: deviation sqrt(.5 / (.5 * 1600)) = 0.025; actual 0.6, so 20 % off.
    bucketed = BucketedAUC(num_buckets=4)
    bucketed.update(np.arange(1600) < 960, np.full(1600, 0.5))
    assert bucketed.bucket_error() == pytest.approx(0.2)
    assert bucketed.bucket_error(max_deviation=0.02) is None


@pytest.mark.parametrize("kind", ALL)
@settings(deadline=None, max_examples=50)
@given(left=samples, right=samples)
def test_merge_is_seeing_both(kind, left, right):
    settings = {"num_buckets": 64} if kind in (BucketedAUC, Calibration) else {}
    one, two, both = kind(**settings), kind(**settings), kind(**settings)
    one.update(*columns(left))
    two.update(*columns(right))
    two = pickle.loads(pickle.dumps(two))
    both.update(*columns(left))
    both.update(*columns(right))
    one.merge(two)
    if kind is Calibration:
        assert len(one.result()) == len(both.result())
    else:
        assert one.result() == (None if both.result() is None else pytest.approx(both.result()))


@pytest.mark.parametrize("kind", FLOATS)
def test_weights_are_repeats(kind):
    weighted, repeated = kind(), kind()
    weighted.update(LABELS, SCORES, weights=[1, 2, 3, 1, 2, 0])
    repeated.update(np.repeat(LABELS, [1, 2, 3, 1, 2, 0]), np.repeat(SCORES, [1, 2, 3, 1, 2, 0]))
    assert weighted.result() == pytest.approx(repeated.result())


@pytest.mark.parametrize("kind", ALL)
def test_merge_refuses_another_kind_or_setting(kind):
    with pytest.raises(SettingError, match="own kind"):
        kind().merge(MAE() if kind is not MAE else RMSE())
    for setting in {"num_buckets": 64, "eps": 1e-3, "num_bins": 7}.items():
        if hasattr(kind(), setting[0]):
            with pytest.raises(SettingError, match=setting[0]):
                kind().merge(kind(**dict([setting])))


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    ("labels", "scores", "weights", "message"),
    [
        ([0.0, math.nan], [0.1, 0.2], None, "labels must be .*, got nan at sample 1"),
        ([0.0, math.inf], [0.1, 0.2], None, "labels must be .*, got inf at sample 1"),
        (["a"], [0.1], None, "labels must be numbers"),
        ([[0], [1]], [0.1, 0.2], None, r"labels must be numbers of shape \[n\]"),
        ([0, 1], [0.1, math.nan], None, "got nan at sample 1"),
        ([0, 1], [math.inf, 0.1], None, "got inf at sample 0"),
        ([0, 1], [0.1], None, "got 1 for 2 labels"),
        ([0, 1], [0.1, 0.2], [1, -2], "weights must be >= 0, finite, got -2.0 at sample 1"),
        ([0, 1], [0.1, 0.2], [1], "weights must be one a label"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(kind, labels, scores, weights, message):
    metric = kind()
    metric.update(LABELS, SCORES)
    before = metric.result()
    with pytest.raises(DataError, match=message) as error:
        metric.update(labels, scores, weights)
    assert str(error.value).startswith(kind.__name__)
    assert metric.result() == before


RULES = {AUC: "0 or 1", BucketedAUC: "0 or 1"} | dict.fromkeys(
    (LogLoss, COPC, Calibration), "from 0 to 1"
)


@pytest.mark.parametrize("kind", RULES)
def test_labels_are_checked_by_the_metrics_that_need_some(kind):
    with pytest.raises(DataError, match=f"labels must be {RULES[kind]}, got 3 at sample 2"):
        kind().update([0, 1, 3], [0.1, 0.2, 0.3])
    if RULES[kind] == "0 or 1":
        with pytest.raises(DataError, match=r"labels must be 0 or 1, got 0\.5 at sample 1.*>= 4"):
            kind().update([0, 0.5], [0.1, 0.2])


def test_errors_of_any_numbers():
    for kind, expected in [(MAE, (0.5 + 3) / 2), (RMSE, math.sqrt((0.25 + 9) / 2))]:
        error = kind()
        error.update([5.0, -1], [4.5, 2])
        assert error.result() == pytest.approx(expected)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 0.99)), min_size=1))
def test_logloss_of_soft_labels_is_torchs(rows):
    labels, scores = (
        torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)
    )
    loss = LogLoss()
    loss.update(labels, scores)
    expected = torch.nn.functional.binary_cross_entropy(scores, labels)
    assert loss.result() == pytest.approx(float(expected))


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind not in (AUC, MAE, RMSE)])
def test_logits_are_refused_where_probabilities_are_needed(kind):
    with pytest.raises(DataError, match=r"probabilities in \[0, 1\] .*got 1.5 at sample 1"):
        kind().update([0, 1], [0.5, 1.5])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BucketedAUC(num_buckets=1), "num_buckets must be at least 2, got 1"),
        (lambda: LogLoss(eps=0), "eps must be between 0 and 0.5, got 0"),
        (lambda: Calibration(num_bins=0), "num_bins must be from 1 to num_buckets"),
        (lambda: MetricSet({}), "at least one metric"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()


def test_require_binary_names_who_asks():
    assert require_binary(np.array([1.0, 0.0]), "click").tolist() == [True, False]
    with pytest.raises(
        DataError, match=r"click: labels must be 0 or 1, got 4.5 at sample 0.*rating"
    ):
        require_binary([4.5], "click")


def test_metric_set_is_its_metrics():
    metrics = click_metrics()
    metrics.update(LABELS[:3], SCORES[:3])
    rest = click_metrics()
    rest.update(LABELS[3:], SCORES[3:])
    metrics.merge(rest)
    assert metrics.num_samples == 6
    for name, kind in [
        ("auc", AUC),
        ("auc_bucketed", BucketedAUC),
        ("logloss", LogLoss),
        ("copc", COPC),
    ]:
        alone = kind()
        alone.update(LABELS, SCORES)
        assert metrics.result()[name] == pytest.approx(alone.result())


def test_metric_set_refuses_a_batch_for_all_of_its_metrics():
    auc = AUC()
    metrics = MetricSet({"auc": auc, "logloss": LogLoss()})
    with pytest.raises(DataError, match="AUC, LogLoss: scores must be probabilities"):
        metrics.update([0, 1], [0.1, 2.0])
    assert len(auc) == 0
    with pytest.raises(SettingError, match="same names"):
        metrics.merge(MetricSet({"auc": AUC()}))
    with pytest.raises(DataError, match=r"AUC, LogLoss: labels must be 0 or 1, got 0\.5"):
        metrics.update([0, 0.5], [0.1, 0.2])
    errors = MetricSet({"rmse": RMSE(), "mae": MAE()})
    errors.update([5.0], [3.0])
    assert errors.result() == {"rmse": 2.0, "mae": 2.0}


def test_metrics_do_not_import_torch():
    code = "import sys, downpour.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
