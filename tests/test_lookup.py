"""From a batch's features to distinct keys and back, against plain numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import downpour as dp
from downpour.errors import DataError
from downpour.lookup import joined_keys, stored_keys, table_keys

if TYPE_CHECKING:
    from downpour.plan.specs import SparseTableSpec

FEATURES = ("user", "item", "seen")
PADDING = 7


def spec(**settings: object) -> SparseTableSpec:
    """The table of a model that reads three features."""
    import torch

    embedding = dp.SparseEmbedding(FEATURES, 4, table="t", **settings)  # type: ignore[arg-type]
    example = batch([[1], [2], [3]])
    plan = dp.DownpourSGD().minimize(
        {"total": lambda model, batch: model(batch).sum() + batch.label.sum()},
        model=torch.nn.Sequential(embedding),
        example=example,
    )
    return plan.sparse_table("t")


def batch(columns: list[list[int]]) -> dp.Batch:
    """One id a sample in "user" and "item", all of the third column in the first bag of "seen"."""
    size = len(columns[0])
    lengths = np.array([len(columns[2])] + [0] * (size - 1))
    seen = dp.Jagged.from_lengths(np.array(columns[2], np.uint64), lengths)
    return dp.Batch(
        features={
            "user": np.array(columns[0], np.uint64),
            "item": np.array(columns[1], np.uint64),
            "seen": seen,
        },
        labels={"y": np.zeros(size, np.float32)},
    )


ids = st.integers(0, 9) | st.integers(0, 2**64 - 1)
columns = st.integers(1, 20).flatmap(
    lambda size: st.tuples(
        st.lists(ids, min_size=size, max_size=size),
        st.lists(ids, min_size=size, max_size=size),
        st.lists(ids, max_size=30),
    )
)
SPECS = {name: spec(**it) for name, it in {
    "own spaces": {},
    "one space": {"spaces": None},
    "padded": {"spaces": None, "padding_key": PADDING},
}.items()}  # fmt: skip


@given(columns, st.sampled_from([*SPECS]))
def test_inverse_leads_back_to_every_id(columns: tuple[list[int], ...], kind: str) -> None:
    table, made = SPECS[kind], batch([*columns])
    keys = table_keys(table, FEATURES, made)
    assert len(np.unique(keys.unique)) == len(keys.unique)
    assert keys.batch_size == made.size
    stop = 0
    for name, column in zip(FEATURES, columns, strict=True):
        bag = keys.bags[name]
        assert bag.start == stop  # features one after the other
        stop = bag.stop
        kept = [key for key in column if kind != "padded" or key != PADDING]
        expected = stored_keys(np.array(kept, np.uint64), table.feature(name).space)
        np.testing.assert_array_equal(keys.unique[keys.inverse[bag.start : bag.stop]], expected)
        if bag.offsets is not None:
            assert len(bag.offsets) == made.size + 1
            assert bag.offsets[-1] == len(kept)
    assert stop == len(keys.inverse)


@given(columns)
def test_joined_lookups_lead_back_to_every_id(columns: tuple[list[int], ...]) -> None:
    table, made = SPECS["own spaces"], batch([*columns])
    parts = [table_keys(table, FEATURES[:2], made), table_keys(table, FEATURES[2:], made)]
    joined = joined_keys(parts)
    assert joined_keys(parts[:1]) is parts[0]
    for name, column in zip(FEATURES, columns, strict=True):
        bag = joined.bags[name]
        expected = stored_keys(np.array(column, np.uint64), table.feature(name).space)
        np.testing.assert_array_equal(joined.unique[joined.inverse[bag.start : bag.stop]], expected)


def test_a_feature_that_the_batch_lacks_is_named() -> None:
    made = dp.Batch(features={"user": np.array([1])}, labels={"y": np.zeros(1, np.float32)})
    with pytest.raises(DataError, match=r"lacks feature 'item'.*it has: user"):
        table_keys(SPECS["own spaces"], FEATURES, made)
