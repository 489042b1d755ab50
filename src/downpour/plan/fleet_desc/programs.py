"""Ops as messages, in the order in which a program of `minimize` has them.

That is: dense pulls, the pulls of rows (of a table, first what is pushed too, then what is not),
the weighing of samples, the loss, pushes of rows, dense pushes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from downpour.plan.program import (
    Compute,
    Program,
    PullDense,
    PullSparse,
    PushDense,
    PushSparse,
    WeighSamples,
)
from downpour.plan.specs import grad_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from downpour.plan.fleet_desc.fleet_desc_pb2 import DownpourTrainerParameter
    from downpour.plan.fleet_desc.places import Node
    from downpour.plan.fleet_desc.trainers import Tables
    from downpour.plan.program import Op

    Entries: TypeAlias = Mapping[str, Mapping[int, Node]]
    Ids: TypeAlias = Mapping[str, tuple[int, ...]]


def write_program(
    message: DownpourTrainerParameter, program: Program, ids: Mapping[str, int]
) -> None:
    """Write a program; `ids` of tables by name. What does not fit is not written."""
    pulls, pushes = program.ops_of(PullDense), program.ops_of(PushDense)
    every = [op.every for op in pushes] + [op.every for op in pulls]
    message.push_dense_per_batch = every[0] if every else 1
    _write_dense(message, pulls, pushes, ids)
    _write_sparse(message, program.ops_of(PullSparse), program.ops_of(PushSparse), ids)
    message.skip_op.extend(program.skipped_ops)
    message.program_config.add(
        program_id=program.name,
        push_sparse_table_id=_ids(program, PushSparse, ids),
        push_dense_table_id=_ids(program, PushDense, ids),
        pull_sparse_table_id=_ids(program, PullSparse, ids),
        pull_dense_table_id=_ids(program, PullDense, ids),
    )
    for compute in program.ops_of(Compute):
        message.no_grad.extend(compute.no_grad)
        message.detached.extend(compute.detached)
    for op in program.ops_of(WeighSamples):
        message.weigh_samples.add(
            table_id=ids[op.table],
            feature=op.feature,
            threshold=float(op.threshold),
            ratio=float(op.ratio),
        )


def _ids(program: Program, kind: type, ids: Mapping[str, int]) -> list[int]:
    return [ids[table] for table in program.tables(kind)]


def _tables(*ops: Sequence[PullDense | PullSparse | PushDense | PushSparse]) -> list[str]:
    """The tables of ops, in order, each once."""
    return list(dict.fromkeys(op.table for listed in ops for op in listed))


def _write_dense(
    message: DownpourTrainerParameter,
    pulls: Sequence[PullDense],
    pushes: Sequence[PushDense],
    ids: Mapping[str, int],
) -> None:
    window = message.push_dense_per_batch
    entries = {
        table: message.dense_table.add(table_id=ids[table]) for table in _tables(pulls, pushes)
    }
    for pull in pulls:
        if pull.every != window:
            entries[pull.table].pull_every = pull.every
    for push in pushes:
        entry = entries[push.table]
        entry.dense_variable_name.extend(push.parameters)
        entry.dense_gradient_variable_name.extend(grad_name(name) for name in push.parameters)
        if push.every != window:
            entry.push_every = push.every
        if push.scale_datanorm is not None:
            entry.scale_datanorm = float(push.scale_datanorm)


def _write_sparse(
    message: DownpourTrainerParameter,
    pulls: Sequence[PullSparse],
    pushes: Sequence[PushSparse],
    ids: Mapping[str, int],
) -> None:
    by_table = {op.table: op for op in pushes}
    for table in _tables(pulls, pushes):
        push = by_table.get(table, PushSparse(table, ()))
        read = [name for op in pulls if op.table == table for name in op.features]
        keys = [*push.features, *(name for name in read if name not in push.features)]
        values = [f"{table}.{name}" for name in keys]
        entry = message.sparse_table.add(
            table_id=ids[table],
            slot_key=keys,
            slot_value=values,
            slot_gradient=[grad_name(value) for value in values[: len(push.features)]],
        )
        entry.counts.extend(push.counts)
        if push.times_batch_size:
            entry.times_batch_size = True


def read_program(node: Node, config: Node, entries: Entries, tables: Tables, ids: Ids) -> Program:
    """Read what `write_program` wrote. Raises PlanError."""
    _check_entries(config, entries, ids)
    ops = (
        *_read_pulls(node, entries, tables, ids),
        *(_read_weighing(it, tables) for it in node.children("weigh_samples")),
        _read_compute(node, config),
        *_read_pushes(node, entries, tables, ids),
    )
    return Program(config.get("program_id"), ops, tuple(node.get("skip_op")))


def _read_compute(node: Node, config: Node) -> Compute:
    return Compute(
        loss=config.get("program_id"),
        no_grad=tuple(node.get("no_grad")),
        detached=tuple(node.get("detached")),
    )


def _check_entries(config: Node, entries: Entries, ids: Ids) -> None:
    """A table that the program uses must have its names."""
    for verb, numbers in ids.items():
        kind = f"{verb.partition('_')[2]}_table"
        for index, number in enumerate(numbers):
            if number not in entries[kind]:
                raise config.error(f"{verb}_table_id", f"table {number} has no {kind}", index)


def _read_pulls(node: Node, entries: Entries, tables: Tables, ids: Ids) -> Iterator[Op]:
    every = _windows(node)["pull"]
    for number in ids["pull_dense"]:
        entry = entries["dense_table"][number]
        own = entry.get("pull_every") if entry.has("pull_every") else every
        yield PullDense(str(tables.dense[number].name), own)
    for number in ids["pull_sparse"]:
        name = str(tables.sparse[number].name)
        pushed, rest = _features(entries["sparse_table"][number], name)
        yield from (PullSparse(name, group) for group in (pushed, rest) if group)


def _read_pushes(node: Node, entries: Entries, tables: Tables, ids: Ids) -> Iterator[Op]:
    for number in ids["push_sparse"]:
        entry, name = entries["sparse_table"][number], str(tables.sparse[number].name)
        pushed, _ = _features(entry, name)
        counts = _counted(entry, pushed)
        yield PushSparse(name, pushed, entry.get("times_batch_size"), counts)
    every = _windows(node)["push"]
    for number in ids["push_dense"]:
        entry = entries["dense_table"][number]
        yield PushDense(
            str(tables.dense[number].name),
            _parameters(entry),
            entry.get("push_every") if entry.has("push_every") else every,
            entry.get("scale_datanorm") if entry.has("scale_datanorm") else None,
        )


def _windows(node: Node) -> dict[str, int]:
    """How many batches apart dense parameters travel; one of the two stands for both."""
    pull, push = node.get("pull_dense_per_batch"), node.get("push_dense_per_batch")
    return {"pull": pull or push or 1, "push": push or pull or 1}


def _features(entry: Node, table: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The features of a table that are pushed, and the others."""
    keys = tuple(entry.get("slot_key"))
    values = [f"{table}.{name}" for name in keys]
    pushed = len(entry.get("slot_gradient"))
    expected = {"slot_value": values, "slot_gradient": [grad_name(it) for it in values[:pushed]]}
    for name, names in expected.items():
        if list(entry.get(name)) != names:
            raise entry.error(name, f"must be {names}, by slot_key, got {list(entry.get(name))}")
    return keys[:pushed], keys[pushed:]


def _counted(entry: Node, pushed: tuple[str, ...]) -> tuple[str, ...]:
    """The features that a push counts, which must be among those that it pushes."""
    names = tuple(entry.get("counts"))
    for index, name in enumerate(names):
        if name not in pushed:
            why = f"must be among {', '.join(pushed)}, by slot_gradient, got {name!r}"
            raise entry.error("counts", why, index)
    return names


def _parameters(entry: Node) -> tuple[str, ...]:
    names = tuple(entry.get("dense_variable_name"))
    gradients = [grad_name(name) for name in names]
    given = list(entry.get("dense_gradient_variable_name"))
    if given != gradients:
        why = f"must be {gradients}, by dense_variable_name, got {given}"
        raise entry.error("dense_gradient_variable_name", why)
    return names


def _read_weighing(node: Node, tables: Tables) -> WeighSamples:
    number = node.get("table_id")
    if number not in tables.sparse:
        raise node.error("table_id", f"there is no sparse table {number}")
    name = str(tables.sparse[number].name)
    return WeighSamples(name, node.get("feature"), node.get("threshold"), node.get("ratio"))
