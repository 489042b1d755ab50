"""Where each part of a description stands, for what is said of it."""

from __future__ import annotations

from collections.abc import MutableSequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from downpour.errors import PlanError, SettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

T = TypeVar("T")
MOST_NESTED = 100  # messages within each other; protobuf reads no more from bytes


def joined(path: str, name: str, index: int = 0) -> str:
    """The path of a field: names from the outermost message, an index where it is not the first."""
    numbered = f"{name}[{index}]" if index else name
    return f"{path}.{numbered}" if path else numbered


@dataclass(frozen=True, slots=True)
class Source:
    """What a description was read from.

    `lines`: by path, where it is text. `keys`: by path, where it was filled from a dict.
    """

    name: str
    lines: Mapping[str, int] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)

    def line_of(self, path: str) -> str:
        """The file and line of a path, or of the innermost message around what is not written."""
        for known in _outwards(path):
            if known in self.lines:
                return f"{self.name}:{self.lines[known]}"
        return self.name

    def subject(self, path: str) -> str:
        """A path as the subject of a sentence."""
        if not path:
            return self.name
        if path in self.keys:
            return f"{self.name}[{self.keys[path]!r}]"
        if self.lines:
            return f"{self.line_of(path)}: {path.rpartition('.')[2]}"
        return f"{self.name}: {path}"


def _outwards(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message of a description stands; the path of the outermost is empty."""

    source: Source
    path: str = ""

    @property
    def where(self) -> str:
        """The file and line it begins on."""
        return self.source.line_of(self.path)

    @property
    def subject(self) -> str:
        """The message, as the subject of a sentence."""
        return self.source.subject(self.path)

    def at(self, field: str, index: int = 0) -> str:
        """A field of the message, such as `accessor.fea_dim`, as the subject of a sentence."""
        return self.inner(field, index).subject

    def inner(self, field: str, index: int = 0) -> Place:
        """The place of a field."""
        return Place(self.source, joined(self.path, field, index))

    def refuse_deep(self) -> None:
        """Raise PlanError for what is within more messages than are read."""
        if self.path.count(".") >= MOST_NESTED:
            raise PlanError(f"{self.subject}: is nested in {MOST_NESTED} messages or more")


@dataclass(frozen=True, slots=True)
class Node:
    """A message of a description, and where it stands."""

    message: Any
    place: Place

    def has(self, name: str) -> bool:
        """Whether a field that is not repeated is written."""
        return bool(self.message.HasField(name))

    def get(self, name: str) -> Any:
        """The value of a field, its default where it is not written."""
        return getattr(self.message, name)

    def child(self, name: str) -> Node:
        """The message of a field that is not repeated."""
        return Node(self.get(name), self.place.inner(name))

    def children(self, name: str) -> list[Node]:
        """The messages of a repeated field."""
        return [
            Node(message, self.place.inner(name, index))
            for index, message in enumerate(self.get(name))
        ]

    def error(self, name: str, why: str, index: int = 0) -> PlanError:
        """What is wrong with a field, to be raised."""
        return PlanError(f"{self.place.at(name, index)}: {why}")

    def refuse_others(self, read: Collection[str], reader: str) -> None:
        """Raise PlanError for a field that is written and that `reader` does not read."""
        for descriptor, _ in self.message.ListFields():
            if descriptor.name not in read:
                raise self.error(descriptor.name, f"{reader} does not read it; take it out")

    def made(self, make: Callable[[Node], T]) -> T:
        """Call `make` on this node. What it refuses is said of the field that is to blame.

        Raises PlanError.
        """
        try:
            return make(self)
        except SettingError as error:
            raise self._blaming(make, error) from error

    def _blaming(self, make: Callable[[Node], object], error: SettingError) -> PlanError:
        """Take fields out one after another until nothing is refused: the last one was to blame."""
        first, left = error, self.message
        for name in reversed([*_written(left)]):
            less = _without(left, name)
            try:
                make(Node(less, self.place))
            except SettingError as other:
                left, error = less, other
            except PlanError:
                continue  # a field that must be there
            else:
                return self.error(name, str(error))
        return PlanError(f"{self.place.subject}: {first}")


def _written(message: Any) -> Iterator[str]:
    """The paths of what is written: numbers and texts, and messages of a repeated field."""
    for descriptor, value in message.ListFields():
        name = descriptor.name
        if descriptor.message_type is None:
            yield name
        elif isinstance(value, MutableSequence):
            yield from (joined("", name, index) for index in range(len(value)))
        else:
            yield from (joined(name, inner) for inner in _written(value))


def _without(message: Any, path: str) -> Any:
    """A copy of a message without a field of it, or without one message of a repeated field."""
    copy = inner = type(message)()
    copy.CopyFrom(message)
    *outer, last = path.split(".")
    for name in outer:
        inner = getattr(inner, name)
    name, _, index = last.rstrip("]").partition("[")
    if inner.DESCRIPTOR.fields_by_name[name].message_type is None:
        inner.ClearField(name)
    else:
        del getattr(inner, name)[int(index or 0)]
    return copy
