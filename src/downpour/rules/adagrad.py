"""Adagrad: per element as torch has it, per row, and with the reference's initial g2sum."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from downpour.rules.base import BaseRule

if TYPE_CHECKING:
    from downpour.rules.base import Floats, Update


def adagrad(weight: Floats, state: Floats, grad: Floats, hyper: Floats) -> None:
    """S <- S + g^2, w <- w - lr * g / (sqrt(S) + eps), element by element."""
    lr, eps = hyper[0], hyper[1]
    for i in range(weight.size):
        state[i] += grad[i] * grad[i]
        weight[i] -= lr * grad[i] / (np.sqrt(state[i]) + eps)


def rowwise_adagrad(weight: Floats, state: Floats, grad: Floats, hyper: Floats) -> None:
    """s <- s + mean(g^2), w <- w - lr * g / (sqrt(s) + eps), one s a row."""
    lr, eps = hyper[0], hyper[1]
    total = 0.0
    for i in range(weight.size):
        total += grad[i] * grad[i]
    state[0] += total / weight.size
    scale = lr / (np.sqrt(state[0]) + eps)
    for i in range(weight.size):
        weight[i] -= scale * grad[i]


def g2sum_adagrad(weight: Floats, state: Floats, grad: Floats, hyper: Floats) -> None:
    """w <- w - lr * g * sqrt(G0 / (G0 + s)), then s <- s + mean(g^2), one s a row."""
    lr, initial = hyper[0], hyper[1]
    scale = lr * np.sqrt(initial / (initial + state[0]))
    total = 0.0
    for i in range(weight.size):
        total += grad[i] * grad[i]
        weight[i] -= scale * grad[i]
    state[0] += total / weight.size


def g2sum_adagrad_per_element(weight: Floats, state: Floats, grad: Floats, hyper: Floats) -> None:
    """w <- w - lr * g * sqrt(G0 / (G0 + S)), then S <- S + g^2, element by element."""
    lr, initial = hyper[0], hyper[1]
    for i in range(weight.size):
        weight[i] -= lr * grad[i] * np.sqrt(initial / (initial + state[i]))
        state[i] += grad[i] * grad[i]


@dataclass(frozen=True, kw_only=True)
class Adagrad(BaseRule):
    """Duchi et al. 2011, as `torch.optim.Adagrad`: one accumulator an element.

    S <- S + g^2; w <- w - lr / (1 + (step - 1) * lr_decay) * g / (sqrt(S) + eps).
    """

    takes_mean: ClassVar[bool] = True

    eps: float = 1e-10
    lr_decay: float = 0.0
    initial_accumulator_value: float = 0.0

    update = staticmethod(adagrad)

    def __post_init__(self) -> None:
        BaseRule.__post_init__(self)
        self.require("eps", self.eps, least=0.0)
        self.require("lr_decay", self.lr_decay, least=0.0)
        self.require("initial_accumulator_value", self.initial_accumulator_value, least=0.0)

    def state_dim(self, dim: int) -> int:
        """One accumulator an element."""
        return dim

    def initial_state(self, dim: int) -> np.ndarray:
        """`initial_accumulator_value` everywhere."""
        return np.full(dim, self.initial_accumulator_value, np.float64)

    def hyper(self, step: int, lr: float) -> tuple[float, ...]:
        """The decayed learning rate and eps."""
        return (lr / (1.0 + (step - 1) * self.lr_decay), self.eps)


@dataclass(frozen=True, kw_only=True)
class RowwiseAdagrad(BaseRule):
    """Adagrad with one accumulator a row, fed the mean square of the row's gradient.

    s <- s + mean(g^2); w <- w - lr * g / (sqrt(s) + eps). A fraction of Adagrad's memory.
    """

    on_dense: ClassVar[bool] = False
    takes_mean: ClassVar[bool] = True

    eps: float = 1e-10
    initial_accumulator_value: float = 0.0

    update = staticmethod(rowwise_adagrad)

    def __post_init__(self) -> None:
        BaseRule.__post_init__(self)
        self.require("eps", self.eps, least=0.0)
        self.require("initial_accumulator_value", self.initial_accumulator_value, least=0.0)

    def state_dim(self, dim: int) -> int:
        """One accumulator a row."""
        return 1

    def initial_state(self, dim: int) -> np.ndarray:
        """`initial_accumulator_value`, [1]."""
        return np.full(1, self.initial_accumulator_value, np.float64)

    def hyper(self, step: int, lr: float) -> tuple[float, ...]:
        """The learning rate and eps."""
        return (lr, self.eps)


@dataclass(frozen=True, kw_only=True)
class G2SumAdagrad(BaseRule):
    """The reference's Adagrad: w <- w - lr * g * sqrt(G0 / (G0 + s)), s before this gradient.

    `initial_g2sum` is G0, > 0. s is one number a row fed mean(g^2), or one an element fed g^2
    with `per_element`.
    """

    on_dense: ClassVar[bool] = False
    takes_mean: ClassVar[bool] = True

    lr: float = field(default=0.05, kw_only=False)
    initial_g2sum: float = 3.0
    per_element: bool = False

    def __post_init__(self) -> None:
        BaseRule.__post_init__(self)
        self.require("initial_g2sum", self.initial_g2sum, above=0.0)

    @property
    def update(self) -> Update:
        """The row's formula or the element's."""
        return g2sum_adagrad_per_element if self.per_element else g2sum_adagrad

    def state_dim(self, dim: int) -> int:
        """One sum a row, or one an element."""
        return dim if self.per_element else 1

    def hyper(self, step: int, lr: float) -> tuple[float, ...]:
        """The learning rate and G0."""
        return (lr, self.initial_g2sum)
