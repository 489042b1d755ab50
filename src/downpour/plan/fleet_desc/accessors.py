"""What the rows of a table hold, as messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from downpour.accessor import CtrAccessor, Lifecycle
from downpour.init import Constant
from downpour.plan.fleet_desc.described import accessor_of
from downpour.plan.fleet_desc.numbers import FLOAT_MAX, read_number, write_number
from downpour.plan.fleet_desc.sparse_rules import (
    Part,
    read_common,
    read_shared,
    write_common,
    write_shared,
)
from downpour.rules import G2SumAdagrad

if TYPE_CHECKING:
    from downpour.accessor import Accessor
    from downpour.plan.fleet_desc.described import Kind
    from downpour.plan.fleet_desc.fleet_desc_pb2 import SparseTable, TableAccessorParameter
    from downpour.plan.fleet_desc.places import Node

# Rows that count show and click: with one Adagrad, or with a rule for w and one for embedx.
SHARED = ("DownpourCtrAccessor", "DownpourFeatureValueAccessor", "DownpourCtrDoubleAccessor")
OF_THE_ONE_PS = ("CtrCommonAccessor", "CtrDoubleAccessor", "SparseAccessor")
SPLIT = ("DownpourUnitAccessor", "DownpourDoubleUnitAccessor", *OF_THE_ONE_PS)
EMBEDDING = "DownpourSparseValueAccessor"
CLASSES = (*SHARED, *SPLIT, EMBEDDING)
WITHOUT_SLOTS = "DownpourFeatureValueAccessor"
WITHOUT_SCALE = "DownpourUnitAccessor"  # the_one_ps takes it as its own with show_scale: false
WHY_NOT = {
    "DownpourCtrDymfAccessor": ": its embedx has another width for each feature",
    "CtrDymfAccessor": ": its embedx has another width for each feature",
    "CommMergeAccessor": ": the rule of its rows is not in this message",
}
SCORES = ("nonclk_coeff", "click_coeff")
AGES = tuple(name for name in Lifecycle.__slots__ if name != "ssd_unseenday_threshold")


def write_accessor(
    message: TableAccessorParameter, own: SparseTable, accessor: Accessor, kept: str, what: str
) -> None:
    """Write into an accessor, and into the table's `own` message what that cannot hold.

    `kept` is the class that it was read with, if another one fits it too.
    """
    message.accessor_class = kept or fitting_class(accessor)
    if isinstance(accessor, CtrAccessor):
        _write_parts(message, own, accessor, what)
        _write_statistics(message, own, accessor)
        return
    message.fea_dim = message.embedx_dim = accessor.dim
    part = Part(accessor.rule, accessor.init, accessor.bounds)
    write_common(message.sparse_commonsgd_param, part, what)


def fitting_class(accessor: Accessor) -> str:
    """The class of pslib's that says most of an accessor."""
    if not isinstance(accessor, CtrAccessor):
        return EMBEDDING
    if not accessor.show_scale:
        return WITHOUT_SCALE
    if _is_shared(*_parts_of(accessor)):
        return SHARED[0] if accessor.slots else WITHOUT_SLOTS
    return "DownpourDoubleUnitAccessor"


def _parts_of(accessor: CtrAccessor) -> tuple[Part, Part]:
    rule, embedx_rule = accessor.rules
    first = Part(rule, accessor.init, accessor.bounds)
    return first, Part(embedx_rule, accessor.embedx_init, accessor.embedx_bounds)


def _write_parts(
    message: TableAccessorParameter, own: SparseTable, accessor: CtrAccessor, what: str
) -> None:
    """Write w and embedx."""
    first, second = _parts_of(accessor)
    name = message.accessor_class
    message.embedx_dim, message.fea_dim = accessor.dim - 1, accessor.dim + 2
    if name in SHARED:
        write_shared(message.sparse_sgd_param, second, f"{what}: embedx")
    else:
        write_common(message.embed_sgd_param, first, f"{what}: w")
        write_common(message.embedx_sgd_param, second, f"{what}: embedx")
    if name in (*SHARED, *OF_THE_ONE_PS) and first.init != Constant():
        message.downpour_accessor_param.zero_init = False
    if not accessor.slots and name != WITHOUT_SLOTS:
        own.slots = False


def _is_shared(first: Part, second: Part) -> bool:
    """Whether w and embedx have one Adagrad, and w is 0 at first."""
    rule = first.rule
    is_adagrad = type(rule) is G2SumAdagrad and not rule.per_element and rule == second.rule
    return is_adagrad and first.bounds == second.bounds and first.init == Constant()


def _write_statistics(
    message: TableAccessorParameter, own: SparseTable, accessor: CtrAccessor
) -> None:
    write_number(message, "embedx_threshold", accessor.embedx_threshold, own.exact)
    param = message.downpour_accessor_param
    for name in SCORES:
        write_number(param, name, getattr(accessor, name), own.exact)
    for name in AGES:
        write_number(param, name, getattr(accessor.lifecycle, name), own.exact)
    param.ssd_unseenday_threshold = int(accessor.lifecycle.ssd_unseenday_threshold)
    if accessor.show_scale != (message.accessor_class != WITHOUT_SCALE):
        param.show_scale = accessor.show_scale
    for name in ("click", "counted_by"):
        if (value := getattr(accessor, name)) is not None:
            setattr(own, name, value)


