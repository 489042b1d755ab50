"""The fields of a text in protobuf's form: which there are, and where each of them stands."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from downpour.plan.fleet_desc.places import joined

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOKEN = re.compile(
    r"""(?P<newline>\n) | [^\S\n]+ | \#[^\n]*
    | (?P<text>"(?:\\.|[^"\\\n])*"? | '(?:\\.|[^'\\\n])*'?)
    | (?P<word>[\w.+-]+)
    | (?P<mark>.)""",
    re.VERBOSE,
)


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


@dataclass(slots=True)
class _Open:
    """A message whose end is yet to come, and the field in it whose value is."""

    path: str
    counts: dict[str, int] = field(default_factory=dict)
    name: str = ""
    start: tuple[int, int] = (0, 0)
    is_due: bool = False  # a value is
    is_list: bool = False

    @property
    def due(self) -> str:
        """The path of the value that is due."""
        return joined(self.path, self.name, self.counts.get(self.name, 0))

    def take(self, at: tuple[int, int]) -> Found:
        """The value that is due."""
        found = Found(self.due, *(at if self.is_list else self.start))
        self.counts[self.name] = self.counts.get(self.name, 0) + 1
        self.is_due = False
        if not self.is_list:
            self.name = ""
        return found


def scan(text: str) -> Iterator[Found]:
    """Find the fields of a text, of one that protobuf refuses as many as can be made out."""
    opened = [_Open("")]
    for kind, token, at in _tokens(text):
        yield from _next(opened, kind, token, at)


def field_at(text: str, line: int, column: int) -> tuple[str, str]:
    """The path of the field that a token belongs to, and the token: "" for what is not there.

    It is the field whose value the token is, or should be; or the innermost message, which may be
    the outermost, of path "".
    """
    opened, last = [_Open("")], ""
    for kind, token, at in _tokens(text):
        if at >= (line, column):
            return opened[-1].due if opened[-1].name else opened[-1].path, token
        for found in _next(opened, kind, token, at):
            last = found.path
    return opened[-1].due if opened[-1].name else opened[-1].path or last, ""


def _next(opened: list[_Open], kind: str, token: str, at: tuple[int, int]) -> Iterator[Found]:
    """Take in a token; the field whose value it is or begins."""
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
