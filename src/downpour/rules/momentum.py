"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from downpour.rules.base import BaseRule

if TYPE_CHECKING:
    from downpour.rules.base import Floats


def momentum_sgd(weight: Floats, state: Floats, grad: Floats, hyper: Floats) -> None:
    """v <- momentum * v + g, w <- w - lr * v."""
    lr, momentum = hyper[0], hyper[1]
    for i in range(weight.size):
        state[i] = momentum * state[i] + grad[i]
        weight[i] -= lr * state[i]


@dataclass(frozen=True, kw_only=True)
class Momentum(BaseRule):
    """v <- momentum * v + g; w <- w - lr * v; `torch.optim.SGD(momentum=...)`, v from 0.

    There is no dampening and no look-ahead of Nesterov's. On a sparse table a row's v moves only
    when the row is pushed. `weight_decay` is decoupled; torch's, which goes through v, is
    `batch_l2` on a dense table. `momentum` is in [0, 1); 0 is plain SGD.
    """

    momentum: float = 0.9

    update = staticmethod(momentum_sgd)

    def __post_init__(self) -> None:
        BaseRule.__post_init__(self)
        self.require("momentum", self.momentum, least=0.0, below=1.0)

    def state_dim(self, dim: int) -> int:
        """One v an element."""
        return dim

    def hyper(self, step: int, lr: float) -> tuple[float, ...]:
        """The learning rate and the momentum."""
        return (lr, self.momentum)
