"""Keys from text, pairs and crosses: one published hash, the same on every platform and release.

The hash of a text is **XXH64 of its UTF-8 bytes** with seed 0, so that any language can compute
the same key (`xxhash.xxh64(text).intdigest()` in Python). A salt is hashed first and becomes the
seed. These functions are a promise: what they give never changes, since trained rows are stored
by it. `tests/test_hashing.py` pins values.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from downpour.arrow import Column, as_array, is_text, text_buffers
from downpour.errors import DataError
from downpour.xxh64 import cross_rows, hash_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPACE_SEED = 0x646F776E706F7572
"""Seed of `space_salt`: the ASCII letters of "downpour" as one big-endian number."""


def hash_strings(values: Column, *, salt: str = "") -> NDArray[np.uint64]:
    """Hash texts to keys, whatever the texts look like: "5" and "5.0" are two.

    values: [n] texts (list, numpy, Arrow, pandas, polars). salt: another salt gives another,
    unrelated hash; "" is seed 0. Returns uint64 [n]. A missing value has no hash: DataError.
    """
    array = _text_array(values)
    return hash_text(array, np.array([_seed(salt)], np.uint64))


def hash_pairs(features: str | Column, values: Column) -> NDArray[np.uint64]:
    """Hash (feature, value) pairs to keys: the value's text, hashed with the feature as its salt.

    features: one name for all or [n] names. values: [n] texts or integers; an integer is hashed
    as its decimal text, so that 5 and "5" are one value. Returns uint64 [n]. Raises DataError for
    missing values and for other lengths.
    """
    array = _text_array(values)
    if isinstance(features, str):
        return hash_text(array, np.array([_seed(features)], np.uint64))
    seeds = hash_strings(features)
    if len(seeds) != len(array):
        raise DataError(f"hash_pairs: {len(seeds)} features for {len(array)} values; give as many")
    return hash_text(array, seeds)


def cross(first: Column, second: Column) -> NDArray[np.uint64]:
    """Combine two key arrays into one of crossed keys; (a, b) and (b, a) differ.

    first, second: [n] integer keys. Returns uint64 [n]: XXH64 of the two keys as 16 little-endian
    bytes. Cross more than two by crossing again. Raises DataError for floats and other lengths.
    """
    left, right = as_keys(first), as_keys(second)
    if left.shape != right.shape or left.ndim != 1:
        raise DataError(f"cross: keys must be two [n] arrays, got {left.shape} and {right.shape}")
    out = np.empty(len(left), np.uint64)
    cross_rows(left, right, out)
    return out


@lru_cache(maxsize=4096)
def space_salt(space: str) -> np.uint64:
    """Give the salt of an id space: XXH64 of its name with seed `SPACE_SEED`."""
    return np.uint64(_hash_one(space, SPACE_SEED))


def mix(keys: NDArray[np.uint64], salt: np.uint64) -> NDArray[np.uint64]:
    """Mix an id space into ids: keys ^ salt, a bijection that undoes itself.

    keys: uint64 [n]. Returns uint64 [n].
    """
    return keys ^ salt


def hash_text(array: pa.Array, seeds: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash a text array without nulls; seeds: uint64 [1] for all or [n]."""
    data, offsets = text_buffers(array)
    out = np.empty(len(array), np.uint64)
    hash_rows(data, offsets, seeds, out)
    return out


def as_keys(data: Column) -> NDArray[np.uint64]:
    """View or widen integers of any width as uint64 keys, by their bits; no floats.

    Raises DataError for anything that is not an integer or a boolean.
    """
    values = data if isinstance(data, np.ndarray) else np.asarray(as_array(data))
    if values.dtype == np.uint64:
        return np.ascontiguousarray(values)
    if values.dtype == np.int64:
        return np.ascontiguousarray(values).view(np.uint64)
    if values.dtype.kind in "iub":
        return values.astype(np.int64).view(np.uint64)
    if values.size == 0 and values.dtype.kind in "fO":  # what numpy and Arrow make of []
        return values.astype(np.uint64)
    raise DataError(f"ids must be integers, got {values.dtype}")


def _text_array(values: Column) -> pa.Array:
    array = as_array(values)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_integer(array.type):
        array = array.cast(pa.string())
    if array.null_count:
        row = int(np.argmin(array.is_valid().to_numpy(zero_copy_only=False)))
        raise DataError(f"a missing value has no hash (row {row}); drop or fill it first")
    if len(array) == 0:
        return pa.array([], pa.string())
    if not is_text(array.type):
        raise DataError(f"hashing takes texts, got {array.type}; cast the column to text first")
    return array


@lru_cache(maxsize=4096)
def _seed(salt: str) -> int:
    return _hash_one(salt, 0) if salt else 0


def _hash_one(text: str, seed: int) -> int:
    array = pa.array([text], pa.string())
    return int(hash_text(array, np.array([seed], np.uint64))[0])
