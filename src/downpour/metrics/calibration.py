"""Whether scores mean what they say: predicted against actual rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from downpour.errors import SettingError
from downpour.metrics.auc import bucket_numbers
from downpour.metrics.samples import Accumulator, Samples, require_mergeable

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationBin:
    """Samples of similar score: their mean score, mean label and weight."""

    predicted: float
    actual: float
    count: float


class Calibration(Accumulator[tuple[CalibrationBin, ...]]):
    """Predicted and actual rate in about `num_bins` bins of equal weight.

    Bins of equal weight rather than width, since the scores of rare clicks all crowd near zero.
    Sums are kept in `num_buckets` equal buckets of [0, 1], 24 bytes each (1.5 MiB by default),
    which are joined to bins in the result; a bucket is never split. Labels are from 0 to 1.
    """

    kind = "fraction"

    def __init__(self, *, num_bins: int = 20, num_buckets: int = 2**16) -> None:
        if not 1 <= num_bins <= num_buckets:
            raise SettingError(
                f"Calibration: num_bins must be from 1 to num_buckets ({num_buckets}), "
                f"got {num_bins}"
            )
        self.num_bins = num_bins
        self.num_buckets = num_buckets
        self._sums = np.zeros((3, num_buckets))  # weight, score, label

    def add(self, samples: Samples) -> None:
        """Add checked samples to their buckets."""
        buckets = bucket_numbers(samples.scores, self.num_buckets)
        weights = samples.full_weights
        np.add.at(self._sums[0], buckets, weights)
        np.add.at(self._sums[1], buckets, weights * samples.scores)
        np.add.at(self._sums[2], buckets, weights * samples.labels)

    def merge(self, other: Calibration) -> None:
        """Add the buckets of `other`, which must be as many."""
        require_mergeable(self, other, "num_bins", "num_buckets")
        self._sums += other._sums

    def result(self) -> tuple[CalibrationBin, ...]:
        """The bins that have weight, by rising score; none at all before the first sample."""
        weights, scores, labels = self._sums[:, self._sums[0] > 0]
        if len(weights) == 0:
            return ()
        middles = (np.cumsum(weights) - weights / 2) / weights.sum()
        bins = np.minimum((middles * self.num_bins).astype(np.int64), self.num_bins - 1)
        starts = np.flatnonzero(np.append(True, bins[1:] != bins[:-1]))
        joined = (np.add.reduceat(sums, starts) for sums in (weights, scores, labels))
        return tuple(
            CalibrationBin(predicted=score / weight, actual=label / weight, count=weight)
            for weight, score, label in zip(*(sums.tolist() for sums in joined), strict=True)
        )


def calibration_error(bins: Sequence[CalibrationBin]) -> float | None:
    """The mean of |predicted - actual| over bins, by weight; None without weight."""
    weight = sum(each.count for each in bins)
    if weight <= 0:
        return None
    return sum(abs(each.predicted - each.actual) * each.count for each in bins) / weight
