"""Figures as tables, for the console and for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeGuard

MOST_COLUMNS = 8  # a wider table becomes a list of its cells
LONGEST_LIST = 8  # a longer list is a curve, which is for the JSON file


class Grid(NamedTuple):
    """A table as text; the first column names the row."""

    head: list[str]
    rows: list[list[str]]


def make_grids(title: str, figures: Mapping[str, object]) -> Iterator[Grid]:
    """Yield the tables of some figures.

    Mappings of the same things, as one for each engine, make one table with a row each, and so
    does each kind of mapping inside them. Everything else is a list of names and values.
    """
    groups = {name: figure for name, figure in figures.items() if _is_group(figure)}
    columns = list(
        dict.fromkeys(
            key for group in groups.values() for key, it in group.items() if not _is_curve(it)
        )
    )
    inner = {
        key: {name: group[key] for name, group in groups.items() if _is_group(group.get(key))}
        for key in columns
    }
    plain = [key for key in columns if not inner[key]]
    if len(groups) < 2 or len(groups) < len(figures) or len(plain) > MOST_COLUMNS:
        rows = [list(row) for row in _list(figures)]
        if rows:
            yield _trim(Grid([title, "value", "quartiles", "aim"], rows))
        return
    if plain:
        head = [title, *(key.replace("_", " ") for key in plain)]
        body = [[name, *(_cell(group.get(key)) for key in plain)] for name, group in groups.items()]
        yield Grid(head, body)
    for key, mappings in inner.items():
        if mappings:
            yield from make_grids(f"{title}, {key.replace('_', ' ')}", mappings)


def number(value: object) -> str:
    """Return a number with three digits that matter, whole ones in full; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:#.3g}".rstrip(".")


def _is_group(figure: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(figure, Mapping) and "value" not in figure


def _is_curve(figure: object) -> bool:
    return isinstance(figure, list) and len(figure) > LONGEST_LIST


def _list(figures: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield name, value, quartiles and aim of each figure; nested names are joined by `: `."""
    for key, figure in figures.items():
        name = f"{prefix}{key}".replace("_", " ")
        if not isinstance(figure, Mapping):
            if not _is_curve(figure):
                yield name, number(figure), "", ""
        elif "value" in figure:
            yield name, _value(figure), _quartiles(figure), _aim(figure)
        else:
            yield from _list(figure, f"{name}: ")


def _cell(figure: object) -> str:
    if not isinstance(figure, Mapping):
        return "" if figure is None else number(figure)
    quartiles = _quartiles(figure)
    return f"{_value(figure)} ({quartiles})" if quartiles else _value(figure)


def _value(figure: Mapping[str, object]) -> str:
    return f"{number(figure['value'])} {figure.get('unit', '')}".strip()


def _quartiles(figure: Mapping[str, object]) -> str:
    if "low" not in figure or "high" not in figure:
        return ""
    return f"{number(figure['low'])} to {number(figure['high'])}"


def _aim(figure: Mapping[str, object]) -> str:
    if figure.get("aim") is None:
        return ""
    return f"{number(figure['aim'])}: {'met' if figure.get('met') else 'not met'}"


def _trim(grid: Grid) -> Grid:
    """Drop the columns that no row fills."""
    kept = [n for n in range(len(grid.head)) if n < 2 or any(row[n] for row in grid.rows)]
    return Grid([grid.head[n] for n in kept], [[row[n] for n in kept] for row in grid.rows])
