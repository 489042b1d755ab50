from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from downpour.data import Frame, Schema, Source
from downpour.errors import DataError, SettingError

SCHEMA = Schema(features=["user"], labels=["click"])
COLUMNS = {"user": np.arange(10), "click": np.arange(10) % 2}


def frame_of_ten(**settings: Any) -> Frame:
    return Frame(COLUMNS, SCHEMA, **{"batch_size": 4, **settings})


def users(frame: Frame, epoch: int = 0) -> list[list[int]]:
    batches = list(frame.batches(epoch))
    for batch in batches:  # labels stay with their samples
        assert batch.label.tolist() == (batch.features["user"].values % 2).tolist()
    return [batch.features["user"].values.tolist() for batch in batches]


def test_without_a_seed_the_order_of_rows_is_kept():
    assert users(frame_of_ten()) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert users(frame_of_ten(drop_last=True), epoch=3) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_seed_shuffles_the_same_way_each_time_and_another_each_epoch():
    frame = frame_of_ten(shuffle_seed=1)
    assert users(frame) == users(frame_of_ten(shuffle_seed=1))
    assert users(frame, epoch=1) != users(frame)
    assert users(frame_of_ten(shuffle_seed=2)) != users(frame)
    assert sorted(user for batch in users(frame, epoch=1) for user in batch) == list(range(10))
    assert [len(batch) for batch in users(frame_of_ten(shuffle_seed=1, drop_last=True))] == [4, 4]


@pytest.mark.parametrize(
    "make", [pa.table, pd.DataFrame, pl.DataFrame], ids=["arrow", "pandas", "polars"]
)
def test_every_kind_of_frame(make):
    assert users(Frame(make(COLUMNS), SCHEMA, batch_size=10)) == [list(range(10))]


def test_a_frame_is_a_small_value_to_print():
    frame = frame_of_ten(shuffle_seed=1)
    assert repr(frame) == (
        "Frame(10 rows, Schema(features=['user'], labels=['click']), batch_size=4, "
        "shuffle_seed=1, drop_last=False)"
    )
    assert isinstance(frame, Source)
    assert frame.num_batches() == 3
    assert users(pickle.loads(pickle.dumps(frame))) == users(frame)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"shuffle_seed": -1}, "shuffle_seed must not be negative, got -1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        frame_of_ten(**settings)


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(DataError, match="there is no sample in a frame of 0 rows"):
        Frame({"user": [], "click": []}, SCHEMA, batch_size=4)
    with pytest.raises(DataError, match=r"no sample that fills a batch of 11 .* frame of 10 rows"):
        frame_of_ten(batch_size=11, drop_last=True)


def test_a_bad_column_is_refused_when_made():
    with pytest.raises(DataError, match="label 'click': missing, NaN or infinite at row 1"):
        Frame({"user": [1, 2], "click": [0, None]}, SCHEMA, batch_size=4)
