"""The same ids by every door: lists, arrays, tensors, frames, and files of every format."""

from __future__ import annotations

import tempfile
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from downpour.data import Feature, Files, Frame, Schema
from downpour.data.readers import BLOCK_BYTES
from downpour.jagged import Jagged
from tests.xxh64_twin import MASK, xxh64

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA = Schema(features=["user"])
Entry = int | str | None


def key(entry: Entry) -> list[int]:
    if entry is None:
        return []
    return [entry & MASK if isinstance(entry, int) else xxh64(entry.encode())]


def as_text(entry: Entry) -> str | None:
    return None if entry is None else str(entry)


def columns(entries: list[Entry]) -> Iterator[tuple[str, Any]]:
    """Every way in which these entries can be a column."""
    numbers = [entry for entry in entries if isinstance(entry, int)]
    texts = [as_text(entry) for entry in entries]
    yield "list", entries
    yield "tuple", tuple(entries)
    yield "list with NaN", [float("nan") if entry is None else entry for entry in entries]
    yield "numpy objects", np.array([*entries, None], object)[:-1]
    yield "pandas objects", pd.Series(entries, dtype=object)
    yield "pandas texts", pd.Series(texts, dtype="str")
    yield "pandas text objects", pd.Series(texts, dtype=object)
    yield "pandas categories", pd.Series(texts, dtype="category")
    yield "polars texts", pl.Series(texts, dtype=pl.String)
    yield "polars categories", pl.Series(texts, dtype=pl.Categorical)
    yield "polars objects", pl.Series(entries, dtype=pl.Object)
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary()):
        yield f"arrow {kind}", pa.array(texts, kind)
    yield "arrow text dictionary", pa.array(texts, pa.string()).dictionary_encode()
    if any(isinstance(entry, str) for entry in entries):
        return
    decimals = [None if entry is None else Decimal(str(entry)) for entry in entries]
    yield "arrow decimal", pa.array(decimals, pa.decimal128(22, 2))
    yield "pandas decimals", pd.Series(decimals, dtype=object)
    if all(-(2**63) <= number < 2**63 for number in numbers):
        yield "arrow int64", pa.array(entries, pa.int64())
        yield "arrow dictionary", pa.array(entries, pa.int64()).dictionary_encode()
        yield "pandas Int64", pd.Series(entries, dtype="Int64")
        yield "pandas arrow", pd.Series(entries, dtype="int64[pyarrow]")
        yield "polars Int64", pl.Series(entries, dtype=pl.Int64)
        if None not in entries:
            yield "numpy int64", np.array(entries, np.int64)
            yield "torch int64", torch.tensor(entries, dtype=torch.int64)
    if all(number >= 0 for number in numbers):
        yield "arrow uint64", pa.array(entries, pa.uint64())
        yield "pandas UInt64", pd.Series(entries, dtype="UInt64")
        yield "polars UInt64", pl.Series(entries, dtype=pl.UInt64)
        if None not in entries:
            yield "numpy uint64", np.array(entries, np.uint64)
    if all(abs(number) < 2**53 for number in numbers):
        floats = [float("nan") if entry is None else float(entry) for entry in entries]
        yield "pandas floats", pd.Series(floats)
        yield "pandas float categories", pd.Series(floats, dtype="category")
        yield "pandas Float64", pd.Series(entries, dtype="Float64")
        yield "numpy floats", np.array(floats)
        yield "torch floats", torch.tensor(floats, dtype=torch.float64)
        yield (
            "polars floats",
            pl.Series([None if x is None else float(x) for x in entries], dtype=pl.Float64),
        )
        yield "arrow floats with nulls", pa.array(entries, pa.float64())
        yield "arrow floats with NaN", pa.array(floats)
        yield "texts of floats", [str(x) for x in floats]


def frames(entries: list[Entry]) -> Iterator[tuple[str, Any]]:
    """Every column in the frame of its library."""
    for name, column in columns(entries):
        if isinstance(column, pd.Series):
            yield f"frame of {name}", pd.DataFrame({"user": column, "row": range(len(column))})
        elif isinstance(column, pl.Series):
            yield f"frame of {name}", pl.DataFrame({"user": column})
        elif isinstance(column, pa.Array):
            yield f"table of {name}", pa.table({"user": column})
        else:
            yield f"dict of {name}", {"user": column}


def written(entries: list[Entry], folder: Path) -> Iterator[Path]:
    """Every frame in files of each format that its library writes."""
    for number, (name, frame) in enumerate(frames(entries)):
        if "objects" in name:
            continue
        path = folder / f"{number} {name}"
        if isinstance(frame, pd.DataFrame):
            for suffix, mark in ((".csv", ","), (".tsv", "\t")):
                frame.to_csv(path.with_suffix(suffix), sep=mark, index=False)
                yield path.with_suffix(suffix)
            frame.to_csv(path.with_suffix(".nulls.csv"), index=False, na_rep="NULL")
            yield path.with_suffix(".nulls.csv")
            frame.to_parquet(path.with_suffix(".parquet"))
            yield path.with_suffix(".parquet")
        elif isinstance(frame, pl.DataFrame):
            frame.with_columns(row=0).write_csv(path.with_suffix(".csv"))
            yield path.with_suffix(".csv")
            frame.write_parquet(path.with_suffix(".parquet"))
            yield path.with_suffix(".parquet")
        elif isinstance(frame, pa.Table):
            pyarrow.parquet.write_table(frame, path.with_suffix(".parquet"))
            yield path.with_suffix(".parquet")
            pyarrow.feather.write_feather(frame, path.with_suffix(".arrow"))
            yield path.with_suffix(".arrow")
            if "float" in name:
                plain = frame.append_column("row", pa.array(range(len(frame)), pa.int64()))
                pyarrow.csv.write_csv(plain, path.with_suffix(".csv"))
                yield path.with_suffix(".csv")


