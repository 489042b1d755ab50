"""Any planned model trained by plain torch: the other side of what the examples promise."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import downpour as dp
from benchmarks.quality_torch import TorchEmbedding
from downpour.metrics import AUC
from tests.plain_ctr import PlainCtrRows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class PlainTraining:
    """A copy of a planned model whose rows, rules and statistics are plain torch.

    `window`: batches between two steps of the dense parameters. `scale`: whether gradients of rows
    are multiplied by the number of samples.
    """

    def __init__(
        self,
        model: Any,
        plan: dp.Plan,
        keys: Mapping[str, np.ndarray],
        *,
        window: int = 1,
        scale: bool = False,
    ) -> None:
        self.model, self.plan = copy.deepcopy(model), plan
        self.window, self.scale = window, scale
        self.rows = self._rows(plan, keys)
        self.model.embedding = self.rows
        self.norms = [it for it in self.model.modules() if isinstance(it, dp.DataNorm)]
        statistics = {id(it) for norm in self.norms for it in norm.parameters()}
        own = {id(it) for it in self.rows.parameters()}
        self.dense = [it for it in self.model.parameters() if id(it) not in statistics | own]
        self.optimizers = self._optimizers(plan)

    def _rows(self, plan: dp.Plan, keys: Mapping[str, np.ndarray]) -> Any:
        spec = plan.sparse[0]
        if isinstance(spec.accessor, dp.CtrAccessor):
            return PlainCtrRows(spec, plan, keys)
        ps = dp.embedded(plan)
        first = [ps.pull(spec.name, ids, feature=name) for name, ids in keys.items()]
        weight = torch.nn.Parameter(torch.from_numpy(np.concatenate(first)))
        return TorchEmbedding(keys, weight, "sum")

    def _optimizers(self, plan: dp.Plan) -> list[torch.optim.Optimizer]:
        torch.sparse.check_sparse_tensor_invariants.disable()
        rule: Any = next(it.rule for it in plan.dense if not it.is_data_norm)
        dense: Any = (
            AdamD2Sum(self.dense, rule)
            if isinstance(rule, dp.AdamD2Sum)
            else torch.optim.Adam(self.dense, lr=rule.lr)
        )
        if isinstance(self.rows, PlainCtrRows):
            return [dense]
        rows: Any = plan.sparse[0].accessor.rules[0]
        return [dense, torch.optim.Adagrad(self.rows.parameters(), lr=rows.lr)]

    def train(self, batches: Iterable[dp.Batch]) -> None:
        for number, batch in enumerate(batches, 1):
            for place, loss in enumerate(self.plan.losses.values()):
                for parameter in [*self.rows.parameters(), *self._statistics()]:
                    parameter.grad = None
                if (number - 1) % self.window == 0:
                    for parameter in self.dense:
                        parameter.grad = None
                loss(self.model, batch).backward()
                self._step_rows(batch, counts=None if place == 0 else ())
                self._step_statistics()
                if number % self.window == 0:
                    self.optimizers[0].step()

    def _statistics(self) -> list[torch.nn.Parameter]:
        return [parameter for norm in self.norms for parameter in norm.parameters()]

    def _step_rows(self, batch: dp.Batch, *, counts: tuple[str, ...] | None) -> None:
        if isinstance(self.rows, PlainCtrRows):
            self.rows.step(batch, scale=batch.size if self.scale else 1.0, counts=counts)
        else:
            self.optimizers[1].step()

    @torch.no_grad()
    def _step_statistics(self) -> None:
        for parameter in self._statistics():
            rule: Any = next(it.rule for it in self.plan.dense if it.is_data_norm)
            parameter.mul_(rule.decay).add_(parameter.grad)


class AdamD2Sum:
    """The reference's dense adam (Paddle, depends/dense.h 0d4f783a), on torch parameters."""

    def __init__(self, parameters: list[torch.nn.Parameter], rule: dp.AdamD2Sum) -> None:
        self.parameters, self.rule = parameters, rule
        self.state = [[torch.zeros_like(it) for _ in range(3)] for it in parameters]

    @torch.no_grad()
    def step(self) -> None:
        rule = self.rule
        for parameter, (d2, g2, momentum) in zip(self.parameters, self.state, strict=True):
            if parameter.grad is None:
                continue
            d2.mul_(rule.ada_decay).add_(1)
            g2.mul_(rule.ada_decay).add_(parameter.grad.square())
            momentum.add_(parameter.grad).mul_(rule.mom_decay).sub_(parameter.grad)
            scale = torch.sqrt((d2 + d2 * rule.eps) / (g2 + d2 * rule.eps))
            parameter.add_(rule.lr * momentum * scale)


@torch.no_grad()
def auc_of(model: Any, run: dp.Run) -> float:
    """AUC on the run's held-back data."""
    auc = AUC()
    assert run.eval_data is not None
    for batch in run.eval_data.batches():
        label = batch.label if run.label is None else batch.labels[run.label]
        auc.update(label.numpy(), run.predict(model, batch).numpy())
    return auc.result() or 0.0
