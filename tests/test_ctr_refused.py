"""What a table of CTR rows refuses, whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from downpour.errors import NonFiniteError, TableError
from downpour.tables import CtrTable
from tests.ctr_tables import DIM, make_table, push_all, same_bits, some_keys, some_pushes


def changed(column: int, value: float, row: int = 1) -> np.ndarray:
    pushes = some_pushes(3)
    pushes[row, column] = value
    return pushes


def huge_pushes() -> np.ndarray:
    pushes = np.full((3, 5 + DIM), 1.5e308)
    pushes[:, 0] = 1
    return pushes


def bad_push(column: int, value: float) -> Any:
    return lambda t: t.push(some_keys(3), changed(column, value), step=1, lr=0.1)


def bad_restore(**kwargs: Any) -> Any:
    def restore(table: CtrTable) -> None:
        other = make_table()
        push_all(other)
        parts = dict(zip(("keys", "weights", "state", "statistics"), other.export(), strict=True))
        parts |= {name: change(parts[name]) for name, change in kwargs.items()}
        CtrTable("table", table.accessor).restore(**parts, step=1)

    return restore


def with_infinite_show(statistics: np.ndarray) -> np.ndarray:
    statistics["show"][3] = np.inf
    return statistics


BAD_CALLS: dict[str, tuple[Any, Any, str]] = {
    "float keys": (lambda t: t.pull(np.zeros(3)), TableError, "keys must be uint64.*got float64"),
    "narrow out": (
        lambda t: t.pull(some_keys(3), out=np.empty((3, 4))),
        TableError,
        r"out must be contiguous float64 \[3, 6\], got float64 \[3, 4\]",
    ),
    "narrow pushes": (
        lambda t: t.push(some_keys(3), np.zeros((3, 7)), step=1, lr=0.1),
        TableError,
        r"pushes must be \[3, 8\], a row a key, got \[3, 7\]",
    ),
    "negative show": (
        bad_push(1, -1.0),
        TableError,
        "pushes must have show, click and places >= 0, got show -1.0 in row 1; nothing was applied",
    ),
    "negative click": (bad_push(2, -0.5), TableError, "got click -0.5 in row 1"),
    "negative places": (bad_push(3, -2.0), TableError, "got places -2.0 in row 1"),
    "NaN click": (bad_push(2, np.nan), NonFiniteError, "pushes hold NaN or inf.*first in row 1"),
    "infinite show": (bad_push(1, np.inf), NonFiniteError, "pushes hold NaN or infinity"),
    "NaN places": (bad_push(3, np.nan), NonFiniteError, "pushes hold NaN or infinity"),
    "NaN gradient": (bad_push(5, np.nan), NonFiniteError, "pushes hold NaN or infinity"),
    "wide slot": (bad_push(0, 2.0**24), TableError, "slots must be below 16777216, got 16777216.0"),
    "overflowing sum": (
        lambda t: t.push(np.array([9, 8, 8], np.uint64), huge_pushes(), step=1, lr=0.1),
        NonFiniteError,
        "summed pushes hold NaN or infinity, first in key 8",
    ),
    "step 0": (
        lambda t: t.push(some_keys(3), some_pushes(3), step=0, lr=0.1),
        TableError,
        "step counts from 1, got 0",
    ),
    "one negative lr": (
        lambda t: t.push(some_keys(3), some_pushes(3), step=1, lr=(0.1, -0.1)),
        TableError,
        r"lr must be finite and >= 0, got \(0.1, -0.1\)",
    ),
    "three rates": (
        lambda t: t.push(some_keys(3), some_pushes(3), step=1, lr=(0.1, 0.1, 0.1)),
        TableError,
        r"lr must be a number or two, got \(0.1, 0.1, 0.1\)",
    ),
    "infinite weights": (
        lambda t: t.set(some_keys(3), np.full((3, 4), np.inf)),
        NonFiniteError,
        "weights hold NaN",
    ),
    "narrow state": (
        lambda t: t.set(some_keys(3), np.zeros((3, 4)), np.zeros((3, 1))),
        TableError,
        r"state must be \[3, 2\]",
    ),
    "restore over rows": (
        lambda t: t.restore(*t.export(), step=1),
        TableError,
        "restore needs an empty table",
    ),
    "fewer statistics": (
        bad_restore(statistics=lambda s: s[1:]),
        TableError,
        r"statistics must be \[\d+\] of .*'has_embedx'",
    ),
    "plain statistics": (
        bad_restore(statistics=lambda s: s["show"]),
        TableError,
        r"statistics must be .* of float64",
    ),
    "infinite statistics": (
        bad_restore(statistics=with_infinite_show),
        NonFiniteError,
        "show hold NaN or infinity, first in key",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_refused_and_changes_nothing(name: str) -> None:
    call, error, message = BAD_CALLS[name]
    table = make_table(embedx_threshold=0.2)
    table.push(some_keys(5, 3), some_pushes(5, 3), step=1, lr=0.1)
    before = table.export()
    with pytest.raises(error, match=message) as raised:
        call(table)
    assert str(raised.value).startswith("table 'table': ")
    same_bits(before, table.export())
    assert (table.step, table.stats().rows) == (1, 5)
