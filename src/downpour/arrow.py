"""Columns of any kind as Arrow arrays, and Arrow arrays as numpy: the one door for input data."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from downpour.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

Column: TypeAlias = Any
"""What a column may come as: numpy, Arrow, pandas, polars, torch or a plain sequence."""


def as_array(data: Column) -> pa.Array:
    """Make one contiguous Arrow array of a column.

    Accepts Arrow arrays and chunked arrays, pandas and polars series, numpy arrays of one
    dimension, CPU tensors and plain sequences. NaN in a pandas series of objects means missing,
    as pandas has it. Raises DataError for what Arrow cannot hold.
    """
    if isinstance(data, pa.ChunkedArray | pa.Array):
        return one_array(data)
    if isinstance(data, str | bytes):
        raise DataError(f"a column must hold one entry a sample, got the single text {data!r}")
    try:
        return one_array(_converted(data))
    except (pa.ArrowException, TypeError, OverflowError) as error:
        try:
            return _from_objects(data)
        except (pa.ArrowException, TypeError, OverflowError):  # the first error says it better
            raise DataError(f"cannot read a {type(data).__name__} as a column: {error}") from error


def _converted(data: Any) -> pa.Array | pa.ChunkedArray:
    """The Arrow array of a column whose entries have one type, as its library makes it."""
    if is_tensor(data):
        return pa.array(data.detach().cpu().numpy())
    if is_pandas(data):
        return pa.Array.from_pandas(data)
    if str(getattr(data, "dtype", "")) in ("Object", "Int128", "UInt128"):  # polars
        raise TypeError(f"Arrow has no {data.dtype}")
    if hasattr(data, "to_arrow"):
        return data.to_arrow()
    if isinstance(data, np.ndarray):
        return pa.array(data.astype(object) if data.dtype.kind == "T" else data)
    return pa.array(list(data))


def _from_objects(data: Any) -> pa.Array:
    """Read Python objects for which Arrow finds no common type.

    Integers of 2**63 and more are uint64; where those stand beside negative ones, floats or
    texts, as in columns of objects that pandas read in pieces, all become texts.
    """
    entries = list(data)
    try:
        return _array_of(entries, _integer_of, pa.uint64())
    except (pa.ArrowException, TypeError, OverflowError):
        return _array_of(entries, _text_of, pa.string())


def _array_of(entries: list[Any], make: Callable[[Any], Any], kind: pa.DataType) -> pa.Array:
    """An array of entries made so, or of lists of them."""
    if not any(isinstance(entry, list | tuple | np.ndarray) for entry in entries):
        return pa.array(list(map(make, entries)), kind)
    lists = [None if _is_missing(entry) else list(map(make, entry)) for entry in entries]
    return pa.array(lists, pa.list_(kind))


def _is_missing(entry: Any) -> bool:
    """Whether this is None, NaN, or pandas' NA or NaT."""
    if entry is None or type(entry).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(entry, float | np.floating | Decimal) and entry != entry


def _integer_of(entry: Any) -> int | None:
    """An integer; Arrow would cut off the fraction of a float. TypeError for anything else."""
    if _is_missing(entry):
        return None
    if isinstance(entry, bool) or not isinstance(entry, int | np.integer):
        raise TypeError(f"no integer: {type(entry).__name__}")
    return int(entry)


def _text_of(entry: Any) -> str | None:
    """What a text column has for a number or a text. TypeError for anything else."""
    if _is_missing(entry):
        return None
    if isinstance(entry, str):
        return str(entry)
    if isinstance(entry, bool | np.bool_ | int | np.integer):
        return str(entry)
    if isinstance(entry, Decimal) and entry.is_finite():
        return str(int(entry) if entry == int(entry) else entry)
    if isinstance(entry, float | np.floating):
        return repr(float(entry))
    raise TypeError(f"no number or text: {type(entry).__name__}")


