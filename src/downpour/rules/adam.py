"""Adam: as torch has it, the reference's two table forms, and that of federated servers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from downpour.errors import SettingError
from downpour.rules.base import BaseRule

if TYPE_CHECKING:
    from downpour.rules.base import Floats


def adam(weight: Floats, state: Floats, grad: Floats, hyper: Floats) -> None:
    """m <- m + (1-b1)(g-m), v <- v + (1-b2)(g^2-v), w <- w - a * m / (sqrt(v) + e).

    The state is m then v; hyper is a, e, 1-b1, 1-b2.
    """
    rate, eps, one_less_b1, one_less_b2 = hyper[0], hyper[1], hyper[2], hyper[3]
    dim = weight.size
    for i in range(dim):
        m = state[i] + one_less_b1 * (grad[i] - state[i])
        v = state[dim + i] + one_less_b2 * (grad[i] * grad[i] - state[dim + i])
        weight[i] -= rate * m / (np.sqrt(v) + eps)
        state[i] = m
        state[dim + i] = v


def row_adam(weight: Floats, state: Floats, grad: Floats, hyper: Floats) -> None:
    """Adam whose powers B1, B2 belong to the row and move only when the row does.

    a = lr sqrt(1-B2) / (1-B1); m <- b1 m + (1-b1) g; v <- b2 v + (1-b2) g^2;
    w <- w - a m / (sqrt(v) + eps); B1 <- B1 b1; B2 <- B2 b2. State: m, v, B1, B2.
    """
    lr, eps, b1, b2, one = hyper[0], hyper[1], hyper[2], hyper[3], hyper[4]
    dim = weight.size
    rate = lr * np.sqrt(one - state[2 * dim + 1]) / (one - state[2 * dim])
    for i in range(dim):
        m = b1 * state[i] + (one - b1) * grad[i]
        v = b2 * state[dim + i] + (one - b2) * grad[i] * grad[i]
        weight[i] -= rate * m / (np.sqrt(v) + eps)
        state[i] = m
        state[dim + i] = v
    state[2 * dim] *= b1
    state[2 * dim + 1] *= b2


def shared_adam(weight: Floats, state: Floats, grad: Floats, hyper: Floats) -> None:
    """Row Adam with one m and one v: each becomes the mean of what the elements would have.

    a = lr sqrt(1-B2) / (1-B1); m_i = b1 m + (1-b1) g_i; v_i = b2 v + (1-b2) g_i^2;
    w_i <- w_i - a m_i / (sqrt(v_i) + eps); m <- mean(m_i); v <- mean(v_i). State: m, v, B1, B2.
    """
    lr, eps, b1, b2, one = hyper[0], hyper[1], hyper[2], hyper[3], hyper[4]
    rate = lr * np.sqrt(one - state[3]) / (one - state[2])
    sum_m, sum_v = 0.0, 0.0
    for i in range(weight.size):
        m = b1 * state[0] + (one - b1) * grad[i]
        v = b2 * state[1] + (one - b2) * grad[i] * grad[i]
        weight[i] -= rate * m / (np.sqrt(v) + eps)
        sum_m += m
        sum_v += v
    state[0] = sum_m / weight.size
    state[1] = sum_v / weight.size
    state[2] *= b1
    state[3] *= b2


def uncorrected_adam(weight: Floats, state: Floats, grad: Floats, hyper: Floats) -> None:
    """m <- b1 m + (1-b1) g; v <- b2 v + (1-b2) g^2; w <- w - lr * m / (sqrt(v) + tau).

    The state is m then v.
    """
    lr, tau, b1, b2, one = hyper[0], hyper[1], hyper[2], hyper[3], hyper[4]
    dim = weight.size
    for i in range(dim):
        m = b1 * state[i] + (one - b1) * grad[i]
        v = b2 * state[dim + i] + (one - b2) * grad[i] * grad[i]
        weight[i] -= lr * m / (np.sqrt(v) + tau)
        state[i] = m
        state[dim + i] = v


def _require_betas(rule: BaseRule, betas: object) -> None:
    """Raise SettingError unless there are two, each in [0, 1)."""
    if not (isinstance(betas, tuple | list) and len(betas) == 2):
        raise SettingError(
            f"{type(rule).__name__}.betas must be two numbers, as (0.9, 0.99), got {betas!r}"
        )
    for index, beta in enumerate(betas):
        rule.require(f"betas[{index}]", beta, least=0.0, below=1.0)


@dataclass(frozen=True, kw_only=True)
class _Adam(BaseRule):
    """The settings of the three: betas in [0, 1), eps >= 0."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        BaseRule.__post_init__(self)
        _require_betas(self, self.betas)
        self.require("eps", self.eps, least=0.0)


