"""Tables by the dicts of the reference's fleet strategy.

A dict is filled into the table's message as the reference fills it, and read from there.
"""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from downpour.errors import PlanError, SettingError
from downpour.plan.fleet_desc import dense_tables, sparse_tables
from downpour.plan.fleet_desc.accessors import EMBEDDING, read_kind
from downpour.plan.fleet_desc.accessors import SHARED as SHARED_CLASSES
from downpour.plan.fleet_desc.kinds import rule_of
from downpour.plan.fleet_desc.places import Node, Place, Source
from downpour.plan.fleet_desc.strategy_keys import (
    CONVERTERS,
    CTR,
    DATA_NORM,
    DENSE,
    DENSE_RULES,
    PARTS,
    SAVE_PARAMS,
    SHARED,
    SPARSE,
    every_key,
    part_keys,
)
from downpour.plan.fleet_desc.tables import TYPES, WHY_NOT, type_of
from downpour.settings import is_number

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import TypeVar

    from downpour.plan.fleet_desc.described import DenseTableDesc, SparseTableDesc
    from downpour.plan.fleet_desc.strategy_keys import Keys

    T = TypeVar("T")


def sparse_of_strategy(table: str, settings: Mapping[str, Any]) -> SparseTableDesc:
    """Read `strategy[table]`, with the reference's defaults for what it leaves out.

    Raises SettingError for a key that there is not, that the table's accessor does not read, or
    whose value is wrong.
    """
    where = f"strategy[{table!r}]"
    given = _given(where, settings, every_key())
    keys = _sparse_keys(where, given)
    node = _filled(where, given, keys)
    accessor_class = node.message.accessor.accessor_class
    _refuse_unread(where, given, (*keys, *CONVERTERS), accessor_class)
    for param in SAVE_PARAMS:
        save = node.message.accessor.table_accessor_save_param.add(param=param)
        for key, (field, default) in CONVERTERS.items():
            _check_kind(where, key, given.get(key, default), default)
            _fill(save, field, given.get(key, default), f"{where}[{key!r}]")
    return replace(_read(sparse_tables.read_sparse, node), id=None, name=table)


def _sparse_keys(where: str, given: Mapping[str, Any]) -> Keys:
    """The keys that the table's accessor reads."""
    node = _filled(where, given, SPARSE)
    _check_type(node, sparse_tables.TYPE, sparse_tables.CLASSES)
    _read(read_kind, node.child("accessor"))
    accessor_class = node.message.accessor.accessor_class
    if accessor_class in SHARED_CLASSES:
        return {**SPARSE, **SHARED}
    if accessor_class == EMBEDDING:
        return {**SPARSE, **_rule_keys(where, given, "")}
    parts = {**_rule_keys(where, given, "embed_"), **_rule_keys(where, given, "embedx_")}
    return {**SPARSE, **CTR, **parts}


def _rule_keys(where: str, given: Mapping[str, Any], part: str) -> Keys:
    message, names, default = PARTS[part]
    key = f"{part}sparse_optimizer"
    rule = _one_of(where, key, given.get(key, default), names)
    keys = part_keys(part, rule)
    first = f"{part}sparse_initial_range"
    if keys[first][1] == 0 and given.get(first, 0) != 0:
        raise SettingError(
            f"{where}[{first!r}]: the reference's {rule} begins w at 0 whatever this says, got "
            f"{given[first]!r}; take it out, or take naive or adam"
        )
    return {key: (f"accessor.{message}.name", default), **keys}


def dense_of_strategy(settings: Mapping[str, Any]) -> DenseTableDesc:
    """Read `strategy["dense_table"]`; see `sparse_of_strategy`."""
    where = "strategy['dense_table']"
    known = [*DENSE, *(key for keys in DENSE_RULES.values() for key in keys)]
    given = _given(where, settings, known)
    rule = given.get("dense_optimizer", DENSE["dense_optimizer"][1])
    keys = {**DENSE, **DENSE_RULES[_one_of(where, "dense_optimizer", rule, tuple(DENSE_RULES))]}
    _refuse_unread(where, given, keys, f"dense_optimizer {rule!r}")
    return _dense(_filled(where, given, keys))


