"""Several named metrics over the same samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from downpour.errors import DataError, SettingError
from downpour.metrics.auc import AUC, BucketedAUC
from downpour.metrics.calibration import Calibration
from downpour.metrics.samples import KINDS, Accumulator, Samples, require_mergeable
from downpour.metrics.sums import COPC, MAE, RMSE, LogLoss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from downpour.metrics.calibration import CalibrationBin

Metric = Accumulator[float | None]


class MetricSet(Accumulator[dict[str, float | None]]):
    """Named metrics that are updated together: a batch is checked once and goes to all or none."""

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        if not metrics:
            raise SettingError("a MetricSet needs at least one metric, got none")
        self.metrics = dict(metrics)
        self.probabilities = any(metric.probabilities for metric in metrics.values())
        self.kind = min((metric.kind for metric in metrics.values()), key=KINDS.index)
        self.num_samples = 0

    @property
    def name(self) -> str:
        """The names of all its metrics."""
        return ", ".join(metric.name for metric in self.metrics.values())

    @property
    def names(self) -> list[str]:
        """The keys of `result()`."""
        return list(self.metrics)

    def add(self, samples: Samples) -> None:
        """Add checked samples to every metric."""
        for metric in self.metrics.values():
            metric.add(samples)
        self.num_samples += len(samples)

    def merge(self, other: MetricSet) -> None:
        """Add what the metrics of the same names in `other` have seen."""
        require_mergeable(self, other, "names")
        for name, metric in self.metrics.items():
            metric.merge(other.metrics[name])
        self.num_samples += other.num_samples

    def result(self) -> dict[str, float | None]:
        """Each metric's result by name."""
        return {name: metric.result() for name, metric in self.metrics.items()}


def click_metrics() -> MetricSet:
    """What a run reports of a click model: auc, auc_bucketed, logloss and copc."""
    return MetricSet(
        {"auc": AUC(), "auc_bucketed": BucketedAUC(), "logloss": LogLoss(), "copc": COPC()}
    )


class RunMetrics:
    """What a run reports of its predictions: each metric as far as it is defined.

    auc, auc_bucketed, logloss and copc; where a label is neither 0 nor 1, rmse and mae as well.
    Labels may be any finite numbers: a metric that is not defined for them is None, and
    `undefined` says why. are_sigmoids: whether scores are sigmoids, which no label outside [0, 1]
    can be compared with.
    """

    NAMES = ("auc", "auc_bucketed", "logloss", "copc", "rmse", "mae")

    def __init__(self, *, are_sigmoids: bool = False) -> None:
        self._metrics: dict[str, Metric] = {**click_metrics().metrics, "rmse": RMSE(), "mae": MAE()}
        self._calibration: Calibration | None = Calibration()
        self._are_sigmoids = are_sigmoids
        self._are_binary = True
        self._improbable: str | None = None
        self._misfits: dict[str, str] = {}
        self.num_samples = 0

    def add(self, samples: Samples) -> None:
        """Add checked samples to every metric that is defined for them and those before."""
        self.num_samples += len(samples)
        self._are_binary = self._are_binary and samples.labels.dtype == np.bool_
        self._improbable = self._improbable or samples.misfit("number", probabilities=True)
        for name in [*self._metrics]:
            metric = self._metrics[name]
            why = samples.misfit(metric.kind, probabilities=metric.probabilities)
            if why is None and self._are_sigmoids and metric.kind == "number":
                why = _beyond_sigmoids(samples)
            if why is None:
                metric.add(samples)
            else:
                del self._metrics[name]
                self._misfits[name] = why
        if self._calibration and samples.misfit("fraction", probabilities=True) is None:
            self._calibration.add(samples)
        else:
            self._calibration = None

    def result(self) -> dict[str, float | None]:
        """Each metric's result by name; None where it is not defined.

        Raises DataError where all labels are 0 or 1 and scores are no probabilities.
        """
        if self._are_binary and self._improbable:
            raise DataError(f"evaluation: {self._improbable}")
        names = self.NAMES[:4] if self._are_binary else self.NAMES
        return {name: self._result(name) for name in names}

    def undefined(self, results: Mapping[str, float | None]) -> dict[str, str]:
        """Why results are None, by name."""
        return {
            name: self._misfits.get(name) or self._metrics[name].undefined
            for name, value in results.items()
            if value is None
        }

    def _result(self, name: str) -> float | None:
        return None if name in self._misfits else self._metrics[name].result()

    def calibration(self) -> tuple[CalibrationBin, ...]:
        """Predicted and actual rates; none where labels or scores are no rates."""
        return () if self._calibration is None else self._calibration.result()


def _beyond_sigmoids(samples: Samples) -> str | None:
    why = samples.misfit("fraction", probabilities=False)
    return why and (
        f"{why}, as predictions are sigmoids unless Run(predict=) says otherwise; for a regression "
        "give one that returns what the labels are of"
    )
