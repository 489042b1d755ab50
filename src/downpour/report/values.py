"""Reading metrics.json leniently, and numbers as people read them.

A report of half a run is still worth reading, so whatever is missing, null or of an odd type reads
as nothing (None, {} or []), and what shows it says so in words.
"""

from __future__ import annotations

from typing import Any

from downpour import sizes

NOTHING = "\N{EN DASH}"
LARGEST = 1e300
Point = tuple[float, float]


def number(value: object) -> float | None:
    """A finite number that an axis can hold, or None for anything else (booleans too)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        read = float(value)
    except OverflowError:
        return None
    return read if abs(read) < LARGEST else None  # NaN is not


def mapping(value: object) -> dict[str, Any]:
    """The value if it is a mapping, else {}."""
    return value if isinstance(value, dict) else {}


def sequence(value: object) -> list[Any]:
    """The value if it is a list, else []."""
    return value if isinstance(value, list) else []


def points(value: object) -> list[Point]:
    """The [x, y] pairs of finite numbers in a list, by rising x."""
    pairs = (pair for pair in sequence(value) if isinstance(pair, list) and len(pair) == 2)
    read = ((number(x), number(y)) for x, y in pairs)
    return sorted((x, y) for x, y in read if x is not None and y is not None)


def total(values: list[float | None]) -> float | None:
    """The sum of what is known, None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def ratio(above: float | None, below: float | None) -> float | None:
    """A quotient, None where it is not defined."""
    return above / below if above is not None and below else None


def count_text(value: float | None) -> str:
    """12,345"""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.3g}"


def plural(value: float | None, noun: str) -> str:
    """1 epoch, 5 epochs"""
    return f"{count_text(value)} {noun}" + ("" if value == 1 else "s")


def score_text(value: float | None) -> str:
    """0.7812"""
    if value is None:
        return NOTHING
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.3g}"


def compact_text(value: float | None) -> str:
    """9.5, 9,500, 12.3k, 4.56M: what fits beside a curve"""
    if value is None:
        return NOTHING
    if 1000 <= abs(value) < 10_000:
        return f"{value:,.0f}"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def percent_text(value: float | None) -> str:
    """12.3 % of a share in [0, 1]"""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def seconds_text(value: float | None) -> str:
    """820 ms, 41.2 s, 12 min 5 s, 3 h 20 min"""
    if value is None:
        return NOTHING
    if value < 1:
        return f"{1000 * value:.3g} ms"
    if value >= 1e9:
        return f"{value:.3g} s"
    if value < 120:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 120:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


def bytes_text(value: float | None) -> str:
    """1.25 MiB"""
    return NOTHING if value is None else sizes.bytes_text(value)


def flat_pairs(value: object, prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted name, text) pairs, in their own order."""
    pairs: list[tuple[str, str]] = []
    for name, inner in mapping(value).items():
        dotted = f"{prefix}{name}"
        if isinstance(inner, dict) and inner:
            pairs += flat_pairs(inner, f"{dotted}.")
        else:
            pairs.append((dotted, _plain(inner)))
    return pairs


def _plain(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) if value else "none"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)
