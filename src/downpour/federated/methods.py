"""How clients train in a round and what servers make of it: frozen values.

A client's update is by how much its weights have changed in a round. Servers take the mean of the
updates for a gradient that points the other way, and step by a rule of their own:
w <- w + mean(update) by the plain one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from downpour.errors import SettingError
from downpour.rules import SGD, Momentum, UncorrectedAdam
from downpour.settings import is_number

if TYPE_CHECKING:
    from downpour.rules import Rule

Weighting = Literal["samples", "equal"]
RowsOver = Literal["all", "touched"]
OptimizerState = Literal["kept", "fresh"]


@dataclass(frozen=True, kw_only=True)
class FedAvg:
    """Federated averaging: McMahan et al. 2017. Raises SettingError.

    Args:
        local_steps: batches that a client trains on in a round; its next round begins with the one
            after.
        local_epochs: or how often it goes through its data; one of the two, by default one epoch.
        weighting: whether a client counts by the "samples" that it has trained on, or "equal".
        rows_over: a row of a lookup table moves by its mean change over "all" clients heard from,
            for whom it has not changed where they did not touch it, or over those that "touched"
            it. The first is what averaging whole tables would give; the second moves rare rows
            faster.
        optimizer_state: whether the state of a client's own optimizer is "kept" from one of its
            rounds to the next, or each begins "fresh". It never leaves the client.
        server_lr: how much of the mean change is made.
    """

    local_steps: int | None = None
    local_epochs: int | None = None
    weighting: Weighting = "samples"
    rows_over: RowsOver = "all"
    optimizer_state: OptimizerState = "kept"
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        if self.local_steps is not None and self.local_epochs is not None:
            raise SettingError(
                f"{type(self).__name__}: a round has local_steps or local_epochs, got "
                f"{self.local_steps!r} and {self.local_epochs!r}; give one, or None for the other"
            )
        if self.local_steps is None and self.local_epochs is None:
            object.__setattr__(self, "local_epochs", 1)
        for name in ("local_steps", "local_epochs"):
            count: object = getattr(self, name)
            is_count = type(count) is int and count >= 1
            self._require(name, count is None or is_count, "an int >= 1")
        for name, known in (
            ("weighting", get_args(Weighting)),
            ("rows_over", get_args(RowsOver)),
            ("optimizer_state", get_args(OptimizerState)),
        ):
            self._require(name, getattr(self, name) in known, f"one of {', '.join(known)}")
        is_rate = is_number(self.server_lr) and self.server_lr > 0.0
        self._require("server_lr", is_rate, "a finite number > 0")

    @property
    def rule(self) -> Rule:
        """The servers' rule, on dense tables and on rows."""
        return SGD(lr=self.server_lr)

    @property
    def proximal(self) -> float:
        """The weight of the proximal term of a client's losses."""
        return 0.0

    def _require(self, name: str, holds: bool, must_be: str) -> None:
        if not holds:
            raise SettingError(
                f"{type(self).__name__}.{name} must be {must_be}, got {getattr(self, name)!r}"
            )


@dataclass(frozen=True, kw_only=True)
class FedProx(FedAvg):
    """Li et al. 2020: a client's losses get mu / 2 * |w - w0|^2, w0 what its round began with."""

    mu: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        is_weight = is_number(self.mu) and self.mu >= 0.0
        self._require("mu", is_weight, "a finite number >= 0")

    @property
    def proximal(self) -> float:
        """See FedAvg."""
        return self.mu


@dataclass(frozen=True, kw_only=True)
class FedAvgM(FedAvg):
    """Hsu et al. 2019: servers step with momentum.

    v <- momentum * v - mean(update); w <- w - server_lr * v
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("momentum", _is_share(self.momentum), "a number in [0, 1)")

    @property
    def rule(self) -> Rule:
        """See FedAvg."""
        return Momentum(lr=self.server_lr, momentum=self.momentum)


@dataclass(frozen=True, kw_only=True)
class FedAdam(FedAvg):
    """Reddi et al. 2021, algorithm 2: servers step with Adam, without a correction of its bias.

    m <- b1 m + (1-b1) mean(update); v <- b2 v + (1-b2) mean(update)^2, from tau^2;
    w <- w + server_lr * m / (sqrt(v) + tau)
    """

    server_lr: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    tau: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        betas: object = self.betas
        are_betas = isinstance(betas, tuple) and len(betas) == 2 and all(map(_is_share, betas))
        self._require("betas", are_betas, "a tuple of two numbers in [0, 1), as (0.9, 0.99)")
        is_tau = is_number(self.tau) and self.tau > 0.0
        self._require("tau", is_tau, "a finite number > 0")

    @property
    def rule(self) -> Rule:
        """See FedAvg."""
        return UncorrectedAdam(lr=self.server_lr, betas=self.betas, tau=self.tau)


def _is_share(value: object) -> bool:
    return is_number(value) and 0.0 <= value < 1.0
