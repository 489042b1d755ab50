from __future__ import annotations

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
from downpour.hashing import cross, hash_pairs, hash_strings, mix, space_salt
from downpour.jagged import Jagged
from tests.xxh64_twin import MASK, xxh64


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
    assert Jagged.of(["5", "-1", "x"]).values.tolist() == [5, MASK, xxh64(b"x")]


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


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["a", None], r"missing value has no hash \(row 1\)"),
        ([1.5], "takes texts, got double"),
        ("abc", "one entry a sample, got the single text 'abc'"),
        ([["a"], ["b"]], "takes texts, got list"),
        ([1, [2]], "cannot read a list as a column"),
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
