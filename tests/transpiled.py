"""A plan of two losses, and what transpilers make of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import downpour as dp
from downpour.accessor import EmbeddingAccessor
from downpour.plan.plan import Plan
from downpour.plan.program import Compute, Program, PullDense, PullSparse, PushDense, PushSparse
from downpour.plan.specs import DenseTableSpec, FeatureSpec, SparseTableSpec
from downpour.rules import BaseRule
from downpour.tables.dense import sections_of
from downpour.transpile.config import DistributeTranspilerConfig
from downpour.transpile.transpiler import DistributeTranspiler

if TYPE_CHECKING:
    from collections.abc import Mapping

    from downpour.rules import Rule
    from downpour.transpile.transpiler import Transpiled

SERVERS = ("127.0.0.1:6174", "127.0.0.1:6175")
SHAPES = {"fc.bias": (64,), "fc.weight": (256, 64)}
OWN_SHAPES = {"head.bias": (1,), "head.weight": (1, 64)}  # of the second loss alone


def sparse_table(number: int, name: str, accessor: Any, *features: str) -> SparseTableSpec:
    own = tuple(FeatureSpec(name=feature, space=feature) for feature in features)
    return SparseTableSpec(id=number, name=name, accessor=accessor, features=own)


def dense_table(
    number: int, name: str, rule: Rule, shapes: Mapping[str, tuple[int, ...]]
) -> DenseTableSpec:
    return DenseTableSpec(id=number, name=name, rule=rule, sections=sections_of(shapes))


def two_losses(dense: Rule | None = None, accessor: Any = None, every: int = 1) -> Plan:
    """Click trains a layer and the rows of user and item, buy that layer, its head and items."""
    rule = dp.SGD(0.1) if dense is None else dense
    plain = EmbeddingAccessor(dim=4, rule=dp.Adagrad(0.1)) if accessor is None else accessor
    click = (
        PullDense("dense.click", every),
        PullSparse("embedding", ("user", "item")),
        Compute("click"),
        PushSparse("embedding", ("user", "item")),
        PushDense("dense.click", (*SHAPES,), every),
    )
    buy = (
        PullDense("dense.click", every),
        PullDense("dense.buy", every),
        PullSparse("embedding", ("item",)),
        PullSparse("embedding", ("user",)),
        PullSparse("shop", ("shop",)),
        Compute("buy", ("fc.bias",)),
        PushSparse("embedding", ("item",)),
        PushDense("dense.click", ("fc.weight",), every),
        PushDense("dense.buy", (*OWN_SHAPES,), every),
    )
    return Plan(
        sparse=(
            sparse_table(0, "embedding", plain, "user", "item"),
            sparse_table(1, "shop", EmbeddingAccessor(dim=2, rule=dp.SGD(0.1)), "shop"),
        ),
        dense=(
            dense_table(2, "dense.click", rule, SHAPES),
            dense_table(3, "dense.buy", rule, OWN_SHAPES),
        ),
        programs={"click": Program("click", click), "buy": Program("buy", buy)},
        losses={"click": len, "buy": max},
    )


def one_loss(rule: Rule, shapes: Mapping[str, tuple[int, ...]]) -> Plan:
    """A plan without lookup tables."""
    ops = (PullDense("dense.fit"), Compute("fit"), PushDense("dense.fit", (*shapes,)))
    tables = (dense_table(3, "dense.fit", rule, shapes),)
    return Plan(sparse=(), dense=tables, programs={"fit": Program("fit", ops)})


def transpiled(
    plan: Plan | None = None, *, servers: str = ",".join(SERVERS), trainers: Any = 2,
    sync_mode: bool = True, **settings: Any,
) -> Transpiled:  # fmt: skip
    """What a trainer's transpiler with these settings of its config decides."""
    transpiler = DistributeTranspiler(DistributeTranspilerConfig(**settings))
    plan = two_losses() if plan is None else plan
    return transpiler.transpile(0, plan, servers, trainers, sync_mode)


def unit_step(weight: Any, state: Any, grad: Any, hyper: Any) -> None:
    total = np.float64(0.0)
    for i in range(weight.size):
        total += grad[i] * grad[i]
    for i in range(weight.size):
        weight[i] -= hyper[0] * grad[i] / np.sqrt(total)


@dataclass(frozen=True, kw_only=True)
class UnitNorm(BaseRule):
    """A user's own: each step of a parameter is as long as the learning rate."""

    update = staticmethod(unit_step)


@dataclass(frozen=True, kw_only=True)
class Counted(dp.Adam):
    """A user's own: a number beside the moments that all elements share."""

    def state_dim(self, dim: int) -> int:
        return 2 * dim + 1
