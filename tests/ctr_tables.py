"""Tables of CTR rows and what is pushed to them, for the tests of several files."""

from __future__ import annotations

from typing import Any

import numpy as np

from downpour import rules
from downpour.accessor import CtrAccessor
from downpour.init import Normal
from downpour.tables import CtrTable

DIM = 3  # of embedx
RULES: dict[str, Any] = {
    "g2sum": (rules.G2SumAdagrad(0.1), None),
    "per element, sgd": (rules.G2SumAdagrad(0.1, per_element=True), rules.SGD(0.05)),
    "sgd, per element": (rules.SGD(0.05), rules.G2SumAdagrad(0.1, per_element=True)),
    "row adam, shared": (rules.RowAdam(0.02), rules.SharedAdam(0.01)),
    "adagrad, row-wise": (rules.Adagrad(0.1, eps=1e-6), rules.RowwiseAdagrad(0.1, eps=1e-6)),
    "shared, g2sum": (rules.SharedAdam(0.02), rules.G2SumAdagrad(0.1)),
}
NEVER = 1e30


def make_accessor(name: str = "g2sum", **kwargs: Any) -> CtrAccessor:
    rule, embedx_rule = RULES[name]
    settings = {"embedx_init": Normal(0.1), "embedx_threshold": 2.5, "dtype": "float64", **kwargs}
    return CtrAccessor(embedx_dim=DIM, rule=rule, embedx_rule=embedx_rule, **settings)


def make_table(name: str = "g2sum", **kwargs: Any) -> CtrTable:
    return CtrTable("table", make_accessor(name, **kwargs), seed=1)


def some_keys(num_keys: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, num_keys, dtype=np.uint64)


def some_pushes(num_keys: int, seed: int = 0, dtype: str = "float64") -> np.ndarray:
    """Slots from -1, shows from 0, at most as many clicks, places of their own, and gradients."""
    rng = np.random.default_rng(seed)
    pushes = rng.standard_normal((num_keys, 5 + DIM))
    pushes[:, 0] = rng.integers(-1, 6, num_keys)
    pushes[:, 1] = rng.integers(0, 4, num_keys)
    pushes[:, 2] = rng.integers(0, pushes[:, 1] + 1)
    pushes[:, 3] = rng.integers(0, 5, num_keys)
    return pushes.astype(dtype)


def batches(num_steps: int = 20, dtype: str = "float64") -> list[tuple[np.ndarray, np.ndarray]]:
    """Some keys once, some often, half of those of a batch twice."""
    rng = np.random.default_rng(9)
    pool = np.concatenate([some_keys(2000), np.repeat(some_keys(50, 1), 20)])
    return [(rng.choice(pool, 400), some_pushes(400, step, dtype)) for step in range(num_steps)]


def push_all(table: CtrTable) -> None:
    for step, (keys, pushes) in enumerate(batches(dtype=table.accessor.dtype), start=1):
        table.push(keys, pushes, step=step, lr=(0.1, 0.05))


def same_bits(first: Any, second: Any) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()
