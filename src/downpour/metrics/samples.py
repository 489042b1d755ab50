"""What every metric reads, checked once, and the contract of every metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import numpy as np

from downpour.errors import DataError, SettingError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

R = TypeVar("R")
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Checked samples: bool labels [n], finite float scores [n], float64 weights [n] or None."""

    labels: Array
    scores: Array
    weights: Array | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def full_weights(self) -> Array:
        """The weights [n] float64, ones where none were given."""
        return np.ones(len(self)) if self.weights is None else self.weights

    def total(self, values: Array) -> float:
        """The weighted sum of one value a sample, `values` [n]."""
        weighted = values if self.weights is None else values * self.weights
        return float(np.sum(weighted, dtype=np.float64))


def require_binary(labels: ArrayLike, who: str) -> Array:
    """Labels [n] of any numeric dtype as bool [n]; `who` needs them to be 0 or 1.

    Raises DataError, naming `who`, the first other value and its place.
    """
    values = _column(labels, f"{who}: labels")
    positive = values == 1
    other = np.flatnonzero(~positive & (values != 0))
    if len(other):
        first = int(other[0])
        raise DataError(
            f"{who}: labels must be 0 or 1, got {values[first]} at sample {first}; turn them into "
            "0/1 first, for example `rating >= 4`"
        )
    return np.asarray(positive)


def read_samples(
    labels: ArrayLike,
    scores: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    who: str,
    probabilities: bool,
) -> Samples:
    """Check one batch for the metric `who`.

    labels [n] are 0 or 1; scores [n] finite, and within [0, 1] where `probabilities`; weights [n]
    finite and not negative. Float32 and float64 scores are kept as they are, others become
    float64. Raises DataError, naming `who`, the first bad value and its place.
    """
    positive = require_binary(labels, who)
    values = _column(scores, f"{who}: scores")
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    _same_length(values, positive, f"{who}: scores")
    if probabilities:
        rule = "must be probabilities in [0, 1] (apply a sigmoid to logits)"
        _require((values >= 0) & (values <= 1), values, f"{who}: scores {rule}")
    else:
        _require(np.isfinite(values), values, f"{who}: scores must be finite")
    if weights is None:
        return Samples(labels=positive, scores=values)
    checked = _column(weights, f"{who}: weights").astype(np.float64)
    _same_length(checked, positive, f"{who}: weights")
    _require(np.isfinite(checked) & (checked >= 0), checked, f"{who}: weights must be >= 0, finite")
    return Samples(labels=positive, scores=values, weights=checked)


def _column(values: ArrayLike, what: str) -> Array:
    column = np.asarray(values)
    if column.ndim != 1 or column.dtype.kind not in "biuf":
        raise DataError(
            f"{what} must be numbers of shape [n], got {column.dtype} {list(column.shape)}"
        )
    return column


def _same_length(values: Array, labels: Array, what: str) -> None:
    if len(values) != len(labels):
        raise DataError(f"{what} must be one a label, got {len(values)} for {len(labels)} labels")


def _require(good: Array, values: Array, rule: str) -> None:
    if not good.all():
        first = int(np.argmin(good))
        raise DataError(f"{rule}, got {values[first]} at sample {first}")


class Accumulator(ABC, Generic[R]):
    """A metric over all samples seen so far."""

    probabilities: bool = True
    """Whether scores must lie in [0, 1]."""

    @property
    def name(self) -> str:
        """What errors call this metric."""
        return type(self).__name__

    def update(
        self, labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None
    ) -> None:
        """Check one batch and add it. A batch that is refused (DataError) changes nothing."""
        samples = read_samples(
            labels, scores, weights, who=self.name, probabilities=self.probabilities
        )
        self.add(samples)

    @abstractmethod
    def add(self, samples: Samples) -> None:
        """Add samples that are already checked."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add everything that `other` has seen; `other` stays as it is."""

    @abstractmethod
    def result(self) -> R:
        """The metric of everything seen so far."""


def require_mergeable(mine: Accumulator[R], other: Accumulator[R], *settings: str) -> None:
    """Raise SettingError unless both are of one kind and were made with the same settings."""
    kinds = type(mine).__name__, type(other).__name__
    if kinds[0] != kinds[1]:
        raise SettingError(f"a metric merges with its own kind only: {kinds[0]} got a {kinds[1]}")
    for name in settings:
        ours, theirs = getattr(mine, name), getattr(other, name)
        if ours != theirs:
            raise SettingError(
                f"{kinds[0]}s merge only with the same {name}, got {ours} and {theirs}"
            )
