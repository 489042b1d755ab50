"""How good a model is on held-back batches."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from downpour.errors import DataError, SettingError
from downpour.metrics import RunMetrics, read_samples
from downpour.transfer import HOST

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np

    from downpour.features import Batch
    from downpour.metrics import CalibrationBin
    from downpour.run import Evaluate, Predict


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results by name, what they are over, and the time it took.

    A result is None where it is not defined, and `undefined` says why.
    """

    results: dict[str, float | None]
    samples: int
    seconds: float
    calibration: tuple[CalibrationBin, ...] = ()
    undefined: Mapping[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """A sentence for each reason why results are not defined."""
        by_reason: dict[str, list[str]] = {}
        for name, why in self.undefined.items():
            by_reason.setdefault(why, []).append(name)
        return [
            f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} not defined: {why}"
            for why, names in by_reason.items()
        ]


def sigmoid_of_model(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The model's logits [batch] as probabilities."""
    logits: torch.Tensor = model(batch)
    return torch.sigmoid(logits)


@contextlib.contextmanager
def inference(model: torch.nn.Module) -> Iterator[None]:
    """Put the model in eval mode without gradients, and back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def predict_batch(
    model: torch.nn.Module, batch: Batch, predict: Predict, device: str | torch.device = HOST
) -> np.ndarray[Any, Any]:
    """Scores [batch] of a batch, which goes to the model's device. DataError where `predict` gives
    something else.
    """
    scores: object = predict(model, batch.to(device))
    if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != (batch.size,):
        got = list(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise DataError(
            f"predictions must be a tensor [batch] = [{batch.size}], got {got}; give Run a "
            "predict=(model, batch) that returns probabilities"
        )
    scored: np.ndarray[Any, Any] = scores.detach().cpu().numpy()
    return scored


def label_of(batch: Batch, label: str | None) -> torch.Tensor:
    """The label that is predicted. DataError where it is not there."""
    if label is None and len(batch.labels) > 1:
        raise DataError(
            f"the batch has the labels {', '.join(batch.labels)}; say which one is predicted with "
            "Run(label=)"
        )
    if label is None:
        return batch.label
    if label not in batch.labels:
        known = ", ".join(batch.labels) or "none"
        raise DataError(f"the batch has no label {label!r}; it has: {known}")
    return batch.labels[label]


def own_results(own: Evaluate, model: torch.nn.Module) -> dict[str, float | None]:
    """What an evaluation of the user's own gives by name; NaN and infinity are undefined."""
    with inference(model):
        given: object = own(model)
    if not isinstance(given, Mapping):
        raise SettingError(f"Run.evaluate must give a dict of numbers by name, got {given!r}")
    values = {str(name): float(value) for name, value in given.items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def evaluate(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    predict: Predict,
    label: str | None,
    device: str | torch.device = HOST,
) -> Evaluation:
    """AUC, bucketed AUC, logloss and COPC over all batches; no row is made.

    Where a label is neither 0 nor 1, RMSE and MAE as well; what is not defined for such labels is
    None. device: where the model is. Raises DataError for labels or scores that are not finite,
    scores that are no probabilities though labels are 0 and 1, or no sample at all.
    """
    start = time.perf_counter()
    metrics = RunMetrics(are_sigmoids=predict is sigmoid_of_model)
    with inference(model):
        for batch in batches:
            if batch.size == 0:
                continue
            metrics.add(
                read_samples(
                    label_of(batch, label).cpu().numpy(),
                    predict_batch(model, batch, predict, device),
                    None if batch.weights is None else batch.weights.cpu().numpy(),
                    who="evaluation",
                    probabilities=False,
                    kind="number",
                )
            )
    if metrics.num_samples == 0:
        raise DataError("evaluated on nothing: the evaluation data gave no sample")
    results = metrics.result()
    return Evaluation(
        results=results,
        samples=metrics.num_samples,
        seconds=time.perf_counter() - start,
        calibration=metrics.calibration(),
        undefined=metrics.undefined(results),
    )
