from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downpour.errors import DataError
from downpour.hashing import (
    cross,
    hash_pairs,
    hash_strings,
    mix,
    space_salt,
    split_text,
    text_keys,
)

MASK = 2**64 - 1
P1, P2, P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P4, P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5


def rotate(word: int, count: int) -> int:
    return (word << count | word >> (64 - count)) & MASK


def mixed(state: int, lane: int) -> int:
    return rotate((state + lane * P2) & MASK, 31) * P1 & MASK


def xxh64(text: bytes, seed: int = 0) -> int:
    """The twin of the kernel, from the published description of XXH64."""
    lanes = [int.from_bytes(text[i : i + 8], "little") for i in range(0, len(text) // 8 * 8, 8)]
    state, done = (seed + P5) & MASK, 0
    if len(text) >= 32:
        states = [(seed + P1 + P2) & MASK, (seed + P2) & MASK, seed, (seed - P1) & MASK]
        done = len(text) // 32 * 4
        for i in range(done):
            states[i % 4] = mixed(states[i % 4], lanes[i])
        state = sum(map(rotate, states, (1, 7, 12, 18))) & MASK
        for part in states:
            state = ((state ^ mixed(0, part)) * P1 + P4) & MASK
    state = (state + len(text)) & MASK
    for lane in lanes[done:]:
        state = (rotate(state ^ mixed(0, lane), 27) * P1 + P4) & MASK
    rest = text[len(lanes) * 8 :]
    if len(rest) >= 4:
        word, rest = int.from_bytes(rest[:4], "little"), rest[4:]
        state = (rotate(state ^ word * P1 & MASK, 23) * P2 + P3) & MASK
    for byte in rest:
        state = rotate(state ^ byte * P5 & MASK, 11) * P1 & MASK
    state = (state ^ state >> 33) * P2 & MASK
    state = (state ^ state >> 29) * P3 & MASK
    return state ^ state >> 32


# What these give is stored in every trained table: a change here breaks users' models.
@pytest.mark.parametrize(
    ("text", "salt", "key"),
    [
        ("", "", 0xEF46DB3751D8E999),
        ("a", "", 0xD24EC4F1A98C6E5B),
        ("abc", "", 0x44BC2CF5AD770999),
        ("Nobody inspects the spammish repetition", "", 0xFBCEA83C8A378BF1),
        ("Paris", "city", 0x35023B7E6DBBB1DB),
    ],
)
def test_hashes_are_pinned(text, salt, key):
    assert hash_strings([text], salt=salt).tolist() == [key]


def test_other_functions_are_pinned():
    assert cross([1], [2]).tolist() == [0x4B180FEC3EF3D4AC]
    assert int(space_salt("user")) == 0x0F3F39981EF06984
    assert text_keys(pa.array(["5", "-1", "x"])).tolist() == [5, MASK, xxh64(b"x")]


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.text(max_size=90)), st.text(max_size=5))
def test_strings_equal_the_twin(texts, salt):
    seed = xxh64(salt.encode()) if salt else 0
    expected = [xxh64(text.encode(), seed) for text in texts]
    assert hash_strings(pa.array(texts, pa.string()), salt=salt).tolist() == expected


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.tuples(st.integers(0, MASK), st.integers(0, MASK))))
def test_crosses_equal_the_twin(pairs):
    both = np.array(pairs, np.uint64).reshape(-1, 2)
    expected = [xxh64(a.to_bytes(8, "little") + b.to_bytes(8, "little")) for a, b in pairs]
    assert cross(both[:, 0], both[:, 1]).tolist() == expected


TEXTS = ["comedy", "", "Ünïcödé 漢字", "x" * 40]


