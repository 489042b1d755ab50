"""How many bytes a step moves, estimated from a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from downpour.lookup import table_keys
from downpour.plan.program import PullDense, PullSparse, PushDense, PushSparse

if TYPE_CHECKING:
    from downpour.features import Batch
    from downpour.plan.plan import Plan
    from downpour.plan.program import Op

KEY_BYTES = 8


def traffic_of(plan: Plan, batch: Batch) -> dict[tuple[str, int], int]:
    """By program and place of the op, the bytes of keys and values that it moves for a batch.

    Each distinct key of an op travels once; what travels every n batches counts as an nth.
    """
    return {
        (program.name, place): moved
        for program in plan.programs.values()
        for place, op in enumerate(program.ops)
        if (moved := _bytes(plan, op, batch)) is not None
    }


def _bytes(plan: Plan, op: Op, batch: Batch) -> int | None:
    match op:
        case PullDense() | PushDense():
            block = plan.dense_table(op.table)
            size = block.size
            if isinstance(op, PushDense):
                sizes = {section.name: section.size for section in block.sections}
                size = sum(sizes[name] for name in op.parameters)
            return size * np.dtype(block.dtype).itemsize // op.every
        case PullSparse(table, features) | PushSparse(table, features):
            spec = plan.sparse_table(table)
            num_keys = len(table_keys(spec, features, batch).unique)
            accessor = spec.accessor
            width = accessor.pull_dim if isinstance(op, PullSparse) else accessor.push_dim
            return num_keys * (KEY_BYTES + width * accessor.numpy_dtype.itemsize)
    return None
