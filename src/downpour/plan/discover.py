"""Run a loss once to see what it reads and what its gradient reaches; the model stays as it was.

The gradient that is sent through is NaN, not 1: times a factor that happens to be 0 on the example
it is NaN still, and where there is no way for it, as after `rows[:, 1].detach()`, it is 0. It is 0
also where an operation passes none on, as a relu below 0: the example should be large enough for
some sample to be above.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from downpour.accessor import EmbeddingAccessor
from downpour.errors import NonFiniteError, PlanError
from downpour.lookup import joined_keys, table_keys
from downpour.loss_errors import explained
from downpour.nn import connected
from downpour.no_grad import has_compiler, modules_named, outputs_detached, uncompiled
from downpour.plan.dataflow import Dataflow
from downpour.plan.specs import plan_name
from downpour.tables import SparseTable
from downpour.transfer import Transfer, device_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from downpour.features import Batch
    from downpour.lookup import TableKeys
    from downpour.plan.program import Loss
    from downpour.plan.specs import SparseTableSpec


@dataclass(frozen=True, slots=True)
class Reached:
    """What one loss reads and reaches.

    `read`: the features looked up in each table; `learned`: those of them that the gradient has a
    way to; `parameters`: names of the dense parameters that got one, sorted; `used`: names of those
    that it is computed from; `detached`: the modules that ran and were to get no gradient.
    """

    read: Mapping[str, tuple[str, ...]]
    learned: Mapping[str, tuple[str, ...]]
    parameters: tuple[str, ...]
    used: frozenset[str]
    detached: tuple[str, ...]


class _Leaves:
    """Gives rows as one leaf a feature, so that each feature's gradient is seen on its own."""

    def __init__(self, tables: Mapping[str, SparseTableSpec], device: torch.device) -> None:
        self._specs, self._transfer = tables, Transfer(device)
        self._tables: dict[str, SparseTable] = {}
        self.lookups: list[tuple[str, dict[str, torch.Tensor]]] = []

    def rows(
        self, table: str, features: tuple[str, ...], batch: Batch
    ) -> tuple[torch.Tensor, TableKeys]:
        spec = self._specs[table]
        parts = [table_keys(spec, (feature,), batch) for feature in features]
        leaves = [self._initial_rows(spec, part.unique) for part in parts]
        for leaf in leaves:
            leaf.requires_grad_(torch.is_grad_enabled())
        self.lookups.append((table, dict(zip(features, leaves, strict=True))))
        return torch.cat(leaves), joined_keys(parts)

    def _initial_rows(self, spec: SparseTableSpec, keys: NDArray[np.uint64]) -> torch.Tensor:
        if spec.name not in self._tables:
            assert isinstance(spec.accessor, EmbeddingAccessor)
            self._tables[spec.name] = SparseTable(spec.name, spec.accessor, seed=spec.seed)
        return self._transfer.to_device(self._tables[spec.name].pull(keys, create=False))


def materialise(
    losses: Mapping[str, Loss],
    model: torch.nn.Module,
    batch: Batch,
    tables: Mapping[str, SparseTableSpec],
) -> None:
    """Give lazy modules their shapes, without a trace in other buffers or the model's mode.

    Their first values are drawn from torch's random state, as in a first forward.
    """
    if not any(map(_is_lazy, [*model.parameters(), *model.buffers()])):
        return
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        source = _Leaves(tables, device_of(model, batch.device))
        with connected(model, source), _same_values(model), torch.no_grad():
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
    detached: Collection[str] = (),
) -> Reached:
    """Run `loss` on `batch`, uncompiled, forward and backward; buffers, gradients and random state
    are put back. `detached`: modules whose outputs get no gradient.

    Raises PlanError if the loss is no scalar or reaches nothing that can be trained, and
    NonFiniteError if it is not finite.
    """
    device = device_of(model, batch.device)
    source = _Leaves(tables, device)
    with (
        connected(model, source),
        _restored(model, device),
        torch.enable_grad(),
        outputs_detached(modules_named(model, detached)) as ran,
    ):
        with Dataflow(_values(model)) as flow:
            value = _run(name, loss, model, batch)
        if not bool(torch.isfinite(value)):
            raise NonFiniteError(f"loss {name!r} is {value.item()} on the example batch")
        if value.requires_grad:
            with torch.autograd.set_detect_anomaly(False):
                torch.autograd.backward(value, torch.full_like(value, torch.nan))
        parameters = tuple(
            sorted(plan_name(key) for key, p in model.named_parameters() if p.grad is not None)
        )
        read, learned = _by_table(source.lookups)
    if not parameters and not learned:
        raise PlanError(
            f"loss {name!r} reaches nothing that can be trained: no dense parameter and no row of "
            "a SparseEmbedding gets a gradient from it"
        )
    used = flow.sources_of(value) | {*parameters}
    return Reached(read, learned, parameters, used, tuple(sorted(ran)))


