"""Transpiled programs: what a trainer does before, in and after its steps, and what a server does.

Each is made of a plan and of where its variables are; the plan itself is first cut down to one loss
or given other rules here, where it is to be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from downpour.accessor import CtrAccessor
from downpour.errors import PlanError
from downpour.plan.program import (
    Compute,
    PullDense,
    PullSparse,
    PushDense,
    PushSparse,
    WeighSamples,
)
from downpour.tables.dense import sections_of
from downpour.transpile.ops import (
    Apply,
    ApplyRows,
    Average,
    AverageRows,
    FetchBarrier,
    Initialize,
    Listen,
    LocalStep,
    Recv,
    Send,
    SendBarrier,
)
from downpour.transpile.text import op_lines

if TYPE_CHECKING:
    from downpour.federated.methods import RowsOver, Weighting
    from downpour.plan.plan import Plan
    from downpour.plan.program import Program
    from downpour.plan.specs import SparseTableSpec
    from downpour.rules import Rule
    from downpour.transpile.config import DistributeTranspilerConfig
    from downpour.transpile.ops import Op
    from downpour.transpile.split import Split

T = TypeVar("T")
ProgramName = Literal["startup", "recv", "local", "send", "pserver"]


@dataclass(frozen=True)
class DistributedProgram:
    """The ordered ops of one trainer's or server's program; `endpoint` is the server's."""

    name: ProgramName
    ops: tuple[Op, ...]
    endpoint: str | None = None

    def ops_of(self, kind: type[T]) -> tuple[T, ...]:
        """Return the ops of a kind, in order."""
        return tuple(op for op in self.ops if isinstance(op, kind))

    def __str__(self) -> str:
        whose = "" if self.endpoint is None else f" {self.endpoint}"
        count = f"{len(self.ops)} op{'s' * (len(self.ops) != 1)}"
        return "\n  ".join([f"{self.name}{whose}: {count}", *op_lines(self.ops)])


class TrainerPrograms(NamedTuple):
    """What a trainer runs, round after round: `recv`, `local` once or more often, `send`."""

    recv: DistributedProgram
    local: DistributedProgram
    send: DistributedProgram


def trainer_startup(split: Split) -> DistributedProgram:
    """The first values of all parameters."""
    ops = tuple(Initialize(section) for section in split.of_kind("parameter"))
    return DistributedProgram("startup", ops)


def trainer_programs(
    plan: Plan, split: Split, config: DistributeTranspilerConfig, *, sync_mode: bool
) -> TrainerPrograms:
    """Rows travel with each step; with a federation, with the dense variables once a round."""
    recv: list[Op] = [Recv(section) for section in split.of_kind("parameter")]
    send: list[Op] = [Send(section) for section in split.of_kind(config.sent_kind)]
    if config.federation is None:
        local = _without_dense(plan)
    else:
        recv += [PullSparse(*names) for names in _features(plan, PullSparse)]
        local = _local_steps(plan)
        send += [PushSparse(*names) for names in _features(plan, PushSparse)]
    if sync_mode:
        recv.append(FetchBarrier(split.endpoints))
        send.append(SendBarrier(split.endpoints))
    return TrainerPrograms(
        DistributedProgram("recv", tuple(recv)),
        DistributedProgram("local", tuple(local)),
        DistributedProgram("send", tuple(send)),
    )


def pserver_startup(split: Split, endpoint: str) -> DistributedProgram:
    """The first values of a server's sections, and what its rules' state begins with."""
    held = (it for it in split.endpoint(endpoint) if it.kind in ("parameter", "optimizer"))
    return DistributedProgram("startup", tuple(map(Initialize, held)), endpoint)


def pserver_program(
    plan: Plan,
    split: Split,
    config: DistributeTranspilerConfig,
    endpoint: str,
    *,
    trainers: int,
    sync_mode: bool,
) -> DistributedProgram:
    """A step of each section and each shard of rows that the server has, then that it listens."""
    method = config.federation
    weighting: Weighting = "samples" if method is None else method.weighting
    over: RowsOver = "all" if method is None else method.rows_over
    held = {section.name for section in split.endpoint(endpoint)}
    trained = {name for program in plan.programs.values() for name in program.parameters}
    parameters = [it for it in split.of_kind("parameter") if it.variable in trained]
    ops: list[Op] = []
    for section, sent in zip(parameters, split.of_kind(config.sent_kind), strict=True):
        if section.name in held:
            ops += [Average(sent, trainers, weighting)] * sync_mode
            ops.append(Apply(section, plan.dense_table(section.table).rule))
    for table, _ in _features(plan, PushSparse):
        ops += [AverageRows(table, trainers, weighting, over)] * sync_mode
        ops.append(ApplyRows(table, plan.sparse_table(table).accessor))
    ops.append(Listen(endpoint, trainers, sync_mode))
    return DistributedProgram("pserver", tuple(ops), endpoint)


