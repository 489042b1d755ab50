"""What every metric reads, checked once, and the contract of every metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeAlias, TypeVar

import numpy as np

from downpour.errors import DataError, SettingError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

R = TypeVar("R")
Array = np.ndarray[Any, np.dtype[Any]]
LabelKind: TypeAlias = Literal["binary", "fraction", "number"]
"""What labels a metric is defined for: 0 and 1, numbers from 0 to 1, or any finite numbers."""

KINDS: tuple[LabelKind, ...] = ("binary", "fraction", "number")  # the strictest first
RULES = {
    "binary": "labels must be 0 or 1",
    "fraction": "labels must be from 0 to 1",
    "number": "labels must be finite",
}
PROBABILITIES = "scores must be probabilities in [0, 1] (apply a sigmoid to logits)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Checked samples: labels [n], finite float scores [n], float64 weights [n] or None.

    Labels are bool where all are 0 or 1, float64 otherwise.
    """

    labels: Array
    scores: Array
    weights: Array | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def full_weights(self) -> Array:
        """The weights [n] float64, ones where none were given."""
        return np.ones(len(self)) if self.weights is None else self.weights

    def misfit(self, kind: LabelKind, *, probabilities: bool) -> str | None:
        """Why a metric for such labels and scores is not defined for these; None where it is."""
        good = labels_of_kind(self.labels, kind)
        if not good.all():
            return f"{RULES[kind]}, got {self.labels[int(np.argmin(good))]}"
        likely = (self.scores >= 0) & (self.scores <= 1)
        if probabilities and not likely.all():
            return f"{PROBABILITIES}, got {self.scores[int(np.argmin(likely))]}"
        return None

    def total(self, values: Array) -> float:
        """The weighted sum of one value a sample, `values` [n]."""
        weighted = values if self.weights is None else values * self.weights
        return float(np.sum(weighted, dtype=np.float64))


def labels_of_kind(labels: Array, kind: LabelKind) -> Array:
    """Which labels [n] are of a kind, bool [n]."""
    if kind == "number":
        good = np.isfinite(labels)
    elif kind == "fraction":
        good = (labels >= 0) & (labels <= 1)
    else:
        good = (labels == 0) | (labels == 1)
    return np.asarray(good)


def require_binary(labels: ArrayLike, who: str) -> Array:
    """Labels [n] of any numeric dtype as bool [n]; `who` needs them to be 0 or 1.

    Raises DataError, naming `who`, the first other value and its place.
    """
    return _checked_labels(labels, who, "binary")


def read_samples(
    labels: ArrayLike,
    scores: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    who: str,
    probabilities: bool,
    kind: LabelKind = "binary",
) -> Samples:
    """Check one batch for the metric `who`.

    labels [n] are of a `kind`; scores [n] finite, and within [0, 1] where `probabilities`; weights
    [n] finite and not negative. Float32 and float64 scores are kept as they are, others become
    float64. Raises DataError, naming `who`, the first bad value and its place.
    """
    targets = _checked_labels(labels, who, kind)
    values = _column(scores, f"{who}: scores")
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    _same_length(values, targets, f"{who}: scores")
    if probabilities:
        _require((values >= 0) & (values <= 1), values, f"{who}: {PROBABILITIES}")
    else:
        _require(np.isfinite(values), values, f"{who}: scores must be finite")
    if weights is None:
        return Samples(labels=targets, scores=values)
    checked = _column(weights, f"{who}: weights").astype(np.float64)
    _same_length(checked, targets, f"{who}: weights")
    _require(np.isfinite(checked) & (checked >= 0), checked, f"{who}: weights must be >= 0, finite")
    return Samples(labels=targets, scores=values, weights=checked)


def _checked_labels(labels: ArrayLike, who: str, kind: LabelKind) -> Array:
    values = _column(labels, f"{who}: labels")
    good = labels_of_kind(values, kind)
    if not good.all():
        first = int(np.argmin(good))
        way_out = "; turn them into 0/1 first, for example `rating >= 4`" * (kind == "binary")
        raise DataError(f"{who}: {RULES[kind]}, got {values[first]} at sample {first}{way_out}")
    if kind == "binary" or labels_of_kind(values, "binary").all():
        return np.asarray(values == 1)
    return values.astype(np.float64)


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

    kind: LabelKind = "binary"
    """Which labels it is defined for."""

    undefined: str = "no sample has weight"
    """Why a result may be None though labels and scores are as they must be."""

    @property
    def name(self) -> str:
        """What errors call this metric."""
        return type(self).__name__

    def update(
        self, labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None
    ) -> None:
        """Check one batch and add it. A batch that is refused (DataError) changes nothing."""
        samples = read_samples(
            labels,
            scores,
            weights,
            who=self.name,
            probabilities=self.probabilities,
            kind=self.kind,
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
