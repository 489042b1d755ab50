"""Fields of a request's header, as they should be or refused: a request may come from anyone."""

from __future__ import annotations

import re
import sys
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from downpour.errors import NonFiniteError, RefusedError, TableError
from downpour.serving.staging import Commit
from downpour.transport import DenseState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from downpour.wire import Message

T = TypeVar("T")
RANK = re.compile("0|[1-9][0-9]{0,15}")
MAX_NAMES = 1 << 16
MAX_NAME = 1000  # characters of one of them
MAX_TEXT = 1 << 16
MAX_WHOLE = 1 << 53  # what all JSON readers keep exactly


def text(header: Mapping[str, Any], name: str, *, most: int = MAX_TEXT) -> str:
    """A text that is there, of at most so many characters."""
    value = header.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= most:
        raise RefusedError(f"{name!r} must be a text of 1 to {most} characters, got {_said(value)}")
    return value


def whole(
    header: Mapping[str, Any], name: str, *, least: int = 0, default: int | None = None
) -> int:
    """A whole number of at most 53 bits, not below `least`."""
    value = header.get(name, default)
    if type(value) is not int or not least <= value < MAX_WHOLE:
        raise RefusedError(f"{name!r} must be a whole number >= {least}, got {_said(value)}")
    return value


def number(header: Mapping[str, Any], name: str) -> float:
    """A finite number of at least 0."""
    value: Any = header.get(name)
    # Compared before it is a float: a whole number may be too large for one.
    if type(value) not in (int, float) or not 0 <= value <= sys.float_info.max:
        raise RefusedError(f"{name!r} must be a finite number >= 0, got {_said(value)}")
    return float(value)


def flag(header: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    """True or false."""
    value = header.get(name, default)
    if not isinstance(value, bool):
        raise RefusedError(f"{name!r} must be true or false, got {_said(value)}")
    return value


def texts(header: Mapping[str, Any], name: str) -> list[str]:
    """A list of different texts."""
    value = header.get(name)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise RefusedError(f"{name!r} must be a list of texts, got {_said(value)}")
    if any(len(each) > MAX_NAME for each in value):
        raise RefusedError(
            f"{name!r} must be texts of at most {MAX_NAME} characters, got one of "
            f"{max(map(len, value))}"
        )
    if len(value) > MAX_NAMES or len(set(value)) < len(value):
        raise RefusedError(
            f"{name!r} must be at most {MAX_NAMES} texts, all different, got {len(value)}, "
            f"{len(set(value))} of them different"
        )
    return value


def rates(header: Mapping[str, Any]) -> tuple[float, ...]:
    """The learning rate of each part of a row."""
    return _rates(header.get("lr"))


def rows_of(message: Message, dtype: np.dtype[Any], width: int) -> Any:
    """The values as rows, one a key, [n, width]."""
    return message.floats(dtype, (len(message.keys), width))


def table_of(tables: Mapping[str, T], message: Message) -> T:
    """The table that a request names. TableError where it is not here."""
    name = message.header.get("table")
    if not isinstance(name, str) or name not in tables:
        known = ", ".join(tables) or "none"
        raise TableError(f"no table {_said(name)} here; there are: {known}")
    return tables[name]


def commit_of(header: Mapping[str, Any]) -> Commit:
    """What all workers have agreed on for one step."""
    samples, by_table = header.get("samples"), header.get("rates")
    if not isinstance(samples, dict) or not isinstance(by_table, dict):
        raise RefusedError("a commit must have samples by rank and rates by table")
    members = {_rank(rank): whole(samples, rank) for rank in samples}
    steps = {name: _step(name, it) for name, it in by_table.items()}
    return Commit(
        step=whole(header, "at", least=1),
        samples=members,
        rates=steps,
        over_touched=flag(header, "over_touched"),
    )


def restored_dense(message: Message, dtype: np.dtype[Any]) -> DenseState:
    """A dense table's weights and rule state, one after the other in the values."""
    parts, updates = message.header.get("parts"), message.header.get("updates")
    size = whole(message.header, "size")
    if not isinstance(parts, dict) or not isinstance(updates, dict):
        raise RefusedError("a dense table comes with its size, parts and updates by part")
    lengths = [size, *(whole(parts, name) for name in parts)]
    flat = message.floats(dtype, (sum(lengths),))
    if not np.isfinite(flat).all():
        raise NonFiniteError("the weights or the state of a dense table hold NaN or infinity")
    weights, *states = np.split(flat, list(accumulate(lengths))[:-1])
    counts = {name: whole(updates, name) for name in updates}
    step = whole(message.header, "step")
    return DenseState(weights, dict(zip(parts, states, strict=True)), counts, step)


def _rates(value: object) -> tuple[float, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= 2:
        raise RefusedError(f"learning rates must be a list of one or two, got {_said(value)}")
    return tuple(number({"lr": each}, "lr") for each in value)


def _rank(name: str) -> int:
    """The rank that a JSON object has as a name, written in one way, so that none comes twice."""
    if RANK.fullmatch(name) is None:
        raise RefusedError(f"a commit has samples by rank, a whole number, got {_said(name)}")
    return int(name)


def _step(table: str, value: object) -> tuple[int, tuple[float, ...]]:
    """The number of a table's own step, and its learning rates."""
    if not isinstance(value, list) or len(value) != 2:
        raise RefusedError(f"a commit has [step, rates] of table {table!r:.80}, got {_said(value)}")
    step, lr = value
    return whole({"step": step}, "step", least=1), _rates(lr)


def _said(value: object) -> str:
    """A value in a message: its beginning."""
    return f"{value!r:.80}"
