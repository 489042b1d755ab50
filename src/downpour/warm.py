"""Compile or load the kernels of a plan's tables, before anything waits for them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from downpour.accessor import CtrAccessor
from downpour.server import Server
from downpour.tables import Transaction, dedup, kernels, partition, segment_sum
from downpour.tables.batches import bits_of, same_bits
from downpour.tables.pushes import PUSH_CLICK, PUSH_SHOW

if TYPE_CHECKING:
    from downpour.plan.plan import Plan


class _UndoneError(Exception):
    """Raised so that an update is undone."""


def warm(plan: Plan, *, served: bool = False) -> None:
    """Run each kernel once on tables that are thrown away.

    served: also those of requests from other processes. On a new machine this takes about 20 s.
    """
    server = Server(plan)
    key = np.zeros(1, np.uint64)
    for spec in plan.sparse:
        rows = server.locate(spec.name, key, create=True)
        pushes = np.zeros((1, spec.accessor.push_dim), spec.accessor.numpy_dtype)
        if isinstance(spec.accessor, CtrAccessor):
            pushes[:, [PUSH_SHOW, PUSH_CLICK]] = 2e6, 1e6  # it gets its embedx
        lr = tuple(0.0 for _ in spec.accessor.rules)
        server.update(spec.name, rows, pushes, step=1, lr=lr)
        server.read(spec.name, key, rows, np.empty((1, spec.accessor.pull_dim), pushes.dtype))
        if served:
            table = server.sparse[spec.name]
            table.push(np.zeros(2, np.uint64), np.repeat(pushes, 2, axis=0), step=2, lr=lr)
            table.pull(key)
            table.set(key, np.zeros((1, spec.accessor.dim), pushes.dtype))
            table.export()
            with suppress(_UndoneError), Transaction() as changes:
                table.update(rows, pushes, step=3, lr=lr, within=changes)
                raise _UndoneError
    for block in plan.dense:
        grad = np.zeros(block.size, block.dtype)
        names = [section.name for section in block.sections]
        server.push_dense(block.name, grad, step=1, lr=0.0, names=names)
        same_bits(bits_of(grad), bits_of(grad))
    if served:
        segment_sum(np.zeros((1, 1), np.float32), dedup(key)[1], 1)
    partition(key, 2)


def is_compiled() -> bool:
    """Whether this machine has compiled the kernels before."""
    kernel: Any = kernels.pull  # of its file's kernels, the one that calls most of them
    code = kernel.py_func.__code__
    index = f"*.{code.co_name}-{code.co_firstlineno}.*.nbi"
    return any(Path(kernel.stats.cache_path).glob(index))