def ids(numbers: st.SearchStrategy[int]) -> st.SearchStrategy[list[Entry]]:
    return st.lists(numbers | st.none(), min_size=1, max_size=5)


SMALL = ids(st.integers(-(2**53) + 1, 2**53 - 1) | st.integers(0, 30))
SIGNED = ids(st.integers(-(2**63), 2**63 - 1))
UNSIGNED = ids(st.integers(0, MASK) | st.integers(2**63, MASK))
ANY = ids(st.integers(-(2**63), MASK))
TEXTS = st.lists(
    st.integers(0, MASK) | st.none() | st.sampled_from(["u17", "abc", "68fd1e64", "1.2.3", "Ünï"]),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=60)
@given(SMALL | SIGNED | UNSIGNED | ANY | TEXTS)
@example([17, None, 3])
@example([17, None, "u17"])
@example([2**63, None, MASK])
@example([-1, 2**63])
@example([None, None])
def test_the_same_ids_in_memory_have_the_same_keys(entries):
    expected = [key(entry) for entry in entries]
    for name, column in columns(entries):
        assert (name, Jagged.of(column).to_list()) == (name, expected)
    for name, frame in frames(entries):
        samples = Frame(frame, SCHEMA, batch_size=1).samples
        assert (name, samples.features["user"].to_list()) == (name, expected)


@settings(deadline=None, max_examples=15)
@given(SMALL | SIGNED | UNSIGNED | ANY | TEXTS)
@example([17, None, 3])
@example([17, None, "u17"])
@example([2**63, None, MASK])
def test_the_same_ids_in_files_have_the_same_keys(entries):
    expected = [key(entry) for entry in entries]
    with tempfile.TemporaryDirectory() as folder:
        for path in written(entries, Path(folder)):
            (batch,) = Files(path, SCHEMA, batch_size=9).batches()
            assert (path.name, batch.features["user"].to_list()) == (path.name, expected)


@settings(deadline=None, max_examples=60)
@given(SMALL | SIGNED | UNSIGNED | TEXTS)
def test_hashed_ids_have_the_same_keys(entries):
    expected = [[] if entry is None else [xxh64(str(entry).encode())] for entry in entries]
    for name, column in columns(entries):
        assert (name, Jagged.of(column, hashed=True).to_list()) == (name, expected)


@settings(deadline=None, max_examples=60)
@given(st.lists(SMALL | UNSIGNED | ANY | TEXTS, min_size=1, max_size=4))
@example([[3, None, 5], [], [2**63]])
@example([[3, None, 5], [-1, 2**63]])
def test_the_same_bags_have_the_same_keys(bags):
    expected = [[number for entry in bag for number in key(entry)] for bag in bags]
    texts = [[as_text(entry) for entry in bag] for bag in bags]
    doors: dict[str, Any] = {
        "lists": bags,
        "numpy objects": np.array([*bags, None], object)[:-1],
        "pandas objects": pd.Series(bags),
        "lists of texts": texts,
        "arrow": pa.array(texts, pa.list_(pa.string())),
        "polars": pl.Series(texts, dtype=pl.List(pl.String)),
    }
    for name, column in doors.items():
        assert (name, Jagged.of(column).to_list()) == (name, expected)
    for missing in ("nan", "", "NULL", " "):
        joined = ["|".join(text or missing for text in bag) for bag in texts]
        assert Jagged.of(joined, separator="|").to_list() == expected


@pytest.mark.parametrize("last", ["17.0", "17 ", "017", "+17"])
def test_a_spelling_in_a_later_block_is_the_same_id(tmp_path, last):
    path = tmp_path / "log.csv"
    path.write_text("user\n" + "17\n" * (BLOCK_BYTES // 3 + 1) + f"word\n{last}\n")
    *_, end = Files(path, SCHEMA, batch_size=1 << 20).batches()
    assert end.features["user"].values[-2:].tolist() == [xxh64(b"word"), 17]


def test_what_nothing_reads_is_not_looked_at():
    frame = pd.DataFrame({"user": [1, 2], "odd": [object(), {1}], "mixed": [1, "a"]})
    assert Frame(frame, SCHEMA, batch_size=2).samples.size == 2


def test_numbers_beside_texts_are_read_as_in_a_text_file():
    mixed = pd.Series([1, "1", " 1.0", 1.0, "a", True, None, pd.NA, float("nan")], dtype=object)
    bags = Jagged.of(mixed).to_list()
    assert bags == [[1], [1], [1], [1], key("a"), [1], [], [], []]
    assert Feature("x").read(pa.table({"x": ["1", "a"]})).to_list() == [[1], key("a")]
