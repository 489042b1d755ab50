"""The ops of each loss's program: what it pulls, weighs, computes and pushes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from downpour.accessor import CtrAccessor
from downpour.errors import PlanError
from downpour.plan.program import (
    Compute,
    Program,
    PullDense,
    PullSparse,
    PushDense,
    PushSparse,
    WeighSamples,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from downpour.plan.program import Op
    from downpour.plan.specs import DenseTableSpec, SparseTableSpec
    from downpour.plan.told import Told
    from downpour.strategy import AdjustInsWeight


@dataclass(frozen=True, slots=True)
class Trained:
    """What one loss reads and trains.

    `read`, `learned`: features by table. `parameters`, `statistics`: the dense parameters and the
    data-norm statistics that it trains, sorted. `used`: parameters that it is computed from,
    with a gradient or without. `no_grad`: parameters and tables that it reaches and does not train;
    `detached`: modules whose outputs get no gradient.
    """

    read: Mapping[str, tuple[str, ...]]
    learned: Mapping[str, tuple[str, ...]]
    parameters: tuple[str, ...]
    statistics: tuple[str, ...]
    used: frozenset[str]
    no_grad: tuple[str, ...]
    detached: tuple[str, ...]

    def uses(self, table: DenseTableSpec) -> bool:
        """Whether the loss is computed from a parameter of a dense table."""
        return any(section.name in self.used for section in table.sections)


def programs_of(
    trained: Mapping[str, Trained],
    sparse: Sequence[SparseTableSpec],
    dense: Sequence[DenseTableSpec],
    said: Told,
) -> dict[str, Program]:
    """A program for each loss. Raises PlanError for a `counted_by` or `adjust` that none has."""
    counted = _counted(sparse, trained)
    programs = {}
    for loss, what in trained.items():
        pushes = _sparse_pushes(what, sparse, said.times_batch_size)
        ops: list[Op] = [
            *(PullDense(it.name, said.window) for it in dense if what.uses(it)),
            *_sparse_pulls(what, sparse),
            *_weighing(said.adjust, what, sparse),
            Compute(loss, what.no_grad, what.detached),
            *(replace(push, counts=counted.get((loss, push.table), ())) for push in pushes),
            *_dense_pushes(what, dense, said),
        ]
        skipped = ["lookup_table"] * bool(what.read) + ["lookup_table_grad"] * bool(pushes)
        programs[loss] = Program(loss, tuple(ops), tuple(skipped))
    _refuse_unweighed(said.adjust, programs)
    return programs


def _counted(
    sparse: Sequence[SparseTableSpec], trained: Mapping[str, Trained]
) -> dict[tuple[str, str], tuple[str, ...]]:
    """The features whose shows a program counts, by program and table of CTR rows.

    Each feature is counted once a batch: by `counted_by` if that pushes it, or by the first program
    that does.
    """
    counted = {}
    for spec in sparse:
        if not isinstance(spec.accessor, CtrAccessor):
            continue
        taken: set[str] = set()
        for loss in _counting_order(spec, spec.accessor.counted_by, trained):
            own = [it for it in _ordered(spec, trained[loss].learned) if it not in taken]
            taken.update(own)
            counted[loss, spec.name] = tuple(own)
    return counted


def _counting_order(
    spec: SparseTableSpec, first: str | None, trained: Mapping[str, Trained]
) -> list[str]:
    """The programs that push a table, the one that is to count before the others."""
    pushing = [loss for loss, what in trained.items() if spec.name in what.learned]
    if first is not None and first not in pushing:
        raise PlanError(
            f"table {spec.name!r}: counted_by={first!r} is no program that pushes it; those are: "
            f"{', '.join(pushing) or 'none'}"
        )
    return sorted(pushing, key=lambda loss: loss != first)


def _dense_pushes(what: Trained, dense: Sequence[DenseTableSpec], said: Told) -> list[PushDense]:
    own = {*what.parameters, *what.statistics}
    pushes = []
    for table in dense:
        names = tuple(section.name for section in table.sections if section.name in own)
        if names:
            scale = said.scale_datanorm if table.is_data_norm else None
            pushes.append(PushDense(table.name, names, said.window, scale))
    return pushes


def _sparse_pulls(what: Trained, sparse: Sequence[SparseTableSpec]) -> list[PullSparse]:
    """Features that get no gradient are pulled by an op of their own."""
    pulls = []
    for table in sparse:
        learned = _ordered(table, what.learned)
        fixed = tuple(name for name in _ordered(table, what.read) if name not in {*learned})
        pulls += [PullSparse(table.name, group) for group in (learned, fixed) if group]
    return pulls


def _sparse_pushes(
    what: Trained, sparse: Sequence[SparseTableSpec], times_batch_size: bool
) -> list[PushSparse]:
    return [
        PushSparse(table.name, learned, times_batch_size)
        for table in sparse
        if (learned := _ordered(table, what.learned))
    ]


def _ordered(table: SparseTableSpec, by_table: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Features of a table in its own order."""
    names = {*by_table.get(table.name, ())}
    return tuple(feature.name for feature in table.features if feature.name in names)


def _weighing(
    adjust: AdjustInsWeight | None, what: Trained, sparse: Sequence[SparseTableSpec]
) -> list[WeighSamples]:
    """The op of adjust_ins_weight in a program that reads its feature from CTR rows."""
    if adjust is None:
        return []
    return [
        WeighSamples(table.name, adjust.feature, adjust.threshold, adjust.ratio)
        for table in sparse
        if isinstance(table.accessor, CtrAccessor)
        and adjust.feature in what.read.get(table.name, ())
    ][:1]


def _refuse_unweighed(adjust: AdjustInsWeight | None, programs: Mapping[str, Program]) -> None:
    if adjust is None:
        return
    ops = (op for program in programs.values() for op in program.ops)
    if not any(isinstance(op, WeighSamples) for op in ops):
        raise PlanError(
            f"adjust_ins_weight: no loss reads feature {adjust.feature!r} from a table whose rows "
            "count shows"
        )
