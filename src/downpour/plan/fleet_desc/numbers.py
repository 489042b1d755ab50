"""Numbers in fields that are narrower than they are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from downpour.plan.fleet_desc.places import Node

FLOAT_MAX = float(np.finfo(np.float32).max)  # what the reference takes for no bound
_MOST = {"uint32": 2**32 - 1, "int32": 2**31 - 1}


def single(value: float) -> float:
    """The float32 nearest to a number, infinite beyond its range."""
    with np.errstate(over="ignore"):
        return float(np.float64(value).astype(np.float32))


def shortest(value: float) -> float:
    """The shortest decimal that a float32 can stand for: 0.98, not 0.9800000190734863."""
    return float(np.format_float_scientific(np.float32(value), unique=True))


def write_number(message: Any, name: str, value: float, exact: Any) -> None:
    """Set a field as near to a number as it can hold, and that of `exact` where it is not equal."""
    setattr(message, name, _nearest(message, name, value))
    if _held(message, name) != value:
        setattr(exact, name, float(value))


def read_number(node: Node, name: str, exact: Node) -> float:
    """The number that `write_number` wrote. PlanError where field and `exact` contradict."""
    held = _held(node.message, name)
    given = exact if exact.has(name) else node
    value = float(exact.get(name)) if exact.has(name) else held
    if not math.isfinite(value):
        raise given.error(name, f"must be a finite number, got {value}")
    if exact.has(name) and _nearest(node.message, name, value) != _written(node.message, name):
        raise exact.error(name, f"{value} is the exact form of {name}, which is {held}")
    return value


def write_floats(field: Any, values: Sequence[float], exact: Any) -> None:
    """As `write_number`, for a repeated field of `float`."""
    field.extend([single(value) for value in values])
    if [shortest(value) for value in field] != list(values):
        exact.extend(map(float, values))


def read_floats(node: Node, name: str, exact: Node) -> list[float]:
    """As `read_number`, for a repeated field of `float`, each with its own name in `exact`."""
    held = [shortest(value) for value in node.get(name)]
    values = [float(value) for value in exact.get(name)]
    if values and [single(value) for value in values] != [single(value) for value in held]:
        raise exact.error(name, f"{values} is the exact form of {name}, which is {held}")
    return values or held


def _is_float(message: Any, name: str) -> bool:
    field = message.DESCRIPTOR.fields_by_name[name]
    return bool(field.type == field.TYPE_FLOAT)


def _nearest(message: Any, name: str, value: float) -> float:
    """What a field holds of a number."""
    field = message.DESCRIPTOR.fields_by_name[name]
    if field.type == field.TYPE_FLOAT:
        return single(value)
    most = _MOST["uint32" if field.type == field.TYPE_UINT32 else "int32"]
    return min(int(value), most)


def _written(message: Any, name: str) -> float:
    value = getattr(message, name)
    return single(value) if _is_float(message, name) else value


def _held(message: Any, name: str) -> float:
    """The number that a field stands for."""
    value = getattr(message, name)
    return shortest(value) if _is_float(message, name) else float(value)
