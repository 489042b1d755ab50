"""Bytes as people read them."""

from __future__ import annotations


def bytes_unit(largest: float) -> tuple[float, str]:
    """The size and name of the unit in which `largest` bytes read well."""
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if largest >= size:
            return float(size), unit
    return 1.0, "bytes"


def bytes_text(value: float) -> str:
    """1.25 MiB"""
    size, unit = bytes_unit(value)
    number = value / size
    return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
