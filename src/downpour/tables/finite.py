"""Whether floats are finite, in kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from downpour.jit import inlined

if TYPE_CHECKING:
    import numpy as np


@inlined
def all_finite(values: np.ndarray) -> bool:
    """Whether no number of [n] is NaN or infinite, without a branch for each: a loop of vectors."""
    is_bad = False
    for i in range(values.size):
        difference = values[i] - values[i]  # 0, or NaN
        is_bad |= difference != difference
    return not is_bad
