"""A plan as text that people read: a tree of tables and programs, and as plain data for JSON."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from downpour.accessor import CtrAccessor
from downpour.plan.program import (
    Compute,
    PullDense,
    PullSparse,
    PushDense,
    PushSparse,
    WeighSamples,
)
from downpour.plan.specs import (
    DenseTableSpec,
    FsClient,
    Launch,
    Service,
    SparseTableSpec,
    TableFiles,
)
from downpour.settings import short
from downpour.sizes import bytes_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import TypeAlias

    from downpour.plan.plan import Plan
    from downpour.plan.program import Op, Program
    from downpour.plan.specs import FeatureSpec

    Traffic: TypeAlias = Mapping[tuple[str, int], int]  # bytes, by program and place of an op
    Branch: TypeAlias = tuple[str, "list[Branch]"]

MOST = 72  # characters of a list of names; what is more is counted


def lines(plan: Plan, traffic: Traffic | None = None) -> Iterator[str]:
    """The lines of a plan; `traffic` has the bytes that each op moves in a step."""
    yield _headline(plan)
    branches = [*map(_sparse_branch, plan.sparse), *map(_dense_branch, plan.dense)]
    branches += [
        _program_branch(plan, program, traffic or {}) for program in plan.programs.values()
    ]
    yield from _drawn(branches, "")


def as_dict(plan: Plan, traffic: Traffic | None = None) -> dict[str, Any]:
    """A plan as plain data: its tables by id, and of each program the loss and what it moves."""
    return {
        "tables": [*map(_sparse_dict, plan.sparse), *map(_dense_dict, plan.dense)],
        "programs": [
            _program_dict(plan, program, traffic or {}) for program in plan.programs.values()
        ],
        "clip": None if plan.clip is None else short(plan.clip),
    }


def _headline(plan: Plan) -> str:
    num_norms = sum(table.is_data_norm for table in plan.dense)
    counts = [
        f"{len(plan.sparse)} sparse",
        f"{len(plan.dense) - num_norms} dense",
        *([f"{num_norms} data-norm"] if num_norms else []),
    ]
    said = (plan.service, plan.fs_client, plan.launch)
    around = [short(it) for it in said if it not in (Service(), FsClient(), Launch())]
    clip = [] if plan.clip is None else [short(plan.clip)]
    return ", ".join([f"plan: {', '.join(counts)}", *clip, *around])


def _drawn(branches: Sequence[Branch], indent: str) -> Iterator[str]:
    for place, (label, children) in enumerate(branches):
        is_last = place == len(branches) - 1
        yield f"{indent}{'└─ ' if is_last else '├─ '}{label}"
        yield from _drawn(children, indent + ("   " if is_last else "│  "))


def _sparse_branch(table: SparseTableSpec) -> Branch:
    accessor, features = table.accessor, [_feature_text(it) for it in table.features]
    rows = [f"features {listed(features)}"]
    if isinstance(accessor, CtrAccessor):
        layout, embedx = accessor.layout, accessor.embedx_layout
        rows += [
            f"w {_part(accessor.rules[0], accessor.init, accessor.bounds)}",
            f"embedx {accessor.dim - 1} from score {accessor.embedx_threshold:g}, "
            f"{_part(accessor.rules[1], accessor.embedx_init, accessor.embedx_bounds)}",
            f"show and click of {accessor.click!r}, score = (show - click) * "
            f"{accessor.nonclk_coeff:g} + click * {accessor.click_coeff:g}",
            f"{layout.num_bytes} bytes a row, {embedx.num_bytes} more with embedx",
        ]
        kind = f"CTR, seen as {accessor.dim + (2 if table.use_cvm else 0)}"
    else:
        rows += [
            _part(accessor.rule, accessor.init, accessor.bounds),
            f"{accessor.layout.num_bytes} bytes a row",
        ]
        kind = f"dim {accessor.dim}"
    if table.padding_key is not None:
        rows.append(f"padding_key {table.padding_key}")
    return f"{table.id} sparse {table.name}: {kind}", [(row, []) for row in (*rows, *_files(table))]


def _part(rule: Any, init: Any, bounds: tuple[float, float] | None) -> str:
    within = "" if bounds is None else f", within {list(bounds)}"
    return f"{short(rule)}, first {short(init)}{within}"


def _dense_branch(table: DenseTableSpec) -> Branch:
    kind = "data-norm" if table.is_data_norm else "dense"
    sections = [f"{section.name} {list(section.shape)}" for section in table.sections]
    rows = [listed(sections, ", "), short(table.rule), *_files(table)]
    return f"{table.id} {kind} {table.name}: {table.size:,} elements", [(row, []) for row in rows]


def _files(table: SparseTableSpec | DenseTableSpec) -> list[str]:
    """What is said of pslib's files, but for its long converters."""
    files = replace(table.files, converters=())
    return [] if files == TableFiles() else [short(files)]


