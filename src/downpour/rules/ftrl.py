"""Follow the regularised leader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from downpour.errors import SettingError
from downpour.rules.base import BaseRule

if TYPE_CHECKING:
    from downpour.rules.base import Floats


def ftrl(weight: Floats, state: Floats, grad: Floats, hyper: Floats) -> None:
    """s = (sqrt(n + g^2) - sqrt(n)) / lr; z <- z + g - s w; n <- n + g^2; then w from z and n.

    w <- 0 if |z| <= l1 else (sign(z) l1 - z) / ((beta + sqrt(n)) / lr + l2). State: z, n.
    """
    inverse_lr, l1, l2, beta, zero = hyper[0], hyper[1], hyper[2], hyper[3], hyper[4]
    dim = weight.size
    for i in range(dim):
        root = np.sqrt(state[dim + i])
        state[dim + i] += grad[i] * grad[i]
        new_root = np.sqrt(state[dim + i])
        state[i] += grad[i] - (new_root - root) * inverse_lr * weight[i]
        z = state[i]
        excess = max(abs(z) - l1, zero)
        divisor = (beta + new_root) * inverse_lr + l2  # 0 where no gradient was but 0
        weight[i] = -np.sign(z) * excess / divisor if excess > zero else zero


@dataclass(frozen=True, kw_only=True)
class Ftrl(BaseRule):
    """McMahan et al. 2013, FTRL-proximal: sparse weights by `l1`, shrunk ones by `l2`.

    `lr` is the paper's alpha, `beta` its beta. The weight is a function of z and n, so a decay
    beside the rule would be undone by the next gradient: `weight_decay` is refused.
    """

    l1: float = 0.0
    l2: float = 0.0
    beta: float = 1.0

    update = staticmethod(ftrl)

    def __post_init__(self) -> None:
        BaseRule.__post_init__(self)
        for name in ("l1", "l2", "beta"):
            self.require(name, getattr(self, name), least=0.0)
        if self.weight_decay > 0.0:
            raise SettingError(
                f"Ftrl.weight_decay must be 0, got {self.weight_decay}: its weights are rebuilt "
                "from z and n at each step; use l2"
            )

    def state_dim(self, dim: int) -> int:
        """Z and n, an element each."""
        return 2 * dim

    def hyper(self, step: int, lr: float) -> tuple[float, ...]:
        """1 / lr, l1, l2, beta, 0. A schedule's 0 is taken as the least positive rate."""
        return (1.0 / max(lr, 1e-30), self.l1, self.l2, self.beta, 0.0)
