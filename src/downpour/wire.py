"""The envelope that goes over an Arrow Flight stream: a header, keys and values.

A message is a record batch of one row with two binary columns, and a JSON object as its metadata.
One schema fits every request, as a stream has one schema; errors are in the header, as a raised one
would end the stream.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from downpour import errors
from downpour.errors import DownpourError, RefusedError, ServerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Bytes: TypeAlias = NDArray[np.uint8]

VERSION = 1
SCHEMA = pa.schema([("keys", pa.large_binary()), ("values", pa.large_binary())])
MAX_HEADER_BYTES = 1 << 20
MAX_ERROR = 2000  # characters of an error that travels, or is kept
MAX_DEPTH = 16  # of lists and objects in each other; what is kept is written as JSON again
NOTHING = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class Message:
    """One request or answer: `keys` uint64 [n], `values` bytes of an array that both sides know."""

    header: dict[str, Any]
    keys: NDArray[np.uint64]
    values: Bytes

    def floats(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
        """The values as an array. RefusedError where they are of another size."""
        expected = math.prod(shape) * dtype.itemsize
        if self.values.nbytes != expected:
            raise RefusedError(
                f"a message of {shape} {dtype} must have {expected} bytes of values, got "
                f"{self.values.nbytes}"
            )
        return aligned(self.values, dtype).reshape(shape)


def pack(keys: NDArray[np.uint64] | None, values: NDArray[Any] | None) -> pa.RecordBatch:
    """The record batch of a message; it refers to the arrays' memory."""
    columns = [_column(keys), _column(values)]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """The metadata of a message."""
    return json.dumps(header, separators=(",", ":")).encode()


def unpack(chunk: Any, max_bytes: int) -> Message:
    """Read a Flight chunk. RefusedError for one that is no message or too large."""
    return message_of(chunk, header_of(chunk), max_bytes)


def header_of(chunk: Any) -> dict[str, Any]:
    """The header of a Flight chunk, also of one that is no message else."""
    metadata = chunk.app_metadata
    if metadata is None:
        raise RefusedError("a message needs a record batch with a header as its metadata")
    if metadata.size > MAX_HEADER_BYTES:
        raise RefusedError(
            f"a message may have a header of {MAX_HEADER_BYTES} bytes, got {metadata.size}"
        )
    return parsed(metadata.to_pybytes())


def message_of(chunk: Any, header: dict[str, Any], max_bytes: int) -> Message:
    """The message of a Flight chunk whose header was read. RefusedError as of `unpack`."""
    batch = chunk.data
    if batch is None:
        raise RefusedError("a message needs a record batch with a header as its metadata")
    if not batch.schema.equals(SCHEMA) or batch.num_rows != 1:
        raise RefusedError(
            f"a message must be one row of binary keys and values, got {batch.num_rows} rows of "
            f"{batch.num_columns} columns"  # their names need be no text
        )
    num_bytes = batch.get_total_buffer_size()  # `nbytes` trusts offsets that are not checked yet
    if num_bytes > max_bytes:
        raise RefusedError(
            f"a message may have {max_bytes} bytes, got {num_bytes}; send fewer keys at once, or "
            "start servers with a larger --max-message-mb"
        )
    keys, values = (_bytes_of(batch.column(i)) for i in range(2))
    if keys.nbytes % 8:
        raise RefusedError(f"keys must be 8 bytes each, got {keys.nbytes} bytes")
    return Message(header, aligned(keys, np.dtype(np.uint64)), values)


def parsed(data: bytes) -> dict[str, Any]:
    """A JSON object. RefusedError for anything else."""
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"a header must be a JSON object: {error}") from None
    if not isinstance(header, dict):
        raise RefusedError(f"a header must be a JSON object, got a {type(header).__name__}")
    _check_depth(header)
    return header


def aligned(data: Bytes, dtype: np.dtype[Any]) -> Any:
    """Bytes as numbers, copied where they do not begin at a multiple of their size."""
    if data.ctypes.data % dtype.itemsize:
        data = data.copy()
    return data.view(dtype)


def error_header(error: BaseException) -> dict[str, Any]:
    """What an answer says of an error."""
    kind = type(error).__name__ if isinstance(error, DownpourError) else "ServerError"
    text = str(error) if isinstance(error, DownpourError) else f"{type(error).__name__}: {error}"
    return {"error": kind, "message": cut(text)}


def cut(text: str) -> str:
    """The beginning of a text that is too long to travel or to be kept, else all of it."""
    return text if len(text) <= MAX_ERROR else f"{text[: MAX_ERROR - 3]}..."


def error_of(header: Mapping[str, Any], who: str) -> DownpourError:
    """The error that an answer tells of, with the server's name before its text."""
    kind = getattr(errors, str(header["error"]), None)
    if not (isinstance(kind, type) and issubclass(kind, DownpourError)):
        kind = ServerError
    return kind(f"{who}: {header.get('message', '')}")


def _check_depth(header: dict[str, Any]) -> None:
    """Refuse what lies too deep, without a call for each level."""
    level: list[Any] = [header]
    for _ in range(MAX_DEPTH):
        held = [it.values() if isinstance(it, dict) else it for it in level]
        level = [it for values in held for it in values if isinstance(it, (dict, list))]
        if not level:
            return
    raise RefusedError(f"a header may have lists and objects {MAX_DEPTH} deep")


def _column(array: NDArray[Any] | None) -> pa.Array:
    data = NOTHING if array is None else np.ascontiguousarray(array)
    offsets = pa.py_buffer(np.array([0, data.nbytes], np.int64))
    content = pa.py_buffer(data.reshape(-1).view(np.uint8))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, content])


def _bytes_of(column: pa.Array) -> Bytes:
    """The one value of a column. RefusedError where its offsets lead out of its buffer."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        raise RefusedError(f"a message is malformed: {error}") from None
    if column.null_count:
        raise RefusedError("a message is malformed: keys and values may be empty, not null")
    buffer: pa.Buffer = column[0].as_buffer()
    return np.asarray(_Memory(buffer)) if buffer.size else NOTHING


class _Memory:
    """A received buffer as numpy takes it, kept for as long as an array refers to it.

    It may be written to, as nobody else has it: kernels are compiled for such arrays, and torch
    takes no others.
    """

    def __init__(self, buffer: pa.Buffer) -> None:
        self._buffer = buffer
        self.__array_interface__ = {
            "version": 3,
            "shape": (buffer.size,),
            "typestr": "|u1",
            "data": (buffer.address, False),
        }
