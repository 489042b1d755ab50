"""How the entries of a column are read as ids: every spelling of a number is one key.

`Reading` says it for one column. Each entry is read by itself, so its key does not depend on its
neighbours, its file, the format of the file, or the block that it was read in.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from downpour.arrow import is_text, is_view, text_buffers, valid_mask
from downpour.errors import DataError, SettingError
from downpour.hashing import as_keys
from downpour.text_kernels import (
    CODE,
    FLOAT_LIMIT,
    FRACTION,
    NOT_WHOLE,
    NUMBER,
    NUMBER_OR_HASH,
    ODD_FLOAT,
    ROUNDED,
    TOO_LOW,
    UNCLEAR,
    WORD_MISSING,
    WORD_ONE,
    WORD_ZERO,
    count_parts,
    read_rows,
    split_rows,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Keys = NDArray[np.uint64]
    Mask = NDArray[np.bool_]

NULL_VALUES = (
    *("", "nan", "NaN", "-nan", "-NaN", "null", "NULL", "None", "<NA>", "NA", "N/A", "n/a", "\\N"),
    *("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN"),
)
"""Texts that stand for a missing value: those of pandas, and `\\N` of SQL dumps."""

_BOOLEANS = {
    **dict.fromkeys(("False", "false", "FALSE"), WORD_ZERO),
    **dict.fromkeys(("True", "true", "TRUE"), WORD_ONE),
}

_INTEGER_LIMITS = {2: 2**11, 4: 2**24, 8: FLOAT_LIMIT}
"""By the bytes of a float: from here on it may stand for more than one whole number."""

AS_INTEGERS = (
    "pandas turns integers with missing values into floats: use .astype('Int64') or read them "
    "with dtype_backend='pyarrow'"
)

_WHY = {
    NOT_WHOLE: "which is not a whole number of 64 bits; leave `hashed` out (None) to hash such "
    "texts",
    FRACTION: "which is not a whole number; for texts such as versions say hashed=True, which "
    "takes them as they are written",
    ROUNDED: f"a float of 2**53 or more, whose last digits may be lost; {AS_INTEGERS}",
    UNCLEAR: "which may be a number or a code; write numbers without an exponent, or say "
    "hashed=True for codes, which takes texts as they are written",
    TOO_LOW: "which does not fit into 64 bits; for texts say hashed=True, which takes them as they "
    "are written",
    ODD_FLOAT: "a whole number written as a float; as hashed=True takes texts as they are written, "
    "write it as an integer",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """How a column's entries are read as ids.

    hashed: None takes what is a whole number as that id, however it is spelled, and hashes any
    other text; True hashes texts as they are written, and integers by their decimal text; False
    takes whole numbers alone. null_values: texts that stand for no id; one that is blank always
    does. Raises SettingError.
    """

    hashed: bool | None = None
    null_values: tuple[str, ...] = NULL_VALUES

    def __post_init__(self) -> None:
        if self.hashed not in (None, True, False):
            raise SettingError(f"hashed must be None, True or False, got {self.hashed!r}")
        if self.null_values != NULL_VALUES:  # which need no check, nor its kernels when imported
            _word_table(self.null_values)

    @property
    def mode(self) -> int:
        """The same for kernels."""
        return NUMBER_OR_HASH if self.hashed is None else CODE if self.hashed else NUMBER


class EntryError(Exception):
    """An entry is no id; `place`: its number among those that were read."""

    def __init__(self, place: int, value: object, why: str, *, inside: str = "") -> None:
        where = f" in {_short(inside)}" if inside else ""
        super().__init__(f"{_short(value)}{where}, {why}")
        self.place = place


def read_ids(array: pa.Array, reading: Reading) -> tuple[Keys, Mask | None]:
    """Read one id from each entry of an Arrow array.

    Returns (keys uint64 [n], which entries have one, None: all). Raises EntryError for an entry
    that is no id, and DataError for a type that holds none.
    """
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _dictionary_ids(array, reading)
    if pa.types.is_null(kind):
        return _all_missing(len(array))
    if pa.types.is_decimal(kind):
        array = _decimal_texts(array)
    elif reading.hashed and pa.types.is_integer(kind):
        array = array.cast(pa.string())
    if is_text(array.type):
        return _text_ids(array, reading)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if not (is_number or pa.types.is_boolean(kind)):
        raise DataError(
            f"ids must be integers or texts, got {kind}; cast the column to integers or text"
        )
    there = valid_mask(array) if array.null_count else None
    if there is not None:
        array = array.fill_null(0 if is_number else False)
    keys, are_numbers = number_ids(array.to_numpy(zero_copy_only=False), reading)
    if there is None or are_numbers is None:
        return keys, are_numbers if there is None else there
    return keys, there & are_numbers


def number_ids(numbers: NDArray[Any], reading: Reading) -> tuple[Keys, Mask | None]:
    """Read one id from each of these numbers [n] or booleans, as `read_ids` does; NaN is none."""
    there = None
    if numbers.dtype.kind == "b" and reading.hashed:
        raise DataError(
            "booleans have no one spelling, so hashed=True cannot take them as texts; leave "
            "`hashed` out (None) for the ids 0 and 1"
        )
    if numbers.dtype.kind == "f":
        numbers, there = _whole_floats(numbers)
    if not reading.hashed:
        return as_keys(numbers), there
    keys, _ = _text_ids(pa.array(numbers).cast(pa.string()), reading)
    return keys, there


def split_ids(
    array: pa.Array, separator: str, reading: Reading
) -> tuple[Keys, NDArray[np.int64], Mask | None]:
    """Split each text of an Arrow array into a bag of ids; empty parts are left out.

    Returns (keys uint64 [num_parts], offsets int64 [n + 1], which parts have an id, None: all).
    Raises EntryError, whose place is that of the text.
    """
    data, starts = text_buffers(_without_nulls(array))
    mark = np.frombuffer(separator.encode(), np.uint8)
    offsets = np.zeros(len(array) + 1, np.int64)
    count_parts(data, starts, mark, offsets)
    np.cumsum(offsets, out=offsets)
    keys, there = np.empty(offsets[-1], np.uint64), np.empty(offsets[-1], np.bool_)
    missing, bad, row, why = split_rows(
        data, starts, mark, reading.mode, *_word_table(reading.null_values), offsets, keys, there
    )
    if bad >= 0:
        text = _as_text(array[row])
        parts = [part for part in text.split(separator) if part]
        part = parts[bad - offsets[row]]
        raise EntryError(row, part, _WHY[why], inside="" if part == text else text)
    return keys, offsets, there if missing else None


def _all_missing(num: int) -> tuple[Keys, Mask | None]:
    return np.zeros(num, np.uint64), np.zeros(num, np.bool_) if num else None


def _text_ids(array: pa.Array, reading: Reading) -> tuple[Keys, Mask | None]:
    data, offsets = text_buffers(_without_nulls(array))
    keys, there = np.empty(len(array), np.uint64), np.empty(len(array), np.bool_)
    missing, bad, why = read_rows(
        data, offsets, reading.mode, *_word_table(reading.null_values), keys, there
    )
    if bad >= 0:
        raise EntryError(bad, _as_text(array[bad]), _WHY[why])
    return keys, there if missing else None


def _decimal_texts(array: pa.Array) -> pa.Array:
    """Decimals as texts; whole ones without the zeros of their fraction."""
    with suppress(pa.ArrowInvalid):  # of a fraction, which is refused as in a text
        array = array.cast(pa.decimal256(76, 0))
    return array.cast(pa.string())


def _dictionary_ids(array: pa.DictionaryArray, reading: Reading) -> tuple[Keys, Mask | None]:
    """Read each category once."""
    there = valid_mask(array) if array.null_count else None
    indices = np.asarray(array.indices.fill_null(0))
    if len(array.dictionary) == 0:
        return _all_missing(len(array))
    try:
        names, named = read_ids(array.dictionary, reading)
    except EntryError as error:
        used = indices == error.place if there is None else (indices == error.place) & there
        if used.any():
            error.place = int(used.argmax())
            raise
        return read_ids(array.dictionary_decode(), reading)
    if named is not None:
        there = named[indices] if there is None else there & named[indices]
    return names[indices], there


def _whole_floats(numbers: NDArray[Any]) -> tuple[NDArray[np.int64], Mask | None]:
    """The whole numbers that floats are, and which are not NaN (None: all)."""
    limit = _INTEGER_LIMITS.get(numbers.dtype.itemsize, FLOAT_LIMIT)
    there = ~np.isnan(numbers)
    numbers = np.where(there, numbers, 0)
    bad = (np.trunc(numbers) != numbers) | (np.abs(numbers) >= limit)
    if bad.any():
        place = int(bad.argmax())
        value = numbers[place].item()
        if not np.isfinite(value):
            why = "which is not a whole number; drop those rows or make them missing"
        elif value == int(value):
            why = f"a float of 2**{limit.bit_length() - 1} or more, whose last digits may be lost; "
            why += AS_INTEGERS
        else:
            why = "which is not a whole number; ids are whole numbers or texts"
        raise EntryError(place, value, why)
    return numbers.astype(np.int64), None if there.all() else there


def _without_nulls(array: pa.Array) -> pa.Array:
    """With blank texts, which are missing as well, in the place of nulls."""
    if not array.null_count or _are_blank(array):
        return array
    is_bytes = "binary" in str(array.type)
    if is_view(array.type):  # which Arrow cannot fill
        array = array.cast(pa.large_binary() if is_bytes else pa.large_string())
    return array.fill_null(b"" if is_bytes else "")


def _are_blank(array: pa.Array) -> bool:
    """Whether the nulls of a text array have no bytes, as is usual."""
    if is_view(array.type):
        return False
    _, offsets = text_buffers(array)
    return not np.diff(offsets)[~valid_mask(array)].any()


def _as_text(scalar: pa.Scalar) -> str:
    value: str | bytes = scalar.as_py()
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:60]}... ({len(str(value))} characters)"


@lru_cache(maxsize=256)
def _word_table(null_values: tuple[str, ...]) -> tuple[Keys, NDArray[np.uint8]]:
    """The hash table by which kernels know words: XXH64 of each, and what it stands for.

    Both [power of two], 0 in free slots. Raises SettingError for words that are numbers.
    """
    words = _BOOLEANS | {word.strip(): WORD_MISSING for word in null_values if word.strip()}
    size = 1 << max(10, (32 * len(words)).bit_length())  # hardly any other text hits a slot
    keys, meanings = np.zeros(size, np.uint64), np.zeros(size, np.uint8)
    for word, meaning in words.items():
        _require_no_number(word)
        slot = int(key := _read_word(word, NUMBER_OR_HASH)[0]) % size
        while keys[slot]:
            slot = (slot + 1) % size
        keys[slot], meanings[slot] = key, meaning
    return keys, meanings


def _require_no_number(word: str) -> None:
    if _read_word(word, NUMBER)[1] != NOT_WHOLE:
        raise SettingError(
            f"null_values holds {word!r}, which is a number; it is for texts. For an id that "
            "only fills space there is SparseEmbedding(padding_key=)"
        )


def _read_word(word: str, mode: int) -> tuple[np.uint64, int]:
    """The key of a text where no word has a meaning, and why it is refused."""
    data, offsets = text_buffers(pa.array([word], pa.string()))
    no_words, out = (np.zeros(16, np.uint64), np.zeros(16, np.uint8)), np.zeros(1, np.uint64)
    _, _, why = read_rows(data, offsets, mode, *no_words, out, np.zeros(1, np.bool_))
    return out[0], why
