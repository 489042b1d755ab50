"""Numbers of a table's column: dense values, labels and weights as finite float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from downpour.arrow import is_list, is_text
from downpour.errors import DataError
from downpour.floats import numbers_of
from downpour.ids import NULL_VALUES

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_floats(
    array: pa.Array, fill: float | None = None, *, way_out: str = "drop those rows"
) -> NDArray[np.float32]:
    """Read numbers as float32, [n] or [n, k] of lists; missing ones and NaN become `fill`.

    Texts must be numbers. Raises DataError: another type, a text that is no number, and, without
    `fill`, a missing number or NaN; infinity always.
    """
    return _finite(_numbers(array), fill, way_out)


def read_label(array: pa.Array, at_least: float | None) -> NDArray[np.float32]:
    """Read labels as float32 [n], or whether they are at least a number."""
    numbers = _numbers(array)
    finite = _finite(numbers, None, "drop those rows")
    return finite if at_least is None else (numbers >= at_least).astype(np.float32)


def _numbers(array: pa.Array) -> NDArray[Any]:
    if is_text(array.type):
        array = _parsed(array)
    if is_list(array.type) and array.null_count:
        row = int(array.is_null().to_numpy(zero_copy_only=False).argmax())
        raise DataError(f"the list of numbers is missing at row {row}")
    return numbers_of(array)


def _parsed(array: pa.Array) -> pa.Array:
    """Read the numbers that are written in a text column, without the blanks around them.

    Those of NULL_VALUES are missing.
    """
    try:
        return array.cast(pa.float64())
    except pa.ArrowInvalid:
        array = pc.utf8_trim_whitespace(array.cast(pa.large_string()))
        is_missing = pc.is_in(array, pa.array(NULL_VALUES, array.type))
        array = pc.if_else(is_missing, pa.scalar(None, array.type), array)
    try:
        return array.cast(pa.float64())
    except pa.ArrowInvalid as error:
        row = next(row for row, text in enumerate(array) if not _is_number(text))
        raise DataError(f"{array[row].as_py()!r} at row {row} is not a number") from error


def _is_number(text: pa.Scalar) -> bool:
    try:
        text.cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _finite(numbers: NDArray[Any], fill: float | None, way_out: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # too large for float32 is infinite, refused below
        floats = numbers.astype(np.float32)
    if fill is not None and numbers.dtype.kind == "f":
        floats[np.isnan(floats)] = fill
    bad = ~np.isfinite(floats)
    if bad.any():
        row = int(np.argwhere(bad)[0, 0])
        raise DataError(
            f"missing, NaN or infinite at row {row} ({bad.sum()} such values in all); {way_out}"
        )
    return floats
