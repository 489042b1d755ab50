"""From the rows of distinct keys to pooled bags, and from their gradient back to the rows.

Both directions take one pass over the ids of a batch. The backward pass adds into a row in the
order of the samples, so a row's gradient does not depend on how keys are spread over servers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from downpour.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class BagLayout:
    """Where the ids of each bag are, for `num_features` features of one table.

    A feature with exactly one id a sample has no offsets of its own (`offset_at` is -1).
    """

    batch_size: int
    inverse: NDArray[np.int32]  # [num_ids] the row of each id
    starts: NDArray[np.int64]  # [num_features] a feature's first id in `inverse`
    offset_at: NDArray[np.int64]  # [num_features] a feature's first offset in `offsets`, or -1
    offsets: NDArray[np.int64]  # the offsets of the features that have them, one after the other
    scale: NDArray[np.float32]  # [num_ids] a factor for each id; empty where all are 1

    @property
    def num_features(self) -> int:
        """How many bags a sample has."""
        return len(self.starts)


@kernel
def pool_bags(rows, inverse, starts, offset_at, offsets, scale, out):  # type: ignore[no-untyped-def]
    """Write `out[b, f] = sum of scale[i] * rows[inverse[i]]` over the ids i of bag (b, f)."""
    dim = rows.shape[1]
    weighted = scale.shape[0] > 0
    for b in range(out.shape[0]):
        for f in range(starts.shape[0]):
            at = offset_at[f]
            first = starts[f] + (b if at < 0 else offsets[at + b])
            last = first + 1 if at < 0 else starts[f] + offsets[at + b + 1]
            if last - first == 1 and not weighted:
                row = inverse[first]
                for d in range(dim):
                    out[b, f, d] = rows[row, d]
                continue
            for d in range(dim):
                out[b, f, d] = 0.0
            for i in range(first, last):
                row = inverse[i]
                factor = rows.dtype.type(scale[i]) if weighted else rows.dtype.type(1.0)
                for d in range(dim):
                    out[b, f, d] += factor * rows[row, d]


@kernel
def pool_bags_backward(  # type: ignore[no-untyped-def]
    grad, inverse, starts, offset_at, offsets, scale, grad_rows
):
    """Add each bag's gradient to the rows of its ids, in the order of the samples."""
    dim = grad_rows.shape[1]
    weighted = scale.shape[0] > 0
    for b in range(grad.shape[0]):
        for f in range(starts.shape[0]):
            at = offset_at[f]
            first = starts[f] + (b if at < 0 else offsets[at + b])
            last = first + 1 if at < 0 else starts[f] + offsets[at + b + 1]
            for i in range(first, last):
                row = inverse[i]
                if weighted:
                    factor = grad_rows.dtype.type(scale[i])
                    for d in range(dim):
                        grad_rows[row, d] += factor * grad[b, f, d]
                else:
                    for d in range(dim):
                        grad_rows[row, d] += grad[b, f, d]


class _PoolBags(torch.autograd.Function):
    """Autograd's view of the two kernels."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, layout: BagLayout) -> torch.Tensor:
        ctx.layout, ctx.shape = layout, rows.shape
        out = rows.new_empty(layout.batch_size, layout.num_features, rows.shape[1])
        pool_bags(rows.numpy(), *_arrays(layout), out.numpy())
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        grad = grads[0].contiguous()
        grad_rows = grad.new_zeros(ctx.shape)
        pool_bags_backward(grad.numpy(), *_arrays(ctx.layout), grad_rows.numpy())
        return grad_rows, None


def _arrays(layout: BagLayout) -> tuple[NDArray[Any], ...]:
    return layout.inverse, layout.starts, layout.offset_at, layout.offsets, layout.scale


def pool(rows: torch.Tensor, layout: BagLayout) -> torch.Tensor:
    """Pool rows [num_unique, dim] into bags [batch, num_features, dim]; an empty bag is zero."""
    out: torch.Tensor = _PoolBags.apply(rows, layout)  # type: ignore[no-untyped-call]
    return out
