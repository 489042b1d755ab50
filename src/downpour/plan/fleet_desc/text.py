"""Descriptions as text: protobuf's text form, and the lines that its fields are on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from downpour.errors import PlanError
from downpour.plan.fleet_desc.places import Node, Place, Source, joined

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TOKEN = re.compile(
    r"""(?P<newline>\n) | [^\S\n]+ | \#[^\n]*
    | (?P<text>"(?:\\.|[^"\\\n])*"? | '(?:\\.|[^'\\\n])*'?)
    | (?P<word>[\w.+-]+)
    | (?P<mark>.)""",
    re.VERBOSE,
)
_UNKNOWN = re.compile(r'Message type "(.+)" has no field named "(.+)"')
_TWICE = re.compile(r'should not have multiple "(.+)" fields')


@dataclass(frozen=True, slots=True)
class Found:
    """A field in the text, from 1."""

    path: str
    line: int
    column: int

    @property
    def name(self) -> str:
        """The field's own name."""
        return self.path.rpartition(".")[2].partition("[")[0]


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
    said = said.removeprefix(f"'{text.split(chr(10))[line - 1]}': ")
    before = [it for it in found if (it.line, it.column) <= (line, column)]
    if twice := _TWICE.search(said):
        lines = [it.line for it in before if it.name == twice[1]]  # protobuf says where it ends
        return f"{lines[-1] if lines else line}: {twice[1]}: is given twice; keep one"
    if unknown := _UNKNOWN.search(said):
        return f"{line}: {unknown[2]}: {_suggest(unknown[1], unknown[2])}"
    return f"{line}: {before[-1].name}: {said}" if before else f"{line}: {said}"


def _suggest(message: str, name: str) -> str:
    from google.protobuf import descriptor_pool

    known = descriptor_pool.Default().FindMessageTypeByName(message).fields_by_name
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it has: {', '.join(known)}"
    return f"is no field of {message.rpartition('.')[2]}; {hint}"


@dataclass(slots=True)
class _Open:
    """A message whose end is yet to come, and the field in it whose value is."""

    path: str
    counts: dict[str, int] = field(default_factory=dict)
    name: str = ""
    start: tuple[int, int] = (0, 0)
    is_due: bool = False  # a value is
    is_list: bool = False

    def take(self, at: tuple[int, int]) -> Found:
        """The value that is due."""
        index = self.counts.get(self.name, 0)
        self.counts[self.name] = index + 1
        found = Found(joined(self.path, self.name, index), *(at if self.is_list else self.start))
        self.is_due = False
        if not self.is_list:
            self.name = ""
        return found


def scan(text: str) -> Iterator[Found]:
    """Find the fields of a text, of one that protobuf refuses as many as can be made out."""
    opened = [_Open("")]
    for kind, token, at in _tokens(text):
        inner = opened[-1]
        if token in ("}", ">"):
            if len(opened) > 1:
                opened.pop()
        elif token in ("{", "<") and inner.is_due:
            found = inner.take(at)
            opened.append(_Open(found.path))
            yield found
        elif token == "[" and inner.is_due:
            inner.is_list = True
        elif token == "," and inner.is_list:
            inner.is_due = True
        elif token == "]":
            inner.name, inner.is_list, inner.is_due = "", False, False
        elif kind in ("word", "text") and inner.is_due:
            yield inner.take(at)
        elif kind == "word" and not inner.name:
            inner.name, inner.start, inner.is_due = token, at, True


def _tokens(text: str) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Kind, text, and line and column of each token."""
    line, begin = 1, 0
    for match in _TOKEN.finditer(text):
        if match.lastgroup == "newline":
            line, begin = line + 1, match.end()
        elif match.lastgroup is not None:
            yield match.lastgroup, match[0], (line, match.start() - begin + 1)
