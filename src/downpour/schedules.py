"""Learning-rate schedules: from the step, counted from 1, to the factor on a rule's `lr`.

Any function of the step will do; these are values, so that a plan that holds them prints,
compares and travels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from downpour.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Schedule(Protocol):
    """Step, counted from 1, to the factor on the learning rate."""

    def __call__(self, step: int, /) -> float:
        """The factor, finite and >= 0."""


def _require(is_met: bool, message: str) -> None:
    if not is_met:
        raise SettingError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class Warmup:
    """Rise linearly to 1 over `steps` steps from `start`, then follow `after` (or stay at 1).

    Step 1 has the factor `start`, step `steps` + 1 the first factor of `after`.
    """

    steps: int
    start: float = 0.0
    after: Schedule | None = None

    def __post_init__(self) -> None:
        _require(self.steps >= 1, f"Warmup.steps must be >= 1, got {self.steps}")
        _require(0.0 <= self.start <= 1.0, f"Warmup.start must be in [0, 1], got {self.start}")

    def __call__(self, step: int) -> float:
        """The factor of a step."""
        if step <= self.steps:
            return self.start + (1.0 - self.start) * (step - 1) / self.steps
        return 1.0 if self.after is None else self.after(step - self.steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """Fall (or rise) linearly from 1 to `end` over `steps` steps, then stay."""

    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        _require(self.steps >= 1, f"Linear.steps must be >= 1, got {self.steps}")
        _require(0.0 <= self.end < math.inf, f"Linear.end must be finite, >= 0, got {self.end}")

    def __call__(self, step: int) -> float:
        """The factor of a step."""
        return 1.0 + (self.end - 1.0) * min(step - 1, self.steps) / self.steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosine:
    """Half a cosine from 1 to `end` over `steps` steps, then stay (Loshchilov and Hutter 2017)."""

    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        _require(self.steps >= 1, f"Cosine.steps must be >= 1, got {self.steps}")
        _require(0.0 <= self.end < math.inf, f"Cosine.end must be finite, >= 0, got {self.end}")

    def __call__(self, step: int) -> float:
        """The factor of a step."""
        done = min(step - 1, self.steps) / self.steps
        return self.end + (1.0 - self.end) * (1.0 + math.cos(math.pi * done)) / 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDecay:
    """Multiply by `factor` after every `every` steps."""

    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        _require(self.every >= 1, f"StepDecay.every must be >= 1, got {self.every}")
        _require(
            0.0 <= self.factor <= 1.0, f"StepDecay.factor must be in [0, 1], got {self.factor}"
        )

    def __call__(self, step: int) -> float:
        """The factor of a step."""
        return self.factor ** ((step - 1) // self.every)


@dataclass(frozen=True, kw_only=True, slots=True)
class Exponential:
    """Multiply by `factor` after every step."""

    factor: float

    def __post_init__(self) -> None:
        _require(
            0.0 < self.factor <= 1.0, f"Exponential.factor must be in (0, 1], got {self.factor}"
        )

    def __call__(self, step: int) -> float:
        """The factor of a step."""
        return self.factor ** (step - 1)


@dataclass(frozen=True, init=False)
class TorchSchedule:
    """The factors of a `torch.optim.lr_scheduler` class, stepped once a step.

    `TorchSchedule(torch.optim.lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=1000)` runs the
    real scheduler on a stand-in optimizer of learning rate 1, so arguments that are learning
    rates are given as factors. Schedulers that need a metric (ReduceLROnPlateau) are refused.
    """

    scheduler: type
    settings: Mapping[str, Any]
    _factors: list[float] = field(compare=False, repr=False)
    _running: list[Any] = field(compare=False, repr=False)

    def __init__(self, scheduler: type, **settings: Any) -> None:
        _require(
            isinstance(scheduler, type),
            "TorchSchedule takes a class of torch.optim.lr_scheduler, as StepLR, got "
            f"{scheduler!r}",
        )
        _require(
            scheduler.__name__ != "ReduceLROnPlateau",
            "TorchSchedule cannot run ReduceLROnPlateau: it needs a metric, and a schedule is a "
            "function of the step",
        )
        object.__setattr__(self, "scheduler", scheduler)
        object.__setattr__(self, "settings", settings)
        object.__setattr__(self, "_factors", [])
        object.__setattr__(self, "_running", [])

    def __hash__(self) -> int:
        return hash((self.scheduler, tuple(sorted((k, repr(v)) for k, v in self.settings.items()))))

    def __reduce__(self) -> tuple[Any, ...]:
        return _torch_schedule, (self.scheduler, dict(self.settings))

    def __call__(self, step: int) -> float:
        """The factor of a step; earlier ones are remembered, later ones are run up to."""
        if not self._running:
            self._start()
        optimizer, scheduler = self._running
        while len(self._factors) < step:
            optimizer.step()
            try:
                scheduler.step()
            except ValueError as error:
                raise SettingError(
                    f"TorchSchedule: {self.scheduler.__name__} has no step {step}: {error}"
                ) from error
            self._factors.append(float(optimizer.param_groups[0]["lr"]))
        return self._factors[step - 1]

    def _start(self) -> None:
        import torch  # servers do not have it: only who computes a schedule pays

        # Momentum, for schedulers that cycle it refuse an optimizer without.
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
        self._running.extend([optimizer, self.scheduler(optimizer, **self.settings)])
        self._factors.append(float(optimizer.param_groups[0]["lr"]))


def _torch_schedule(scheduler: type, settings: dict[str, Any]) -> TorchSchedule:
    return TorchSchedule(scheduler, **settings)