COLUMNS = {
    "list": TEXTS,
    "numpy": np.array(TEXTS),
    "numpy objects": np.array(TEXTS, object),
    "numpy strings": np.array(TEXTS, np.dtypes.StringDType()),
    "arrow": pa.array(TEXTS),
    "arrow large": pa.array(TEXTS, pa.large_string()),
    "arrow view": pa.array(TEXTS, pa.string_view()),
    "arrow binary": pa.array(TEXTS).cast(pa.binary()),
    "arrow slice": pa.array(["cut off", *TEXTS, "too"])[1:-1],
    "arrow chunks": pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
    "arrow dictionary": pa.array(TEXTS).dictionary_encode(),
    "pandas": pd.Series(TEXTS),
    "pandas objects": pd.Series(TEXTS, dtype=object),
    "pandas categories": pd.Series(TEXTS, dtype="category"),
    "polars": pl.Series(TEXTS),
    "polars categories": pl.Series(TEXTS, dtype=pl.Categorical),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_kind_of_column_hashes_alike(kind):
    assert hash_strings(COLUMNS[kind]).tolist() == [xxh64(text.encode()) for text in TEXTS]


def test_hashes_are_the_same_in_another_process():
    code = "from downpour.hashing import hash_strings as h; print(int(h(['spam'], salt='x')[0]))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) == int(hash_strings(["spam"], salt="x")[0])


def test_a_pair_is_the_value_salted_by_the_feature():
    pairs = hash_pairs(["city", "user"], ["Paris", "Paris"])
    assert pairs.tolist() == [hash_strings(["Paris"], salt=s)[0] for s in ("city", "user")]
    assert hash_pairs("user", [5, 6]).tolist() == hash_pairs("user", ["5", "6"]).tolist()


def test_no_two_of_many_texts_collide():
    keys = hash_strings(pa.array(range(100_000)).cast(pa.string()))
    assert len(np.unique(keys)) == 100_000
    buckets = np.bincount((keys % np.uint64(64)).astype(int), minlength=64)
    assert buckets.min() > 0.8 * buckets.max()


def test_a_cross_depends_on_order_and_is_no_plain_hash():
    assert len({*cross([1, 2, 1], [2, 1, 1]).tolist(), 1, 2}) == 5


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.integers(0, MASK)), st.text())
def test_mixing_a_space_twice_gives_the_ids_back(ids, space):
    keys = np.array(ids, np.uint64)
    assert np.array_equal(mix(mix(keys, space_salt(space)), space_salt(space)), keys)


def test_spaces_are_apart():
    assert mix(np.array([5], np.uint64), space_salt("user")) != mix(
        np.array([5], np.uint64), space_salt("item")
    )


def number_or_hash(text: str) -> int:
    """The twin of `text_keys`."""
    if re.fullmatch(r"0|-?[1-9][0-9]*", text) and -(2**63) <= int(text) <= MASK:
        return int(text) & MASK
    return xxh64(text.encode())


NUMBER_LIKE = st.one_of(
    st.text(st.sampled_from("-0123456789 .a"), max_size=21),
    st.integers(-(2**64), 2**65).map(str),
    st.integers(-(2**64), 2**65).map("0{}".format),
)


@settings(deadline=None)  # the first call compiles
@given(st.lists(NUMBER_LIKE))
def test_a_text_that_is_a_whole_number_is_that_id(texts):
    keys = text_keys(pa.array(texts, pa.string()))
    assert keys.tolist() == [number_or_hash(text) for text in texts]


EDGES = [2**63, 2**64 - 1, -(2**63)]


@pytest.mark.parametrize("number", [0, 7, -7, *EDGES])
def test_numbers_are_read_whole(number):
    assert text_keys(pa.array([str(number)]), hashed=False).tolist() == [number & MASK]
    assert text_keys(pa.array([str(number)]), hashed=True).tolist() == [xxh64(b"%d" % number)]


@pytest.mark.parametrize("text", ["", "-", "-0", "007", "1.0", " 1", "1e3", str(2**64), "x"])
def test_what_is_not_a_number_is_refused_where_one_must_be(text):
    with pytest.raises(DataError, match=re.escape(f"row 1 holds {text!r}")):
        text_keys(pa.array(["5", text]), hashed=False)


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.text(st.sampled_from("ab1 ,|"), max_size=12)), st.sampled_from([" ", ",", "||"]))
def test_splitting_equals_the_twin(texts, separator):
    keys, offsets = split_text(pa.array(texts, pa.string()), separator)
    bags = [[part for part in text.split(separator) if part] for text in texts]
    assert offsets.tolist() == [0, *np.cumsum([len(bag) for bag in bags]).tolist()]
    assert keys.tolist() == [number_or_hash(part) for bag in bags for part in bag]


def test_a_bad_part_is_named_by_its_row():
    with pytest.raises(DataError, match="row 2 holds '4 x'"):
        split_text(pa.array(["1 2", "3", "4 x"]), " ", hashed=False)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["a", None], r"missing value has no hash \(row 1\)"),
        ([1.5], "takes texts, got double"),
        ("abc", "one entry a sample, got the single text 'abc'"),
        ([["a"], ["b"]], "takes texts, got list"),
        ([1, "a"], "cannot read a list as a column"),
    ],
)
def test_what_has_no_hash_is_refused(column, message):
    with pytest.raises(DataError, match=message):
        hash_strings(column)


def test_pairs_and_crosses_must_be_as_long():
    with pytest.raises(DataError, match="2 features for 1 values"):
        hash_pairs(["a", "b"], ["c"])
    with pytest.raises(DataError, match=r"two \[n\] arrays, got \(1,\) and \(2,\)"):
        cross([1], [1, 2])
    with pytest.raises(DataError, match="ids must be integers, got float64"):
        cross([1.0], [2.0])


def test_hashing_does_not_import_torch():
    code = "import downpour.hashing, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
