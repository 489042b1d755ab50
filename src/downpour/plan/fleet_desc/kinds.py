"""What the fields of messages can hold, in words."""

from __future__ import annotations

from typing import Any

_BITS = {"int32": 31, "int64": 63, "uint32": 32, "uint64": 64}  # of the largest whole number


def rule_of(field: Any) -> str:
    """What a value of a field must be, given its descriptor: "true or false"."""
    if field.message_type is not None:
        return "a message in braces, { ... }"
    if field.enum_type is not None:
        return f"one of {', '.join(value.name for value in field.enum_type.values)}"
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return "a number"
    if field.type == field.TYPE_BOOL:
        return "true or false"
    if field.type == field.TYPE_STRING:
        return "text in quotes"
    kind = next(kind for kind in _BITS if field.type == getattr(field, f"TYPE_{kind.upper()}"))
    least = 0 if kind.startswith("u") else -(2 ** _BITS[kind])
    return f"a whole number from {least} to {2 ** _BITS[kind] - 1}"
