"""The reference's rule for data-norm statistics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from downpour.errors import SettingError
from downpour.rules.base import BaseRule

if TYPE_CHECKING:
    from downpour.rules.base import Floats


def summary(weight: Floats, state: Floats, grad: Floats, hyper: Floats) -> None:
    """p <- decay * p + g."""
    decay = hyper[0]
    for i in range(weight.size):
        weight[i] = decay * weight[i] + grad[i]


@dataclass(frozen=True, kw_only=True)
class Summary(BaseRule):
    """The reference's "summary": a decayed sum of what is pushed, for `DataNorm`'s statistics.

    `decay` in (0, 1]; 1 keeps a plain sum, the reference's "sum". There is no learning rate, so
    `schedule`, `weight_decay` and `batch_l2` are refused.
    """

    on_sparse: ClassVar[bool] = False

    lr: float = field(default=1.0, init=False, repr=False)
    decay: float = field(default=0.999999, kw_only=False)

    update = staticmethod(summary)

    def __post_init__(self) -> None:
        BaseRule.__post_init__(self)
        self.require("decay", self.decay, above=0.0)
        if self.decay > 1.0:
            raise SettingError(f"Summary.decay must be at most 1, got {self.decay}")
        for name in ("schedule", "weight_decay", "batch_l2"):
            if getattr(self, name):
                raise SettingError(
                    f"Summary.{name} must not be set, got {getattr(self, name)!r}: a sum has no "
                    "learning rate and no penalty"
                )

    def hyper(self, step: int, lr: float) -> tuple[float, ...]:
        """The decay."""
        return (self.decay,)
