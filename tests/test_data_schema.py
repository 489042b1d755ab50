from __future__ import annotations

import pickle
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from downpour.data import Dense, Feature, Label, Schema
from downpour.errors import DataError, SettingError
from downpour.hashing import hash_strings

NAN = float("nan")

SCHEMA = Schema(
    features=[
        "user",
        Feature("genre", "genres", separator=" "),
        Feature("history", weights_column="recency"),
    ],
    dense=["age", Dense("pair", ["a", "b"], fill=-1)],
    labels=["click", Label("liked", "rating", at_least=4)],
    weights="importance",
)

COLUMNS: dict[str, list[Any]] = {
    "user": [5, 6],
    "genres": ["drama comedy", None],
    "history": [[1, 2], []],
    "recency": [[0.5, 0.25], []],
    "age": [20, 30],
    "a": [1.0, None],
    "b": [3, 4],
    "click": [True, False],
    "rating": [4, 3],
    "importance": [1.0, 2.0],
}

FRAMES = {
    "dict": COLUMNS,
    "arrow": pa.table(COLUMNS),
    "arrow batch": pa.RecordBatch.from_pydict(COLUMNS),
    "arrow chunks": pa.concat_tables([pa.table(COLUMNS)[:1], pa.table(COLUMNS)[1:]]),
    "pandas": pd.DataFrame(COLUMNS),
    "pandas index": pd.DataFrame(COLUMNS, index=["x", "y"]),
    "polars": pl.DataFrame(COLUMNS),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_a_schema_reads_every_kind_of_frame(kind):
    batch = SCHEMA.batch(FRAMES[kind])
    assert batch.features["user"].to_list() == [[5], [6]]
    assert batch.features["genre"].to_list() == [hash_strings(["drama", "comedy"]).tolist(), []]
    assert batch.features["history"].to_list() == [[1, 2], []]
    assert batch.features["history"].weights is not None
    assert batch.features["history"].weights.tolist() == [0.5, 0.25]
    assert batch.dense["age"].tolist() == [20, 30]
    assert batch.dense["pair"].tolist() == [[1, 3], [-1, 4]]
    assert batch.labels["click"].tolist() == [1, 0]
    assert batch.labels["liked"].tolist() == [1, 0]
    assert batch.weights is not None
    assert batch.weights.tolist() == [1, 2]


def test_numbers_may_be_written_as_text():
    schema = Schema(dense=[Dense("x", fill=0)], labels=[Label("liked", "rating", at_least=4)])
    batch = schema.batch({"x": [" 1.5 ", None, "-2e1"], "rating": ["5", "3.9", "4"]})
    assert batch.dense["x"].tolist() == [1.5, 0, -20]
    assert batch.label.tolist() == [1, 0, 1]


@pytest.mark.parametrize("missing", ["NULL", "\\N", " NA ", "nan", "None", "", None], ids=repr)
def test_a_text_that_says_missing_is_a_missing_number(missing):
    schema = Schema(dense=[Dense("x", fill=0.5)], labels=["y"])
    assert schema.batch({"x": ["1", missing], "y": ["1", "0"]}).dense["x"].tolist() == [1, 0.5]
    with pytest.raises(DataError, match="label 'y': missing, NaN or infinite at row 1"):
        schema.batch({"x": ["1", "1"], "y": ["1", missing]})


def test_a_list_column_is_a_wide_dense_input():
    schema = Schema(dense=["vector"], features=["user"])
    assert schema.batch({"vector": [[1, 2], [3, 4]], "user": [1, 2]}).dense["vector"].shape == (
        2,
        2,
    )


def test_one_column_may_serve_several():
    schema = Schema(features=["age", Feature("age_text", "age", hashed=True)], dense=["age"])
    batch = schema.batch({"age": [20, 30]})
    assert schema.columns == ("age",)
    assert batch.features["age"].values.tolist() == [20, 30]
    assert batch.features["age_text"].values.tolist() == hash_strings(["20", "30"]).tolist()
    assert batch.dense["age"].tolist() == [20, 30]


def test_missing_numbers_are_filled_where_said():
    schema = Schema(dense=[Dense("x", fill=0.5)])
    for column in (pa.array([1, None]), pd.Series([1, NAN]), pl.Series([1.0, NAN])):
        assert schema.batch({"x": column}).dense["x"].tolist() == [1, 0.5]


def test_a_schema_is_a_value():
    again = Schema.from_dict(asdict(SCHEMA))
    assert again == SCHEMA
    assert hash(again) == hash(SCHEMA)
    assert pickle.loads(pickle.dumps(SCHEMA)) == SCHEMA
    assert eval(repr(SCHEMA)) == SCHEMA
    assert replace(SCHEMA, labels=(), weights=None).columns[-1] == "b"
    assert repr(Schema(features=["user"], labels=["click"])) == (
        "Schema(features=['user'], labels=['click'])"
    )


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "float ids": ([1.0, 0.5], {"features": ["x"]}, "feature 'x': row 1 holds 0.5, which is not"),
    "time ids": (pa.array([1], pa.date32()), {"features": ["x"]}, "'x': ids must be integers or"),
    "no number": (
        ["5", "x"],
        {"features": [Feature("user", "x", hashed=False)]},
        "feature 'user': row 1 holds 'x', which is not a whole number",
    ),
    "text dense": (
        ["1", "x"],
        {"dense": [Dense("age", "x")]},
        "dense column 'age': 'x' at row 1 is not a number",
    ),
    "missing dense": (
        [1, None, NAN],
        {"dense": ["x"]},
        r"'x': missing, NaN or infinite at row 1 \(2 such .*Dense\(..., fill=\)",
    ),
    "infinite": ([float("inf")], {"dense": [Dense("x", fill=0)]}, "infinite at row 0"),
    "too large": ([1.0, 1e300], {"dense": ["x"]}, "infinite at row 1"),
    "missing wide": ([[1.0], None], {"dense": ["x"]}, "the list of numbers is missing at row 1"),
    "times": (pa.array([1], pa.date32()), {"dense": ["x"]}, "must hold numbers, got date32"),
    "missing label": ([1, None], {"labels": ["x"]}, "label 'x': missing, NaN .* row 1"),
    "missing graded": (
        [4.0, NAN],
        {"labels": [Label("liked", "x", at_least=4)]},
        "label 'liked': missing, NaN .* drop those rows",
    ),
    "missing weight": ([NAN], {"features": ["x"], "weights": "x"}, "sample weights 'x': missing"),
    "negative weight": ([-1], {"labels": ["x"], "weights": "x"}, "must not be negative, got -1.0"),
    "negative id weight": (
        [[-1.0]],
        {"features": [Feature("f", "i", weights_column="x")]},
        "feature 'f': weights must not be negative",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_columns_are_refused_by_name(kind):
    column, schema, message = REFUSED[kind]
    with pytest.raises(DataError, match=message):
        Schema(**schema).batch({"x": column, "i": [[7]] * len(column)})


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["user_id;item;click"], r"say Files\(delimiter=';'\)"),
        (["user_id\titem\tclick"], r"say Files\(delimiter='\\t'\)"),
        (["24", "13", "0.8"], r"say Files\(column_names=\[...\]\)"),
        (["24", "", "x"], r"say Files\(column_names=\[...\]\)"),
    ],
)
def test_a_missing_column_of_a_file_that_was_read_wrongly_names_the_setting(names, hint):
    with pytest.raises(DataError, match=hint):
        Schema(features=["user_id"]).require_columns(names)


