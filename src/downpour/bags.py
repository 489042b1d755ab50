"""Bags of keys from whatever holds them: the conversions behind `Jagged.of`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from downpour.arrow import (
    Column,
    as_array,
    is_list,
    is_pandas,
    is_tensor,
    is_text,
    list_parts,
    valid_mask,
)
from downpour.errors import DataError
from downpour.hashing import as_keys, split_text, text_keys

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray


class Bags(NamedTuple):
    """Flat keys, and how they fall into samples."""

    values: NDArray[np.uint64]
    offsets: NDArray[np.int64] | None = None  # [batch + 1]; None: one key a sample
    there: NDArray[np.bool_] | None = None  # which entries were not missing; None: all
    lengths: NDArray[np.int64] | None = None  # of the bags with their missing entries


def bags_of(data: Column, separator: str | None = None, hashed: bool | None = None) -> Bags:
    """Read keys: one a sample, or a bag a sample. See `Jagged.of`."""
    if is_tensor(data) and data.is_nested:
        return _bounded(data.values().detach().cpu().numpy(), data.offsets().cpu().numpy())
    if is_tensor(data):
        data = data.detach().cpu().numpy()
    elif hasattr(data, "weights_or_none"):  # TorchRec's JaggedTensor
        return _bounded(data.values().detach().cpu().numpy(), data.offsets().cpu().numpy())
    if isinstance(data, np.ndarray) and data.dtype.kind in "iubf" and data.ndim > 1:
        return _rectangle(data, hashed)
    if isinstance(data, np.ndarray) and data.dtype.kind in "iubf" and not hashed:
        return Bags(as_keys(data))
    return _from_arrow(as_array(data), separator, hashed, from_pandas=is_pandas(data))


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


def _rectangle(data: NDArray[Any], hashed: bool | None) -> Bags:
    if data.ndim != 2:
        raise DataError(f"ids must be [batch] or [batch, k], got shape {data.shape}")
    lengths = np.full(len(data), data.shape[1])
    flat = bags_of(data.reshape(-1), None, hashed).values
    return Bags(flat, cumulate(lengths), lengths=lengths)


def _from_arrow(
    array: pa.Array, separator: str | None, hashed: bool | None, *, from_pandas: bool
) -> Bags:
    if separator is not None:
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if pa.types.is_null(array.type):
            array = array.cast(pa.string())
        if not is_text(array.type):
            raise DataError(f"separator={separator!r} splits texts, got {array.type}")
        keys, offsets = split_text(_without_nulls(array), separator, hashed=hashed)
        return Bags(keys, offsets, lengths=np.diff(offsets))
    if not is_list(array.type):
        keys, there = _keys_of(array, hashed, from_pandas)
        return Bags(keys, None if there is None else cumulate(there), there)
    array, lengths = list_parts(array)
    keys, there = _keys_of(array, hashed, from_pandas)
    offsets = cumulate(lengths)
    if there is not None:  # what is missing inside a bag is left out of it
        offsets = cumulate(there)[offsets]
    return Bags(keys, offsets, there, lengths)


def _without_nulls(array: pa.Array) -> pa.Array:
    return array.fill_null("") if array.null_count else array


def _keys_of(
    array: pa.Array, hashed: bool | None, from_pandas: bool
) -> tuple[NDArray[np.uint64], NDArray[np.bool_] | None]:
    """Give the keys of the entries that are there, and which those are (None: all)."""
    there = valid_mask(array) if array.null_count else None
    if there is not None:
        array = array.drop_null()
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _dictionary_keys(array, hashed, from_pandas), there
    if hashed and pa.types.is_integer(kind):
        array = array.cast(pa.string())
    if is_text(array.type):
        return text_keys(array, hashed=hashed), there
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return as_keys(array.to_numpy(zero_copy_only=False)), there
    hint = "cast the column to integers or text"
    if pa.types.is_floating(kind) and from_pandas:
        hint = (
            "pandas turns integers with missing values into floats: use .astype('Int64') or "
            "read them with dtype_backend='pyarrow'"
        )
    raise DataError(f"ids must be integers or texts, got {kind}; {hint}")


def _dictionary_keys(
    array: pa.DictionaryArray, hashed: bool | None, from_pandas: bool
) -> NDArray[np.uint64]:
    """Hash each category once; `array` has no nulls."""
    if array.dictionary.null_count:
        keys, _ = _keys_of(array.dictionary_decode(), hashed, from_pandas)
        return keys
    names, _ = _keys_of(array.dictionary, hashed, from_pandas)
    picked: NDArray[np.uint64] = names[np.asarray(array.indices)]
    return picked


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
    """Split a text column of numbers, leaving out empty parts as `split_text` does."""
    texts, lengths = list_parts(
        pc.split_pattern(_without_nulls(array.cast(pa.large_string())), separator)
    )
    kept = pc.not_equal(texts, "")
    try:
        numbers = texts.filter(kept).cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise DataError(f"weights must be numbers: {error}") from error
    ends = cumulate(kept.to_numpy(zero_copy_only=False))[cumulate(lengths)]
    return numbers, np.diff(ends)
