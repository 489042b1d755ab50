"""Pushes of several workers to one table: what each must be, and one push of them all.

A table is given itself, or as a plan has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

import numpy as np

from downpour.accessor import CtrAccessor
from downpour.errors import NonFiniteError, TableError
from downpour.tables import CtrTable, SparseTable, check_pushes, dedup, merge_pushes, segment_sum
from downpour.tables.batches import is_finite
from downpour.tables.pushes import PUSH_HEAD

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from downpour.plan.specs import DenseTableSpec, SparseTableSpec
    from downpour.tables import DenseTable, Section
    from downpour.transport import Floats, Keys

    RowTable: TypeAlias = SparseTable | CtrTable | SparseTableSpec
    BlockTable: TypeAlias = DenseTable | DenseTableSpec


PUSH_BYTES = 400  # that a push takes beside its arrays, and a name or a span beside its content


@dataclass(frozen=True, slots=True)
class RowPush:
    """Pushes [n, push_dim] of different keys [n]. is_mean: over the samples of their worker."""

    keys: Keys
    pushes: Floats
    is_mean: bool

    @property
    def num_bytes(self) -> int:
        """What it takes to keep it."""
        return PUSH_BYTES + self.keys.nbytes + self.pushes.nbytes


@dataclass(frozen=True, slots=True)
class BlockPush:
    """Gradients [size] of parameters of a dense table; only the spans are read.

    is_mean: over the samples of their worker.
    """

    grad: Floats
    names: tuple[str, ...]
    spans: tuple[slice, ...]
    is_mean: bool

    @property
    def num_bytes(self) -> int:
        """What it takes to keep it."""
        names = sum(map(len, self.names)) + PUSH_BYTES * (len(self.names) + len(self.spans))
        return PUSH_BYTES + self.grad.nbytes + names


Push = TypeVar("Push", RowPush, BlockPush)
Weighed: TypeAlias = list[tuple[Push, float]]  # how much the gradients of each count


def by_samples(pushes: Iterable[Push], samples: int, total: int) -> Weighed[Push]:
    """The pushes of a worker that count, and how much: means over its samples by their share in
    the total, and not at all where it had none; sums as they are.
    """
    return [
        (push, samples / total if push.is_mean else 1.0)
        for push in pushes
        if samples or not push.is_mean
    ]


def checked_rows(table: RowTable, keys: Keys, pushes: Floats, *, is_mean: bool) -> RowPush:
    """Pushes [n, push_dim] of keys uint64 [n], those of one key summed in order.

    Arrays are not copied unless they must be. Raises TableError or NonFiniteError.
    """
    keys, pushes = np.asarray(keys), np.asarray(pushes)
    if keys.dtype != np.uint64 or keys.ndim != 1:
        raise TableError(
            f"table {table.name!r}: keys must be uint64 [n], got {keys.dtype} {list(keys.shape)}"
        )
    shape, dtype = (keys.size, table.accessor.push_dim), table.accessor.numpy_dtype
    if pushes.dtype != dtype or pushes.shape != shape:
        raise TableError(
            f"table {table.name!r}: {_pushed(table)} must be {dtype} {list(shape)}, a row a key, "
            f"got {pushes.dtype} {list(pushes.shape)}"
        )
    if not is_finite(pushes):
        row = int(np.flatnonzero(~np.isfinite(pushes).all(axis=1))[0])
        raise NonFiniteError(
            f"table {table.name!r}: {_pushed(table)} hold NaN or infinity, first in row {row}; "
            "nothing was applied"
        )
    if isinstance(table.accessor, CtrAccessor):
        check_pushes(table.name, pushes)
    keys, pushes = np.ascontiguousarray(keys), np.ascontiguousarray(pushes)
    keys, pushes, _ = _different(table, keys, pushes)
    return RowPush(keys, pushes, is_mean)


def checked_block(
    table: BlockTable,
    grad: Floats,
    names: Collection[str],
    sections: Iterable[Section],
    *,
    is_mean: bool,
) -> BlockPush:
    """Gradients [size] of a dense table's `sections`, which are what it has of these parameters.

    What grad holds for the others is not read. Raises TableError or NonFiniteError.
    """
    grad = np.asarray(grad)
    if grad.dtype != table.dtype or grad.shape != (table.size,):
        raise TableError(
            f"dense table {table.name!r}: gradients must be {table.dtype} [{table.size}], got "
            f"{grad.dtype} {list(grad.shape)}"
        )
    sections = list(sections)
    for section in sections:
        if not is_finite(grad[section.span]):
            raise NonFiniteError(
                f"dense table {table.name!r}: the gradient of {section.name!r} holds NaN or "
                "infinity; nothing was applied"
            )
    return BlockPush(np.ascontiguousarray(grad), tuple(names), _spans(sections), is_mean)


def merge_rows(
    table: RowTable, weighed: Weighed[RowPush], *, over_touched: bool = False
) -> tuple[Keys, Floats]:
    """Different keys and one push of each, summed in order; of CTR counts, which are not weighed,
    too, and of slots the last. NonFiniteError where a sum is too large.

    over_touched: each sum is divided by how much the pushes that have its key count together: its
    mean over them alone. A push that is alone and counts whole is given as it is.
    """
    if len(weighed) == 1 and weighed[0][1] == 1.0:
        return weighed[0][0].keys, weighed[0][0].pushes
    num_keys = sum(push.keys.size for push, _ in weighed)
    keys = np.empty(num_keys, np.uint64)
    pushes = np.empty((num_keys, table.accessor.push_dim), table.accessor.numpy_dtype)
    head = PUSH_HEAD if isinstance(table.accessor, CtrAccessor) else 0
    end = 0
    for push, factor in weighed:
        start, end = end, end + push.keys.size
        keys[start:end] = push.keys
        pushes[start:end, :head] = push.pushes[:, :head]
        gradients, own_factor = pushes[start:end, head:], pushes.dtype.type(factor)
        np.multiply(push.pushes[:, head:], own_factor, out=gradients)
    inverse = None
    if len(weighed) > 1:
        keys, pushes, inverse = _different(table, keys, pushes)
    if over_touched:
        pushes /= _factors(weighed, inverse, keys.size).astype(pushes.dtype)
    return keys, pushes


def merge_blocks(table: BlockTable, weighed: Weighed[BlockPush]) -> tuple[Floats, tuple[str, ...]]:
    """Gradients [size], summed in order, and the parameters that any of the pushes has.

    A push counts as zero for the parameters that it does not have. NonFiniteError where a sum is
    too large. A push that is alone and counts whole is given as it is.
    """
    if len(weighed) == 1 and weighed[0][1] == 1.0:
        return weighed[0][0].grad, weighed[0][0].names
    grad = np.zeros(table.size, table.dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # the sums are checked
        for push, factor in weighed:
            for span in push.spans:
                grad[span] += push.grad[span] * grad.dtype.type(factor)
    if not is_finite(grad):
        raise NonFiniteError(
            f"dense table {table.name!r}: gradients sum to infinity; nothing was applied"
        )
    return grad, tuple(dict.fromkeys(name for push, _ in weighed for name in push.names))


def _factors(
    weighed: Weighed[RowPush], inverse: NDArray[np.integer] | None, num_keys: int
) -> Floats:
    """How much the pushes that have a key count together, of each key: [num_keys, 1]."""
    factors = [factor for _, factor in weighed]
    counts: Floats = np.repeat(factors, [push.keys.size for push, _ in weighed])
    if inverse is not None:
        counts = cast("Floats", np.bincount(inverse, counts, num_keys))
    return counts[:, np.newaxis]


def _different(
    table: RowTable, keys: Keys, pushes: Floats
) -> tuple[Keys, Floats, NDArray[np.integer] | None]:
    """The different keys, one push of each, and which of them each key is, unless all differ."""
    unique, inverse = dedup(keys)
    if unique.size == keys.size:
        return keys, pushes, None
    merge = merge_pushes if isinstance(table.accessor, CtrAccessor) else segment_sum
    merged = merge(pushes, inverse, unique.size)
    if not is_finite(merged):
        raise NonFiniteError(
            f"table {table.name!r}: {_pushed(table)} sum to infinity; nothing was applied"
        )
    return unique, merged, inverse


def _pushed(table: RowTable) -> str:
    """What a push brings, in messages."""
    return (CtrTable if isinstance(table.accessor, CtrAccessor) else SparseTable).pushed


def _spans(sections: Sequence[Section]) -> tuple[slice, ...]:
    """Where sections are in their block; neighbours are one."""
    spans: list[slice] = []
    for section in sorted(sections, key=lambda it: it.offset):
        if spans and spans[-1].stop == section.offset:
            spans[-1] = slice(spans[-1].start, section.span.stop)
        else:
            spans.append(section.span)
    return tuple(spans)
