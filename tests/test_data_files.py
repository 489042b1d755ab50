from __future__ import annotations

import gzip
import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

from downpour.data import Dense, Feature, Files, Label, Schema, Source
from downpour.data.readers import BLOCK_BYTES, PIECE_ROWS
from downpour.errors import DataError, SettingError
from downpour.hashing import hash_strings

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = Schema(
    features=["user", Feature("genre", "genres", separator="|")], dense=["age"], labels=["click"]
)
TABLE = pa.table(
    {
        "user": [1, 2, 3, 4, 5],
        "genres": ["drama|comedy", "drama", None, "war", "comedy"],
        "unused": ["a", "b", "c", "d", "e"],
        "age": [20.5, 30.0, 40.0, 50.0, 60.0],
        "click": [1, 0, 1, 0, 0],
    }
)


def write(path: Path, table: pa.Table = TABLE) -> Path:
    """Write a table in the format that the suffix says."""
    name = path.name.removesuffix(".gz")
    group = max(2, len(table) // 10)
    if name.endswith((".csv", ".tsv", ".inter")):
        options = pyarrow.csv.WriteOptions(delimiter="," if ".csv" in name else "\t")
        with pa.output_stream(path, compression="detect") as stream:
            pyarrow.csv.write_csv(table, stream, options)
    elif name.endswith((".parquet", ".pq")):
        pyarrow.parquet.write_table(table, path, row_group_size=group)
    elif name.endswith(".feather"):
        pyarrow.feather.write_feather(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=group)
    return path


def files(paths: Any, **settings: Any) -> Files:
    return Files(paths, **{"schema": SCHEMA, "batch_size": 2, **settings})


def users(data: Files, epoch: int = 0) -> list[int]:
    return [u for batch in data.batches(epoch) for u in batch.features["user"].values.tolist()]


def many(folder: Path, counts: list[int]) -> list[Path]:
    """Write files of one column of ids, 0, 1, 2 ... over all of them."""
    ends = np.cumsum([0, *counts])
    paths = [folder / f"part-{i}.csv" for i in range(len(counts))]
    for path, start, stop in zip(paths, ends[:-1], ends[1:], strict=True):
        write(path, pa.table({"user": np.arange(start, stop)}))
    return paths


USERS = Schema(features=["user"])

NAMES = ["log.csv", "log.tsv", "log.inter", "log.csv.gz", "log.parquet", "log.pq", "log.feather"]


@pytest.mark.parametrize("name", [*NAMES, "log.arrow", "LOG.CSV"])
def test_every_format_gives_the_same_batches(tmp_path, name):
    batches = list(files(write(tmp_path / name.lower()).rename(tmp_path / name)).batches())
    drama, comedy, war = hash_strings(["drama", "comedy", "war"]).tolist()
    bags = [bag for batch in batches for bag in batch.features["genre"].to_list()]
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert [batch.features["user"].values.tolist() for batch in batches] == [[1, 2], [3, 4], [5]]
    assert bags == [[drama, comedy], [drama], [], [war], [comedy]]
    assert [batch.dense["age"].tolist() for batch in batches] == [[20.5, 30], [40, 50], [60]]
    assert [batch.label.tolist() for batch in batches] == [[1, 0], [1, 0], [0]]


def test_a_format_and_marks_may_be_said(tmp_path):
    path = tmp_path / "u.data"
    path.write_text("196;242;3;881250949\n186;302;\\N;891717742\n")
    data = Files(
        path,
        Schema(features=["user", "item"], dense=[Dense("rating", fill=0)]),
        batch_size=9,
        format="csv",
        delimiter=";",
        column_names=["user", "item", "rating", "time"],
        null_values=["\\N"],
    )
    (batch,) = data.batches()
    assert batch.features["item"].values.tolist() == [242, 302]
    assert batch.dense["rating"].tolist() == [3, 0]


def test_recbole_files_are_read_as_they_are(tmp_path):
    path = tmp_path / "ml.inter"
    path.write_text("user_id:token\titem_id:token\trating:float\n1\t10\t4\n2\t20\t3.5\n")
    schema = Schema(
        features=[Feature("user", "user_id:token")],
        labels=[Label("liked", "rating:float", at_least=4)],
    )
    (batch,) = Files(path, schema, batch_size=9).batches()
    assert batch.features["user"].values.tolist() == [1, 2]
    assert batch.label.tolist() == [1, 0]


def test_a_criteo_log_is_read_as_it_is(tmp_path):
    path = tmp_path / "day_0.tsv"
    path.write_text('0\t5\t\t68fd1e64\t\n1\t\t-3\t"quote\t12345678\n')
    names = ["label", "I1", "I2", "C1", "C2"]
    schema = Schema(
        features=["C1", "C2"], dense=[Dense("I", ["I1", "I2"], fill=0)], labels=["label"]
    )
    (batch,) = Files(path, schema, batch_size=9, column_names=names, quote_char=None).batches()
    assert batch.dense["I"].tolist() == [[5, 0], [0, -3]]
    assert batch.features["C1"].values.tolist() == hash_strings(["68fd1e64", '"quote']).tolist()
    assert batch.features["C2"].to_list() == [[], [12345678]]


def test_quoted_cells_hold_delimiters(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text('user,city\n1,"Paris, Texas"\n')
    (batch,) = Files(path, Schema(features=["city"]), batch_size=9).batches()
    assert batch.features["city"].values.tolist() == hash_strings(["Paris, Texas"]).tolist()


def test_a_byte_order_mark_and_windows_lines(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b"\xef\xbb\xbfuser\r\n7\r\n8\r\n")
    assert users(files(path, schema=USERS)) == [7, 8]


def test_big_files_stream_in_pieces(tmp_path):
    rows = max(3 * PIECE_ROWS, BLOCK_BYTES // 4)
    table = pa.table({"user": np.arange(rows)})
    for name in ("log.csv", "log.parquet", "log.arrow"):
        data = files(write(tmp_path / name, table), schema=USERS, batch_size=10_000)
        assert users(data) == list(range(rows))


def test_paths_are_read_in_natural_order(tmp_path):
    paths = many(tmp_path, [1] * 12)
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "notes.txt").write_text("no data")
    (tmp_path / ".hidden.csv").write_text("")
    for which in (paths, tmp_path, str(tmp_path), str(tmp_path / "part-*.csv")):
        assert users(files(which, schema=USERS)) == list(range(12))
    assert users(files([paths[3], paths[1]], schema=USERS)) == [3, 1]
    nested = tmp_path / "day=1" / "hour=2"
    nested.mkdir(parents=True)
    paths[0].rename(nested / "part.csv")
    assert users(files(str(tmp_path / "**" / "part.csv"), schema=USERS)) == [0]


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
    path = write(tmp_path / "log[1].csv")
    assert users(files(path)) == [1, 2, 3, 4, 5]


def test_a_seed_shuffles_the_same_way_each_time_and_another_each_epoch(tmp_path):
    paths = many(tmp_path, [30, 0, 50, 20])
    data = files(paths, schema=USERS, shuffle_seed=3, shuffle_rows=40, batch_size=16)
    assert users(data) == users(data)
    assert users(data, epoch=1) != users(data)
    assert users(replace(data, shuffle_seed=4)) != users(data)
    assert sorted(users(data)) == list(range(100))


def test_a_shuffle_shuffles_files_too(tmp_path):
    data = files(many(tmp_path, [1] * 50), schema=USERS, shuffle_seed=0, shuffle_rows=2)
    assert np.abs(np.array(users(data)) - np.arange(50)).max() > 10


def test_a_shuffle_is_the_same_for_every_format(tmp_path):
    table = pa.table({"user": np.arange(1000)})
    names = ("log.csv", "log.parquet", "log.arrow")
    orders = [
        users(files(write(tmp_path / name, table), schema=USERS, shuffle_seed=1, shuffle_rows=64))
        for name in names
    ]
    assert orders[0] == orders[1] == orders[2]


@pytest.mark.parametrize(
    "rows", [(0, 3), (2, 7), (4, None), (None, 6), (5, 6), (9, None), (3, 99)], ids=str
)
def test_a_slice_of_the_rows_of_all_files(tmp_path, rows):
    data = files(many(tmp_path, [4, 0, 3, 3]), schema=USERS, rows=rows)
    assert users(data) == list(range(10))[slice(*rows)]
    shuffled = replace(data, shuffle_seed=0)
    assert sorted(users(shuffled)) == users(data)


def test_batches_are_counted_where_the_format_says(tmp_path):
    parquet = files(write(tmp_path / "log.parquet"))
    assert parquet.num_batches() == 3
    assert replace(parquet, drop_last=True).num_batches() == 2
    assert replace(parquet, rows=(1, 3)).num_batches() == 1
    assert files(write(tmp_path / "log.csv")).num_batches() is None
    (tmp_path / "empty.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty.parquet: the file is empty"):
        files(tmp_path / "empty.parquet").num_batches()


def test_files_are_a_small_value(tmp_path):
    data = files([write(tmp_path / "log.csv")], column_names=["user"])
    assert pickle.loads(pickle.dumps(data)) == data
    assert hash(data) == hash(replace(data))
    assert replace(data, batch_size=5).batch_size == 5
    assert f"Files(paths=('{tmp_path}/log.csv',), schema=Schema(features=['user'" in repr(data)
    assert isinstance(data, Source)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"shuffle_seed": -1}, "shuffle_seed must not be negative, got -1"),
        ({"shuffle_rows": 1}, "shuffle_rows must be at least 2, got 1"),
        ({"format": "json"}, "format must be csv, tsv, parquet, arrow, got 'json'"),
        ({"delimiter": "::"}, "delimiter must be one ASCII character, got '::'"),
        ({"quote_char": ""}, "quote_char must be one ASCII character, got ''"),
        ({"rows": (5, 5)}, r"rows must be \(start, stop\) with a row in it, got \(5, 5\)"),
        ({"rows": (-1, 5)}, r"got \(-1, 5\)"),
        ({"paths": []}, "must name at least one file"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        files(**{"paths": "log.csv", **settings})


def refused(data: Files) -> str:
    with pytest.raises(DataError) as caught:
        list(data.batches())
    return str(caught.value)


def test_no_file_is_an_error(tmp_path):
    assert "no file matches" in refused(files(tmp_path / "log-*.csv"))
    assert "looked from" in refused(files("missing.csv"))
    assert "no file of a known suffix in" in refused(files(tmp_path))
    assert "no data file in" in refused(files(tmp_path, format="csv"))


def test_an_unknown_format_is_an_error(tmp_path):
    for name in ("u.data", "log", "log.gz", "log.txt.gz"):
        path = tmp_path / name
        path.write_text("user\n1\n")
        assert f"cannot tell the format of '{name}' by its suffix" in refused(files(path))
    (tmp_path / "log.parquet.gz").write_text("")
    assert "only text is read compressed" in refused(files(tmp_path / "log.parquet.gz"))


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.parquet", "log.arrow"])
def test_an_empty_file_is_an_error(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"")
    assert refused(files(path)) == f"{path}: the file is empty"


def test_nothing_to_train_on_is_an_error(tmp_path):
    for name in ("log.csv", "log.parquet", "log.arrow"):
        path = write(tmp_path / name, TABLE[:0])
        assert refused(files(path)) == f"there is no sample in 1 file: {path}"
    path = write(tmp_path / "log.csv")
    assert "no sample in rows (7, 9) in 1 file" in refused(files(path, rows=(7, 9)))
    assert "fills a batch of 6" in refused(files(path, batch_size=6, drop_last=True))
    empty_and_not = [write(tmp_path / "no.csv", TABLE[:0]), path]
    assert users(files(empty_and_not)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("rows", [10, 1_000_000])
def test_a_cut_off_gz_names_the_file_and_how_far_it_got(tmp_path, rows):
    path = tmp_path / "log.csv.gz"
    text = "user\n" + "\n".join(map(str, range(rows)))
    path.write_bytes(gzip.compress(text.encode(), compresslevel=1)[:-20])
    batches = files(path, schema=USERS, batch_size=1000).batches()
    message = "cut off: its compressed data ends too early"
    if rows > 10:
        message += r" \(after [0-9]+ good rows\)"
        assert len(next(batches)) == 1000
    with pytest.raises(DataError, match=message) as caught:
        list(batches)
    assert str(path) in str(caught.value)


def test_broken_files_are_named(tmp_path):
    for name in ("log.csv.gz", "log.parquet", "log.feather"):
        path = tmp_path / name
        path.write_bytes(b"this is no such file, for all its suffix says")
        assert refused(files(path)).startswith(f"{path}: ")
    path = write(tmp_path / "cut.parquet")
    path.write_bytes(path.read_bytes()[:-30])
    assert refused(files(path)).startswith(f"{path}: ")
    path = write(tmp_path / "cut.arrow")
    path.write_bytes(path.read_bytes()[:-300])
    assert refused(files(path)).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["log.csv", "log.parquet", "log.arrow"])
def test_a_missing_column_is_named(tmp_path, name):
    path = write(tmp_path / name)
    message = refused(files(path, schema=Schema(features=["users"])))
    assert message.startswith(f"{path}: no column 'users'; did you mean 'user'? (columns: user, ")


def bad_line(folder: Path, line: str) -> str:
    path = folder / "log.csv"
    path.write_text(f"user,genres,age,click\n1,war,5,0\n{line}\n")
    message = refused(files(path))
    assert str(path) in message
    return message


def test_bad_cells_name_column_row_and_value(tmp_path):
    where = "counting from its row 0: "
    assert where + "dense column 'age': 'old' at row 1 is no" in bad_line(tmp_path, "2,a,old,1")
    assert "dense column 'age': missing, NaN or infinite at row 1" in bad_line(tmp_path, "2,a,,1")
    assert "label 'click': missing, NaN or infinite at row 1" in bad_line(tmp_path, "2,a,5,NaN")
    assert "Row #3: Expected 4 columns, got 3: 2,a,5" in bad_line(tmp_path, "2,a,5")


def test_a_bad_cell_far_down_is_counted_from_where_its_piece_begins(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("x\n" + "1\n" * BLOCK_BYTES + "oops\n")
    message = refused(files(path, schema=Schema(dense=["x"]), batch_size=100_000))
    begin, row = (int(part.split()[0].strip(":")) for part in message.split("row ")[1:3])
    assert begin + row == BLOCK_BYTES


def test_text_in_another_encoding_is_an_error(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes("user\nMünchen\n".encode("latin-1"))
    assert "invalid UTF8 data" in refused(files(path, schema=USERS))


def test_wrong_types_in_typed_files_are_errors(tmp_path):
    path = tmp_path / "log.parquet"
    pd.DataFrame({"user": [1.0, None, 2.5], "click": [1, 0, 0]}).to_parquet(path)
    schema = Schema(features=["user"], labels=["click"])
    message = refused(files(path, schema=schema))
    assert "counting from its row 0: feature 'user': row 2 holds 2.5, which is not a" in message


def test_an_epoch_may_be_left_early(tmp_path):
    batches = files(write(tmp_path / "log.parquet")).batches()
    assert len(next(batches)) == 2
    batches.close()  # type: ignore[attr-defined]
