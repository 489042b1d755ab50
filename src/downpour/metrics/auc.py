"""The area under the ROC curve: exact, and in fixed buckets as large systems keep it."""

from __future__ import annotations

import math

import numpy as np

from downpour.errors import SettingError
from downpour.jit import kernel
from downpour.metrics.samples import Accumulator, Array, Samples, require_mergeable

ONE_CLASS = "all labels are of one class"


def area(positives: Array, negatives: Array) -> float | None:
    """The AUC of groups of equal score, in rising order of score.

    `positives` and `negatives` [groups] float64 are weights. Every pair of a positive and a
    negative counts one where the positive is in the higher group and half within a group:
    sum_g p_g (n_below_g + n_g / 2) / (P N). None where there is no such pair.
    """
    pairs = float(positives.sum()) * float(negatives.sum())
    if pairs == 0:
        return None
    below = np.cumsum(negatives) - negatives
    return float(np.dot(positives, below + negatives / 2)) / pairs


class AUC(Accumulator[float | None]):
    """The exact AUC; equal scores count half. Scores need not be probabilities: logits do too.

    Keeps every sample: 5 bytes each for float32 scores, 9 for float64, 8 more with weights; the
    result sorts them. Use `BucketedAUC` where that is too much.
    """

    probabilities = False
    undefined = ONE_CLASS

    def __init__(self) -> None:
        self._batches: list[Samples] = []

    def __len__(self) -> int:
        return sum(map(len, self._batches))

    def add(self, samples: Samples) -> None:
        """Keep a copy of the scores and weights, whose memory may be the caller's."""
        weights = None if samples.weights is None else samples.weights.copy()
        copied = Samples(labels=samples.labels, scores=samples.scores.copy(), weights=weights)
        self._batches.append(copied)

    def merge(self, other: AUC) -> None:
        """Add the samples of `other`."""
        require_mergeable(self, other)
        self._batches.extend(other._batches)

    def result(self) -> float | None:
        """The AUC in [0, 1], or None while either class has no weight.

        With one class there is no pair to rank, so there is no AUC, and None says so.
        """
        if len(self) == 0:
            return None
        scores = np.concatenate([batch.scores for batch in self._batches])
        labels = np.concatenate([batch.labels for batch in self._batches])
        weights = np.concatenate([batch.full_weights for batch in self._batches])
        order = np.argsort(scores)
        scores = scores[order]
        group_starts = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))
        positives = np.where(labels, weights, 0.0)[order]
        negatives = np.where(labels, 0.0, weights)[order]
        return area(
            np.add.reduceat(positives, group_starts), np.add.reduceat(negatives, group_starts)
        )


class BucketedAUC(Accumulator[float | None]):
    """The AUC over scores rounded down to `num_buckets` equal buckets of [0, 1].

    Memory is fixed, 16 bytes a bucket (16 MiB by default), however many samples come. Scores in
    one bucket count as equal, so the result is off by at most `max_error()`, about
    1 / (2 num_buckets) for spread scores. Scores must be probabilities.
    """

    undefined = ONE_CLASS

    def __init__(self, *, num_buckets: int = 2**20) -> None:
        if num_buckets < 2:
            raise SettingError(f"BucketedAUC: num_buckets must be at least 2, got {num_buckets}")
        self.num_buckets = num_buckets
        self._positives = np.zeros(num_buckets)
        self._negatives = np.zeros(num_buckets)

    def add(self, samples: Samples) -> None:
        """Count samples into their buckets; a score of 1 belongs to the last."""
        buckets = bucket_numbers(samples.scores, self.num_buckets)
        weights = samples.full_weights
        np.add.at(self._positives, buckets[samples.labels], weights[samples.labels])
        np.add.at(self._negatives, buckets[~samples.labels], weights[~samples.labels])

    def merge(self, other: BucketedAUC) -> None:
        """Add the buckets of `other`, which must be as many."""
        require_mergeable(self, other, "num_buckets")
        self._positives += other._positives
        self._negatives += other._negatives

    def result(self) -> float | None:
        """The AUC in [0, 1], or None while either class has no weight.

        Paddle's calculator, whose buckets these are, reports -0.5 there; a number that is none
        would go into averages and curves unseen.
        """
        return area(self._positives, self._negatives)

    def max_error(self) -> float | None:
        """How far the exact AUC of the same samples may be from `result()`; None where it is."""
        pairs = float(self._positives.sum()) * float(self._negatives.sum())
        if pairs == 0:
            return None
        return float(np.dot(self._positives, self._negatives)) / 2 / pairs

    def bucket_error(self, *, max_span: float = 0.01, max_deviation: float = 0.05) -> float | None:
        """How far predicted rates are from actual ones, relative, where both are known well.

        Neighbouring buckets are joined, over at most `max_span` of score, until their samples are
        so many that the rate's relative standard deviation sqrt((1 - p) / (p n)) is below
        `max_deviation`; the error of a join is |actual / p - 1|, and the result their mean by
        weight. Buckets that never get that many do not count; None when none does.
        """
        error, weight = joined_error(self._positives, self._negatives, max_span, max_deviation)
        return error / weight if weight > 0 else None


def bucket_numbers(scores: Array, num_buckets: int) -> Array:
    """The bucket int64 [n] of each score in [0, 1]."""
    buckets = (scores.astype(np.float64) * num_buckets).astype(np.int64)
    return np.minimum(buckets, num_buckets - 1)


@kernel
def joined_error(
    positives: Array, negatives: Array, max_span: float, max_deviation: float
) -> tuple[float, float]:
    """The sum of weighted errors and the weight of `BucketedAUC.bucket_error`."""
    error_sum, weight_sum = 0.0, 0.0
    shows, clicks, score_sum = 0.0, 0.0, 0.0
    start = -1.0  # the score at which the join began; -1 asks for a new one
    for bucket in range(len(positives)):
        score = bucket / len(positives)
        if start < 0 or score - start > max_span:
            start = score
            shows, clicks, score_sum = 0.0, 0.0, 0.0
        here = positives[bucket] + negatives[bucket]
        shows += here
        clicks += positives[bucket]
        score_sum += score * here
        if score_sum <= 0:
            continue
        predicted = score_sum / shows
        if math.sqrt((1 - predicted) / (predicted * shows)) < max_deviation:
            error_sum += abs(clicks / shows / predicted - 1) * shows
            weight_sum += shows
            start = -1.0
    return error_sum, weight_sum
