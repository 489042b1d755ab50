"""From losses to a plan: which tables there are, and the ops of each loss's program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from downpour.accessor import EmbeddingAccessor
from downpour.errors import PlanError
from downpour.nn import sparse_embeddings
from downpour.parameters import dense_parameters
from downpour.plan.discover import discover, materialise
from downpour.plan.program import (
    Compute,
    DenseTableSpec,
    FeatureSpec,
    Plan,
    Program,
    PullDense,
    PullSparse,
    PushDense,
    PushSparse,
    SparseTableSpec,
)
from downpour.tables.dense import sections_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from downpour.clip import Clip
    from downpour.features import Batch
    from downpour.nn import SparseEmbedding
    from downpour.plan.discover import Reached
    from downpour.plan.program import Loss, Op
    from downpour.rules import Rule


def plan_losses(
    losses: Loss | Sequence[Loss] | Mapping[str, Loss],
    *,
    model: torch.nn.Module,
    example: Batch,
    sparse_rule: Callable[[str], Rule],
    dense_rule: Rule,
    window: int,
    clip: Clip | None,
    seed: int,
) -> Plan:
    """Plan the tables and programs of `losses`; see `DownpourSGD.minimize`."""
    named = named_losses(losses)
    declared = _declared_tables(model, sparse_rule, seed)
    materialise(named, model, example, declared)
    reached = {name: discover(name, loss, model, example, declared) for name, loss in named.items()}
    _refuse_same_names(declared, named)
    sparse = _numbered(declared, reached)
    homes = _homes(reached)
    dense = _dense_tables(reached, homes, model, dense_rule, first_id=len(sparse))
    programs = {
        name: Program(name, tuple(_ops(name, what, sparse, homes)))
        for name, what in reached.items()
    }
    return Plan(
        sparse=sparse, dense=dense, programs=programs, window=window, clip=clip, losses=named
    )


def named_losses(losses: Loss | Sequence[Loss] | Mapping[str, Loss]) -> dict[str, Loss]:
    """Losses by the name of their program. Raises PlanError."""
    if isinstance(losses, Mapping):
        named = dict(losses)
        unnamed = [name for name in named if type(name) is not str or not name]
        if unnamed:
            raise PlanError(f"the name of a loss must be a text, got {unnamed[0]!r}")
    else:
        given: Any = losses
        is_one = callable(given) or not isinstance(given, Iterable)
        listed = [given] if is_one else list(given)
        named = {_name_of(loss): loss for loss in listed}
        if len(named) < len(listed):
            names = [_name_of(loss) for loss in listed]
            twice = next(name for name in names if names.count(name) > 1)
            raise PlanError(
                f"two losses are called {twice!r}; name them: {{'first': ..., 'second': ...}}"
            )
    if not named:
        raise PlanError("minimize needs at least one loss, got none")
    for name, loss in named.items():
        if not callable(loss):
            raise PlanError(
                f"loss {name!r} must be a function (model, batch) -> scalar, got {loss!r}"
            )
    return named


def _name_of(loss: Any) -> str:
    name = getattr(loss, "__name__", None)
    if not callable(loss) or name is None or name == "<lambda>":
        raise PlanError(
            f"a loss is named by its function, and {loss!r} has no name; give {{'click': loss}}"
        )
    return str(name)


def _declared_tables(
    model: torch.nn.Module, sparse_rule: Callable[[str], Rule], seed: int
) -> dict[str, SparseTableSpec]:
    """Every table that a module of the model names, the features of all its modules together."""
    tables: dict[str, SparseTableSpec] = {}
    for module in sparse_embeddings(model):
        spec = _table_of(module, sparse_rule, seed)
        tables[spec.name] = _joined(tables[spec.name], spec) if spec.name in tables else spec
    return tables


def _table_of(
    module: SparseEmbedding, sparse_rule: Callable[[str], Rule], seed: int
) -> SparseTableSpec:
    name = str(module.table)
    return SparseTableSpec(
        id=-1,
        name=name,
        accessor=EmbeddingAccessor(
            dim=module.dim,
            rule=sparse_rule(name),
            init=module.init,
            bounds=module.bounds,
            dtype=module.dtype,
        ),
        features=tuple(FeatureSpec(name=f, space=module.space_of(f)) for f in module.features),
        padding_key=module.padding_key,
        seed=seed,
    )


def _joined(first: SparseTableSpec, other: SparseTableSpec) -> SparseTableSpec:
    """One table for two modules. Raises PlanError where they do not agree."""
    if first.accessor != other.accessor or first.padding_key != other.padding_key:
        raise PlanError(
            f"two SparseEmbeddings share table {first.name!r} and differ: {first.accessor}, "
            f"padding_key={first.padding_key} and {other.accessor}, padding_key={other.padding_key}"
        )
    features = {feature.name: feature for feature in first.features}
    for feature in other.features:
        if features.setdefault(feature.name, feature) != feature:
            raise PlanError(
                f"feature {feature.name!r} reads table {first.name!r} with the id spaces "
                f"{features[feature.name].space!r} and {feature.space!r}; give it one"
            )
    return replace(first, features=tuple(features.values()))


def _refuse_same_names(declared: Mapping[str, SparseTableSpec], named: Mapping[str, Loss]) -> None:
    """A sparse table and the dense one of a loss would be told apart by name alone."""
    for name in named:
        if f"dense.{name}" in declared:
            raise PlanError(
                f"sparse table 'dense.{name}' has the name of the dense table of loss {name!r}; "
                "give SparseEmbedding(table=...) another"
            )


def _numbered(
    declared: Mapping[str, SparseTableSpec], reached: Mapping[str, Reached]
) -> tuple[SparseTableSpec, ...]:
    """The tables that some loss reads, with ids from 0."""
    read = {table for what in reached.values() for table in what.read}
    kept = [spec for name, spec in declared.items() if name in read]
    return tuple(replace(spec, id=number) for number, spec in enumerate(kept))


def _homes(reached: Mapping[str, Reached]) -> dict[str, str]:
    """The dense table of each parameter: that of the first loss that reaches it."""
    homes: dict[str, str] = {}
    for loss, what in reached.items():
        for parameter in what.parameters:
            homes.setdefault(parameter, f"dense.{loss}")
    return homes


def _dense_tables(
    reached: Mapping[str, Reached],
    homes: Mapping[str, str],
    model: torch.nn.Module,
    rule: Rule,
    first_id: int,
) -> tuple[DenseTableSpec, ...]:
    parameters = dense_parameters(model)
    tables: list[DenseTableSpec] = []
    for loss in reached:
        own = sorted(name for name, table in homes.items() if table == f"dense.{loss}")
        if not own:
            continue
        dtypes = {str(parameters[name].dtype).removeprefix("torch.") for name in own}
        if len(dtypes) > 1 or not dtypes <= {"float32", "float64"}:
            raise PlanError(
                f"the parameters of loss {loss!r} must all be float32 or all float64, got "
                f"{sorted(dtypes)}"
            )
        tables.append(
            DenseTableSpec(
                id=first_id + len(tables),
                name=f"dense.{loss}",
                rule=rule,
                sections=sections_of({name: tuple(parameters[name].shape) for name in own}),
                dtype=dtypes.pop(),
            )
        )
    return tuple(tables)


def _ops(
    loss: str, what: Reached, sparse: Sequence[SparseTableSpec], homes: Mapping[str, str]
) -> list[Op]:
    """Pull, compute, push. Features that get no gradient are pulled by an op of their own."""
    dense = sorted({homes[name] for name in what.parameters})
    pulls: list[Op] = []
    pushes: list[Op] = []
    for table in sparse:
        read = [f.name for f in table.features if f.name in what.read.get(table.name, ())]
        learned = tuple(name for name in read if name in what.learned.get(table.name, ()))
        fixed = tuple(name for name in read if name not in learned)
        pulls += [PullSparse(table.name, group) for group in (learned, fixed) if group]
        pushes += [PushSparse(table.name, learned)] if learned else []
    return [
        *(PullDense(table) for table in dense),
        *pulls,
        Compute(loss),
        *pushes,
        *(PushDense(table) for table in dense),
    ]
