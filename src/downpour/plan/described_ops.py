"""What a description says of the ops of a program: taken where nobody else does, or refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from downpour.errors import PlanError
from downpour.plan.program import (
    Compute,
    PullDense,
    PushDense,
    PushSparse,
    WeighSamples,
)
from downpour.settings import first_unlike

if TYPE_CHECKING:
    from downpour.plan.fleet_desc import TrainerDesc
    from downpour.plan.program import Op, Program
    from downpour.plan.told import Told

FORWARD = ("lookup_table", "lookup_table_v2", "pull_sparse", "pull_sparse_v2")
BACKWARD = (*(f"{kind}_grad" for kind in FORWARD), "push_sparse", "push_sparse_v2")
STEMS = ("lookup", "pull_sparse", "push_sparse")  # a name with none of them is in other ops' too


def refuse_other_compute(own: Program, described: Program, where: str) -> None:
    """Raise PlanError for a description of a plan in which other things get no gradient."""
    for mine, other in zip(own.ops_of(Compute), described.ops_of(Compute), strict=False):
        if (mine.no_grad, mine.detached) != (other.no_grad, other.detached):
            names = [*other.no_grad, *other.detached]
            raise PlanError(
                f"{where}: program {described.name!r} trains {_all_but(names)}, and the plan of "
                f"this model trains {_all_but([*mine.no_grad, *mine.detached])}; give "
                f"minimize(no_grad_set={names}), or a parameter_list that says the same"
            )


def _all_but(names: list[str]) -> str:
    return f"all but {', '.join(names)}" if names else "everything"


def as_described(made: Program, described: Program, told: Told, where: str) -> Program:
    """A program with the settings of a described one that optimizer and strategy leave open.

    Raises PlanError naming the setting, or the op, in which the two differ after that.
    """
    made = replace(made, ops=tuple(_taken(op, described, told) for op in made.ops))
    if made == described:
        return made
    own, other = first_unlike(_parts(made), _parts(described))
    raise PlanError(
        f"{where}: program {described.name!r} is not the one of loss {made.name!r}, which has "
        f"{own!r} where it has {other!r}; {_way_out(own, other)}"
    )


def _taken(op: Op, described: Program, told: Told) -> Op:
    """An op with what the same op of a description says and nobody else does."""
    if isinstance(op, PushSparse) and "times_batch_size" not in told.given:
        for push in described.ops_of(PushSparse):
            if push.table == op.table:
                return replace(op, times_batch_size=push.times_batch_size)
    if isinstance(op, PullDense | PushDense):
        for other in described.ops_of(type(op)):
            if other.table != op.table:
                continue
            op = replace(op, every=other.every) if told.window == 1 else op
            if isinstance(op, PushDense) and "scale_datanorm" not in told.given:
                op = replace(op, scale_datanorm=getattr(other, "scale_datanorm", None))
    return op


def _parts(program: Program) -> tuple[Any, ...]:
    return (program.name, *program.ops, program.skipped_ops)


def _way_out(own: Any, other: Any) -> str:
    """How to get the op of the description, where it is a setting that differs."""
    for op in (other, own):
        if isinstance(op, WeighSamples) and type(own) is not type(other):
            return (
                "give the strategy adjust_ins_weight as the description has it, or take "
                "weigh_samples out of it"
            )
    if type(own) is not type(other):
        return "describe the plan of this model"
    if isinstance(own, WeighSamples):
        return "strategy adjust_ins_weight must say what weigh_samples does"
    if isinstance(own, PushSparse) and own.times_batch_size != other.times_batch_size:
        return (
            f"scale_sparse_gradient_with_batch_size is {own.times_batch_size} by DownpourSGD or "
            "the strategy; take it out, or say the same with times_batch_size"
        )
    if isinstance(own, PushDense) and own.scale_datanorm != other.scale_datanorm:
        return (
            f"scale_datanorm is {own.scale_datanorm} by DownpourSGD or the strategy; take it out, "
            "or describe the same"
        )
    if isinstance(own, PullDense | PushDense) and own.every != other.every:
        return f"DownpourSGD.window is {own.every}; take it out, or describe the same"
    return "describe the plan of this model"


def check_skipped(program: Program, trainer: TrainerDesc) -> None:
    """As in the reference, an op is skipped whose kind contains a name of the list.

    Raises PlanError for what would skip other ops than look-ups, or no look-up.
    """
    names = trainer.skip_ops
    kinds = (*FORWARD, *BACKWARD) if program.skipped_ops else ()
    own = ", ".join(program.skipped_ops) or "none"
    for index, name in enumerate(names):
        where = trainer.at("skip_op", index)
        if name in names[:index]:
            raise PlanError(f"{where}: {name!r} is given twice; keep one")
        if not name:
            raise PlanError(
                f"{where}: '' is contained in the name of every op, so none would run; take it out"
            )
        if not any(name in kind for kind in kinds):
            raise PlanError(
                f"{where}: {name!r} matches no op of loss {program.name!r} that servers do; its "
                f"look-ups are {own}. Any other op runs in the worker: take the name out, and the "
                "layer out of the model if it is not to run"
            )
        if not any(stem in name for stem in STEMS):
            raise PlanError(
                f"{where}: {name!r} is contained in the names of ops that are no look-ups; write "
                f"the whole name, of {own}"
            )
    if not any(name in kind for name in names for kind in FORWARD):
        raise PlanError(
            f"{trainer.at('skip_op')}: must name lookup_table, got {', '.join(names)}: the rows "
            f"of loss {program.name!r} are on servers, so it cannot run in a worker"
        )
