"""Tables of either kind, and what is refused of them by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from downpour.plan.fleet_desc import dense_tables, sparse_tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from downpour.plan.fleet_desc.described import DenseTableDesc, SparseTableDesc
    from downpour.plan.fleet_desc.places import Node

TYPES = {
    **dict.fromkeys(sparse_tables.CLASSES, sparse_tables.TYPE),
    **dict.fromkeys(dense_tables.CLASSES, dense_tables.TYPE),
}
WHY_NOT = {
    "DownpourSparseSSDTable": ": rows are in memory, not on disk",
    "SSDSparseTable": ": rows are in memory, not on disk",
    "MemorySparseGeoTable": ": rows are pushed as gradients, not as differences",
    "CommonSparseTable": ": its rules are in a message of older versions",
    "CommonDenseTable": ": its rules are in a message of older versions",
}


def read_tables(
    nodes: Sequence[Node],
) -> tuple[dict[int, SparseTableDesc], dict[int, DenseTableDesc]]:
    """Read tables by id, those of rows and the dense ones. Raises PlanError."""
    sparse: dict[int, SparseTableDesc] = {}
    dense: dict[int, DenseTableDesc] = {}
    for node in nodes:
        number = node.get("table_id")
        for first in (sparse.get(number), dense.get(number)):
            if first is not None:
                why = f"{number} is the id of another table too ({first.where})"
                raise node.error("table_id", why)
        if type_of(node) == sparse_tables.TYPE:
            sparse[number] = sparse_tables.read_sparse(node)
        else:
            dense[number] = dense_tables.read_dense(node)
    return sparse, dense


def type_of(node: Node) -> str:
    """PS_SPARSE_TABLE or PS_DENSE_TABLE, by the table's class. Raises PlanError."""
    name = node.get("table_class")
    if name not in TYPES:
        why = f"{name!r} is not supported{WHY_NOT.get(name, '')}; take {' or '.join(TYPES)}"
        raise node.error("table_class", why)
    types = node.message.DESCRIPTOR.fields_by_name["type"].enum_type
    given = types.values_by_number[node.get("type")].name
    if node.has("type") and given != TYPES[name]:
        raise node.error("type", f"must be {TYPES[name]} for {name}, got {given}")
    return TYPES[name]
