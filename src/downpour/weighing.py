"""The reference's adjust_ins_weight: samples whose id was rarely shown weigh more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from downpour.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from downpour.features import Batch
    from downpour.plan.program import WeighSamples
    from downpour.step import Lookup


def weighed(op: WeighSamples, batch: Batch, lookup: Lookup, rows: NDArray[Any]) -> Batch:
    """Give the batch with weights raised by the shows of `op.feature` in its pulled rows.

    w = log(e + (threshold - show) / threshold * ratio) where 0 <= show < threshold, if that is
    more than the sample's weight (Paddle, downpour_worker.cc 01173677). Raises DataError where a
    sample has several ids.
    """
    shows = _shows(op.feature, lookup, rows[:, 0], batch.size)
    weights = np.ones(batch.size) if batch.weights is None else batch.weights.cpu().numpy().copy()
    rare = (shows >= 0.0) & (shows < op.threshold)
    share = (op.threshold - shows[rare]) / op.threshold
    weights[rare] = np.maximum(weights[rare], np.log(np.e + share * op.ratio))
    return batch.reweighted(weights)


def _shows(feature: str, lookup: Lookup, by_row: NDArray[Any], size: int) -> NDArray[np.float64]:
    """The show of each sample's id of a feature, [batch]; -1 where it has none."""
    bag = lookup.keys.bags[feature]
    shows: NDArray[np.float64] = by_row[lookup.keys.inverse[bag.start : bag.stop]].astype(float)
    if bag.offsets is None:
        return shows
    lengths = np.diff(bag.offsets)
    if (lengths > 1).any():
        raise DataError(
            f"feature {feature!r} weighs samples and must have at most one id a sample, got "
            f"{lengths.max()}"
        )
    out = np.full(size, -1.0)
    out[lengths == 1] = shows
    return out
