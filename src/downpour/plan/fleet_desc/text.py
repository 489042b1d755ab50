"""Descriptions as text: protobuf's text form, read, or refused in words that name the field."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from downpour.errors import PlanError
from downpour.plan.fleet_desc.kinds import rule_of
from downpour.plan.fleet_desc.places import Node, Place, Source
from downpour.plan.fleet_desc.scanning import field_at, scan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from downpour.plan.fleet_desc.scanning import Found

# What protobuf says, as far as it must be told apart; the rest is a value that a field cannot have.
_UNKNOWN = re.compile(r'Message type "(.+)" has no field named "(.+)"')
_TWICE = re.compile(r'should not have multiple "(.+)" fields')
_TWO_KINDS = re.compile(r'Field "(.+)" is specified along with field "(.+)", another')
_UNREADABLE = "Couldn't parse string"
_OPEN = "String missing ending quote"
_NO_NAME = "Expected identifier or number"
_EXPECTED = re.compile(r'Expected "(.)"')


def parse(text: str, source: str = "fleet_desc") -> Node:
    """Read text into a message that knows its lines.

    Raises PlanError naming line and field of what is unknown, of the wrong type, given twice or
    nested too deep.
    """
    from google.protobuf import text_format  # not before a description is read

    from downpour.plan.fleet_desc.fleet_desc_pb2 import PSParameter

    _check_characters(text, source)
    found = []
    for it in scan(text):
        Place(Source(source, {it.path: it.line}), it.path).refuse_deep()
        found.append(it)
    try:
        message = text_format.Parse(text, PSParameter())
    except text_format.ParseError as error:
        raise PlanError(f"{source}:{_explain(error, found, text)}") from None
    return Node(message, Place(Source(source, {it.path: it.line for it in found})))


def _check_characters(text: str, source: str) -> None:
    """Half a character, as in a name that Python made of other bytes, is none for protobuf."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        half = text[error.start]
        raise PlanError(f"{source}:{line}: {half!r} is no character; take it out") from error


def _explain(error: Any, found: Sequence[Found], text: str) -> str:
    """Say line, field and fault of what protobuf refuses."""
    line, column = error.GetLine() or 1, error.GetColumn() or 1
    said = str(error).partition(" : ")[2]
    before = [it for it in found if (it.line, it.column) <= (line, column)]
    if twice := _TWICE.search(said):  # protobuf says where it ends
        lines = [it.line for it in before if it.name == twice[1]]
        return f"{lines[-1] if lines else line}: {twice[1]}: is given twice; keep one"
    if _UNREADABLE in said and before:
        return f"{line}: {before[-1].name}: must be text in UTF-8, which these bytes are not"
    if unknown := _UNKNOWN.search(said):
        return f"{line}: {unknown[2]}: {_suggest(unknown[1], unknown[2])}"
    if kinds := _TWO_KINDS.search(said):
        return f"{line}: {kinds[1]}: there is {kinds[2]} too, and a setting has one value; keep one"
    expected = _EXPECTED.search(said)
    at_end = expected is not None and expected[1] in "}>"  # said of the token before
    path, token = field_at(text, line + (10**9 if at_end else 0), column)
    subject = f"{line}: {_name_of(path)}: " if path else f"{line}: "
    return subject + _fault(said, expected and expected[1], path, token or "the end of the text")


def _fault(said: str, expected: str | None, path: str, token: str) -> str:
    """What is wrong with a token, and what must be in its place."""
    if _OPEN in said:
        return f"the text has no closing quote: {token}"
    if _NO_NAME in said:
        return f"the name of a field must stand here, got {token}"
    if "does not have extensions" in said:
        return "no field has a name in brackets; write it without them, or take it out"
    if expected is not None and expected in "}>":
        return f"its closing {expected} is missing"
    if expected == ":":
        return f"a colon must stand between the field and its value, got {token}"
    if expected in (",", "]"):
        return f"a list has commas between its items and ends with ], got {token}"
    if (rule := _rule_of(path)) is None:
        return f"cannot be read, got {token}"
    return f"must be {rule}, got {token}"


def _rule_of(path: str) -> str | None:
    """What the value of a field must be, None where there is no such field."""
    from downpour.plan.fleet_desc.fleet_desc_pb2 import PSParameter

    message, field = PSParameter.DESCRIPTOR, None
    for part in path.split("."):
        if message is None or (name := part.partition("[")[0]) not in message.fields_by_name:
            return None
        field = message.fields_by_name[name]
        message = field.message_type
    return None if field is None else rule_of(field)


def _name_of(path: str) -> str:
    """A field's own name."""
    return path.rpartition(".")[2].partition("[")[0]


def _suggest(message: str, name: str) -> str:
    from google.protobuf import descriptor_pool

    known = descriptor_pool.Default().FindMessageTypeByName(message).fields_by_name
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it has: {', '.join(known)}"
    return f"is no field of {message.rpartition('.')[2]}; {hint}"