def _without_dense(plan: Plan) -> list[Op]:
    """What each loss does but for its dense variables, which recv and send programs move."""
    return [
        op
        for program in plan.programs.values()
        for op in program.ops
        if not isinstance(op, PullDense | PushDense)
    ]


def _local_steps(plan: Plan) -> list[Op]:
    """Each loss, and the step of what it trains; its rows came with the round."""
    ops: list[Op] = []
    for program in plan.programs.values():
        step = LocalStep(program.name, program.parameters, program.tables(PushSparse))
        ops += [*program.ops_of(Compute), step]
    return ops


def _features(plan: Plan, kind: type[PullSparse | PushSparse]) -> list[tuple[str, tuple[str, ...]]]:
    """The tables that ops of a kind name, each with the features of all losses in its order."""
    listed = []
    for table in plan.sparse:
        ops = (op for program in plan.programs.values() for op in program.ops_of(kind))
        named = {feature for op in ops if op.table == table.name for feature in op.features}
        if named:
            own = tuple(feature.name for feature in table.features if feature.name in named)
            listed.append((table.name, own))
    return listed


def restricted(plan: Plan, program: Program) -> Plan:
    """The part of a plan that one of its programs trains: what its loss alone would plan.

    Tables keep their numbers. Raises PlanError for a program that is not the plan's.
    """
    if plan.program(program.name) != program:
        raise PlanError(
            f"program {program.name!r} is not the plan's own of that name; take plan.programs"
            f"[{program.name!r}], or give the plan that it was made with"
        )
    dense = []
    for spec in plan.dense:
        shapes = {it.name: it.shape for it in spec.sections if it.name in program.parameters}
        if shapes:
            dense.append(replace(spec, sections=sections_of(shapes)))
    named = program.tables(PullSparse, WeighSamples, PushSparse)
    sparse = [spec for spec in plan.sparse if spec.name in named]
    counting = {spec.name for spec in sparse if isinstance(spec.accessor, CtrAccessor)}
    kept = {spec.name for spec in dense}
    ops = [
        replace(op, counts=op.features)  # which another loss may have counted
        if isinstance(op, PushSparse) and op.table in counting
        else op
        for op in program.ops
        if not isinstance(op, PullDense | PushDense) or op.table in kept
    ]
    return replace(
        plan,
        sparse=tuple(_counted_by(spec, program.name) for spec in sparse),
        dense=tuple(dense),
        programs={program.name: replace(program, ops=tuple(ops))},
        losses={name: loss for name, loss in plan.losses.items() if name == program.name},
    )


def _counted_by(spec: SparseTableSpec, loss: str) -> SparseTableSpec:
    """A table whose shows are counted by this loss, be it that another was to count them."""
    if isinstance(spec.accessor, CtrAccessor) and spec.accessor.counted_by not in (None, loss):
        return replace(spec, accessor=replace(spec.accessor, counted_by=None))
    return spec


def with_rule(plan: Plan, rule: Rule) -> Plan:
    """The plan with one rule on all of its tables; its losses and its startup stay.

    Raises SettingError for a rule that may not sit on a sparse table of the plan.
    """
    dense = tuple(
        replace(spec, rule=rule, files=spec.files.for_another_rule()) for spec in plan.dense
    )
    return replace(plan, sparse=tuple(_moved_by(spec, rule) for spec in plan.sparse), dense=dense)


def _moved_by(spec: SparseTableSpec, rule: Rule) -> SparseTableSpec:
    if isinstance(spec.accessor, CtrAccessor):
        accessor: Any = replace(spec.accessor, rule=rule, embedx_rule=rule)
    else:
        accessor = replace(spec.accessor, rule=rule)
    return replace(spec, accessor=accessor, files=spec.files.for_another_rule())
