"""From losses to a plan: which tables there are, and the ops of each loss's program."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from downpour.data_norm import statistics_of
from downpour.errors import PlanError, SettingError
from downpour.features import Batch
from downpour.parameters import AUTOCAST, cast_call, dense_parameters
from downpour.plan.accessors import planned_table
from downpour.plan.declared import declared_tables
from downpour.plan.discover import discover, materialise
from downpour.plan.fleet_desc import read_file
from downpour.plan.losses import named_losses
from downpour.plan.merge import merged
from downpour.plan.numbers import dense_numbers, sparse_numbers
from downpour.plan.plan import Plan
from downpour.plan.programs import Trained, programs_of
from downpour.plan.restrict import restriction
from downpour.plan.specs import DenseTableSpec
from downpour.plan.startup import checked_startup
from downpour.plan.told import told
from downpour.tables.dense import sections_of
from downpour.transfer import device_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from downpour.optimizer import DownpourSGD
    from downpour.plan.discover import Reached
    from downpour.plan.numbers import DenseNumber
    from downpour.plan.program import Loss
    from downpour.plan.restrict import Restriction
    from downpour.plan.specs import SparseTableSpec
    from downpour.plan.told import Told
    from downpour.strategy import Strategy


def plan_losses(
    losses: Loss | Sequence[Loss] | Mapping[str, Loss],
    *,
    model: torch.nn.Module,
    example: Batch,
    optimizer: DownpourSGD,
    startup: Any,
    parameter_list: Any,
    no_grad_set: Any,
    strategy: Strategy | None,
    seed: int,
) -> Plan:
    """Plan the tables and programs of `losses`; see `DownpourSGD.minimize`."""
    _check_given(model, example)
    example = example.to(device_of(model, example.device))
    named = named_losses(losses)
    declared = declared_tables(model, seed)
    said = told(optimizer, strategy)
    _refuse_unknown_tables(declared, optimizer, strategy)
    desc = None
    if strategy is not None and strategy.fleet_desc_file is not None:
        desc = read_file(strategy.fleet_desc_file)
    limits = restriction(model, list(named), declared, parameter_list, no_grad_set)
    if said.adjust is not None and example.weights is None:
        example = example.reweighted(np.ones(example.size))  # as every batch will have them
    materialise(named, model, example, declared)
    reached = {
        name: discover(name, loss, model, example, declared, limits.modules)
        for name, loss in named.items()
    }
    _refuse_unrun(limits, reached)
    statistics = statistics_of(model)
    trained = {name: _trained(name, what, limits, statistics) for name, what in reached.items()}
    _refuse_same_names(declared, named)
    sparse = tuple(
        planned_table(replace(declared[name], id=number), optimizer, strategy, desc, example)
        for name, number in sparse_numbers(trained, desc).items()
    )
    numbers = dense_numbers(trained, first=len(sparse))
    dense = _dense_tables(numbers, model, said)
    programs = programs_of(trained, sparse, dense, said)
    plan = Plan(sparse=sparse, dense=dense, programs=programs, clip=optimizer.clip, losses=named)
    plan = merged(plan, numbers, said, optimizer, strategy, desc)
    return replace(plan, startup=checked_startup(startup, plan, model))


def _trained(
    loss: str, reached: Reached, limits: Restriction, statistics: frozenset[str]
) -> Trained:
    """What is left of what a loss reaches."""
    kept = [name for name in reached.parameters if limits.may_train(loss, name)]
    fixed = {name for name in reached.parameters if name not in kept}
    fixed |= {table for table in reached.learned if table in limits.tables}
    learned = {
        table: names for table, names in reached.learned.items() if table not in limits.tables
    }
    limits.check_tables(loss, learned)
    if not kept and not learned:
        raise PlanError(
            f"loss {loss!r} reaches nothing that can be trained: parameter_list and no_grad_set "
            f"leave none of {', '.join(sorted(fixed))}"
        )
    return Trained(
        read=reached.read,
        learned=learned,
        parameters=tuple(name for name in kept if name not in statistics),
        statistics=tuple(name for name in kept if name in statistics),
        used=reached.used,
        no_grad=tuple(sorted(fixed)),
        detached=reached.detached,
    )


def _check_given(model: object, example: object) -> None:
    if not isinstance(model, torch.nn.Module):
        raise PlanError(f"minimize: model must be a torch.nn.Module, got {model!r}")
    if not isinstance(example, Batch):
        raise PlanError(f"minimize: example must be a downpour.Batch, got {type(example).__name__}")


def _refuse_unrun(limits: Restriction, reached: Mapping[str, Reached]) -> None:
    """A module that no loss calls as a whole has no output to detach."""
    ran = {name for what in reached.values() for name in what.detached}
    for name in sorted(limits.modules - ran):
        raise PlanError(
            f"no_grad_set has module {name!r}, which no loss calls: it only holds others, or a "
            "method of its own is called; name the modules in it that run, or their parameters"
        )


def _refuse_unknown_tables(
    declared: Mapping[str, SparseTableSpec], optimizer: DownpourSGD, strategy: Strategy | None
) -> None:
    """Settings of a table that no module of the model names."""
    given = {"DownpourSGD.sparse has rules for": optimizer.named_tables()}
    if strategy is not None:
        given["strategy has settings of"] = tuple(strategy.tables)
    for what, names in given.items():
        unknown = [name for name in names if name not in declared]
        if unknown:
            raise SettingError(
                f"{what} {unknown}, which are no tables of the model; it has: "
                f"{', '.join(declared) or 'none'}"
            )


def _refuse_same_names(declared: Mapping[str, SparseTableSpec], named: Mapping[str, Loss]) -> None:
    """A sparse table and the dense one of a loss would be told apart by name alone."""
    for name in named:
        for own in (f"dense.{name}", f"data_norm.{name}"):
            if own in declared:
                raise PlanError(
                    f"sparse table {own!r} has the name of a dense table of loss {name!r}; give "
                    "SparseEmbedding(table=...) another"
                )


def _dense_tables(
    numbers: Sequence[DenseNumber], model: torch.nn.Module, said: Told
) -> tuple[DenseTableSpec, ...]:
    """The tables that hold something."""
    parameters = dense_parameters(model)
    tables = []
    for number in numbers:
        if not number.own:
            continue
        own = {name: parameters[name] for name in number.own}
        rule, files = said.tables[number.kind]
        tables.append(
            DenseTableSpec(
                id=number.id,
                name=f"{number.kind}.{number.loss}",
                rule=rule,
                sections=sections_of({name: tuple(it.shape) for name, it in own.items()}),
                dtype=_dtype_of(own, number.loss),
                files=files,
            )
        )
    return tuple(tables)


def _dtype_of(parameters: Mapping[str, torch.nn.Parameter], loss: str) -> str:
    dtypes = {str(it.dtype).removeprefix("torch.") for it in parameters.values()}
    if len(dtypes) > 1 or not dtypes <= {"float32", "float64"}:
        raise PlanError(
            f"the parameters of loss {loss!r} must all be float32 or all float64, got "
            f"{sorted(dtypes)}, as after {cast_call(next(iter(parameters.values())))}; {AUTOCAST}"
        )
    return dtypes.pop()
