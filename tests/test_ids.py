"""One id, one key: however a number is spelled, and whatever brings it."""

from __future__ import annotations

import re
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from downpour.data import Feature, Schema
from downpour.errors import DataError, SettingError
from downpour.ids import NULL_VALUES
from downpour.jagged import Jagged
from tests.xxh64_twin import MASK, xxh64

BLANKS = " \t\n\v\f\r"
BOOLEANS = {"True": 1, "true": 1, "TRUE": 1, "False": 0, "false": 0, "FALSE": 0}


def hashed(text: str) -> int:
    return xxh64(text.encode())


class RefusedError(Exception):
    """The twin refuses the text."""


def twin(text: str, how: bool | None = None) -> int | None:
    """The key of a text, None where it is missing; by Python's own numbers."""
    bare = text.strip(BLANKS)
    if not bare or bare in NULL_VALUES:
        return None
    if re.fullmatch(r"[+-]?[0-9]+", bare):
        if how is True:
            return hashed(bare)
        if -(2**63) <= int(bare) <= MASK:
            return int(bare) & MASK
        if how is None and bare[0] == "-":
            raise RefusedError
        return _text(str(int(bare)), how)
    number = re.fullmatch(r"([+-]?)([0-9]*)(\.?)([0-9]*)(?:[eE]([+-]?)([0-9]+))?", bare)
    if number is None or not number[2] + number[4]:
        return BOOLEANS[bare] if how is not True and bare in BOOLEANS else _text(text, how)
    if not (number[1] or number[3] or number[5]):  # 1e3
        if len(bare) >= 8 or how is True:
            return _text(text, how)
        raise RefusedError
    value = Decimal(bare)
    if value != value.to_integral_value():
        if how is True:
            return _text(text, how)
        raise RefusedError
    if abs(value) >= 2**53:
        raise RefusedError
    if how is True:
        if re.fullmatch(r"(0|-?[1-9][0-9]*)\.0*", bare) is None:
            raise RefusedError
        return hashed(bare.partition(".")[0])
    return int(value) & MASK


def _text(text: str, how: bool | None) -> int:
    if how is False:
        raise RefusedError
    return hashed(text)


NUMBER_LIKE = st.one_of(
    st.text(st.sampled_from("-+0123456789 .eEa"), max_size=22),
    st.builds(
        "{}{}{}{}{}".format,
        st.sampled_from(["", " ", "\t", "0", "00", "+", "-", "-00"]),
        st.integers(0, 2**65) | st.integers(0, 99) | st.sampled_from([2**53 - 1, 2**63, 2**64 - 1]),
        st.sampled_from(["", ".", ".0", ".000", ".50", ".5"]),
        st.sampled_from(["", "e0", "e+0", "e+3", "E+03", "e-2", "e3", "e16", "e400", "e-400"]),
        st.sampled_from(["", " ", "  ", "\r", "x"]),
    ),
    st.integers(-(2**64), 2**65).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(0, 2.0**60).map(lambda value: repr(float(round(value)))),
    st.integers(0, 2**54).map(lambda value: f"{value:e}"),
    st.sampled_from(["18446744073709551615", "18446744073709551616", "-9223372036854775808"]),
    st.sampled_from(["-9223372036854775809", "00000000000000000000000000000000000000007", "1e3"]),
    st.sampled_from(["12345e67", "1234e567", "nan", "NULL", " None ", "True", "#N/A N/A", "-"]),
    st.text(max_size=12),
)


def read(texts: list[str], how: bool | None = None) -> list[list[int]]:
    return Jagged.of(pa.array(texts, pa.string()), hashed=how).to_list()


@settings(deadline=None, max_examples=500)  # the first call compiles
@given(NUMBER_LIKE, st.sampled_from([None, True, False]))
@example("-0", None)
@example("1" * 20, None)
@example("9" * 20, None)
def test_reading_a_text_equals_the_twin(text, how):
    try:
        expected = twin(text, how)
    except RefusedError:
        with pytest.raises(DataError, match="row 1 holds"):
            read(["5", text], how)
    else:
        assert read([text], how) == [[] if expected is None else [expected]]


@settings(deadline=None)
@given(
    st.lists(st.text(st.sampled_from("ab17 .-|"), max_size=12)), st.sampled_from([" ", "|", "||"])
)
def test_splitting_equals_the_twin(texts, separator):
    parts = [[part for part in text.split(separator) if part] for text in texts]
    try:
        expected = [[twin(part) for part in bag] for bag in parts]
    except RefusedError:
        with pytest.raises(DataError, match=r"row \d+ holds"):
            Jagged.of(texts, separator=separator)
    else:
        bags = [[key for key in bag if key is not None] for bag in expected]
        assert Jagged.of(pa.array(texts, pa.string()), separator=separator).to_list() == bags


SPELLINGS = ["17", "17.0", "17.00", "17.", "17 ", " 17", "\t17", "017", "+17", "1.7e1", "1.7e+01"]
SPELLINGS += ["17e+0", "170e-1", "0017.0 "]


