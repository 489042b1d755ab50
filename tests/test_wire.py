"""The envelope of requests and answers: it carries all as it was, and what is none is refused."""

from __future__ import annotations

import gc
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from downpour import errors
from downpour.errors import DownpourError, RefusedError, ServerError, TableError
from downpour.wire import (
    MAX_DEPTH,
    MAX_HEADER_BYTES,
    SCHEMA,
    Message,
    error_header,
    error_of,
    header_bytes,
    pack,
    parsed,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST = 10_000
KEYS = np.array([1, 2**63, 2**64 - 1], np.uint64)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
NESTED = st.recursive(
    SCALARS, lambda of: st.lists(of) | st.dictionaries(st.text(), of), max_leaves=10
)


def chunk(batch: Any, header: bytes | Mapping[str, Any] = b"{}") -> Any:
    """A message as Flight gives it."""
    data = header if isinstance(header, bytes) else header_bytes(header)
    return SimpleNamespace(data=batch, app_metadata=pa.py_buffer(data))


def batch(*columns: list[int]) -> pa.RecordBatch:
    """Two columns between these offsets, which nobody has checked: they are written afterwards."""
    places = [np.zeros(len(offsets), np.int64) for offsets in columns]
    made = pa.RecordBatch.from_arrays(
        [
            pa.Array.from_buffers(
                pa.large_binary(), it.size - 1, [None, pa.py_buffer(it), pa.py_buffer(b"12345678")]
            )
            for it in places
        ],
        schema=SCHEMA,
    )
    for place, offsets in zip(places, columns, strict=True):
        place[:] = offsets
    return made


def nulls(**columns: list[bytes | None]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


@given(
    header=st.dictionaries(st.text(), NESTED, max_size=5),
    keys=arrays.arrays(np.uint64, st.integers(0, 20)),
    values=arrays.arrays(
        st.sampled_from([np.float32, np.float64, np.uint8]),
        arrays.array_shapes(min_dims=1, max_dims=2, min_side=0),
    ),
)
def test_a_message_comes_as_it_was(header: dict[str, Any], keys: Any, values: Any) -> None:
    message = unpack(chunk(pack(keys, values), header), 1 << 20)
    assert message.header == header
    assert message.keys.tobytes() == keys.tobytes()
    assert message.floats(values.dtype, values.shape).tobytes() == values.tobytes()


def test_a_message_may_be_empty() -> None:
    message = unpack(chunk(pack(None, None)), MOST)
    assert (message.header, message.keys.size, message.values.size) == ({}, 0, 0)


def test_arrays_that_are_not_contiguous_are_sent_in_their_order() -> None:
    values = np.arange(12, dtype=np.float64).reshape(3, 4).T
    message = unpack(chunk(pack(KEYS[::2], values)), MOST)
    assert message.keys.tolist() == KEYS[::2].tolist()
    assert np.array_equal(message.floats(values.dtype, values.shape), values)


def test_values_live_as_long_as_they_are_referred_to() -> None:
    values = unpack(chunk(pack(None, np.arange(1000.0))), MOST).values
    gc.collect()
    assert values.flags.writeable
    assert np.array_equal(values.view(np.float64), np.arange(1000.0))


def test_values_that_begin_anywhere_become_numbers() -> None:
    data = np.frombuffer(b"x" + np.arange(3.0).tobytes(), np.uint8)
    message = Message({}, KEYS, data[1:])
    assert message.floats(np.dtype(np.float64), (3,)).tolist() == [0.0, 1.0, 2.0]


def test_values_of_another_size_are_refused() -> None:
    message = unpack(chunk(pack(KEYS, np.zeros(5, np.float32))), MOST)
    with pytest.raises(RefusedError, match=r"\(3, 2\) float32 must have 24 bytes .* got 20"):
        message.floats(np.dtype(np.float32), (3, 2))


BATCHES: dict[str, tuple[Any, str]] = {
    "no batch": (None, "needs a record batch"),
    "other columns": (pa.record_batch({"keys": [b"12345678"]}), "1 rows of 1 columns"),
    "other types": (pa.record_batch({"keys": [1], "values": [2.0]}), "binary keys and values"),
    "texts": (pa.record_batch({"keys": ["12345678"], "values": ["1"]}), "1 rows of 2 columns"),
    "no row": (batch([0], [0]), "must be one row of binary keys.* got 0 rows"),
    "two rows": (batch([0, 8, 8], [0, 0, 0]), "must be one row of .* got 2 rows"),
    "null keys": (nulls(keys=[None], values=[b""]), "may be empty, not null"),
    "null values": (nulls(keys=[b""], values=[None]), "may be empty, not null"),
    "keys of 6 bytes": (batch([0, 6], [0, 0]), "keys must be 8 bytes each, got 6 bytes"),
    "an end out of the buffer": (batch([0, 2**40], [0, 0]), "malformed"),
    "an end near overflow": (batch([0, 2**63 - 1], [0, 0]), "malformed"),
    "a start out of the buffer": (batch([800, 808], [0, 0]), "malformed"),
    "a start below 0": (batch([-8, 8], [0, 0]), "malformed"),
    "an end before its start": (batch([8, 0], [0, 0]), "malformed"),
    "values out of the buffer": (batch([0, 8], [0, 9]), "malformed"),
    "too many bytes": (
        pack(None, np.zeros(MOST)), r"may have 10000 bytes, got 800\d\d; .* --max-message-mb",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_that_is_no_message_is_refused(name: str) -> None:
    data, message = BATCHES[name]
    with pytest.raises(RefusedError, match=message):
        unpack(chunk(data), MOST)


def nested(depth: int) -> bytes:
    return b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)


HEADERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "must be a JSON object: Expecting value"),
    "no JSON": (b"{op: pull}", "must be a JSON object: Expecting property name"),
    "half": (b'{"op": "pull', "must be a JSON object: Unterminated string"),
    "no UTF-8": (b'{"op": "\xff\xfe\x00"}', "must be a JSON object"),
    "a list": (b"[1, 2]", "must be a JSON object, got a list"),
    "a number": (b"1", "must be a JSON object, got a int"),
    "too deep": (nested(MAX_DEPTH + 1), f"lists and objects {MAX_DEPTH} deep"),
    "lists too deep": (b'{"a":' + b"[" * 900 + b"]" * 900 + b"}", "16 deep"),
    "far too deep": (b"[" * 100_000 + b"]" * 100_000, "must be a JSON object"),
    "too many digits": (b'{"n": ' + b"9" * 10_000 + b"}", "must be a JSON object"),
    "too large": (
        b'{"a": "' + b"a" * MAX_HEADER_BYTES + b'"}', f"a header of {MAX_HEADER_BYTES} bytes, got",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_is_no_small_json_object_is_refused(name: str) -> None:
    data, message = HEADERS[name]
    with pytest.raises(RefusedError, match=message):
        unpack(chunk(pack(None, None), data), MOST)


def test_a_message_without_a_header_is_refused() -> None:
    with pytest.raises(RefusedError, match="with a header as its metadata"):
        unpack(SimpleNamespace(data=pack(None, None), app_metadata=None), MOST)


def test_what_is_as_deep_as_may_be_is_taken() -> None:
    assert parsed(nested(MAX_DEPTH)) == json.loads(nested(MAX_DEPTH))


@given(data=st.binary(max_size=50) | st.text(max_size=50).map(str.encode))
def test_any_bytes_are_a_header_or_refused(data: bytes) -> None:
    try:
        assert isinstance(parsed(data), dict)
    except RefusedError as error:
        assert "a header" in str(error)  # noqa: PT017


KINDS = [it for it in vars(errors).values() if isinstance(it, type)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_arrives_as_it_was_raised_with_who_raised_it(kind: type[DownpourError]) -> None:
    told = json.loads(header_bytes(error_header(kind("nothing was changed"))))
    error = error_of(told, "server 1")
    assert type(error) is kind
    assert str(error) == "server 1: nothing was changed"


def test_what_a_server_does_not_raise_on_purpose_is_its_failure() -> None:
    told = error_header(ZeroDivisionError("division by zero"))
    assert told == {"error": "ServerError", "message": "ZeroDivisionError: division by zero"}


@pytest.mark.parametrize("kind", ["ValueError", "annotations", "__doc__", "", None, 3, ["a"]])
def test_an_error_of_no_known_kind_is_a_failure_of_the_server(kind: Any) -> None:
    error = error_of({"error": kind}, "server 1")
    assert type(error) is ServerError
    assert type(error_of({"error": "TableError"}, "server 1")) is TableError
