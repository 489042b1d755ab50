"""From the rows of distinct keys to pooled bags, and from their gradient back to the rows.

Both directions take one pass over the ids of a batch. The backward pass adds into a row in the
order of the samples, so a row's gradient does not depend on how keys are spread over servers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from downpour.jit import kernel
from downpour.tables.memory import array_at, copy, prefetch
from downpour.team import alongside, share
from downpour.torch_pooling import torch_pool

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

U = np.uint64
AHEAD = 2  # samples
LEAST_SAMPLES = 256  # a thread


@dataclass(frozen=True, slots=True)
class BagLayout:
    """Where the ids of each bag are, for `num_features` features of one table.

    A feature with exactly one id a sample has no offsets of its own (`offset_at` is -1).
    """

    batch_size: int
    inverse: NDArray[np.integer]  # [num_ids] the row of each id
    starts: NDArray[np.int64]  # [num_features] a feature's first id in `inverse`
    offset_at: NDArray[np.int64]  # [num_features] a feature's first offset in `offsets`, or -1
    offsets: NDArray[np.int64]  # the offsets of the features that have them, one after the other
    scale: NDArray[np.floating]  # [num_ids] a factor for each id; empty where all are 1

    @property
    def num_features(self) -> int:
        """How many bags a sample has."""
        return len(self.starts)


@kernel
def _add(address: np.uint64, source: np.uint64, dim: int, like: Any) -> None:
    """Add the row at `source` to the one at `address`; the commonest widths without a loop."""
    target, row = array_at(address, dim, like), array_at(source, dim, like)
    if dim == 16:
        for d in range(16):
            target[d] += row[d]
    elif dim == 8:
        for d in range(8):
            target[d] += row[d]
    else:
        for d in range(dim):
            target[d] += row[d]


@kernel
def _add_scaled(address: np.uint64, source: np.uint64, factor: Any, dim: int, like: Any) -> None:
    target, row = array_at(address, dim, like), array_at(source, dim, like)
    for d in range(dim):
        target[d] += factor * row[d]


@kernel
def _ids(b: int, f: int, starts: Array, offset_at: Array, offsets: Array) -> tuple[int, int]:
    """The ids of bag (b, f), from first to last."""
    at = offset_at[f]
    if at < 0:
        return starts[f] + b, starts[f] + b + 1
    return starts[f] + offsets[at + b], starts[f] + offsets[at + b + 1]


@kernel
def pool_bags(
    rows: Array,
    inverse: Array,
    starts: Array,
    offset_at: Array,
    offsets: Array,
    scale: Array,
    out: Array,
    first_bag: int,
    last_bag: int,
) -> None:
    """Write `out[b, f] = sum of scale[i] * rows[inverse[i]]` over the ids i of bag (b, f).

    For the samples b from `first_bag` to `last_bag`.
    """
    dim, num_features = rows.shape[1], starts.shape[0]
    like = rows.dtype.type(0.0)
    row_bytes = U(dim * rows.itemsize)
    source = U(rows.ctypes.data)
    target = U(out.ctypes.data) + U(first_bag * num_features) * row_bytes
    weighted = scale.shape[0] > 0
    for b in range(first_bag, last_bag):
        for f in range(num_features):
            first, last = _ids(b, f, starts, offset_at, offsets)
            if last - first == 1 and not weighted:
                if first + AHEAD < inverse.shape[0]:
                    prefetch(source + U(inverse[first + AHEAD]) * row_bytes)
                copy(target, source + U(inverse[first]) * row_bytes, row_bytes)
            else:
                bag = array_at(target, dim, like)
                for d in range(dim):
                    bag[d] = like
                for i in range(first, last):
                    row = source + U(inverse[i]) * row_bytes
                    if weighted:
                        _add_scaled(target, row, rows.dtype.type(scale[i]), dim, like)
                    else:
                        _add(target, row, dim, like)
            target += row_bytes


@kernel
def pool_bags_backward(
    grad: np.uint64,
    sample_bytes: np.uint64,
    feature_bytes: np.uint64,
    num_samples: int,
    inverse: Array,
    starts: Array,
    offset_at: Array,
    offsets: Array,
    scale: Array,
    grad_rows: Array,
) -> None:
    """Set the gradient of each row to the sum of that of its bags, in the order of the samples.

    `grad` is the address of the gradient of bag (0, 0), a bag's elements one after the other.
    """
    dim, num_features = grad_rows.shape[1], starts.shape[0]
    like = grad_rows.dtype.type(0.0)
    row_bytes = U(dim * grad_rows.itemsize)
    target = U(grad_rows.ctypes.data)
    weighted = scale.shape[0] > 0
    for row in range(grad_rows.shape[0]):
        for d in range(dim):
            grad_rows[row, d] = like
    for b in range(num_samples):
        for f in range(num_features):
            source = grad + U(b) * sample_bytes + U(f) * feature_bytes
            first, last = _ids(b, f, starts, offset_at, offsets)
            for i in range(first, last):
                row = inverse[i]
                if i + AHEAD < inverse.shape[0]:
                    prefetch(target + U(inverse[i + AHEAD]) * row_bytes)
                if weighted:
                    factor = grad_rows.dtype.type(scale[i])
                    _add_scaled(target + U(row) * row_bytes, source, factor, dim, like)
                else:
                    _add(target + U(row) * row_bytes, source, dim, like)


class _PoolBags(torch.autograd.Function):
    """Autograd's view of the two kernels."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, layout: BagLayout) -> torch.Tensor:
        ctx.layout, ctx.shape = layout, rows.shape
        out = rows.new_empty(layout.batch_size, layout.num_features, rows.shape[1])
        call = partial(pool_bags, rows.numpy(), *_arrays(layout), out.numpy())
        alongside(partial(share, call, layout.batch_size, LEAST_SAMPLES))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        grad, layout = grads[0], ctx.layout
        # After torch.cat a sample's gradient is a part of a longer row; only a bag must be whole.
        if grad.stride(2) != 1 or min(grad.stride()) < 0:
            grad = grad.contiguous()
        sample, feature, _ = (U(stride * grad.itemsize) for stride in grad.stride())
        grad_rows = grad.new_empty(ctx.shape)
        place = U(grad.data_ptr()), sample, feature, layout.batch_size
        alongside(partial(pool_bags_backward, *place, *_arrays(layout), grad_rows.numpy()))
        return grad_rows, None


def _arrays(layout: BagLayout) -> tuple[Array, Array, Array, Array, Array]:
    return layout.inverse, layout.starts, layout.offset_at, layout.offsets, layout.scale


def pool(rows: torch.Tensor, layout: BagLayout) -> torch.Tensor:
    """Pool rows [num_unique, dim] into bags [batch, num_features, dim]; an empty bag is zero."""
    if not rows.is_cpu:
        return torch_pool(rows, layout)
    out: torch.Tensor = _PoolBags.apply(rows, layout)  # type: ignore[no-untyped-call]
    return out
