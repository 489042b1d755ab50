"""Run a loss once to see what it reads and what its gradient reaches; the model stays as it was."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from downpour.errors import NonFiniteError, PlanError
from downpour.lookup import joined_keys, table_keys
from downpour.nn import sparse_embeddings
from downpour.tables import SparseTable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from downpour.features import Batch
    from downpour.lookup import TableKeys
    from downpour.plan.program import Loss, SparseTableSpec


@dataclass(frozen=True, slots=True)
class Reached:
    """What one loss reads and reaches.

    `read`: the features looked up in each table; `learned`: those of them that got a gradient;
    `parameters`: names of the dense parameters that did, sorted.
    """

    read: Mapping[str, tuple[str, ...]]
    learned: Mapping[str, tuple[str, ...]]
    parameters: tuple[str, ...]


class _Leaves:
    """Gives rows as one leaf a feature, so that each feature's gradient is seen on its own."""

    def __init__(self, tables: Mapping[str, SparseTableSpec]) -> None:
        self._tables = tables
        self.leaves: dict[tuple[str, str], list[torch.Tensor]] = {}

    def rows(
        self, table: str, features: tuple[str, ...], batch: Batch
    ) -> tuple[torch.Tensor, TableKeys]:
        spec = self._tables[table]
        parts = [table_keys(spec, (feature,), batch) for feature in features]
        leaves = [_initial_rows(spec, part.unique) for part in parts]
        for feature, leaf in zip(features, leaves, strict=True):
            leaf.requires_grad_(torch.is_grad_enabled())
            self.leaves.setdefault((table, feature), []).append(leaf)
        return torch.cat(leaves), joined_keys(parts)


def _initial_rows(spec: SparseTableSpec, keys: NDArray[np.uint64]) -> torch.Tensor:
    table = SparseTable(spec.name, spec.accessor, seed=spec.seed)
    return torch.from_numpy(table.pull(keys, create=False))


def materialise(
    losses: Mapping[str, Loss],
    model: torch.nn.Module,
    batch: Batch,
    tables: Mapping[str, SparseTableSpec],
) -> None:
    """Give lazy modules their shapes, without a trace in buffers or in the mode of the model."""
    if not any(map(torch.nn.parameter.is_lazy, [*model.parameters(), *model.buffers()])):
        return
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with _connected(model, _Leaves(tables)), torch.no_grad():
            for name, loss in losses.items():
                _run(name, loss, model, batch)
    finally:
        for module, training in modes.items():
            module.training = training


def discover(
    name: str,
    loss: Loss,
    model: torch.nn.Module,
    batch: Batch,
    tables: Mapping[str, SparseTableSpec],
) -> Reached:
    """Run `loss` on `batch`, uncompiled, forward and backward; buffers, gradients and random state
    are put back.

    Raises PlanError if the loss is no scalar or reaches nothing that can be trained, and
    NonFiniteError if it is not finite.
    """
    source = _Leaves(tables)
    with _connected(model, source), _restored(model), torch.enable_grad():
        value = _run(name, loss, model, batch)
        if not bool(torch.isfinite(value)):
            raise NonFiniteError(f"loss {name!r} is {value.item()} on the example batch")
        if value.requires_grad:
            torch.autograd.backward(value)
        parameters = tuple(
            sorted(_plain(key) for key, p in model.named_parameters() if p.grad is not None)
        )
        read, learned = _by_table(source.leaves)
    if not parameters and not learned:
        raise PlanError(
            f"loss {name!r} reaches nothing that can be trained: no dense parameter and no row of "
            "a SparseEmbedding gets a gradient from it"
        )
    return Reached(read, learned, parameters)


def _by_table(
    leaves: Mapping[tuple[str, str], list[torch.Tensor]],
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    read: dict[str, tuple[str, ...]] = {}
    learned: dict[str, tuple[str, ...]] = {}
    for (table, feature), rows in leaves.items():
        read[table] = (*read.get(table, ()), feature)
        if any(leaf.grad is not None for leaf in rows):
            learned[table] = (*learned.get(table, ()), feature)
    return read, learned


def _run(name: str, loss: Loss, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    with torch.compiler.set_stance("force_eager"):
        value = loss(model, batch)
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        got = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise PlanError(f"loss {name!r} must return a scalar tensor, got {got}; take its mean()")
    return value


def _plain(parameter: str) -> str:
    """A parameter's name without what torch.compile puts before it."""
    return parameter.replace("_orig_mod.", "")


@contextlib.contextmanager
def _connected(model: torch.nn.Module, source: Any) -> Iterator[None]:
    modules = list(sparse_embeddings(model))
    before = [module.source for module in modules]
    for module in modules:
        module.connect(source)
    try:
        yield
    finally:
        for module, was in zip(modules, before, strict=True):
            module.connect(was)


@contextlib.contextmanager
def _restored(model: torch.nn.Module) -> Iterator[None]:
    """Leave gradients, buffers and the random state as they were."""
    grads = {p: p.grad for p in model.parameters()}
    buffers = {buffer: buffer.clone() for buffer in model.buffers()}
    for parameter in grads:
        parameter.grad = None
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for parameter, grad in grads.items():
            parameter.grad = grad
        with torch.no_grad():
            for buffer, value in buffers.items():
                buffer.copy_(value)
