"""The trainers of a description file as programs of a plan: taken in, or refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from downpour.errors import PlanError
from downpour.plan.program import PullDense, PullSparse, PushDense, PushSparse
from downpour.settings import first_unlike

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from downpour.plan.fleet_desc import FleetDesc, TrainerDesc
    from downpour.plan.plan import Plan
    from downpour.plan.program import Op, Program

FORWARD = ("lookup_table", "lookup_table_v2", "pull_sparse", "pull_sparse_v2")
BACKWARD = (*(f"{kind}_grad" for kind in FORWARD), "push_sparse", "push_sparse_v2")


def described_programs(plan: Plan, desc: FleetDesc, window: int) -> dict[str, Program]:
    """The plan's programs as the description's trainers say; `window` is the optimizer's.

    Raises PlanError for what contradicts the losses.
    """
    trainers = _trainers(plan, desc)
    return {
        name: _program(plan, program, trainer, window)
        for (name, program), trainer in zip(plan.programs.items(), trainers, strict=True)
    }


def _trainers(plan: Plan, desc: FleetDesc) -> Sequence[TrainerDesc | None]:
    """The description of each program: one for all of them, or one each, in order."""
    given, number = desc.trainers, len(plan.programs)
    if len(given) <= 1:
        return [given[0] if given else None] * number
    if len(given) != number:
        raise PlanError(
            f"{given[0].where}: there are {len(given)} trainer_param for {number} losses; give one "
            "for all, or one each"
        )
    for name, trainer in zip(plan.programs, given, strict=True):
        if trainer.program_id != name and trainer.program_id in plan.programs:
            raise PlanError(
                f"{trainer.at_config('program_id')} is {trainer.program_id!r}, and by its place "
                f"it is of loss {name!r}; write trainer_param in the order of the losses"
            )
    return given


def _program(plan: Plan, program: Program, trainer: TrainerDesc | None, window: int) -> Program:
    if trainer is None:
        return program
    _check_sparse(plan, program, trainer)
    _check_dense(plan, program, trainer)
    _check_config(plan, program, trainer)
    skipped = program.skipped_ops
    if trainer.skip_ops:
        skipped = trainer.skip_ops
        _check_skipped(program, trainer)
    ops = tuple(_windowed(op, trainer, window) for op in program.ops)
    made = replace(program, ops=ops, skipped_ops=skipped)
    if trainer.program not in (None, made) and trainer.names_tables:
        own, other = first_unlike(_parts(made), _parts(trainer.program))
        raise PlanError(
            f"{trainer.where}: program {trainer.program.name!r} is not the one of loss "
            f"{program.name!r}, which has {own!r} where it has {other!r}; describe the plan of "
            "this model"
        )
    return made


def _parts(program: Program) -> tuple[Any, ...]:
    return (program.name, *program.ops, program.skipped_ops)


def _windowed(op: Op, trainer: TrainerDesc, window: int) -> Op:
    """An op with the file's window; `window`, if it is set, must be that."""
    given = {
        PullDense: trainer.pull_dense_per_batch or trainer.push_dense_per_batch,
        PushDense: trainer.push_dense_per_batch or trainer.pull_dense_per_batch,
    }
    if not isinstance(op, PullDense | PushDense) or not (every := given[type(op)]):
        return op
    if window not in (1, every):
        raise PlanError(
            f"{trainer.at('push_dense_per_batch')}: dense parameters are to travel every {every} "
            f"batches, and DownpourSGD.window is {window}; leave one of them out"
        )
    return replace(op, every=every)


def _check_sparse(plan: Plan, program: Program, trainer: TrainerDesc) -> None:
    """The features of a table that the file lists must be those that the loss reads."""
    read = _features_by_id(plan, program)
    for number, features in trainer.sparse.items():
        if features and {*features} != {*read.get(number, ())}:
            raise PlanError(
                f"{trainer.at_table('sparse', number, 'slot_key')} is {', '.join(features)}, and "
                f"loss {program.name!r} reads {', '.join(read.get(number, ())) or 'nothing'} in "
                f"table {number}"
            )
    _check_entries(trainer, "sparse", read)


def _features_by_id(plan: Plan, program: Program) -> dict[int, tuple[str, ...]]:
    read: dict[int, tuple[str, ...]] = {}
    ids = plan.ids
    for op in program.ops_of(PullSparse):
        number = ids[op.table]
        read[number] = (*read.get(number, ()), *op.features)
    return read


def _check_dense(plan: Plan, program: Program, trainer: TrainerDesc) -> None:
    """The parameters of a table that the file lists must be those that the loss trains."""
    ids = plan.ids
    trained = {ids[op.table]: op.parameters for op in program.ops_of(PushDense)}
    for number, names in trainer.dense.items():
        own = trained.get(number, ())
        unlike = sorted({*names} ^ {*own})
        if names and unlike:
            raise PlanError(
                f"{trainer.at_table('dense', number, 'dense_variable_name')} and the parameters "
                f"that loss {program.name!r} trains in table {number} differ in "
                f"{', '.join(unlike[:5])}; correct it, or leave it out"
            )
    _check_entries(trainer, "dense", trained)


def _check_entries(
    trainer: TrainerDesc, kind: Literal["sparse", "dense"], own: Collection[int]
) -> None:
    """A trainer may have entries of the tables only that its program has."""
    for number in trainer.sparse if kind == "sparse" else trainer.dense:
        _require_used(trainer.at_table(kind, number, "table_id"), number, own)


def _check_config(plan: Plan, program: Program, trainer: TrainerDesc) -> None:
    """The tables of a program_config, if it lists any, must be all those of its program."""
    listed = {
        "pull_sparse_table_id": (trainer.pull_sparse, PullSparse),
        "push_sparse_table_id": (trainer.push_sparse, PushSparse),
        "pull_dense_table_id": (trainer.pull_dense, PullDense),
        "push_dense_table_id": (trainer.push_dense, PushDense),
    }
    if not trainer.names_tables:
        return
    ids = plan.ids
    for field, (given, kind) in listed.items():
        own = [ids[table] for table in program.tables(kind)]
        for index, number in enumerate(given):
            _require_used(trainer.at_config(field, index), number, own)
        if lacking := [str(number) for number in own if number not in given]:
            raise PlanError(
                f"{trainer.at_config(field)}: lacks {', '.join(lacking)}, which loss "
                f"{program.name!r} uses there; write all four lists, or none"
            )


def _require_used(subject: str, number: int, own: Collection[int]) -> None:
    if number not in own:
        raise PlanError(
            f"{subject} is {number}, and the loss uses {', '.join(map(str, own)) or 'none'} there"
        )


def _check_skipped(program: Program, trainer: TrainerDesc) -> None:
    """As in the reference, an op is skipped whose kind contains a name of the list."""
    names = trainer.skip_ops
    for index, name in enumerate(names):
        if name in names[:index]:
            raise PlanError(f"{trainer.at('skip_op', index)}: {name!r} is given twice; keep one")
    kinds = (*FORWARD, *BACKWARD) if program.skipped_ops else ()
    for index, name in enumerate(names):
        if not any(name in kind for kind in kinds):
            raise PlanError(
                f"{trainer.at('skip_op', index)}: {name!r} matches no op of loss "
                f"{program.name!r}; its look-ups are {', '.join(program.skipped_ops) or 'none'}"
            )
    if not any(name in kind for name in names for kind in FORWARD):
        raise PlanError(
            f"{trainer.at('skip_op')}: must name lookup_table, got {', '.join(names)}: the rows "
            f"of loss {program.name!r} are on servers, so it cannot run in a worker"
        )