def _values(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that have values, by their names in plans."""
    named = ((plan_name(name), it) for name, it in model.named_parameters())
    return {name: it for name, it in named if not _is_lazy(it) and it.numel()}


def _by_table(
    lookups: Sequence[tuple[str, Mapping[str, torch.Tensor]]],
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """The features read and those learned, by table.

    Where the gradient has gone to some features of a lookup, those for which it is 0 are detached.
    Where it is 0 for all, a mask may have been empty on the example: they count as learned.
    """
    read: dict[str, dict[str, None]] = {}
    learned: dict[str, dict[str, None]] = {}
    for table, leaves in lookups:
        read.setdefault(table, {}).update(dict.fromkeys(leaves))
        got = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        reached = {name for name, grad in got.items() if bool(grad.isnan().any())}
        empty = {name for name, grad in got.items() if not len(grad)}
        if names := [name for name in got if name in reached | empty or not reached]:
            learned.setdefault(table, {}).update(dict.fromkeys(names))
    return _tuples(read), _tuples(learned)


def _tuples(names: Mapping[str, Mapping[str, None]]) -> dict[str, tuple[str, ...]]:
    return {table: tuple(features) for table, features in names.items()}


def _run(name: str, loss: Loss, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    had_compiler = has_compiler()
    try:
        with uncompiled(), explained(f"loss {name!r}", model, batch.size):
            value = loss(model, batch)
    except Exception:
        if had_compiler or not has_compiler():
            raise
        with uncompiled():  # it has loaded the compiler itself, as torch.cond does
            value = loss(model, batch)
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        got = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise PlanError(f"loss {name!r} must return a scalar tensor, got {got}; take its mean()")
    if not value.is_floating_point():
        raise PlanError(f"loss {name!r} must be a real number, got {value.dtype}")
    return value


@contextlib.contextmanager
def _restored(model: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Leave gradients, buffers and the random state, of the CPU and the device, as they were."""
    grads = {p: p.grad for p in model.parameters()}
    for parameter in grads:
        parameter.grad = None
    try:
        gpus = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(gpus), _same_values(model):
            yield
    finally:
        for parameter, grad in grads.items():
            parameter.grad = grad


@contextlib.contextmanager
def _same_values(model: torch.nn.Module) -> Iterator[None]:
    """Put buffers back, those changed in place and those assigned anew; lazy ones may fill.

    Parameters that a forward changes in place, as max_norm does, are put back too.
    """
    kept = [(module, dict(module._buffers)) for module in model.modules()]
    values = {buffer: buffer.clone() for buffer in model.buffers() if not _is_lazy(buffer)}
    versions = {p: (p._version, p.detach().clone()) for p in model.parameters() if not _is_lazy(p)}
    try:
        yield
    finally:
        for module, buffers in kept:
            for name, buffer in buffers.items():
                if module._buffers.get(name) is not buffer:
                    module._buffers[name] = buffer
        with torch.no_grad():
            for buffer, value in values.items():
                buffer.copy_(value)
            for parameter, (version, value) in versions.items():
                if parameter._version != version:
                    parameter.copy_(value)


def _is_lazy(tensor: torch.Tensor) -> bool:
    return bool(torch.nn.parameter.is_lazy(tensor))
