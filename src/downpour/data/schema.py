"""What the columns of a table mean: frozen values that read a frame into a `Batch`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np

from downpour.arrow import as_table, one_array
from downpour.data.columns import read_floats, read_label
from downpour.errors import DataError, SettingError
from downpour.features import Batch, Jagged
from downpour.ids import NULL_VALUES, Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Self

    import pyarrow as pa


@dataclass(frozen=True, slots=True, repr=False)
class Feature:
    """A bag of keys, read from one column.

    name: what the model calls it. column: the column's name, if another. separator: splits a text
    into a bag ("Comedy|Drama"); empty parts are left out. weights_column: a weight for each id, in
    the same form. hashed: None takes what is a whole number as that id, however it is spelled, and
    hashes any other text; True hashes texts as they are written, and integers by their decimal
    text; False takes whole numbers alone. null_values: texts that stand for a missing value; a
    blank one always does. allow_negative: weights may be negative. A missing value is an empty bag,
    and is left out of a bag that it is in. docs/concepts.md has a table of what each spelling is.
    """

    name: str
    column: str | None = None
    separator: str | None = None
    weights_column: str | None = None
    hashed: bool | None = None
    allow_negative: bool = False
    null_values: Sequence[str] = NULL_VALUES

    def __post_init__(self) -> None:
        if isinstance(self.null_values, str):
            raise SettingError(
                f"Feature {self.name!r}: null_values must be a list of texts, got the text "
                f"{self.null_values!r}"
            )
        object.__setattr__(self, "null_values", tuple(self.null_values))
        Reading(self.hashed, tuple(self.null_values))
        if self.separator == "":
            raise SettingError(f"Feature {self.name!r}: separator must not be empty")

    def __repr__(self) -> str:
        return _written(self, Feature(self.name))

    @property
    def columns(self) -> tuple[str, ...]:
        """Name the columns that it reads."""
        weights = () if self.weights_column is None else (self.weights_column,)
        return (self.column or self.name, *weights)

    def read(self, table: pa.Table) -> Jagged:
        """Read every row of a table."""
        ids, *weights = [one_array(table.column(name)) for name in self.columns]
        return Jagged.of(
            ids,
            weights=weights[0] if weights else None,
            separator=self.separator,
            hashed=self.hashed,
            null_values=self.null_values,
            allow_negative=self.allow_negative,
        )


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Dense:
    """A dense input, float32: [batch] of one column, [batch, k] of several or of a list column.

    name: what the model calls it. columns: the columns' names, if others; two or more are stacked
    in that order. fill: what a missing value or NaN becomes; None refuses them.
    """

    name: str
    columns: tuple[str, ...]
    fill: float | None

    def __init__(
        self, name: str, columns: str | Iterable[str] | None = None, fill: float | None = None
    ) -> None:
        names = (columns or name,) if columns is None or isinstance(columns, str) else columns
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "columns", tuple(names))
        object.__setattr__(self, "fill", fill)
        if not self.columns:
            raise SettingError(f"Dense {name!r}: columns must name at least one")
        if fill is not None and not np.isfinite(fill):
            raise SettingError(f"Dense {name!r}: fill must be finite, got {fill}")

    def __repr__(self) -> str:
        return _written(self, Dense(self.name))

    def read(self, table: pa.Table) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Read every row of a table."""
        way_out = "drop those rows, or say what a missing value is with Dense(..., fill=)"
        parts = [
            read_floats(one_array(table.column(name)), self.fill, way_out=way_out)
            for name in self.columns
        ]
        return parts[0] if len(parts) == 1 else np.column_stack(parts)