def _program_branch(plan: Plan, program: Program, traffic: Traffic) -> Branch:
    ops: list[Branch] = []
    for place, op in enumerate(program.ops):
        moved = traffic.get((program.name, place))
        ops.append((_op_text(plan, op) + ("" if moved is None else f"  {bytes_text(moved)}"), []))
    if program.skipped_ops:
        ops.append((f"skipped {' '.join(program.skipped_ops)}", []))
    total = [of for (name, _), of in traffic.items() if name == program.name]
    moves = f": {bytes_text(sum(total))} a step" if total else ""
    return f"program {program.name}{moves}", ops


def _op_text(plan: Plan, op: Op) -> str:
    kind = type(op).__name__
    match op:
        case PullDense(table, every):
            said = [table, *_every(every)]
        case PullSparse(table, features):
            said = [f"{table}: {listed(features)}"]
        case WeighSamples(table, feature, threshold, ratio):
            said = [f"{table} {feature}, shown less than {threshold:g} times, ratio {ratio:g}"]
        case Compute(loss, no_grad, detached):
            said = [loss, *([f"no gradient for {listed(no_grad)}"] * bool(no_grad))]
            said += [f"output detached of {listed(detached)}"] * bool(detached)
        case PushSparse(table, features, times_batch_size, counts):
            said = [f"{table}: {listed(features)}"]
            said += ["* batch size"] * times_batch_size
            if counts:
                whose = "" if counts == features else f" of {listed(counts)}"
                said.append(f"counts show and click{whose}")
        case PushDense(table, parameters, every, scale_datanorm):
            said = [table, *_every(every)]
            if len(parameters) < len(plan.dense_table(table).sections):
                said.append(listed(parameters))
            said += [] if scale_datanorm is None else [f"scale_datanorm {scale_datanorm:g}"]
    return f"{kind:<13}{', '.join(said)}"


def _every(every: int) -> list[str]:
    return [] if every == 1 else [f"every {every} batches"]


def listed(names: Sequence[str], joiner: str = " ") -> str:
    """Names, and how many more there are than fit on a line."""
    width = 0
    for shown, name in enumerate(names):
        width += len(name) + len(joiner)
        if shown and width > MOST:
            return f"{joiner.join(names[:shown])} and {len(names) - shown:,} more"
    return joiner.join(names)


def _feature_text(feature: FeatureSpec) -> str:
    if feature.space == feature.name:
        return feature.name
    return f"{feature.name}@{'*' if feature.space is None else feature.space}"


def _sparse_dict(table: SparseTableSpec) -> dict[str, Any]:
    accessor = table.accessor
    own = {
        "id": table.id,
        "name": table.name,
        "kind": "sparse",
        "accessor": type(accessor).__name__,
        "dim": accessor.dim,
        "rule": short(accessor.rules[0]),
        "dtype": accessor.dtype,
        "row_bytes": accessor.layout.num_bytes,
        "use_cvm": table.use_cvm,
        "features": [
            {"name": it.name, "space": it.space, "slot": it.slot} for it in table.features
        ],
    }
    if isinstance(accessor, CtrAccessor):
        own["embedx_dim"] = accessor.embedx_dim
        own["embedx_rule"] = short(accessor.rules[1])
        own["embedx_bytes"] = accessor.embedx_layout.num_bytes
        own["embedx_threshold"] = accessor.embedx_threshold
        own["click"] = accessor.click
    return own


def _dense_dict(table: DenseTableSpec) -> dict[str, Any]:
    return {
        "id": table.id,
        "name": table.name,
        "kind": "data_norm" if table.is_data_norm else "dense",
        "size": table.size,
        "rule": short(table.rule),
        "dtype": table.dtype,
        "parameters": {section.name: list(section.shape) for section in table.sections},
    }


def _program_dict(plan: Plan, program: Program, traffic: Traffic) -> dict[str, Any]:
    groups: dict[str, list[Any]] = {"pulls": [], "pushes": []}
    ids = plan.ids
    for place, op in enumerate(program.ops):
        if isinstance(op, Compute | WeighSamples):
            continue
        said = {field.name: getattr(op, field.name) for field in fields(op)}
        entry = {"op": type(op).__name__, "id": ids[op.table], **said}
        if (program.name, place) in traffic:
            entry["bytes"] = traffic[program.name, place]
        groups["pulls" if isinstance(op, PullDense | PullSparse) else "pushes"].append(entry)
    return {
        "loss": program.name,
        **groups,
        "weighs": [
            {"table": op.table, "feature": op.feature, "threshold": op.threshold, "ratio": op.ratio}
            for op in program.ops_of(WeighSamples)
        ],
        "no_grad": program.no_grad,
        "detached": [name for op in program.ops_of(Compute) for name in op.detached],
        "skipped_ops": program.skipped_ops,
    }
