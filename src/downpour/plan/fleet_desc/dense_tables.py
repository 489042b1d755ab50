"""Dense and data-norm tables as messages."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from downpour.accessor import DTYPES
from downpour.plan.fleet_desc.dense_rules import read_avg_decay, read_rule, write_rule
from downpour.plan.fleet_desc.described import DenseTableDesc
from downpour.plan.fleet_desc.files import read_files, write_files

if TYPE_CHECKING:
    from downpour.plan.fleet_desc.fleet_desc_pb2 import TableParameter
    from downpour.plan.fleet_desc.places import Node
    from downpour.plan.specs import DenseTableSpec

TYPE = "PS_DENSE_TABLE"
CLASSES = ("DownpourDenseTable", "MemoryDenseTable")  # of pslib, which is written; of the_one_ps
ACCESSORS = ("DownpourDenseValueAccessor", "CommMergeAccessor")


def write_dense(message: TableParameter, table: DenseTableSpec) -> None:
    """Write a dense or data-norm table. Raises PlanError for a rule that no message can name."""
    message.MergeFrom(type(message)(table_id=table.id, table_class=CLASSES[0], type=TYPE))
    write_files(message, table.files)
    accessor, files = message.accessor, table.files
    accessor.accessor_class = files.accessor_class or ACCESSORS[0]
    accessor.fea_dim = table.size
    write_rule(accessor.dense_sgd_param, table.rule, files.avg_decay, f"table {table.name!r}")
    message.dense.name = table.name
    if table.dtype != "float32":
        message.dense.dtype = table.dtype
    for section in table.sections:
        message.dense.section.add(name=section.name, shape=section.shape)


def read_dense(node: Node) -> DenseTableDesc:
    """Read a dense or data-norm table. Raises PlanError."""
    if node.has("sparse"):
        raise node.error("sparse", f"{node.get('table_class')} does not read it; take it out")
    accessor, own = node.child("accessor"), node.child("dense")
    name = accessor.get("accessor_class")
    if name not in ACCESSORS:
        why = f"{name!r} is not supported on a dense table; take {' or '.join(ACCESSORS)}"
        raise accessor.error("accessor_class", why)
    fields = ("accessor_class", "dense_sgd_param", "fea_dim", "table_accessor_save_param")
    accessor.refuse_others(fields, name)
    is_own, rule = own.has("name"), accessor.child("dense_sgd_param")
    desc = DenseTableDesc(
        id=node.get("table_id"),
        rule=read_rule(rule),
        fea_dim=accessor.get("fea_dim") if accessor.has("fea_dim") else None,
        files=replace(
            read_files(node, CLASSES[0]),
            accessor_class="" if name == ACCESSORS[0] else name,
            avg_decay=read_avg_decay(rule),
        ),
        place=node.place,
        name=own.get("name") if is_own else None,
        shapes=_read_shapes(own) if is_own else None,
        dtype=_read_dtype(own) if is_own or own.has("dtype") else None,
    )
    _check_size(accessor, desc)
    return desc


def _check_size(accessor: Node, desc: DenseTableDesc) -> None:
    """The elements that are said must be those of the sections, where both are."""
    if desc.fea_dim is None or desc.shapes is None:
        return
    size = sum(math.prod(shape) for shape in desc.shapes.values())
    if desc.fea_dim != size:
        raise accessor.error("fea_dim", f"must be {size}, as its sections, got {desc.fea_dim}")


def _read_dtype(own: Node) -> str:
    dtype: str = own.get("dtype")
    if dtype not in DTYPES:
        raise own.error("dtype", f"must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return dtype


def _read_shapes(own: Node) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for section in own.children("section"):
        name = section.get("name")
        if not name or name in shapes:
            raise section.error("name", f"must be a name of no other section, got {name!r}")
        shapes[name] = tuple(section.get("shape"))
        if any(size < 0 for size in shapes[name]):
            raise section.error("shape", f"must be >= 0, got {list(shapes[name])}")
    return shapes