@dataclass(frozen=True, kw_only=True)
class Adam(_Adam):
    """Kingma and Ba 2015. On a sparse table `torch.optim.SparseAdam`: moments move only where a
    gradient arrives, the step count is the table's. On a dense table `torch.optim.Adam`.

    Both are one update: torch's dense form divides sqrt(v) by sqrt(1-b2^t) before adding eps,
    which is the sparse form with eps * sqrt(1-b2^t). The reference's dense "adam" has the latter.
    """

    update = staticmethod(adam)

    def state_dim(self, dim: int) -> int:
        """Two moments an element."""
        return 2 * dim

    def hyper(self, step: int, lr: float) -> tuple[float, ...]:
        """Step size lr * sqrt(1-b2^t) / (1-b1^t), eps, 1-b1, 1-b2."""
        b1, b2 = self.betas
        rate = lr * (1.0 - b2**step) ** 0.5 / (1.0 - b1**step)
        return (rate, self.eps, 1.0 - b1, 1.0 - b2)

    def dense_hyper(self, step: int, lr: float) -> tuple[float, ...]:
        """As `hyper`, with eps * sqrt(1-b2^t)."""
        rate, eps, one_less_b1, one_less_b2 = self.hyper(step, lr)
        return (rate, eps * (1.0 - self.betas[1] ** step) ** 0.5, one_less_b1, one_less_b2)


@dataclass(frozen=True, kw_only=True)
class RowAdam(_Adam):
    """The reference's table Adam: every row counts its own steps through its powers of b1, b2."""

    on_dense: ClassVar[bool] = False

    update = staticmethod(row_adam)

    def state_dim(self, dim: int) -> int:
        """Two moments an element and two powers."""
        return 2 * dim + 2

    def initial_state(self, dim: int) -> np.ndarray:
        """Zero moments; the powers start at b1 and b2."""
        return np.concatenate([np.zeros(2 * dim), self.betas])

    def hyper(self, step: int, lr: float) -> tuple[float, ...]:
        """lr, eps, b1, b2, 1."""
        return (lr, self.eps, *self.betas, 1.0)


@dataclass(frozen=True, kw_only=True)
class SharedAdam(_Adam):
    """The reference's shared Adam: one first and one second moment for the whole row."""

    on_dense: ClassVar[bool] = False

    update = staticmethod(shared_adam)

    def state_dim(self, dim: int) -> int:
        """Two moments and two powers."""
        return 4

    def initial_state(self, dim: int) -> np.ndarray:
        """Zero moments; the powers start at b1 and b2."""
        return np.array([0.0, 0.0, *self.betas])

    def hyper(self, step: int, lr: float) -> tuple[float, ...]:
        """lr, eps, b1, b2, 1."""
        return (lr, self.eps, *self.betas, 1.0)


@dataclass(frozen=True, kw_only=True)
class UncorrectedAdam(BaseRule):
    """FedAdam of Reddi et al. 2021, algorithm 2: Adam without a correction of its bias.

    m <- b1 m + (1-b1) g, from 0; v <- b2 v + (1-b2) g^2, from tau^2;
    w <- w - lr * m / (sqrt(v) + tau). No step is counted, so a row moves by its own pushes alone.
    `betas` are in [0, 1). `tau` is > 0; the larger it is, the less the step adapts.
    """

    betas: tuple[float, float] = (0.9, 0.99)
    tau: float = 1e-3

    update = staticmethod(uncorrected_adam)

    def __post_init__(self) -> None:
        BaseRule.__post_init__(self)
        _require_betas(self, self.betas)
        self.require("tau", self.tau, above=0.0)

    def state_dim(self, dim: int) -> int:
        """Two moments an element."""
        return 2 * dim

    def initial_state(self, dim: int) -> np.ndarray:
        """Zeros for m, tau^2 for v."""
        return np.repeat([0.0, self.tau * self.tau], dim)

    def hyper(self, step: int, lr: float) -> tuple[float, ...]:
        """lr, tau, b1, b2, 1."""
        return (lr, self.tau, *self.betas, 1.0)