def test_a_missing_column_names_the_nearest():
    schema = Schema(features=["user_id"])
    with pytest.raises(DataError, match="no column 'user_id'; did you mean 'user_id:token'"):
        schema.batch({"age": [1], "user_id:token": [1]})
    with pytest.raises(DataError, match="did you mean 'userid'"):
        schema.batch({"userid": [1]})
    with pytest.raises(DataError, match=r"no column 'user_id' \(columns: x, y\)"):
        schema.batch({"x": [1], "y": [1]})
    with pytest.raises(DataError, match="2 columns named 'user_id'"):
        schema.batch(pa.table([pa.array([1])] * 2, names=["user_id"] * 2))


def test_what_is_no_frame_is_refused():
    for frame in ([1, 2], np.zeros(3), pl.LazyFrame({"x": [1]})):
        with pytest.raises(DataError, match=r"a frame must be .* collect\(\)"):
            Schema(features=["x"]).batch(frame)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "at least one feature"),
        ({"weights": "w"}, "at least one feature"),
        ({"features": "user"}, "features must be a list of names, got the text 'user'"),
        ({"features": ["user", "user"]}, "the name 'user' is used 2 times"),
        ({"features": [Dense("user")]}, "features takes names and Feature, got Dense"),
        ({"labels": [3]}, "labels takes names and Label, got 3"),
    ],
)
def test_bad_schemas_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        Schema(**settings)


def test_bad_parts_are_refused():
    with pytest.raises(SettingError, match="separator must not be empty"):
        Feature("genre", separator="")
    with pytest.raises(SettingError, match="fill must be finite, got nan"):
        Dense("age", fill=NAN)
    with pytest.raises(SettingError, match="must name at least one"):
        Dense("age", [])
    with pytest.raises(SettingError, match="a schema is a dict of features, dense"):
        Schema.from_dict({"features": []})