def data_norm_of_strategy(settings: Mapping[str, Any]) -> DenseTableDesc:
    """Read `strategy["datanorm_table"]`; see `sparse_of_strategy`."""
    where = "strategy['datanorm_table']"
    given = _given(where, settings, DATA_NORM)
    rule = given.get("datanorm_operation", DATA_NORM["datanorm_operation"][1])
    _one_of(where, "datanorm_operation", rule, ("summary",))
    return _dense(_filled(where, given, DATA_NORM))


def _dense(node: Node) -> DenseTableDesc:
    _check_type(node, dense_tables.TYPE, dense_tables.CLASSES)
    return replace(_read(dense_tables.read_dense, node), id=None)


def _check_type(node: Node, type_name: str, classes: tuple[str, ...]) -> None:
    """A table must be of the kind that its settings are for."""
    name = node.get("table_class")
    if name not in classes:
        why = f"must be one of {', '.join(classes)} here, got {name!r}"
        if name not in TYPES:
            why = f"{name!r} is not supported{WHY_NOT.get(name, '')}; take {' or '.join(classes)}"
        raise SettingError(str(node.error("table_class", why)))
    _read(type_of, node)


def _given(where: str, settings: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The settings that are not None. SettingError for a key that there is not."""
    for key in settings:
        if key not in known:
            near = get_close_matches(str(key), known, n=1, cutoff=0.75)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(known)}"
            raise SettingError(f"{where} has no key {key!r}; {hint}")
    return {key: value for key, value in settings.items() if value is not None}


def _refuse_unread(
    where: str, given: Mapping[str, Any], read: Collection[str], reader: str
) -> None:
    for key in given:
        if key not in read:
            raise SettingError(
                f"{where}[{key!r}]: {reader} does not read it; it reads: {', '.join(read)}"
            )


def _one_of(where: str, key: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise SettingError(f"{where}[{key!r}] must be one of {', '.join(known)}, got {value!r}")
    return str(value)


def _filled(where: str, given: Mapping[str, Any], keys: Keys) -> Node:
    """A table's message with what is given and the defaults."""
    from downpour.plan.fleet_desc.fleet_desc_pb2 import TableParameter  # it loads protobuf

    message = TableParameter()
    for key, (path, default) in keys.items():
        if key in given:
            _check_kind(where, key, given[key], default)
        value = given.get(key, default)
        if value is not None:
            _fill(message, path, value, f"{where}[{key!r}]")
    return Node(message, Place(Source(where, keys={path: key for key, (path, _) in keys.items()})))


def _check_kind(where: str, key: str, value: Any, default: Any) -> None:
    """A value must be of its default's kind, a number where there is no default."""
    what, fits = "a finite number", is_number(value)
    if isinstance(default, bool):
        what, fits = "True or False", isinstance(value, int) and value in (0, 1)
    elif isinstance(default, str):
        what, fits = "a text", isinstance(value, str)
    elif isinstance(default, tuple):
        what, fits = "two numbers", isinstance(value, list | tuple) and all(map(is_number, value))
    if not fits:
        otherwise = "the model's own" if default is None else f"the default, {default!r}"
        raise SettingError(
            f"{where}[{key!r}] must be {what}, got {value!r}; leave it out for {otherwise}"
        )


def _fill(message: Any, path: str, value: Any, what: str) -> None:
    *outer, name = path.split(".")
    for part in outer:
        message = getattr(message, part)
    try:
        if isinstance(value, list | tuple):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    except (AttributeError, TypeError, ValueError) as error:  # of protobuf
        rule = rule_of(message.DESCRIPTOR.fields_by_name[name])
        raise SettingError(f"{what} must be {rule}, got {value!r}") from error


def _read(read: Callable[[Node], T], node: Node) -> T:
    """Read a filled message; what is wrong with it is wrong with the settings."""
    try:
        return read(node)
    except PlanError as error:
        raise SettingError(str(error)) from error
