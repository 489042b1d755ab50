"""The reference's rule for dense blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from downpour.rules.base import BaseRule

if TYPE_CHECKING:
    from downpour.rules.base import Floats


def adam_d2sum(weight: Floats, state: Floats, grad: Floats, hyper: Floats) -> None:
    """D <- a D + 1; G <- a G + g^2; M <- b M - (1-b) g; w <- w + lr M sqrt(D(1+e) / (G + D e)).

    a: ada_decay, b: mom_decay. The state is D, G, M. M follows minus the gradient.
    """
    lr, eps, ada_decay, mom_decay, one = hyper[0], hyper[1], hyper[2], hyper[3], hyper[4]
    dim = weight.size
    for i in range(dim):
        d2 = ada_decay * state[i] + one
        g2 = ada_decay * state[dim + i] + grad[i] * grad[i]
        momentum = mom_decay * state[2 * dim + i] - (one - mom_decay) * grad[i]
        weight[i] += lr * momentum * np.sqrt((d2 + d2 * eps) / (g2 + d2 * eps))
        state[i] = d2
        state[dim + i] = g2
        state[2 * dim + i] = momentum


@dataclass(frozen=True, kw_only=True)
class AdamD2Sum(BaseRule):
    """The reference's "adam": decayed sums D of ones and G of squares, G / D in Adam's v's place.

    Dense tables only. `lr` is used as it stands: the reference does not scale it by a global one.
    """

    on_sparse: ClassVar[bool] = False

    lr: float = field(default=5e-6, kw_only=False)
    ada_decay: float = 0.9999
    mom_decay: float = 0.99
    eps: float = 1e-8

    update = staticmethod(adam_d2sum)

    def __post_init__(self) -> None:
        BaseRule.__post_init__(self)
        self.require("ada_decay", self.ada_decay, above=0.0, below=1.0)
        self.require("mom_decay", self.mom_decay, least=0.0, below=1.0)
        self.require("eps", self.eps, above=0.0)

    def state_dim(self, dim: int) -> int:
        """D, G and M, an element each."""
        return 3 * dim

    def hyper(self, step: int, lr: float) -> tuple[float, ...]:
        """lr, eps, ada_decay, mom_decay, 1."""
        return (lr, self.eps, self.ada_decay, self.mom_decay, 1.0)
