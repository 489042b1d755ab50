"""Servers with a table of each kind, and what is staged on them, for the tests of staging."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from downpour import rules
from downpour.plan.plan import Plan
from downpour.plan.specs import FeatureSpec, SparseTableSpec
from downpour.server import Server
from downpour.serving.staging import Commit, Staging
from downpour.tables.dense import sections_of
from tests.ctr_tables import make_accessor, some_pushes
from tests.plans import dense_table, plain_table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

KEYS = np.array([7, 2**63, 11, 3, 5, 2**64 - 1], np.uint64)
PLAIN_DIM, SIZE = 4, 9
NAMES = ("bias", "weight")  # of 1 and of 8 elements
RATES: dict[str, tuple[int, tuple[float, ...]]] = {
    "plain": (1, (0.1,)), "ctr": (1, (0.1, 0.05)), "dense": (1, (0.1,)),
}  # fmt: skip


RULE = rules.Adagrad(0.1, weight_decay=0.5)


def plan(dtype: str = "float64", rule: Any = RULE) -> Plan:
    plain = plain_table(rule=rule, dtype=dtype)
    ctr = SparseTableSpec(
        id=1,
        name="ctr",
        accessor=make_accessor(dtype=dtype),
        features=(FeatureSpec(name="item", space="item", slot=1),),
    )
    sections = sections_of({"bias": (1,), "weight": (8,)})
    dense = dense_table(id=2, name="dense", rule=rules.Adam(0.1), sections=sections, dtype=dtype)
    return Plan(sparse=(replace(plain, name="plain"), ctr), dense=(dense,), programs={})


def server(dtype: str = "float64", rule: Any = RULE) -> Server:
    return Server(plan(dtype, rule))


def grads(num_keys: int, seed: int = 0, dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_keys, PLAIN_DIM)).astype(dtype)


def block(seed: int = 0, dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SIZE).astype(dtype)


def commit(samples: Any, step: int = 1, rates: Any = RATES) -> Commit:
    return Commit(step=step, samples=samples, rates=rates)


def bits(own: Server) -> dict[str, Any]:
    """All that the tables of a server hold, as values that compare bit for bit."""
    held: dict[str, Any] = {}
    for name, table in own.sparse.items():
        held[name] = ([it.tobytes() for it in table.export()], table.step, table.log_decay)
    for name, dense in own.dense.items():
        weights, state, updates = dense.export()
        states = {part: values.tobytes() for part, values in state.items()}
        held[name] = (weights.tobytes(), states, updates, dense.step)
    return held


def close(own: Server, other: Server) -> None:
    """Assert that two servers hold nearly the same."""
    for name, table in own.sparse.items():
        for mine, theirs in zip(table.export(), other.sparse[name].export(), strict=True):
            fields = mine.dtype.names or (...,)
            for field in fields:
                np.testing.assert_allclose(mine[field], theirs[field], rtol=1e-11, atol=1e-13)
    for name, dense in own.dense.items():
        np.testing.assert_allclose(dense.pull(), other.dense[name].pull(), rtol=1e-11, atol=1e-13)
        assert dense.steps == other.dense[name].steps


@dataclass(frozen=True)
class Staged:
    """One call of a worker: pushes of any kind."""

    table: str
    rank: int
    values: np.ndarray
    keys: np.ndarray | None = None
    names: Collection[str] = NAMES
    is_mean: bool = True

    def on(self, staging: Staging, step: int = 1) -> None:
        if self.keys is None:
            given = (self.table, self.rank, step, self.values, self.names)
            staging.stage_dense(*given, is_mean=self.is_mean)
        else:
            given_rows = (self.table, self.rank, step, self.keys, self.values)
            staging.stage(*given_rows, is_mean=self.is_mean)


def one_of_each(rank: int, dtype: str = "float64", *, is_mean: bool = True) -> list[Staged]:
    """What a worker stages in a step: keys of its own and keys that all have."""
    keys = KEYS[[0, 1, 2 + rank % 4]]
    return [
        Staged("plain", rank, grads(3, rank, dtype), keys, is_mean=is_mean),
        Staged("ctr", rank, some_pushes(3, rank, dtype), keys, is_mean=is_mean),
        Staged("dense", rank, block(rank, dtype), is_mean=is_mean),
    ]


def staged(
    calls: Iterable[Staged], dtype: str = "float64", own: Server | None = None
) -> tuple[Server, Staging]:
    """A server, new if not given, and its staging with these calls made."""
    own = server(dtype) if own is None else own
    staging = Staging(own)
    for call in calls:
        call.on(staging)
    return own, staging
