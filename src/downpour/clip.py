"""Gradient clipping, as frozen values that a plan carries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from downpour.errors import SettingError
from downpour.settings import is_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ClipByValue:
    """Clamp each element of each gradient to [-limit, limit]; as `clip_grad_value_` in torch."""

    limit: float

    def __post_init__(self) -> None:
        _check_positive("ClipByValue.limit", self.limit)

    def apply(self, grads: Sequence[NDArray[np.floating]]) -> None:
        """Clip in place."""
        for grad in grads:
            np.clip(grad, -self.limit, self.limit, out=grad)


@dataclass(frozen=True, slots=True)
class ClipByNorm:
    """Scale all gradients so that their joint L2 norm is at most `max_norm`.

    As `clip_grad_norm_` in torch: the factor is min(1, max_norm / (norm + 1e-6)), and a sparse
    gradient counts once per distinct key, after its ids are summed.
    """

    max_norm: float

    def __post_init__(self) -> None:
        _check_positive("ClipByNorm.max_norm", self.max_norm)

    def apply(self, grads: Sequence[NDArray[np.floating]]) -> None:
        """Clip in place."""
        squares = sum(_sum_of_squares(grad) for grad in grads)
        factor = self.max_norm / (math.sqrt(squares) + 1e-6)
        if factor < 1.0:
            for grad in grads:
                grad *= factor


Clip: TypeAlias = ClipByValue | ClipByNorm


def l2_norm(grad: NDArray[np.floating]) -> float:
    """The L2 norm of a gradient."""
    return math.sqrt(_sum_of_squares(grad))


def _sum_of_squares(grad: NDArray[np.floating]) -> float:
    squares = float(np.vdot(grad, grad))
    if math.isfinite(squares):
        return squares
    wide = grad.astype(np.float64)  # a float32 above 2e19 has no square in float32
    return float(np.vdot(wide, wide))


def _check_positive(name: str, value: object) -> None:
    if not (is_number(value) and value > 0):
        raise SettingError(f"{name} must be a finite number above 0, got {value!r}")