def test_every_spelling_of_a_number_is_one_id():
    assert read(SPELLINGS) == [[17]] * len(SPELLINGS)
    assert read(SPELLINGS, False) == [[17]] * len(SPELLINGS)
    assert read(["-1", "-1.0", " -01"]) == [[MASK]] * 3
    assert read(["0", "-0", "+0", "00", "0.0", "-0.0"]) == [[0]] * 6
    big = "123456789012345678901234567890"
    assert read([big, f"0{big}", f" +{big}"]) == [[hashed(big)]] * 3


@pytest.mark.parametrize(
    "text", ["u17", "abc", "68fd1e64", "12345e67", "1.2.3", "2021-01-05", "17a"]
)
def test_other_texts_are_hashed_as_they_are(text):
    assert read([text, f"{text} ", text]) == [[hashed(text)], [hashed(f"{text} ")], [hashed(text)]]
    with pytest.raises(DataError, match=f"row 0 holds '{text}', which is not a whole number of 64"):
        read([text], False)


@pytest.mark.parametrize(
    "text", ["", " ", "nan", "NaN", "NULL", "null", "\\N", "NA", "None", " nan "]
)
@pytest.mark.parametrize("how", [None, True, False])
def test_what_says_missing_is_no_id(text, how):
    assert read(["3", text, "5"], how)[1] == []
    assert Jagged.of([["3", text, "5"]], hashed=how).lengths.tolist() == [2]
    assert Jagged.of([f"3|{text}|5", text], hashed=how, separator="|").lengths.tolist() == [2, 0]
    categories = pa.array(["3", text, "3", None]).dictionary_encode()
    assert Jagged.of(categories, hashed=how).lengths.tolist() == [1, 0, 1, 0]


def test_which_texts_say_missing_may_be_said():
    countries = Feature("country", null_values=["-"])
    bags = Schema(features=[countries]).batch({"country": ["NA", "-", "", None, "None"]})
    assert bags.features["country"].to_list() == [[hashed("NA")], [], [], [], [hashed("None")]]
    assert eval(repr(countries)) == countries
    for values in (["-", "0"], ["1.5"], ["1e3"]):
        with pytest.raises(
            SettingError, match=r"null_values holds '.*', which is a number.*padding"
        ):
            Feature("user", null_values=values)
    with pytest.raises(SettingError, match="must be a list of texts, got the text 'nan'"):
        Feature("user", null_values="nan")


def test_weights_stay_with_their_ids_where_some_are_missing():
    bags = Jagged.of(["3|nan|5", "NULL"], weights=["1|2|4", "8"], separator="|")
    assert bags == Jagged([3, 5], [0, 2, 2], [1, 4])


REFUSED = {
    "a fraction": (
        ["17", "17.5"],
        "row 1 holds '17.5', which is not a whole number; .*hashed=True",
    ),
    "lost digits": ([" ", "1e+16"], r"row 1 holds '1e\+16', a float of 2\*\*53 or more.*Int64"),
    "too large": (["9007199254740992.0"], "last digits may be lost"),
    "code or number": (
        ["5", "1e3"],
        "row 1 holds '1e3', which may be a number or a code; .*hashed",
    ),
    "below 64 bits": (["-9223372036854775809"], "which does not fit into 64 bits"),
    "in a list": ([["1"], ["2", "x.5", "2.5"]], "row 1 holds '2.5'"),
    "a long text": ([f"{'1' * 99}.5"], r"row 0 holds '1{59}... \(101 characters\), which"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_may_be_another_id_is_refused_with_row_and_value(kind):
    column, message = REFUSED[kind]
    with pytest.raises(DataError, match=message):
        Jagged.of(column)


def test_rows_are_counted_with_those_that_are_missing():
    for column in ([None, "", "2.5"], pa.array([None, None, "2.5"]), pa.array([None, None, 2.5])):
        with pytest.raises(DataError, match=r"row 2 holds '?2\.5'?, which is not"):
            Jagged.of(column)
    with pytest.raises(DataError, match=r"row 2 holds '4.5' in '3\|4.5', which"):
        Jagged.of(["1", None, "3|4.5"], separator="|")
    with pytest.raises(DataError, match=r"row 2 holds '4\.5', which"):
        Jagged.of(pa.array(["1", None, "4.5"]).dictionary_encode())


def test_a_category_that_nothing_has_refuses_nothing():
    unused = pa.DictionaryArray.from_arrays(pa.array([1, None, 1]), pa.array(["4.5", "4"]))
    assert Jagged.of(unused).to_list() == [[4], [], [4]]


def test_hashed_texts_are_taken_as_they_are_written():
    codes = ["007", "7", "1.10", "1.1", "1e3", "+7", "u", "True"]
    assert read(codes, True) == [[hashed(code)] for code in codes]
    # but what only programs write: blanks, and the .0 of integers that were floats
    assert read([" 7 ", "7.0", "7.00", "-7.0"], True) == [[hashed("7")]] * 3 + [[hashed("-7")]]
    for odd in ("1.7e+01", "-0.0", "07.0"):
        with pytest.raises(DataError, match="a whole number written as a float"):
            read([odd], True)
    with pytest.raises(DataError, match="booleans have no one spelling"):
        Jagged.of([True, False], hashed=True)


def test_other_settings_of_hashed_are_refused():
    with pytest.raises(SettingError, match="hashed must be None, True or False, got 'yes'"):
        Feature("user", hashed="yes")
