"""Kernels that read ids from the bytes of texts. See `downpour.ids`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from downpour.jit import inlined, kernel
from downpour.xxh64 import xxh64

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Keys = NDArray[np.uint64]

NUMBER_OR_HASH, CODE, NUMBER = 0, 1, 2
"""How texts are read as ids: `hashed` None, True and False of `downpour.ids.Reading`."""

GOOD, MISSING, NOT_WHOLE, FRACTION, ROUNDED, UNCLEAR, TOO_LOW, ODD_FLOAT = 0, 1, 2, 3, 4, 5, 6, 7
"""What came of reading a text as an id. From NOT_WHOLE on it is refused."""

WORD_ZERO, WORD_ONE, WORD_MISSING = 0, 1, 2
"""What a word of a `word_table` stands for."""

# What a text that may be a number turns out to be, beside FRACTION, ROUNDED and UNCLEAR.
_BLANK, _TEXT, _WHOLE, _BIG, _WHOLE_FLOAT = 10, 11, 12, 13, 14

_DIGIT, _SIGN, _POINT, _EXPONENT, _SPACE, _OTHER = 1, 2, 4, 8, 16, 32
_MARKS = np.full(256, _OTHER, np.uint8)
_MARKS[list(b"0123456789")] = _DIGIT
_MARKS[list(b"+-")] = _SIGN
_MARKS[list(b".")] = _POINT
_MARKS[list(b"eE")] = _EXPONENT
_MARKS[list(b" \t\n\v\f\r")] = _SPACE

FLOAT_LIMIT = 2**53
"""From here on a float64 may stand for more than one whole number."""

CODE_LENGTH = 8
"""From this length on, digits with an "e" among them are a code: no program prints such numbers."""

_ZERO, _TEN = np.uint64(0), np.uint64(10)


# Positions are uint64, so that numba leaves out its test for negative indices.


@kernel
def _number(data: Bytes, at: np.uint64, stop: np.uint64) -> tuple[bool, np.uint64]:
    """Read a whole number written the one way that it is printed; (is one, its 64 bits)."""
    negative = at < stop and data[at] == 45
    if negative:
        at += np.uint64(1)
    size = stop - at
    if size == 0 or size > 20 or (data[at] == 48 and (size > 1 or negative)):
        return False, _ZERO
    value, before, worst = _ZERO, _ZERO, _ZERO
    for i in range(size):  # no way out of the loop: where letters begin cannot be predicted
        digit = np.uint64(data[at + np.uint64(i)]) - np.uint64(48)  # below "0" wraps to huge
        worst = max(worst, digit)
        before = value
        value = value * _TEN + digit
    last = np.uint64(data[stop - np.uint64(1)]) - np.uint64(48)
    limit = np.uint64(1) << np.uint64(63) if negative else ~_ZERO
    if worst > np.uint64(9) or (size > 18 and before > (limit - last) // _TEN):
        return False, _ZERO
    return True, _ZERO - value if negative else value


@kernel
def _marks(data: Bytes, at: np.uint64, stop: np.uint64) -> int:
    """Which kinds of bytes a text has, until one that no number has."""
    seen = 0
    while at < stop and seen < _OTHER:
        seen |= _MARKS[data[at]]
        at += np.uint64(1)
    return seen


@kernel
def _trimmed(data: Bytes, at: np.uint64, stop: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Leave out the blanks at both ends."""
    while at < stop and _MARKS[data[at]] == _SPACE:
        at += np.uint64(1)
    while at < stop and _MARKS[data[stop - np.uint64(1)]] == _SPACE:
        stop -= np.uint64(1)
    return at, stop


@kernel
def _digits_end(data: Bytes, at: np.uint64, stop: np.uint64) -> np.uint64:
    while at < stop and _MARKS[data[at]] == _DIGIT:
        at += np.uint64(1)
    return at


@kernel
def _signed(data: Bytes, at: np.uint64, stop: np.uint64) -> tuple[bool, np.uint64]:
    """Whether there is a minus, and where the digits after a sign begin."""
    if at < stop and _MARKS[data[at]] == _SIGN:
        return data[at] == 45, at + np.uint64(1)
    return False, at


