"""The models for which Paddle wrote the descriptions in tests/paddle, in torch.

Features `user` and `item` of one table, a layer `hidden` of 4 with relu, and a layer `out`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import downpour as dp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BATCH = dp.Batch(
    features={"user": np.arange(16), "item": np.arange(16)},
    dense={"x": np.linspace(-1, 1, 64, dtype=np.float32).reshape(16, 4)},
    labels=np.arange(16, dtype=np.float32) % 2,
)


class Clicks(torch.nn.Module):
    """`prefixes`: of the names of each loss's layers."""

    def __init__(
        self,
        dim: int = 9,
        *,
        use_cvm: bool = False,
        norm: bool = False,
        prefixes: tuple[str, ...] = ("",),
    ) -> None:
        super().__init__()
        self.embedding = dp.SparseEmbedding(("user", "item"), dim, use_cvm=use_cvm)
        self.has_norm = norm
        for prefix in prefixes:
            self.add_module(f"{prefix}hidden", torch.nn.Linear(2 * dim + 4 * norm, 4))
            self.add_module(f"{prefix}out", torch.nn.Linear(4, 1))
            if norm:
                self.add_module(f"{prefix}norm", dp.DataNorm(4))

    def rows(self, batch: dp.Batch) -> torch.Tensor:
        return self.embedding(batch).flatten(1)

    def score(self, batch: dp.Batch, prefix: str) -> torch.Tensor:
        seen = self.rows(batch)
        if self.has_norm:
            normed = self.get_submodule(f"{prefix}norm")(batch.dense["x"])
            seen = torch.cat([seen, normed], 1)
        hidden = self.get_submodule(f"{prefix}hidden")(seen).relu()
        return self.get_submodule(f"{prefix}out")(hidden).squeeze(1)


class TwoTables(Clicks):
    """`order`: that of the look-ups; the modules are declared in the other one."""

    def __init__(self, order: tuple[str, ...] = ("user", "item")) -> None:
        super().__init__()
        del self.embedding
        self.order = order
        for feature in reversed(order):
            name = {"user": "ua", "item": "ib"}[feature]
            self.add_module(name, dp.SparseEmbedding((feature,), 9))

    def rows(self, batch: dp.Batch) -> torch.Tensor:
        tables = {"user": "ua", "item": "ib"}
        rows = [self.get_submodule(tables[name])(batch).flatten(1) for name in self.order]
        return torch.cat(rows, 1)


class SharedBottom(Clicks):
    """One hidden layer and the heads `a` and `b`."""

    def __init__(self) -> None:
        super().__init__()
        del self.out
        self.a, self.b = torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)

    def score(self, batch: dp.Batch, prefix: str) -> torch.Tensor:
        return self.get_submodule(prefix)(self.hidden(self.rows(batch)).relu()).squeeze(1)


class NoDense(Clicks):
    """The loss `t0` has no dense parameter."""

    def __init__(self) -> None:
        super().__init__()
        del self.hidden
        self.out = torch.nn.Linear(18, 1)

    def score(self, batch: dp.Batch, prefix: str) -> torch.Tensor:
        rows = self.rows(batch)
        return rows.sum(1) if prefix == "t0" else self.out(rows).squeeze(1)


def loss(prefix: str = "") -> Callable[[Any, dp.Batch], torch.Tensor]:
    def of(model: Any, batch: dp.Batch) -> torch.Tensor:
        return binary_cross_entropy_with_logits(model.score(batch, prefix), batch.label)

    return of


ONE = {"click": loss()}
TWO = {"t0": loss(), "t1": loss("t1_")}


@dataclass(frozen=True)
class Use:
    """A model and its losses; `strategy` beside the file."""

    model: Callable[[], torch.nn.Module]
    losses: Mapping[str, Any] = field(default_factory=lambda: ONE)
    strategy: Mapping[str, Any] = field(default_factory=dict)

    def plan(self, strategy: Mapping[str, Any] | None = None, **settings: Any) -> dp.Plan:
        """Plan it, under its strategy and these settings of a strategy."""
        optimizer = dp.DownpourSGD(**settings)
        given = {**self.strategy, **(strategy or {})}
        return optimizer.minimize(self.losses, model=self.model(), example=BATCH, strategy=given)


CVM = {"use_cvm": True}
USES = {
    "one_cvm": Use(lambda: Clicks(11, use_cvm=True), ONE, CVM),
    "two": Use(lambda: Clicks(prefixes=("", "t1_")), TWO),
    "norm": Use(lambda: Clicks(norm=True)),
    "two_norm": Use(lambda: Clicks(norm=True, prefixes=("", "t1_")), TWO),
    "strategy": Use(lambda: Clicks(11, use_cvm=True, norm=True), ONE, CVM),
    "acc_DownpourUnitAccessor": Use(Clicks),
    "acc_DownpourDoubleUnitAccessor": Use(Clicks),
    "acc_DownpourSparseValueAccessor": Use(lambda: Clicks(8)),
    "value_adam": Use(lambda: Clicks(8)),
    "unit_std_adagrad": Use(Clicks),
    "two_tables": Use(TwoTables),
    "shared_bottom": Use(SharedBottom, {"a": loss("a"), "b": loss("b")}),
    "nodense": Use(NoDense, {"t0": loss("t0"), "t1": loss("t1")}),
    "ssd": Use(Clicks),
}
