"""CTR rows in plain torch: what a table of `CtrAccessor` rows does, for keys that are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import downpour as dp
from downpour.tables.pushes import PUSH_CLICK, PUSH_SHOW

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from downpour.plan.specs import SparseTableSpec


class PlainCtrRows(torch.nn.Module):
    """Stands in for a SparseEmbedding of CTR rows; formulas of Paddle's ctr_accessor.cc (a883f87f).

    `keys`: {feature: its distinct ids, rising}, each feature an id space. `weight` [all ids, dim]
    is w and embedx; embedx is seen once `has_embedx`. `step` after each backward.
    """

    def __init__(
        self, spec: SparseTableSpec, plan: dp.Plan, keys: Mapping[str, np.ndarray]
    ) -> None:
        super().__init__()
        self.spec, self.keys = spec, dict(keys)
        assert isinstance(spec.accessor, dp.CtrAccessor)
        self.accessor = spec.accessor
        self.weight = torch.nn.Parameter(first_weights(spec, plan, self.keys))
        num_rows = len(self.weight)
        self.show, self.click = (torch.zeros(num_rows, dtype=torch.float64) for _ in range(2))
        self.has_embedx = torch.zeros(num_rows, dtype=torch.bool)
        self.sums = torch.zeros(num_rows, 2, dtype=self.weight.dtype)  # of w's rule, of embedx's
        self.first = dict(zip(self.keys, self._firsts(), strict=True))

    def _firsts(self) -> Iterator[int]:
        start = 0
        for ids in self.keys.values():
            yield start
            start += len(ids)

    def places(self, batch: dp.Batch, feature: str) -> torch.Tensor:
        """The row of each id of a feature."""
        values = batch.features[feature].values
        return torch.from_numpy(np.searchsorted(self.keys[feature], values) + self.first[feature])

    def samples(self, batch: dp.Batch, feature: str) -> torch.Tensor:
        """The sample of each id of a feature."""
        offsets = batch.features[feature].offsets_tensor
        return torch.arange(batch.size).repeat_interleave(offsets.diff())

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        seen = self.weight * torch.cat(
            [torch.ones_like(self.has_embedx)[:, None],
             self.has_embedx[:, None].expand(-1, self.weight.shape[1] - 1)], 1
        )  # fmt: skip
        counts = torch.stack([self.show, self.click], 1).to(self.weight.dtype)
        rows = torch.cat([counts, seen], 1)
        return torch.stack([self._pooled(rows, batch, name) for name in self.keys], 1)

    def _pooled(self, rows: torch.Tensor, batch: dp.Batch, feature: str) -> torch.Tensor:
        out = rows.new_zeros(batch.size, rows.shape[1])
        out = out.index_add(0, self.samples(batch, feature), rows[self.places(batch, feature)])
        if not self.spec.use_cvm:
            return out[:, 2:]
        show, click = torch.log(out[:, 0] + 1), torch.log(out[:, 1] + 1)
        return torch.cat([show[:, None], (click - show)[:, None], out[:, 2:]], 1)

    @torch.no_grad()
    def step(
        self,
        batch: dp.Batch,
        *,
        scale: float = 1.0,
        counts: Collection[str] | None = None,
        pushed: Collection[str] | None = None,
    ) -> None:
        """Update the rows of the batch by their gradients times `scale`.

        `counts`: the features whose shows and clicks are counted; `pushed`: those with a gradient.
        None is all.
        """
        places_of = torch.zeros_like(self.show)
        assert self.accessor.click is not None
        assert self.weight.grad is not None
        clicks = batch.labels[self.accessor.click].double()
        for feature in self.keys if pushed is None else pushed:
            places, samples = self.places(batch, feature), self.samples(batch, feature)
            ones = torch.ones_like(places, dtype=torch.float64)
            places_of.index_add_(0, places, ones)
            if counts is None or feature in counts:
                self.show.index_add_(0, places, ones)
                self.click.index_add_(0, places, clicks[samples])
        rows = torch.nonzero(places_of).squeeze(1)
        grad = self.weight.grad[rows] * scale
        for place, rule in enumerate(self.accessor.rules):
            part = slice(0, 1) if place == 0 else slice(1, None)
            own = rows if place == 0 else rows[self.has_embedx[rows]]
            mine = grad if place == 0 else grad[self.has_embedx[rows]]
            self._move(rule, own, part, mine[:, part], places_of[own], place)
        score = (self.show - self.click) * self.accessor.nonclk_coeff
        score += self.click * self.accessor.click_coeff
        touched = torch.zeros_like(self.has_embedx)
        touched[rows] = True
        self.has_embedx |= touched & (score >= self.accessor.embedx_threshold)

    def _move(
        self, rule: Any, rows: torch.Tensor, part: slice, grad: torch.Tensor, num: Any, place: int
    ) -> None:
        if self.accessor.show_scale and rule.takes_mean:
            grad = grad / num[:, None].to(grad.dtype)
        rate = rule.lr
        if isinstance(rule, dp.G2SumAdagrad):
            first = rule.initial_g2sum
            rate = rule.lr * torch.sqrt(first / (first + self.sums[rows, place]))[:, None]
            self.sums[rows, place] += grad.square().mean(1)
        moved = self.weight[rows, part] - rate * grad
        bounds = self.accessor.bounds if place == 0 else self.accessor.embedx_bounds
        self.weight[rows, part] = moved if bounds is None else moved.clamp(*bounds)


def first_weights(
    spec: SparseTableSpec, plan: dp.Plan, keys: Mapping[str, Sequence[int] | np.ndarray]
) -> torch.Tensor:
    """w and embedx that each key begins with, once it has an embedx: [all keys, dim]."""
    ps = dp.embedded(plan)
    accessor = spec.accessor
    assert isinstance(accessor, dp.CtrAccessor)
    parts = []
    for feature, ids in keys.items():
        pushes = np.zeros((len(ids), accessor.push_dim), accessor.numpy_dtype)
        pushes[:, [PUSH_SHOW, PUSH_CLICK]] = 2e6, 1e6  # a score that is high enough
        ps.push(spec.name, ids, pushes, feature=feature)
        parts.append(ps.pull(spec.name, ids, feature=feature)[:, 2:])
    return torch.from_numpy(np.concatenate(parts))


def assert_same_rows(ps: dp.Client, rows: PlainCtrRows, rtol: float) -> None:
    """A client's table holds what the rows do."""
    table = rows.spec.name
    for feature, ids in rows.keys.items():
        own = slice(rows.first[feature], rows.first[feature] + len(ids))
        ours = ps.pull(table, ids, feature=feature)
        np.testing.assert_allclose(ours[:, 0], rows.show[own])
        np.testing.assert_allclose(ours[:, 1], rows.click[own])
        seen = rows.weight.detach().clone()
        seen[~rows.has_embedx, 1:] = 0.0
        np.testing.assert_allclose(ours[:, 2:], seen[own], rtol=rtol, atol=rtol * 1e-2)
