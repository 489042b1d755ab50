"""Columns of any kind as Arrow arrays, and Arrow arrays as numpy: the one door for input data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from downpour.errors import DataError

if TYPE_CHECKING:
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
        if is_tensor(data):
            return pa.array(data.detach().cpu().numpy())
        if is_pandas(data):
            array = pa.Array.from_pandas(data)
        elif hasattr(data, "to_arrow"):
            array = data.to_arrow()
        elif isinstance(data, np.ndarray) and data.dtype.kind == "T":
            array = pa.array(data.astype(object))
        elif isinstance(data, np.ndarray):
            array = pa.array(data)
        else:
            array = _from_sequence(list(data))
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise DataError(f"cannot read a {type(data).__name__} as a column: {error}") from error
    return one_array(array)


def one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Join the chunks of a column, copying only where there are several."""
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _from_sequence(entries: list[Any]) -> pa.Array:
    try:
        return pa.array(entries)
    except OverflowError:  # ids of 2**63 and more: Arrow guesses signed integers
        nested = any(isinstance(entry, list | tuple) for entry in entries)
        return pa.array(entries, pa.list_(pa.uint64()) if nested else pa.uint64())


def as_table(frame: Any) -> pa.Table:
    """Make an Arrow table of an Arrow, pandas or polars frame, or of a dict of columns.

    Raises DataError for anything else.
    """
    if isinstance(frame, pa.Table):
        return frame
    if isinstance(frame, pa.RecordBatch):
        return pa.Table.from_batches([frame])
    try:
        if isinstance(frame, dict):
            return pa.table({name: as_array(column) for name, column in frame.items()})
        if is_pandas(frame):
            return pa.Table.from_pandas(frame, preserve_index=False)
        if hasattr(frame, "to_arrow"):
            return frame.to_arrow()
    except (pa.ArrowException, TypeError) as error:
        raise DataError(f"cannot read a {type(frame).__name__} as a table: {error}") from error
    kind = f"{type(frame).__module__}.{type(frame).__name__}"
    raise DataError(
        f"a frame must be an Arrow table or record batch, a pandas or polars DataFrame or a dict "
        f"of columns, got {kind}; collect() a polars LazyFrame first"
    )


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
