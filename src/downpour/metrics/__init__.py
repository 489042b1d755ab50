"""How good scores are: accumulators that see a batch at a time and merge across workers.

Every accumulator has `update(labels, scores, weights=None)`, `merge(other)` and `result()`. A merge
gives what one accumulator would have given for the samples of both. A result that does not exist
(no sample yet, or an AUC of one class only) is `None`: it is `null` in JSON, which has no NaN, and
it can be neither averaged nor plotted by mistake, as a made-up number could.
"""

from downpour.metrics.auc import AUC, BucketedAUC
from downpour.metrics.calibration import Calibration, CalibrationBin, calibration_error
from downpour.metrics.metric_set import MetricSet, RunMetrics, click_metrics
from downpour.metrics.samples import Accumulator, Samples, read_samples, require_binary
from downpour.metrics.sums import COPC, MAE, RMSE, LogLoss

__all__ = [
    "AUC",
    "COPC",
    "MAE",
    "RMSE",
    "Accumulator",
    "BucketedAUC",
    "Calibration",
    "CalibrationBin",
    "LogLoss",
    "MetricSet",
    "RunMetrics",
    "Samples",
    "calibration_error",
    "click_metrics",
    "read_samples",
    "require_binary",
]
