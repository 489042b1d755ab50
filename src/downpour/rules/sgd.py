"""Stochastic gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from downpour.rules.base import BaseRule

if TYPE_CHECKING:
    from downpour.rules.base import Floats


def sgd(weight: Floats, state: Floats, grad: Floats, hyper: Floats) -> None:
    """w <- w - lr * g."""
    lr = hyper[0]
    for i in range(weight.size):
        weight[i] -= lr * grad[i]


@dataclass(frozen=True, kw_only=True)
class SGD(BaseRule):
    """w <- w - lr * g; with `weight_decay` it is `torch.optim.SGD(weight_decay=...)`.

    For plain SGD the L2 penalty and decoupled decay are one thing, so `weight_decay` on a sparse
    table is exact and lazy: rows that are not touched decay too, when they are next read. The
    reference's "naive" rule is this one.
    """

    update = staticmethod(sgd)
