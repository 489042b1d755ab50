"""Several named metrics over the same samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from downpour.errors import SettingError
from downpour.metrics.auc import AUC, BucketedAUC
from downpour.metrics.samples import Accumulator, Samples, require_mergeable
from downpour.metrics.sums import COPC, LogLoss

if TYPE_CHECKING:
    from collections.abc import Mapping

Metric = Accumulator[float | None]


class MetricSet(Accumulator[dict[str, float | None]]):
    """Named metrics that are updated together: a batch is checked once and goes to all or none."""

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        if not metrics:
            raise SettingError("a MetricSet needs at least one metric, got none")
        self.metrics = dict(metrics)
        self.probabilities = any(metric.probabilities for metric in metrics.values())
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
