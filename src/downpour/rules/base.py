"""What a rule is: a frozen value that says how one row moves when a gradient arrives.

The move itself is `update`, a plain function over one row that reads as the equation. Tables
compile it once (see `tables.callback`) and call it for every row of a push; tests call it as it
stands. It changes `weight` and `state` in place. All four arrays have the table's dtype, so it
should meet no Python float that would lift the arithmetic to float64: constants go in `hyper`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

import numpy as np

from downpour.errors import SettingError
from downpour.settings import is_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from downpour.schedules import Schedule

    Floats: TypeAlias = np.ndarray[tuple[int], np.dtype[np.floating]]
    Update: TypeAlias = Callable[[Floats, Floats, Floats, Floats], None]


class Rule(Protocol):
    """The four questions that a table asks of a rule, and the settings every rule has."""

    on_sparse: ClassVar[bool]
    on_dense: ClassVar[bool]
    takes_mean: ClassVar[bool]  # a CTR row divides its gradient by the places, if it scales

    @property
    def lr(self) -> float:
        """The learning rate before the schedule."""

    @property
    def schedule(self) -> Schedule | None:
        """Step (from 1) to the factor on `lr`; None keeps `lr` as it is."""

    @property
    def weight_decay(self) -> float:
        """Decoupled decay: each step multiplies every weight by 1 - lr * weight_decay."""

    @property
    def batch_l2(self) -> float:
        """Penalty on the rows of the push alone: gradient += batch_l2 * weight."""

    @property
    def update(self) -> Update:
        """Move one row in place: (weight [dim], state [state_dim], grad [dim], hyper [k])."""

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""

    def state_dim(self, dim: int) -> int:
        """How many numbers a row of `dim` weights keeps beside them."""

    def initial_state(self, dim: int) -> np.ndarray:
        """The state of a new row, [state_dim] float64; the table casts it to its own dtype."""

    def hyper(self, step: int, lr: float) -> tuple[float, ...]:
        """The numbers that `update` reads as `hyper` on a sparse table at this step."""

    def dense_hyper(self, step: int, lr: float) -> tuple[float, ...]:
        """The same for a dense table, where `step` counts the parameter's own updates."""


@dataclass(frozen=True, kw_only=True)
class BaseRule:
    """The settings that every rule shares, and the answers that most rules give.

    `lr`: learning rate, > 0. `schedule`: step to factor, or None. `weight_decay`: decoupled
    decay, lr * weight_decay < 1. `batch_l2`: penalty on the pushed rows alone, >= 0. Raises
    SettingError when a value breaks its rule.
    """

    on_sparse: ClassVar[bool] = True
    on_dense: ClassVar[bool] = True
    takes_mean: ClassVar[bool] = False

    lr: float = field(kw_only=False)
    schedule: Schedule | None = None
    weight_decay: float = 0.0
    batch_l2: float = 0.0

    def __post_init__(self) -> None:
        self.require("lr", self.lr, above=0.0)
        self.require("weight_decay", self.weight_decay, least=0.0)
        self.require("batch_l2", self.batch_l2, least=0.0)
        if self.lr * self.weight_decay >= 1.0:
            raise SettingError(
                f"{type(self).__name__}: lr * weight_decay must be < 1, got {self.lr} * "
                f"{self.weight_decay}: one step would turn every weight around; lower either"
            )

    def require(
        self,
        name: str,
        value: float,
        *,
        least: float = -math.inf,
        above: float = -math.inf,
        below: float = math.inf,
    ) -> None:
        """Raise SettingError unless the number `value` is finite and in the range."""
        rules = [f">= {least}"] * math.isfinite(least) + [f"> {above}"] * math.isfinite(above)
        rules += [f"< {below}"] * math.isfinite(below)
        if not (is_number(value) and least <= value and above < value < below):
            raise SettingError(
                f"{type(self).__name__}.{name} must be a finite number {' and '.join(rules)}, "
                f"got {value!r}"
            )

    def lr_at(self, step: int) -> float:
        """`lr` times the schedule's factor; step counts from 1. SettingError if not a rate."""
        if self.schedule is None:
            return self.lr
        lr = self.lr * float(self.schedule(step))
        if not (math.isfinite(lr) and lr >= 0.0):
            raise SettingError(
                f"{type(self).__name__}.schedule gave the learning rate {lr} at step {step}; "
                "a schedule returns a finite factor >= 0"
            )
        return lr

    def state_dim(self, dim: int) -> int:
        """No state."""
        return 0

    def initial_state(self, dim: int) -> np.ndarray:
        """Zeros, [state_dim] float64."""
        return np.zeros(self.state_dim(dim), np.float64)

    def hyper(self, step: int, lr: float) -> tuple[float, ...]:
        """The learning rate alone."""
        return (lr,)

    def dense_hyper(self, step: int, lr: float) -> tuple[float, ...]:
        """As on a sparse table."""
        return self.hyper(step, lr)
