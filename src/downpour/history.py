"""What a run has done so far, as metrics.json tells it (format 1)."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from downpour.report import FORMAT
from downpour.sketch import DistinctCount
from downpour.tables import TableStats

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from downpour.cluster_report import ClusterReport
    from downpour.evaluate import Evaluation
    from downpour.features import Batch
    from downpour.transport import DenseStats

MAX_POINTS = 1000
TRAINING = ("learning_rate", "gradient_norm")  # curves by table
OURS = ("loss", "samples_per_s", "rows", "bytes", "samples", "seconds", *TRAINING)


class Curve:
    """A value over steps, thinned to at most MAX_POINTS means of equal spans."""

    def __init__(self) -> None:
        self._span = 1
        self._points: list[tuple[float, float]] = []
        self._open: list[tuple[float, float]] = []

    def add(self, step: int, value: float) -> None:
        """Add the value of a step."""
        self._open.append((step, value))
        if len(self._open) == self._span:
            self._points.append(_mean(self._open))
            self._open = []
        if len(self._points) == MAX_POINTS:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [_mean(list(pair)) for pair in pairs]
            self._span *= 2

    def points(self) -> list[list[float]]:
        """[[step, value], ...]; the last may be of fewer steps than the others."""
        last = [_mean(self._open)] if self._open else []
        return [[step, value] for step, value in (*self._points, *last)]


def _mean(points: list[tuple[float, float]]) -> tuple[float, float]:
    """The last step and the mean value."""
    return points[-1][0], sum(value for _, value in points) / len(points)


@dataclass
class FeatureCount:
    """The keys that a feature brought."""

    keys: int = 0
    samples: int = 0
    unique: DistinctCount = field(default_factory=DistinctCount)

    def add(self, samples: int, keys: NDArray[np.uint64]) -> None:
        """Count the keys of a batch."""
        self.keys += len(keys)
        self.samples += samples
        self.unique.add(keys)

    def as_dict(self) -> dict[str, Any]:
        """As JSON, to be merged elsewhere."""
        return {"keys": self.keys, "samples": self.samples, "unique": self.unique.text()}

    def merge(self, other: Mapping[str, Any]) -> None:
        """Add what another process has counted, as `as_dict` gave it."""
        self.keys += other["keys"]
        self.samples += other["samples"]
        self.unique.merge(other["unique"])


class History:
    """Collects what metrics.json will hold; `metrics` gives it at any time."""

    def __init__(self, name: str, settings: Mapping[str, Any], plan: str) -> None:
        self.name, self.settings, self.plan = name, dict(settings), plan
        self.step = 0
        self.epochs: list[dict[str, Any]] = []
        self.final: dict[str, Any] = {}
        self.calibration: list[dict[str, float]] = []
        self.undefined: dict[str, str] = {}  # why results of the last evaluation are None
        self.features: dict[str, FeatureCount] = {}
        self.curves: dict[str, Curve] = {"loss": Curve(), "samples_per_s": Curve()}
        self._by_table: dict[str, dict[str, Curve]] = {
            name: {} for name in ("rows", "bytes", *TRAINING)
        }
        self._tables: dict[str, dict[str, Any]] = {}

    def count_features(self, batch: Batch) -> None:
        """Count the keys of a batch that was read to train on."""
        for name, jagged in batch.features.items():
            self.features.setdefault(name, FeatureCount()).add(batch.size, jagged.values)

    def merge_features(self, features: Mapping[str, Mapping[str, Any]]) -> None:
        """Count the keys that a worker has read."""
        for name, counted in features.items():
            self.features.setdefault(name, FeatureCount()).merge(counted)

    def add_step(self, loss: float, samples: int, seconds: float) -> None:
        """Add a step that took `seconds`."""
        self.add_steps(1, loss, samples, seconds)

    def add_steps(self, steps: int, loss: float, samples: int, seconds: float) -> None:
        """Add steps of any workers that took `seconds` together, with their mean loss."""
        self.step += steps
        self.curves["loss"].add(self.step, loss)
        self.curves["samples_per_s"].add(self.step, samples / seconds if seconds else 0.0)

    def add_tables(self, stats: Mapping[str, TableStats | DenseStats]) -> None:
        """Add what the tables hold after the last step."""
        for name, table in stats.items():
            kind = "sparse" if isinstance(table, TableStats) else "dense"
            self._tables[name] = {"kind": kind, "bytes": table.bytes, **asdict(table)}
            self._add("bytes", name, table.bytes)
            if isinstance(table, TableStats):
                self._add("rows", name, table.rows)

    def add_training(self, rates: Mapping[str, float], norms: Mapping[str, float]) -> None:
        """Add the tables' learning rates and gradient norms as of the last step."""
        for kind, values in zip(TRAINING, (rates, norms), strict=True):
            for table, value in values.items():
                self._add(kind, table, value)

    def _add(self, kind: str, table: str, value: float) -> None:
        self._by_table[kind].setdefault(table, Curve()).add(self.step, value)

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Add an evaluation after the last step; results of `OURS` names become eval_NAME."""
        self.end_with(evaluation)
        for name, value in _results(evaluation).items():
            if value is not None and name != "auc_bucketed":
                self.curves.setdefault(name, Curve()).add(self.step, value)

    def end_with(self, evaluation: Evaluation) -> None:
        """Let an earlier evaluation be the final one, as the run ends with the model it was of."""
        counts = {"samples": evaluation.samples, "seconds": evaluation.seconds}
        self.final = {**_results(evaluation), **counts}
        self.calibration = [asdict(each) for each in evaluation.calibration]
        self.undefined = dict(evaluation.undefined)

    def add_epoch(self, epoch: Mapping[str, Any]) -> None:
        """Add an epoch, or the part of one that was trained."""
        self.epochs.append(dict(epoch))

    def metrics(
        self,
        *,
        stopped: str | None,
        phases_s: Mapping[str, float],
        cluster: ClusterReport | None = None,
    ) -> dict[str, Any]:
        """The content of metrics.json; `stopped` None while the run goes on.

        cluster: the workers and servers of a run that has them.
        """
        seconds = sum(epoch["seconds"] for epoch in self.epochs)
        samples = sum(epoch["samples"] for epoch in self.epochs)
        by_table = {
            kind: {name: curve.points() for name, curve in curves.items()}
            for kind, curves in self._by_table.items()
        }
        return {
            "format": FORMAT,
            "name": self.name,
            "stopped": stopped,
            "settings": self.settings,
            "versions": versions(),
            "machine": machine(),
            "epochs": self.epochs,
            "final": self.final,
            **({"undefined": self.undefined} if self.undefined else {}),
            "samples_per_s": samples / seconds if seconds else None,
            "phases_s": dict(phases_s),
            "tables": self._tables,
            # In one process every pull is read after the push before it was applied.
            "staleness": {"mean": 0.0, "max": 0} if cluster is None else cluster.staleness(),
            **({} if cluster is None else cluster.summary()),
            "curves": {**{name: c.points() for name, c in self.curves.items()}, **by_table},
            "calibration": self.calibration,
            "features": {
                name: {"keys": c.keys, "unique": c.unique.estimate(), "samples": c.samples}
                for name, c in self.features.items()
            },
            "plan": self.plan,
        }


def _results(evaluation: Evaluation) -> dict[str, float | None]:
    return {
        f"eval_{name}" if name in OURS else name: value
        for name, value in evaluation.results.items()
    }


def versions() -> dict[str, str]:
    """Of Downpour and what figures depend on."""
    names = {"downpour": "downpour-ps", "torch": "torch", "numba": "numba", "numpy": "numpy"}
    return {"python": platform.python_version()} | {
        name: version(distribution) for name, distribution in names.items()
    }


def machine() -> dict[str, Any]:
    """Where the run was."""
    return {"system": platform.system(), "arch": platform.machine(), "cores": os.cpu_count()}