def one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Join the chunks of a column, copying only where there are several."""
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def as_table(frame: Any, columns: Callable[[list[str]], Sequence[str]] = list) -> pa.Table:
    """Make an Arrow table of an Arrow, pandas or polars frame, or of a dict of columns.

    columns: of the names that there are, gives those that are read; others are not looked at.
    Raises DataError for anything else.
    """
    names, column = _columns_of(frame)
    wanted = columns(names)
    arrays = [column(name) for name in wanted]
    try:
        return pa.table(arrays, names=wanted)
    except pa.ArrowException as error:
        raise DataError(f"cannot read a {type(frame).__name__} as a table: {error}") from error


def _columns_of(frame: Any) -> tuple[list[str], Callable[[str], pa.Array | pa.ChunkedArray]]:
    """The names of a frame's columns, and what gives each."""
    if isinstance(frame, pa.Table | pa.RecordBatch):
        return frame.schema.names, frame.column
    if isinstance(frame, dict):
        return list(frame), lambda name: _column(name, frame[name])
    if (is_pandas(frame) or hasattr(frame, "to_arrow")) and hasattr(frame, "columns"):
        keys = {str(key): key for key in frame.columns}  # pandas has names that are no texts
        return list(map(str, frame.columns)), lambda name: _column(name, frame[keys[name]])
    kind = f"{type(frame).__module__}.{type(frame).__name__}"
    raise DataError(
        f"a frame must be an Arrow table or record batch, a pandas or polars DataFrame or a dict "
        f"of columns, got {kind}; collect() a polars LazyFrame first"
    )


def _column(name: str, data: Column) -> pa.Array:
    try:
        return as_array(data)
    except DataError as error:
        raise DataError(f"column {name!r}: {error}") from error


def is_pandas(data: object) -> bool:
    """Tell whether a value is pandas' own, without importing pandas."""
    return type(data).__module__.partition(".")[0] == "pandas"


def is_tensor(data: object) -> bool:
    """Tell whether a value is a torch tensor, without importing torch."""
    return any(
        base.__module__ == "torch" and base.__name__ == "Tensor" for base in type(data).mro()
    )


def is_text(kind: pa.DataType) -> bool:
    """Tell whether an Arrow type holds text or bytes."""
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or is_view(kind)
    )


def is_view(kind: pa.DataType) -> bool:
    """Tell whether an Arrow type is one of the view layouts of text."""
    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


def is_list(kind: pa.DataType) -> bool:
    """Tell whether an Arrow type holds a list a sample, of a fixed or of any length."""
    return (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or is_list_view(kind)
    )


def is_list_view(kind: pa.DataType) -> bool:
    """Tell whether an Arrow type is one of the view layouts of lists."""
    return bool(pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind))


def text_buffers(array: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Give the bytes and offsets of a text array, without looking at what is null.

    Returns (bytes, offsets): entry i is bytes[offsets[i]:offsets[i + 1]]. The bytes are a
    read-only view of Arrow's own buffer.
    """
    if is_view(array.type):
        array = array.cast(
            pa.large_binary() if pa.types.is_binary_view(array.type) else pa.large_string()
        )
    wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    _, starts, text = array.buffers()
    data = np.empty(0, np.uint8) if text is None else np.frombuffer(text, np.uint8)
    data.flags.writeable = False  # one type, so that numba compiles one version
    if len(array) == 0:
        return data, np.zeros(1, np.int64)
    width = np.dtype(np.int64 if wide else np.int32)
    offsets = np.frombuffer(starts, width, len(array) + 1, array.offset * width.itemsize)
    return data, offsets.astype(np.int64)


def list_parts(array: pa.Array) -> tuple[pa.Array, NDArray[np.int64]]:
    """Give the flat values of a list array and the length of each entry; a null list is empty."""
    lengths = pc.list_value_length(array).fill_null(0)
    return array.flatten(), np.asarray(lengths).astype(np.int64)


def valid_mask(array: pa.Array) -> NDArray[np.bool_]:
    """Tell for each entry whether it is there (not null)."""
    mask: NDArray[np.bool_] = array.is_valid().to_numpy(zero_copy_only=False)
    return mask
