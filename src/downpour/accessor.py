"""Accessors: what a row of a sparse table holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from downpour.errors import SettingError
from downpour.init import Init, Uniform

if TYPE_CHECKING:
    from downpour.rules.base import Rule

DTYPES = ("float32", "float64")


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLayout:
    """Where the parts of a stored row begin, in bytes from its start; the key is at 0.

    A row is the key (8 bytes), `dim` weights, `state_dim` numbers of rule state and, for a table
    with weight decay, the float64 `log_decay` of the row's last touch (`decay_offset` is -1
    without it). `num_bytes` is a multiple of 8.
    """

    item_bytes: int
    weight_offset: int
    weight_bytes: int
    state_offset: int
    state_dim: int
    decay_offset: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingAccessor:
    """A row is a vector of weights and the rule's state.

    `dim`: numbers a row, >= 1. `rule`: a rule that may sit on a sparse table. `init`: the value
    before the first update. `bounds`: (low, high) to clamp weights to when new and after each
    update, a NaN becoming low. `dtype`: "float32", or "float64" for comparisons. Raises
    SettingError.
    """

    dim: int
    rule: Rule
    init: Init = field(default_factory=lambda: Uniform(0.01))
    bounds: tuple[float, float] | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if type(self.dim) is not int or self.dim < 1:
            raise SettingError(f"EmbeddingAccessor.dim must be an int >= 1, got {self.dim!r}")
        if self.dtype not in DTYPES:
            raise SettingError(
                f"EmbeddingAccessor.dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}"
            )
        if not self.rule.on_sparse:
            raise SettingError(
                f"{type(self.rule).__name__} updates dense tables only, got it on a sparse one; "
                "take Adam or Adagrad there"
            )
        if self.bounds is not None:
            self._check_bounds(*self.bounds)

    def _check_bounds(self, low: float, high: float) -> None:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise SettingError(
                f"EmbeddingAccessor.bounds must be finite (low, high), low < high, got "
                f"{self.bounds}"
            )
        if self.rule.weight_decay > 0.0 and not low <= 0.0 <= high:
            raise SettingError(
                f"EmbeddingAccessor.bounds must hold 0 with weight_decay, got {self.bounds}: "
                "decay between two updates would leave them"
            )

    @property
    def state_dim(self) -> int:
        """Numbers of rule state a row."""
        return self.rule.state_dim(self.dim)

    @property
    def numpy_dtype(self) -> np.dtype[np.floating]:
        """`dtype` as numpy has it."""
        return np.dtype(self.dtype)

    @property
    def layout(self) -> RowLayout:
        """Where the parts of a stored row are."""
        item = self.numpy_dtype.itemsize
        state_offset = 8 + self.dim * item
        end = -(-(state_offset + self.state_dim * item) // 8) * 8
        decays = self.rule.weight_decay > 0.0
        return RowLayout(
            item_bytes=item,
            weight_offset=8,
            weight_bytes=self.dim * item,
            state_offset=state_offset,
            state_dim=self.state_dim,
            decay_offset=end if decays else -1,
            num_bytes=end + 8 * decays,
        )
