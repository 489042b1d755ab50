"""Row initialisers: the value a weight has before its first update.

Every key of a table has its initial row from the beginning, whether stored yet or not: element i
is a function of (seed, table name, key, i) alone. Shards, servers and the order in which keys
arrive never change it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from downpour.errors import SettingError

if TYPE_CHECKING:
    from downpour.rules.base import Update


class Init(Protocol):
    """A frozen value with a plain function that fills a row, compiled by the table.

    `fill(weight, u, v, params)` gets `num_uniforms` random numbers a weight, uniform in (0, 1] and
    independent: u [dim] if it is 1, u and v if it is 2; what is not asked for is empty.
    """

    num_uniforms: ClassVar[int]

    @property
    def fill(self) -> Update:
        """Write weight [dim] from u [dim], v [dim] and params [k]."""

    def params(self) -> tuple[float, ...]:
        """The numbers that `fill` reads."""


def uniform(weight: np.ndarray, u: np.ndarray, v: np.ndarray, params: np.ndarray) -> None:
    """w = low + (high - low) * u."""
    low, high = params[0], params[1]
    for i in range(weight.size):
        weight[i] = low + (high - low) * u[i]


def normal(weight: np.ndarray, u: np.ndarray, v: np.ndarray, params: np.ndarray) -> None:
    """w = mean + std * sqrt(-2 ln u) * cos(2 pi v), Box and Muller 1958."""
    mean, std = params[0], params[1]
    for i in range(weight.size):
        weight[i] = mean + std * np.sqrt(-2.0 * np.log(u[i])) * np.cos(2.0 * math.pi * v[i])


def constant(weight: np.ndarray, u: np.ndarray, v: np.ndarray, params: np.ndarray) -> None:
    """w = value."""
    for i in range(weight.size):
        weight[i] = params[0]


@dataclass(frozen=True, slots=True)
class Uniform:
    """Uniform on [low, high]; `Uniform(bound)` is [-bound, bound]."""

    bound: InitVar[float | None] = None
    low: float = field(default=math.nan, kw_only=True)
    high: float = field(default=math.nan, kw_only=True)

    num_uniforms: ClassVar[int] = 1
    fill: ClassVar = staticmethod(uniform)

    def __post_init__(self, bound: float | None) -> None:
        given = (not math.isnan(self.low), not math.isnan(self.high))
        if bound is not None and not any(given):
            object.__setattr__(self, "low", -bound)
            object.__setattr__(self, "high", bound)
        elif bound is not None or not all(given):
            raise SettingError(
                f"Uniform takes a bound, or low and high, got bound={bound}, low={self.low}, "
                f"high={self.high}"
            )
        if not (-math.inf < self.low <= self.high < math.inf):
            raise SettingError(
                f"Uniform: low must be <= high, both finite, got [{self.low}, {self.high}]"
            )

    def params(self) -> tuple[float, ...]:
        """Low, high."""
        return (self.low, self.high)


@dataclass(frozen=True, slots=True)
class Normal:
    """Normal with the given standard deviation and mean."""

    std: float
    mean: float = 0.0

    num_uniforms: ClassVar[int] = 2
    fill: ClassVar = staticmethod(normal)

    def __post_init__(self) -> None:
        if not (0.0 <= self.std < math.inf and math.isfinite(self.mean)):
            raise SettingError(
                f"Normal: std must be finite and >= 0 and mean finite, got std={self.std}, "
                f"mean={self.mean}"
            )

    def params(self) -> tuple[float, ...]:
        """Mean and standard deviation."""
        return (self.mean, self.std)


@dataclass(frozen=True, slots=True)
class Constant:
    """The same value everywhere."""

    value: float = 0.0

    num_uniforms: ClassVar[int] = 0
    fill: ClassVar = staticmethod(constant)

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise SettingError(f"Constant: value must be finite, got {self.value}")

    def params(self) -> tuple[float, ...]:
        """The value."""
        return (self.value,)


def table_salt(seed: int, table: str) -> np.uint64:
    """64 bits from the seed and the table's name, the start of every key's random stream."""
    digest = hashlib.blake2b(f"{seed}:{table}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))