@kernel
def _without_zeros(data: Bytes, at: np.uint64, stop: np.uint64) -> np.uint64:
    """Where digits begin without leading zeros; the last digit stays."""
    while at + np.uint64(1) < stop and data[at] == 48:
        at += np.uint64(1)
    return at


@kernel
def _scaled(data: Bytes, at: np.uint64, stop: np.uint64, scale: int) -> tuple[int, np.uint64]:
    """Read digits, with a point among them or not, times 10**scale: what it is, and its value."""
    value, size, zeros, is_behind_point = _ZERO, 0, 0, False
    for i in range(stop - at):
        byte = data[at + np.uint64(i)]
        if byte == 46:
            is_behind_point = True
            continue
        if is_behind_point:
            scale -= 1
        if byte != 48:
            size += zeros + 1
            if size <= 17:
                for _ in range(zeros + 1):
                    value *= _TEN
                value += np.uint64(byte) - np.uint64(48)
            zeros = 0
        elif size > 0:
            zeros += 1  # counts once another digit follows
    if size == 0:
        return _WHOLE_FLOAT, _ZERO
    scale += zeros
    if scale < 0:
        return FRACTION, _ZERO
    if size + scale > 16:
        return ROUNDED, _ZERO
    for _ in range(scale):
        value *= _TEN
    return (ROUNDED if value >= np.uint64(FLOAT_LIMIT) else _WHOLE_FLOAT), value


@kernel
def _exponent(data: Bytes, at: np.uint64, stop: np.uint64) -> tuple[bool, bool, int]:
    """Read what follows the digits of a number: whether it is an exponent, signed, and which."""
    if at == stop:
        return True, False, 0
    if _MARKS[data[at]] != _EXPONENT:
        return False, False, 0
    negative, first = _signed(data, at + np.uint64(1), stop)
    if first == stop or _digits_end(data, first, stop) < stop:
        return False, False, 0
    value = 0
    for i in range(first, stop):
        value = min(10 * value + int(data[i]) - 48, 9999)
    return True, bool(first > at + np.uint64(1)), -value if negative else value


@kernel
def _whole(data: Bytes, at: np.uint64, stop: np.uint64, negative: bool) -> tuple[int, np.uint64]:
    """Read digits that are a whole number: _WHOLE and its 64 bits, or _BIG."""
    fits, value = _number(data, _without_zeros(data, at, stop), stop)
    if not fits or (negative and value > np.uint64(1) << np.uint64(63)):
        return _BIG, _ZERO
    return _WHOLE, _ZERO - value if negative else value


@kernel
def _spelled(data: Bytes, at: np.uint64, stop: np.uint64) -> tuple[int, np.uint64]:
    """Read a text without blanks around it that may spell a number: what it is, and its value."""
    if _marks(data, at, stop) >= _OTHER:
        return _TEXT, _ZERO
    negative, first = _signed(data, at, stop)
    end = _digits_end(data, first, stop)
    if end == stop and end > first:
        return _whole(data, first, stop, negative)
    has_digits, has_point = end > first, end < stop and data[end] == 46
    if has_point:
        point = end
        end = _digits_end(data, point + np.uint64(1), stop)
        has_digits = has_digits or end > point + np.uint64(1)
    is_number, is_signed, scale = _exponent(data, end, stop)
    if not (is_number and has_digits):
        return _TEXT, _ZERO
    if not (has_point or is_signed or first > at):  # 1e3
        return (_TEXT if stop - at >= np.uint64(CODE_LENGTH) else UNCLEAR), _ZERO
    kind, value = _scaled(data, first, end, scale)
    return kind, _ZERO - value if negative else value


@kernel
def _meaning(key: np.uint64, words: Keys, meanings: Bytes) -> int:
    """What the word of this hash stands for; -1 where it is none of the table."""
    last = np.uint64(len(words) - 1)
    slot = key & last
    while words[slot] != _ZERO:
        if words[slot] == key:
            return int(meanings[slot])
        slot = (slot + np.uint64(1)) & last
    return -1