def read_accessor(table: Node) -> dict[str, Any]:
    """What a SparseTableDesc says of the accessor of a table.

    Raises PlanError, and SettingError for an accessor that cannot be made.
    """
    accessor, own = table.child("accessor"), table.child("sparse")
    kind = read_kind(accessor)
    said: dict[str, Any] = {
        "kind": kind,
        "embedx_dim": _read_dim(accessor, kind),
        "settings": _read_settings(table, kind),
        "dtype": own.get("dtype") if own.has("dtype") or own.has("name") else None,
    }
    accessor_of(**said)
    return said


def read_kind(accessor: Node) -> Kind:
    """Whether its rows count show and click. Raises PlanError for what Downpour has not."""
    name = accessor.get("accessor_class")
    if name not in CLASSES:
        why = f"{name!r} is not supported{WHY_NOT.get(name, '')}; take {' or '.join(CLASSES)}"
        raise accessor.error("accessor_class", why)
    return "embedding" if name == EMBEDDING else "ctr"


def _read_dim(accessor: Node, kind: Kind) -> int | None:
    """The width of embedx, or of the whole row; None where it is not said."""
    before, text = (3, "embedx_dim + 3") if kind == "ctr" else (0, "embedx_dim")
    dim: int | None = accessor.get("embedx_dim") if accessor.has("embedx_dim") else None
    if not accessor.has("fea_dim"):
        return dim
    fea_dim: int = accessor.get("fea_dim")
    if dim is None and fea_dim > before:
        return fea_dim - before
    if fea_dim != (dim or 1) + before:
        at_least = "at least " if dim is None else ""
        why = f"must be {text}, {at_least}{(dim or 1) + before}, got {fea_dim}"
        raise accessor.error("fea_dim", why)
    return dim


def _read_settings(table: Node, kind: Kind) -> dict[str, Any]:
    """The keyword arguments of the accessor, without width and dtype."""
    accessor = table.child("accessor")
    name = accessor.get("accessor_class")
    common = ("accessor_class", "fea_dim", "embedx_dim", "table_accessor_save_param")
    if kind == "embedding":
        accessor.refuse_others((*common, "sparse_commonsgd_param"), name)
        part = read_common(accessor.child("sparse_commonsgd_param"))
        return {"rule": part.rule, "init": part.init, "bounds": part.bounds}
    rules = ("sparse_sgd_param",) if name in SHARED else ("embed_sgd_param", "embedx_sgd_param")
    statistics = _statistics_field(accessor)
    accessor.refuse_others((*common, "embedx_threshold", statistics, *rules), name)
    parts = _read_parts(accessor, accessor.child(statistics))
    return {**parts, **_read_statistics(table), "lifecycle": table.made(_lifecycle)}


def _statistics_field(accessor: Node) -> str:
    if not accessor.has("ctr_accessor_param"):
        return "downpour_accessor_param"
    if accessor.has("downpour_accessor_param"):
        why = "is the_one_ps's name of downpour_accessor_param; keep one"
        raise accessor.error("ctr_accessor_param", why)
    return "ctr_accessor_param"


def _read_parts(accessor: Node, param: Node) -> dict[str, Any]:
    """Read w and embedx."""
    if accessor.get("accessor_class") in SHARED:
        first = second = read_shared(accessor.child("sparse_sgd_param"))
    else:
        first = read_common(accessor.child("embed_sgd_param"))
        second = read_common(accessor.child("embedx_sgd_param"))
    return {
        "rule": first.rule,
        "init": Constant() if _begins_at_zero(accessor, param) else first.init,
        "bounds": first.bounds,
        "embedx_rule": second.rule,
        "embedx_init": second.init,
        # CtrAccessor takes None for the bounds of w.
        "embedx_bounds": second.bounds or (first.bounds and (-FLOAT_MAX, FLOAT_MAX)),
    }


def _begins_at_zero(accessor: Node, param: Node) -> bool:
    """Whether w is 0 at first: in the_one_ps whatever its range says, in pslib by its range."""
    name = accessor.get("accessor_class")
    by_range = name in SPLIT and name not in OF_THE_ONE_PS
    is_zero = bool(param.get("zero_init")) if param.has("zero_init") else not by_range
    own = accessor.child("embed_sgd_param").child("extension")
    if is_zero and own.has("init"):
        raise own.error("init", f"w begins at 0 by {name} or zero_init; take one of the two out")
    return is_zero


def _read_statistics(table: Node) -> dict[str, Any]:
    accessor, own = table.child("accessor"), table.child("sparse")
    param, exact = accessor.child(_statistics_field(accessor)), own.child("exact")
    name = accessor.get("accessor_class")
    if own.has("slots") and own.get("slots") and name == WITHOUT_SLOTS:
        raise own.error("slots", f"{name} keeps no slots; take DownpourCtrAccessor")
    scales = param.get("show_scale") if param.has("show_scale") else name != WITHOUT_SCALE
    return {
        "embedx_threshold": read_number(accessor, "embedx_threshold", exact),
        **{score: read_number(param, score, exact) for score in SCORES},
        "show_scale": scales,
        "slots": own.get("slots") and name != WITHOUT_SLOTS,
        **{it: own.get(it) for it in ("click", "counted_by") if own.has(it)},
    }


def _lifecycle(table: Node) -> Lifecycle:
    accessor, exact = table.child("accessor"), table.child("sparse").child("exact")
    param = accessor.child(_statistics_field(accessor))
    ages = {age: read_number(param, age, exact) for age in AGES}
    return Lifecycle(**ages, ssd_unseenday_threshold=param.get("ssd_unseenday_threshold"))
