"""Downpour's own fields of a description: taken out for Paddle's parser, and said in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from downpour.plan.fleet_desc.copies import copy_lines, write_copies
from downpour.plan.fleet_desc.description import encode
from downpour.plan.fleet_desc.places import joined

if TYPE_CHECKING:
    from collections.abc import Iterator

    from downpour.plan.fleet_desc.fleet_desc_pb2 import PSParameter
    from downpour.plan.plan import Plan

FIRST = 1000  # the number of the first field of Downpour's own, in every message
VALUE = "Value"  # the message of a frozen value
NAMED = ("Feature", "Section")  # messages of which the names say enough


def encode_for_paddle(plan: Plan) -> PSParameter:
    """A plan as a message that Paddle's own parser takes; see Plan.fleet_desc."""
    message = encode(plan)
    _strip(message)
    write_copies(message, plan)
    return message


def _strip(message: Any) -> None:
    for field, value in message.ListFields():
        if field.number >= FIRST:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for inner in value if field.is_repeated else (value,):
                _strip(inner)


def extension_lines(plan: Plan) -> Iterator[str]:
    """What is not in `encode_for_paddle`: a line for each table and program."""
    message = encode(plan)
    for table in message.server_param.downpour_server_param.downpour_table_param:
        own = table.sparse.name or table.dense.name
        yield from _line(f"table {table.table_id} {own!r}", table)
    for trainer in message.trainer_param:
        names = [config.program_id for config in trainer.program_config]
        yield from _line(f"program {', '.join(map(repr, names))}", trainer)
    if message.HasField("clip"):
        yield f"clip: {_shown(message.clip)}"
    yield from copy_lines(plan)


def _line(what: str, message: Any) -> Iterator[str]:
    if said := list(_own(message)):
        yield f"{what}: {', '.join(said)}"


def _own(message: Any, path: str = "", is_own: bool = False) -> Iterator[str]:
    """Each field of Downpour's own in a message, with its path and its value."""
    for field, value in message.ListFields():
        own, where = is_own or field.number >= FIRST, joined(path, field.name)
        values = list(value) if field.is_repeated else [value]
        if field.message_type is not None and field.message_type.name in NAMED:
            yield f"{where} {' '.join(repr(inner.name) for inner in values)}"
        elif field.message_type is None or field.message_type.name == VALUE:
            if own:
                yield f"{where} {' '.join(map(_shown, values))}"
        else:
            for index, inner in enumerate(values):
                yield from _own(inner, joined(path, field.name, index), own)


def _shown(value: Any) -> str:
    """A value as a line has it, a frozen one as Python writes it."""
    if isinstance(value, str | bool | int | float):
        return repr(value)
    if value.DESCRIPTOR.name == VALUE:
        settings = [f"{it.name}={_shown(it)}" for it in value.setting]
        return f"{value.type}({', '.join(settings)})"
    kind = value.WhichOneof("kind")  # of a Setting
    if kind is None:
        return "None"
    if kind not in ("list", "tuple"):
        return _shown(getattr(value, kind))
    return f"[{', '.join(_shown(item) for item in getattr(value, kind).item)}]"