@kernel
def _text_id(
    data: Bytes, at: np.uint64, stop: np.uint64, mode: int, words: Keys, meanings: Bytes
) -> tuple[int, np.uint64]:
    """Read a text that spells no number."""
    key = xxh64(data, at, stop, _ZERO)
    first, last = _trimmed(data, at, stop)
    is_whole_text = first == at and last == stop
    word = key if is_whole_text else xxh64(data, first, last, _ZERO)
    meaning = _meaning(word, words, meanings)
    if meaning == WORD_MISSING:
        return MISSING, _ZERO
    if meaning >= 0 and mode != CODE:
        return GOOD, np.uint64(meaning)
    return (NOT_WHOLE, _ZERO) if mode == NUMBER else (GOOD, key)


@kernel
def _code_id(data: Bytes, at: np.uint64, stop: np.uint64, kind: int) -> tuple[int, np.uint64]:
    """Hash a whole number as it is written, without the .0 that it has where it was a float."""
    if kind != _WHOLE_FLOAT:
        return GOOD, xxh64(data, at, stop, _ZERO)
    point = at
    while point < stop and data[point] != 46:
        point += np.uint64(1)
    is_plain, _ = _number(data, at, point)
    if not is_plain or _digits_end(data, point + np.uint64(1), stop) < stop:
        return ODD_FLOAT, _ZERO
    return GOOD, xxh64(data, at, point, _ZERO)


@kernel
def _any_id(
    data: Bytes, at: np.uint64, stop: np.uint64, mode: int, words: Keys, meanings: Bytes
) -> tuple[int, np.uint64]:
    """Read any text as an id: what came of it, and its key."""
    first, last = _trimmed(data, at, stop)
    if first == last:
        return MISSING, _ZERO
    kind, value = _spelled(data, first, last)
    if kind == _TEXT or (mode == CODE and kind in (FRACTION, UNCLEAR)):
        return _text_id(data, at, stop, mode, words, meanings)
    if kind < _BLANK:
        return kind, _ZERO
    if mode == CODE:
        return _code_id(data, first, last, kind)
    if kind != _BIG:
        return GOOD, value
    if mode == NUMBER:
        return NOT_WHOLE, _ZERO
    negative, digits = _signed(data, first, last)
    if negative:  # its text may have zeros within
        return TOO_LOW, _ZERO
    return GOOD, xxh64(data, _without_zeros(data, digits, last), last, _ZERO)


@inlined
def _scanned(data: Bytes, at: np.uint64, stop: np.uint64) -> tuple[int, np.uint64]:
    """The kinds of bytes in a short text, and its value where all of them are digits.

    There is no way out of the loop: where letters begin cannot be predicted.
    """
    seen, value = 0, _ZERO
    for i in range(stop - at):
        byte = data[at + np.uint64(i)]
        seen |= _MARKS[byte]
        value = value * _TEN + (np.uint64(byte) - np.uint64(48))
    return seen, value


@inlined
def _has_point_or_sign(data: Bytes, at: np.uint64, stop: np.uint64) -> bool:
    found = False
    for i in range(stop - at):
        byte = data[at + np.uint64(i)]
        found |= (byte == 46) | (byte == 43) | (byte == 45)
    return found


@inlined
def _id(
    data: Bytes, at: np.uint64, stop: np.uint64, mode: int, words: Keys, meanings: Bytes
) -> tuple[int, np.uint64]:
    """The same as `_any_id`, fast for what is common: plain numbers, and texts that are no word."""
    size = stop - at
    if size == _ZERO:
        return MISSING, _ZERO
    if size > np.uint64(20):
        seen, value = _scanned(data, at, at + np.uint64(8))
        is_text = seen >= _OTHER or _marks(data, at, stop) >= _OTHER
    elif mode == CODE:
        is_text = not _has_point_or_sign(data, at, stop)
    else:
        seen, value = _scanned(data, at, stop)
        fits = size < np.uint64(20) or (data[at] == 49 and value >= np.uint64(10**19))
        if seen == _DIGIT and fits and (data[at] != 48 or size == np.uint64(1)):
            return GOOD, value
        is_text = seen >= _OTHER
    has_blank = _MARKS[data[at]] == _SPACE or _MARKS[data[stop - np.uint64(1)]] == _SPACE
    if is_text and mode != NUMBER and not has_blank:
        key = xxh64(data, at, stop, _ZERO)
        if words[key & np.uint64(len(words) - 1)] == _ZERO:
            return GOOD, key
    return _any_id(data, at, stop, mode, words, meanings)


