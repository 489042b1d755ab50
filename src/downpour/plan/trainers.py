"""The trainers of a description file as programs of a plan: taken in, or refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from downpour.errors import PlanError
from downpour.plan.described_dense import require_one_rule
from downpour.plan.described_ops import as_described, check_skipped, refuse_other_compute
from downpour.plan.program import PullDense, PullSparse, PushDense, PushSparse

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from downpour.plan.fleet_desc import FleetDesc, TrainerDesc
    from downpour.plan.numbers import DenseNumber
    from downpour.plan.plan import Plan
    from downpour.plan.program import Op, Program
    from downpour.plan.told import Told


def trainers_of(losses: Sequence[str], desc: FleetDesc) -> Sequence[TrainerDesc | None]:
    """The description of each loss's program: one for all of them, or one each, in order.

    Raises PlanError for another number of them, and for one that has the name of another loss.
    """
    given, number = desc.trainers, len(losses)
    if len(given) <= 1:
        return [given[0] if given else None] * number
    if len(given) != number:
        raise PlanError(
            f"{given[0].where}: there are {len(given)} trainer_param for {number} losses; give one "
            "for all, or one each"
        )
    for name, trainer in zip(losses, given, strict=True):
        if trainer.program_id != name and trainer.program_id in losses:
            raise PlanError(
                f"{trainer.at_config('program_id')} is {trainer.program_id!r}, and by its place "
                f"it is of loss {name!r}; write trainer_param in the order of the losses"
            )
    return given


def described_programs(
    plan: Plan, desc: FleetDesc, numbers: Sequence[DenseNumber], told: Told
) -> dict[str, Program]:
    """The plan's programs as the description's trainers say.

    `numbers` are those of dense tables; `told` is what optimizer and strategy say. Raises PlanError
    for what contradicts them or the losses.
    """
    trainers = trainers_of([*plan.programs], desc)
    return {
        name: _Described(plan, desc, program, trainer, numbers).program(told)
        if trainer
        else program
        for (name, program), trainer in zip(plan.programs.items(), trainers, strict=True)
    }


def refuse_other_gradients(plan: Plan, desc: FleetDesc) -> None:
    """Raise PlanError for a plan's own description in which other things get no gradient.

    All that comes after would differ by it, so it is looked at first.
    """
    trainers = trainers_of([*plan.programs], desc)
    for program, trainer in zip(plan.programs.values(), trainers, strict=True):
        if trainer is not None and (described := _described_program(trainer)) is not None:
            refuse_other_compute(program, described, trainer.where)


def _described_program(trainer: TrainerDesc) -> Program | None:
    """The program that a plan's own description has."""
    return trainer.program if trainer.names_tables else None


class _Described:
    """A program, and what a description says of it."""

    def __init__(
        self,
        plan: Plan,
        desc: FleetDesc,
        program: Program,
        trainer: TrainerDesc,
        numbers: Sequence[DenseNumber],
    ) -> None:
        self._plan, self._desc, self._program, self._trainer = plan, desc, program, trainer
        self._numbers = {it.id: it for it in numbers if it.loss == program.name}
        self._ids = plan.ids

    def program(self, told: Told) -> Program:
        """The program as it is described."""
        self._check_sparse()
        self._check_dense()
        self._check_config()
        if self._trainer.skip_ops:
            check_skipped(self._program, self._trainer)
        ops = tuple(_windowed(op, self._trainer, told.window) for op in self._program.ops)
        skipped = self._trainer.skip_ops or self._program.skipped_ops
        made = replace(self._program, ops=ops, skipped_ops=skipped)
        described = _described_program(self._trainer)
        if described is None:
            return made
        return as_described(made, described, told, self._trainer.where)

    def _check_sparse(self) -> None:
        """The features of a table that the file lists must be those that the loss reads."""
        read: dict[int, tuple[str, ...]] = {}
        for op in self._program.ops_of(PullSparse):
            number = self._ids[op.table]
            read[number] = (*read.get(number, ()), *op.features)
        for number, features in self._trainer.sparse.items():
            if features and {*features} != {*read.get(number, ())}:
                raise PlanError(
                    f"{self._trainer.at_table('sparse', number, 'slot_key')} is "
                    f"{', '.join(features)}, and loss {self._program.name!r} reads "
                    f"{', '.join(read.get(number, ())) or 'nothing'} in table {number}"
                )
            _require_used(self._trainer.at_table("sparse", number, "table_id"), number, read)

    def _check_dense(self) -> None:
        """The parameters of a table that the file lists must be those that the loss trains.

        As the reference has it, those that the losses before have taken may be there too.
        """
        pushed = {self._ids[op.table]: op.parameters for op in self._program.ops_of(PushDense)}
        for number, names in self._trainer.dense.items():
            unlike = sorted({*names} ^ {*pushed.get(number, ())})
            if names and unlike and not self._has_copies(number, names):
                raise PlanError(
                    f"{self._trainer.at_table('dense', number, 'dense_variable_name')} and the "
                    f"parameters that loss {self._program.name!r} trains in table {number} differ "
                    f"in {', '.join(unlike[:5])}; correct it, or leave it out"
                )
            subject = self._trainer.at_table("dense", number, "table_id")
            _require_used(subject, number, {**pushed, **self._numbers})

    def _has_copies(self, number: int, names: tuple[str, ...]) -> bool:
        """Whether these are all parameters of a kind that the loss trains, which it may share."""
        numbered = self._numbers.get(number)
        if numbered is None or {*names} != {*numbered.trained}:
            return False
        if number in self._desc.dense:
            require_one_rule(numbered, self._desc.dense[number], self._plan.dense)
        return True

    def _check_config(self) -> None:
        """The tables of a program_config, if it lists any, must be all those of its program.

        Dense ones may be those that the reference numbers for the loss.
        """
        trainer = self._trainer
        listed = {
            "pull_sparse_table_id": (trainer.pull_sparse, PullSparse),
            "push_sparse_table_id": (trainer.push_sparse, PushSparse),
            "pull_dense_table_id": (trainer.pull_dense, PullDense),
            "push_dense_table_id": (trainer.push_dense, PushDense),
        }
        if not trainer.names_tables:
            return
        for field, (given, kind) in listed.items():
            if "dense" in field and {*given} == {*self._numbers}:
                continue
            own = [self._ids[table] for table in self._program.tables(kind)]
            for index, number in enumerate(given):
                _require_used(trainer.at_config(field, index), number, own)
            if lacking := [str(number) for number in own if number not in given]:
                raise PlanError(
                    f"{trainer.at_config(field)}: lacks {', '.join(lacking)}, which loss "
                    f"{self._program.name!r} uses there; write all four lists, or none"
                )


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


def _require_used(subject: str, number: int, own: Collection[int]) -> None:
    if number not in own:
        raise PlanError(
            f"{subject} is {number}, and the loss uses {', '.join(map(str, own)) or 'none'} there"
        )
