"""Bags of keys from whatever holds them: the conversions behind `Jagged.of`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from downpour.arrow import Column, as_array, is_list, is_tensor, is_text, list_parts
from downpour.errors import DataError
from downpour.hashing import as_keys
from downpour.ids import EntryError, Reading, number_ids, read_ids, split_ids

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from numpy.typing import NDArray


AS_USUAL = Reading()


class Bags(NamedTuple):
    """Flat keys, and how they fall into samples."""

    values: NDArray[np.uint64]
    offsets: NDArray[np.int64] | None = None  # [batch + 1]; None: one key a sample
    there: NDArray[np.bool_] | None = None  # which entries were not missing; None: all
    lengths: NDArray[np.int64] | None = None  # of the bags with their missing entries


def bags_of(data: Column, separator: str | None = None, reading: Reading = AS_USUAL) -> Bags:
    """Read ids: one a sample, or a bag a sample. See `Jagged.of`."""
    if is_tensor(data) and data.is_nested:
        return _bounded(data.values().detach().cpu().numpy(), data.offsets().cpu().numpy())
    if is_tensor(data):
        data = data.detach().cpu().numpy()
    elif hasattr(data, "weights_or_none"):  # TorchRec's JaggedTensor
        return _bounded(data.values().detach().cpu().numpy(), data.offsets().cpu().numpy())
    if isinstance(data, np.ndarray) and data.dtype.kind in "iubf":
        return _from_numbers(data, reading)
    array = as_array(data)
    if separator is not None:
        return _from_split(array, separator, reading)
    if not is_list(array.type):
        with _named_rows():
            keys, there = read_ids(array, reading)
        return _bags(keys, there, None)
    array, lengths = list_parts(array)
    with _named_rows(lengths):
        keys, there = read_ids(array, reading)
    return _bags(keys, there, lengths)


def bag_weights(weights: Column, bags: Bags, separator: str | None = None) -> NDArray[np.float64]:
    """Read per-id weights given in the form of their ids; float [num_values].

    Weights of ids that are missing are left out with them.
    """
    flat, lengths = _flat_weights(weights, separator)
    count = len(bags.values) if bags.there is None else len(bags.there)
    expected = bags.lengths
    if lengths is not None and expected is None:
        expected = np.ones(count, np.int64)
    if lengths is not None and expected is not None and not np.array_equal(lengths, expected):
        if len(lengths) != len(expected):
            raise DataError(f"weights have {len(lengths)} samples, their ids {len(expected)}")
        row = int(np.argmax(lengths != expected))
        raise DataError(f"sample {row} has {lengths[row]} weights for {expected[row]} ids")
    if len(flat) != count:
        raise DataError(f"there are {len(flat)} weights for {count} ids; give one an id")
    return flat if bags.there is None else flat[bags.there]


def cumulate(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Turn lengths [n] into offsets, int64 [n + 1]."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _bounded(values: NDArray[Any], offsets: NDArray[Any]) -> Bags:
    return Bags(as_keys(values), offsets, lengths=np.diff(offsets))


def _from_numbers(data: NDArray[Any], reading: Reading) -> Bags:
    """Bags of an array [batch], or [batch, k]."""
    if data.ndim not in (1, 2):
        raise DataError(f"ids must be [batch] or [batch, k], got shape {data.shape}")
    lengths = None if data.ndim == 1 else np.full(len(data), data.shape[1])
    with _named_rows(lengths):
        keys, there = number_ids(data.reshape(-1), reading)
    return _bags(keys, there, lengths)


def _from_split(array: pa.Array, separator: str, reading: Reading) -> Bags:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type):
        array = array.cast(pa.string())
    if not is_text(array.type):
        raise DataError(f"separator={separator!r} splits texts, got {array.type}")
    with _named_rows():
        keys, offsets, there = split_ids(array, separator, reading)
    return _bags(keys, there, np.diff(offsets))


def _bags(
    keys: NDArray[np.uint64], there: NDArray[np.bool_] | None, lengths: NDArray[np.int64] | None
) -> Bags:
    """Bags of these lengths (None: of one entry each), without the entries that are missing."""
    offsets = None if lengths is None else cumulate(lengths)
    if there is None:
        return Bags(keys, offsets, None, lengths)
    before = cumulate(there)
    return Bags(keys[there], before if offsets is None else before[offsets], there, lengths)


@contextmanager
def _named_rows(lengths: NDArray[np.int64] | None = None) -> Iterator[None]:
    """Tell the row of an entry that is no id, in bags of these lengths (None: of one each)."""
    try:
        yield
    except EntryError as error:
        row = error.place
        if lengths is not None:
            row = int(np.searchsorted(np.cumsum(lengths), row, side="right"))
        raise DataError(f"row {row} holds {error}") from error


def _flat_weights(
    weights: Column, separator: str | None
) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """Give flat weights, and the length of each bag where the form tells it."""
    if is_tensor(weights):
        weights = weights.values() if weights.is_nested else weights
        weights = weights.detach().cpu().numpy()
    if isinstance(weights, np.ndarray) and weights.dtype.kind in "iubf":
        lengths = np.full(len(weights), weights.shape[1]) if weights.ndim == 2 else None
        return weights.reshape(-1), lengths
    array, lengths = as_array(weights), None
    if separator is not None and is_text(array.type):
        array, lengths = _split_weights(array, separator)
    elif is_list(array.type):
        array, lengths = list_parts(array)
    if array.null_count:
        raise DataError("a weight is missing; give one for each id")
    if not (pa.types.is_floating(array.type) or pa.types.is_integer(array.type) or not len(array)):
        raise DataError(f"weights must be numbers, got {array.type}")
    return array.to_numpy(zero_copy_only=False), lengths


def _split_weights(array: pa.Array, separator: str) -> tuple[pa.Array, NDArray[np.int64]]:
    """Split a text column of numbers, leaving out empty parts as `split_ids` does."""
    texts, lengths = list_parts(
        pc.split_pattern(array.cast(pa.large_string()).fill_null(""), separator)
    )
    kept = pc.not_equal(texts, "")
    try:
        numbers = texts.filter(kept).cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise DataError(f"weights must be numbers: {error}") from error
    ends = cumulate(kept.to_numpy(zero_copy_only=False))[cumulate(lengths)]
    return numbers, np.diff(ends)