@kernel
def _are_plain(data: Bytes, at: np.uint64, stop: np.uint64) -> bool:
    """Whether there is no blank, sign or point in texts, without which none is a float."""
    found = False
    for i in range(at, stop):
        byte = data[i]
        found |= (byte <= 32) | (byte == 43) | (byte == 45) | (byte == 46)
    return not found


@kernel
def _read_codes(
    data: Bytes,
    offsets: NDArray[np.int64],
    words: Keys,
    meanings: Bytes,
    out: Keys,
    there: NDArray[np.bool_],
) -> int:
    """Hash every text as it is; the number missing."""
    for row in range(len(out)):
        out[row] = xxh64(data, np.uint64(offsets[row]), np.uint64(offsets[row + 1]), _ZERO)
    num_missing = 0
    for row in range(len(out)):
        is_missing = offsets[row] == offsets[row + 1]
        if words[out[row] & np.uint64(len(words) - 1)] != _ZERO:
            is_missing |= _meaning(out[row], words, meanings) == WORD_MISSING
        there[row] = not is_missing
        num_missing += is_missing
    return num_missing


@kernel
def read_rows(
    data: Bytes,
    offsets: NDArray[np.int64],
    mode: int,
    words: Keys,
    meanings: Bytes,
    out: Keys,
    there: NDArray[np.bool_],
) -> tuple[int, int, int]:
    """Fill `out` with the id of each text, and `there` with whether it has one.

    words, meanings: of `word_table`. Returns (number missing, first row refused or -1, why).
    """
    if mode == CODE and _are_plain(data, np.uint64(offsets[0]), np.uint64(offsets[-1])):
        return _read_codes(data, offsets, words, meanings, out, there), -1, GOOD
    num_missing = 0
    for row in range(len(out)):
        at, stop = np.uint64(offsets[row]), np.uint64(offsets[row + 1])
        result, out[row] = _id(data, at, stop, mode, words, meanings)
        if result > MISSING:
            return num_missing, row, result
        there[row] = result == GOOD
        num_missing += result
    return num_missing, -1, GOOD


@kernel
def _part_end(data: Bytes, at: np.uint64, stop: np.uint64, mark: Bytes) -> np.uint64:
    """Find the next separator at or after `at`; `stop` where there is none."""
    width = np.uint64(len(mark))
    while at + width <= stop:
        same = np.uint64(0)
        while same < width and data[at + same] == mark[same]:
            same += np.uint64(1)
        if same == width:
            return at
        at += np.uint64(1)
    return stop


@kernel
def count_parts(
    data: Bytes,
    starts: NDArray[np.int64],
    mark: Bytes,
    offsets: NDArray[np.int64],
) -> None:
    """Write the number of non-empty parts of row i to offsets[i + 1]."""
    for row in range(len(starts) - 1):
        at, stop, count = np.uint64(starts[row]), np.uint64(starts[row + 1]), 0
        while at < stop:
            end = _part_end(data, at, stop, mark)
            count += 1 if end > at else 0
            at = end + np.uint64(len(mark))
        offsets[row + 1] = count


@kernel
def split_rows(
    data: Bytes,
    starts: NDArray[np.int64],
    mark: Bytes,
    mode: int,
    words: Keys,
    meanings: Bytes,
    offsets: NDArray[np.int64],
    out: Keys,
    there: NDArray[np.bool_],
) -> tuple[int, int, int, int]:
    """Fill `out` with the id of each part, row after row, and `there` with whether it has one.

    Returns (number missing, place of the first part refused or -1, its row, why).
    """
    num_missing = 0
    for row in range(len(starts) - 1):
        at, stop = np.uint64(starts[row]), np.uint64(starts[row + 1])
        place = int(offsets[row])
        while at < stop:
            end = _part_end(data, at, stop, mark)
            if end > at:
                result, out[place] = _id(data, at, end, mode, words, meanings)
                if result > MISSING:
                    return num_missing, place, row, result
                there[place] = result == GOOD
                num_missing += result
                place += 1
            at = end + np.uint64(len(mark))
    return num_missing, -1, -1, GOOD
