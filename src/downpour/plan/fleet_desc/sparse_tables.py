"""Tables of rows as messages."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from downpour.plan.fleet_desc.accessors import fitting_class, read_accessor, write_accessor
from downpour.plan.fleet_desc.described import SparseTableDesc, accessor_of
from downpour.plan.fleet_desc.files import read_files, write_files
from downpour.plan.specs import FeatureSpec

if TYPE_CHECKING:
    from downpour.plan.fleet_desc.fleet_desc_pb2 import SparseTable, TableParameter
    from downpour.plan.fleet_desc.places import Node
    from downpour.plan.specs import SparseTableSpec

TYPE = "PS_SPARSE_TABLE"
CLASSES = ("DownpourSparseTable", "MemorySparseTable")  # of pslib, which is written; of the_one_ps
_CLASS = "accessor_class"


def write_sparse(message: TableParameter, table: SparseTableSpec) -> None:
    """Write a table of rows. Raises PlanError for a value that no message can name."""
    message.MergeFrom(type(message)(table_id=table.id, table_class=CLASSES[0], type=TYPE))
    write_files(message, table.files)
    what, kept = f"table {table.name!r}", table.files.accessor_class
    write_accessor(message.accessor, message.sparse, table.accessor, kept, what)
    _write_own(message.sparse, table)


def _write_own(message: SparseTable, table: SparseTableSpec) -> None:
    """Write what no message of the reference's has, where it is not the default."""
    message.name = table.name
    for feature in table.features:
        added = message.feature.add(name=feature.name)
        if feature.space is None:
            added.unique_ids = True
        elif feature.space != feature.name:
            added.space = feature.space
        if feature.slot is not None:
            added.slot = feature.slot
    if table.padding_key is not None:
        message.padding_key = table.padding_key
    if table.seed:
        message.seed = table.seed
    if table.accessor.dtype != "float32":
        message.dtype = table.accessor.dtype
    if table.use_cvm:
        message.use_cvm = True


def read_sparse(node: Node) -> SparseTableDesc:
    """Read a table of rows. Raises PlanError."""
    if node.has("dense"):
        raise node.error("dense", f"{node.get('table_class')} does not read it; take it out")
    own, accessor_class = _read_own(node.child("sparse")), node.child("accessor").get(_CLASS)
    if accessor_class == "SparseAccessor":  # it hides show and click
        own = {"use_cvm": False, **own}
    said = node.made(read_accessor)
    files = read_files(node, CLASSES[0])
    if accessor_class != fitting_class(accessor_of(**said)):
        files = replace(files, accessor_class=accessor_class)
    return SparseTableDesc(id=node.get("table_id"), **said, files=files, place=node.place, **own)


def _read_own(own: Node) -> dict[str, Any]:
    """Of a table with a name everything, of another what is written."""
    read: dict[str, Any] = {
        name: own.get(name)
        for name in ("name", "padding_key", "seed", "use_cvm")
        if own.has(name) or (own.has("name") and name != "padding_key")
    }
    features = own.children("feature")
    if features or own.has("name"):
        read["features"] = tuple(_read_feature(it) for it in features)
    return read


def _read_feature(node: Node) -> FeatureSpec:
    if not node.get("name"):
        raise node.error("name", "is missing: the feature's name")
    name = node.get("name")
    space = node.get("space") if node.has("space") else name
    if node.get("unique_ids"):
        if node.has("space"):
            raise node.error("space", "there is unique_ids: true, for none, too; keep one")
        space = None
    return FeatureSpec(name=name, space=space, slot=node.get("slot") if node.has("slot") else None)