@dataclass(frozen=True, slots=True, repr=False)
class Label:
    """A label, float32 [batch].

    name: what losses call it. column: the column's name, if another. at_least: 1 where the
    column's number is at least this and 0 below ("liked" is a rating of 4 and more); None takes
    the number as it is.
    """

    name: str
    column: str | None = None
    at_least: float | None = None

    def __repr__(self) -> str:
        return _written(self, Label(self.name))

    @property
    def columns(self) -> tuple[str, ...]:
        """Name the column that it reads."""
        return (self.column or self.name,)

    def read(self, table: pa.Table) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Read every row of a table."""
        return read_label(one_array(table.column(self.columns[0])), self.at_least)


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Schema:
    """What a model reads of a table; other columns are not read at all.

    features, dense, labels: names of columns, or `Feature`, `Dense` and `Label`. weights: the
    column of sample weights. Raises SettingError for a name used twice and for an empty schema.

    >>> Schema(features=["user", Feature("genre", separator=" ")], labels=["click"]).columns
    ('user', 'genre', 'click')
    """

    features: tuple[Feature, ...]
    dense: tuple[Dense, ...]
    labels: tuple[Label, ...]
    weights: str | None

    def __init__(
        self,
        *,
        features: Iterable[str | Feature] = (),
        dense: Iterable[str | Dense] = (),
        labels: Iterable[str | Label] = (),
        weights: str | None = None,
    ) -> None:
        object.__setattr__(self, "features", _each(Feature, "features", features))
        object.__setattr__(self, "dense", _each(Dense, "dense", dense))
        object.__setattr__(self, "labels", _each(Label, "labels", labels))
        object.__setattr__(self, "weights", weights)
        if not (self.features or self.dense or self.labels):
            raise SettingError("a Schema needs at least one feature, dense column or label")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Make the schema that `dataclasses.asdict` was taken of; SettingError where unlike."""
        try:
            return cls(
                features=[Feature(**entry) for entry in settings["features"]],
                dense=[Dense(**entry) for entry in settings["dense"]],
                labels=[Label(**entry) for entry in settings["labels"]],
                weights=settings["weights"],
            )
        except (KeyError, TypeError) as error:
            names = ", ".join(field.name for field in fields(cls))
            raise SettingError(f"a schema is a dict of {names}; {error!r}") from error

    def __repr__(self) -> str:
        lists: dict[str, tuple[Feature | Dense | Label, ...]] = {
            "features": self.features,
            "dense": self.dense,
            "labels": self.labels,
        }
        parts = [
            f"{what}=[{', '.join(_shortest(part) for part in listed)}]"
            for what, listed in lists.items()
            if listed
        ]
        weights = [f"weights={self.weights!r}"] if self.weights else []
        return f"Schema({', '.join([*parts, *weights])})"

    @property
    def columns(self) -> tuple[str, ...]:
        """Name every column that it reads, each once."""
        parts: list[Feature | Dense | Label] = [*self.features, *self.dense, *self.labels]
        names = [name for part in parts for name in part.columns]
        return tuple(dict.fromkeys([*names, *([self.weights] if self.weights else [])]))

    def batch(self, frame: Any) -> Batch:
        """Read every row of an Arrow, pandas or polars frame, or of a dict of columns.

        Raises DataError: a missing column, a wrong type, a missing or non-finite number.
        """
        table = as_table(frame, self._own_columns)
        weights = None
        if self.weights is not None:
            weights = _read("sample weights", self.weights, self._read_weights, table)
        return Batch(
            features={it.name: _read("feature", it.name, it.read, table) for it in self.features},
            dense={it.name: _read("dense column", it.name, it.read, table) for it in self.dense},
            labels={it.name: _read("label", it.name, it.read, table) for it in self.labels},
            weights=weights,
        )

    def _own_columns(self, names: list[str]) -> tuple[str, ...]:
        self.require_columns(names)
        return self.columns

    def require_columns(self, names: Iterable[str]) -> None:
        """Raise DataError, naming the nearest, unless each column that it reads is there once."""
        there = list(names)
        for column in self.columns:
            if there.count(column) == 1:
                continue
            if column in there:
                raise DataError(f"there are {there.count(column)} columns named {column!r}")
            raise DataError(
                f"no column {column!r}{_hint(column, there)} (columns: {', '.join(there)})"
            )

    def _read_weights(self, table: pa.Table) -> np.ndarray[Any, np.dtype[np.float32]]:
        return read_floats(one_array(table.column(self.weights)))


def _hint(column: str, there: list[str]) -> str:
    """Why a column may be missing: how a text file was read, or how the name is spelled."""
    delimiters = [mark for mark in ";\t|," if len(there) == 1 and mark in there[0]]
    if delimiters:
        return f"; all names stand in one column: say Files(delimiter={delimiters[0]!r})"
    near = [name for name in there if name.startswith(column)]
    near = near or get_close_matches(column, there, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    if any(not name or name[0].isdigit() for name in there):  # a line of values
        return "; if the file has no line of names, say Files(column_names=[...])"
    return ""


def _written(part: Feature | Dense | Label, plain: Feature | Dense | Label) -> str:
    """Write a value as one would write it: what is not as in a plain one of that name."""
    others = {field.name: getattr(part, field.name) for field in fields(part)[1:]}
    said = [f"{key}={it!r}" for key, it in others.items() if it != getattr(plain, key)]
    return f"{type(part).__name__}({', '.join([repr(part.name), *said])})"


def _shortest(part: Feature | Dense | Label) -> str:
    return repr(part.name) if part == type(part)(part.name) else repr(part)


def _read(what: str, name: str, read: Any, table: pa.Table) -> Any:
    try:
        return read(table)
    except DataError as error:
        raise DataError(f"{what} {name!r}: {error}") from error


def _each(kind: type[Any], what: str, entries: Iterable[Any]) -> tuple[Any, ...]:
    """Make values of the bare names among the entries, and refuse a name used twice."""
    if isinstance(entries, str):
        raise SettingError(f"Schema.{what} must be a list of names, got the text {entries!r}")
    parts = tuple(kind(entry) if isinstance(entry, str) else entry for entry in entries)
    for part in parts:
        if not isinstance(part, kind):
            raise SettingError(f"Schema.{what} takes names and {kind.__name__}, got {part!r}")
    names = [part.name for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise SettingError(
                f"Schema.{what}: the name {name!r} is used {names.count(name)} times"
            )
    return parts
