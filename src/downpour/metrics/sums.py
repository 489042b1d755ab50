"""Metrics that are sums over samples."""

from __future__ import annotations

import math

import numpy as np

from downpour.errors import SettingError
from downpour.metrics.samples import Accumulator, Samples, require_mergeable


class LogLoss(Accumulator[float | None]):
    """Binary cross-entropy, the mean over samples by weight, in nats; labels from 0 to 1.

    A label between 0 and 1 counts as that share of a click: -(y ln p + (1 - y) ln(1 - p)).

    Scores are clipped to [eps, 1 - eps], so that one sure and wrong score costs -ln(eps) (16.1 by
    default) and not infinity. Sums are float64 whatever the scores are.
    """

    kind = "fraction"

    def __init__(self, *, eps: float = 1e-7) -> None:
        if not 0 < eps < 0.5:
            raise SettingError(f"LogLoss: eps must be between 0 and 0.5, got {eps}")
        self.eps = eps
        self._loss = 0.0
        self._weight = 0.0

    def add(self, samples: Samples) -> None:
        """Add the loss of checked samples."""
        scores = np.clip(samples.scores.astype(np.float64), self.eps, 1 - self.eps)
        if samples.labels.dtype == np.bool_:
            losses = -np.log(np.where(samples.labels, scores, 1 - scores))
        else:
            losses = -samples.labels * np.log(scores) - (1 - samples.labels) * np.log(1 - scores)
        self._loss += samples.total(losses)
        self._weight += samples.total(np.ones(len(samples)))

    def merge(self, other: LogLoss) -> None:
        """Add the sums of `other`, which must clip alike."""
        require_mergeable(self, other, "eps")
        self._loss += other._loss
        self._weight += other._weight

    def result(self) -> float | None:
        """The mean loss, one class or two; None while there is no weight."""
        return self._loss / self._weight if self._weight > 0 else None


class COPC(Accumulator[float | None]):
    """Clicks over predicted clicks: above 1 the scores are too low, below 1 too high.

    Labels are from 0 to 1; one between them is that share of a click.
    """

    kind = "fraction"
    undefined = "no click is predicted"

    def __init__(self) -> None:
        self._clicks = 0.0
        self._predicted_clicks = 0.0
        self._weight = 0.0

    def add(self, samples: Samples) -> None:
        """Add the clicks and scores of checked samples."""
        self._clicks += samples.total(samples.labels)
        self._predicted_clicks += samples.total(samples.scores)
        self._weight += samples.total(np.ones(len(samples)))

    def merge(self, other: COPC) -> None:
        """Add the sums of `other`."""
        require_mergeable(self, other)
        self._clicks += other._clicks
        self._predicted_clicks += other._predicted_clicks
        self._weight += other._weight

    @property
    def actual(self) -> float | None:
        """The mean label; None while there is no weight."""
        return self._clicks / self._weight if self._weight > 0 else None

    @property
    def predicted(self) -> float | None:
        """The mean score; None while there is no weight."""
        return self._predicted_clicks / self._weight if self._weight > 0 else None

    def result(self) -> float | None:
        """The ratio, one class or two (no click gives 0); None while no click is predicted."""
        return self._clicks / self._predicted_clicks if self._predicted_clicks > 0 else None


class MAE(Accumulator[float | None]):
    """The mean absolute difference of score and label, by weight; both may be any numbers."""

    probabilities = False
    kind = "number"
    power = 1

    def __init__(self) -> None:
        self._error = 0.0
        self._weight = 0.0

    def add(self, samples: Samples) -> None:
        """Add the differences of checked samples."""
        difference = np.abs(samples.labels - samples.scores.astype(np.float64))
        self._error += samples.total(difference**self.power)
        self._weight += samples.total(np.ones(len(samples)))

    def merge(self, other: MAE) -> None:
        """Add the sums of `other`."""
        require_mergeable(self, other)
        self._error += other._error
        self._weight += other._weight

    def result(self) -> float | None:
        """The mean; None while there is no weight."""
        return self._error / self._weight if self._weight > 0 else None


class RMSE(MAE):
    """The root of the mean squared difference of score and label, by weight; any numbers."""

    power = 2

    def result(self) -> float | None:
        """The root of the mean; None while there is no weight."""
        mean = super().result()
        return None if mean is None else math.sqrt(mean)
