from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from downpour.data import Schema
from downpour.errors import DataError
from downpour.features import Batch, Jagged, require_binary

NAN = float("nan")


def batch_of_three() -> Batch:
    return Batch(
        features={"user": [1, 2, 3], "genre": Jagged([5, 6, 7], [0, 2, 2, 3], [1, 2, 3])},
        dense={"age": [0.1, 0.2, 0.3], "pair": np.arange(6).reshape(3, 2)},
        labels={"click": [1, 0, 1], "buy": [0, 0, 1]},
        weights=[1, 2, 0.5],
    )


def as_lists(batch: Batch) -> dict[str, object]:
    return {
        **{name: jagged.to_list() for name, jagged in batch.features.items()},
        **{name: column.tolist() for name, column in {**batch.dense, **batch.labels}.items()},
        "weights": None if batch.weights is None else batch.weights.tolist(),
    }


NUMBERS: dict[str, Any] = {
    "list": [1, 0, 1],
    "bools": [True, False, True],
    "numpy": np.array([1.0, 0.0, 1.0]),
    "numpy int": np.array([1, 0, 1], np.int8),
    "numpy half": np.array([1, 0, 1], np.float16),
    "numpy big endian": np.array([1, 0, 1], ">f8"),
    "torch": torch.tensor([1.0, 0.0, 1.0]),
    "torch int": torch.tensor([1, 0, 1]),
    "torch half": torch.tensor([1, 0, 1], dtype=torch.bfloat16),
    "torch leaf": torch.tensor([1.0, 0.0, 1.0], requires_grad=True),
    "arrow": pa.array([1.0, 0.0, 1.0]),
    "arrow bools": pa.array([True, False, True]),
    "arrow decimals": pa.array([1, 0, 1]).cast(pa.decimal128(21, 2)),
    "pandas": pd.Series([1, 0, 1]),
    "pandas nullable": pd.Series([1, 0, 1], dtype="Float64"),
    "polars": pl.Series([1, 0, 1]),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_labels_and_dense_columns_become_float32(kind):
    batch = Batch(dense={"x": NUMBERS[kind]}, labels=NUMBERS[kind], weights=NUMBERS[kind])
    for column in (batch.dense["x"], batch.label, batch.weights):
        assert column is not None
        assert column.dtype == torch.float32
        assert column.tolist() == [1, 0, 1]
        assert not column.requires_grad


WIDE: dict[str, Any] = {
    "lists": [[1, 2], [3, 4]],
    "numpy": np.array([[1, 2], [3, 4]]),
    "numpy columns": np.array([[1, 3], [2, 4]]).T,
    "torch": torch.tensor([[1, 2], [3, 4]]),
    "arrow": pa.array([[1.0, 2.0], [3.0, 4.0]]),
    "arrow fixed": pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2)),
    "pandas": pd.DataFrame({"a": [1, 3], "b": [2, 4]}),
    "polars": pl.DataFrame({"a": [1, 3], "b": [2, 4]}),
}


@pytest.mark.parametrize("kind", WIDE)
def test_dense_columns_may_be_wide(kind):
    column = Batch(dense={"x": WIDE[kind]}).dense["x"]
    assert column.tolist() == [[1, 2], [3, 4]]
    assert column.is_contiguous()


def test_float64_tensors_stay():
    doubles = torch.tensor([0.1, 0.2], dtype=torch.float64)
    batch = Batch(dense={"x": doubles}, labels=doubles)
    assert batch.dense["x"].dtype == batch.label.dtype == torch.float64


def test_read_only_memory_is_copied_without_a_warning():
    numbers = np.array([1.0, 2.0], np.float32)
    numbers.flags.writeable = False
    Batch(dense={"x": numbers}).dense["x"][0] = 5
    assert numbers[0] == 1


def test_a_batch_says_what_is_in_it():
    batch = batch_of_three()
    assert len(batch) == batch.size == 3
    assert repr(batch) == (
        "Batch(3 samples, features=[user, genre], dense=[age, pair], labels=[click, buy], weighted)"
    )


def test_the_only_label():
    assert Batch(labels=[1, 0]).label.tolist() == [1, 0]
    assert Batch(labels={"click": [1, 0]}).label.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"has the labels click, buy; say which"):
        _ = batch_of_three().label
    with pytest.raises(DataError, match="has no labels"):
        _ = Batch(features={"user": [1]}).label


def test_slice_select_and_concat_keep_columns_together():
    batch = batch_of_three()
    assert as_lists(batch.slice(1, 3)) == as_lists(batch.select([1, 2]))
    assert as_lists(batch.slice(1, 99)) == as_lists(batch.select(torch.tensor([1, 2])))
    assert batch.slice(2, 1).size == 0
    joined = Batch.concat([batch.slice(0, 1), batch.slice(1, 3)])
    assert joined.size == 3
    assert as_lists(joined) == as_lists(batch)
    assert as_lists(batch.select([2, 0])) == {
        "user": [[3], [1]],
        "genre": [[7], [5, 6]],
        "age": pytest.approx([0.3, 0.1]),
        "pair": [[4, 5], [0, 1]],
        "click": [1, 1],
        "buy": [1, 0],
        "weights": [0.5, 1],
    }


def test_samples_are_selected_by_mask_too():
    batch = batch_of_three()
    assert as_lists(batch.select(batch.labels["click"] > 0)) == as_lists(batch.select([0, 2]))
    assert batch.select([]).size == 0


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([3], "must be from 0 to 2, got"),
        ([-1], "must be from 0 to 2, got"),
        ([0.5], "must be integers"),
        ([True], r"booleans \[3\], got bool \[1\]"),
    ],
    ids=str,
)
def test_samples_that_are_not_there_are_refused(samples, message):
    with pytest.raises(DataError, match=message):
        batch_of_three().select(samples)


def test_a_batch_pickles():
    batch = batch_of_three()
    again = pickle.loads(pickle.dumps(batch))
    assert again.size == 3
    assert as_lists(again) == as_lists(batch)


def test_a_batch_comes_from_a_frame():
    frame = pd.DataFrame({"user": [5, 6], "click": [1, 0], "unused": ["x", "y"]})
    batch = Batch.from_frame(frame, Schema(features=["user"], labels=["click"]))
    assert as_lists(batch) == {"user": [[5], [6]], "click": [1, 0], "weights": None}


class KeyedJaggedTensor:
    """The methods of TorchRec's that are used; two keys, three samples."""

    def __init__(self, weights: list[float] | None = None, bags: int = 6) -> None:
        self.own = None if weights is None else torch.tensor(weights)
        self.bags = bags

    def keys(self) -> list[str]:
        return ["user", "genre"]

    def values(self) -> torch.Tensor:
        return torch.tensor([1, 2, 3, 5, 6, 7])

    def offsets(self) -> torch.Tensor:
        return torch.tensor([0, 1, 2, 3, 5, 5, 6])[: self.bags + 1]

    def weights_or_none(self) -> torch.Tensor | None:
        return self.own


def test_a_keyed_jagged_tensor_is_taken_by_its_methods():
    batch = Batch.from_kjt(KeyedJaggedTensor(), labels=[1, 0, 1], weights=[1, 1, 2])
    assert as_lists(batch) == {
        "user": [[1], [2], [3]],
        "genre": [[5, 6], [], [7]],
        "label": [1, 0, 1],
        "weights": [1, 1, 2],
    }
    assert batch.features["user"].is_single


def test_a_keyed_jagged_tensor_may_have_weights():
    batch = Batch.from_kjt(KeyedJaggedTensor([1, 2, 3, 4, 5, 6]))
    assert batch.features["genre"] == Jagged([5, 6, 7], [0, 2, 2, 3], [4, 5, 6])
    negative = KeyedJaggedTensor([1, 2, 3, 4, 5, -6])
    assert Batch.from_kjt(negative, allow_negative=True).size == 3
    with pytest.raises(DataError, match="feature 'genre': weights must not be negative"):
        Batch.from_kjt(negative)


def test_a_keyed_jagged_tensor_of_unlike_strides_is_refused():
    with pytest.raises(DataError, match="one bag a sample"):
        Batch.from_kjt(KeyedJaggedTensor(bags=5))


REFUSED: dict[str, tuple[Any, str]] = {
    "float ids": ({"features": {"user": [1.5]}}, "feature 'user': row 0 holds 1.5, which is not"),
    "NaN in dense": (
        {"dense": {"age": [1, NAN, NAN]}},
        r"dense column 'age': must be finite, got nan at sample 1 \(.*: 2\)",
    ),
    "missing in dense": ({"dense": {"age": [1, None]}}, "dense column 'age': must be finite"),
    "infinite wide": (
        {"dense": {"x": [[1, 2], [3, float("inf")]]}},
        r"'x': must be finite, got \[3.0, inf\] at sample 1",
    ),
    "infinite tensor": ({"dense": {"x": torch.tensor([1, NAN])}}, "'x': must be finite"),
    "NaN in label": ({"labels": {"click": [NAN]}}, "label 'click': must be finite"),
    "text label": ({"labels": {"click": ["1"]}}, "label 'click': must hold numbers, got string"),
    "object dense": ({"dense": {"x": np.array(["1"])}}, "must hold numbers, got <U1"),
    "complex": ({"dense": {"x": torch.tensor([1j])}}, "must hold numbers, got torch.complex64"),
    "scalar": ({"dense": {"x": np.float32(1)}}, "dense column 'x': cannot read a float32"),
    "cube": ({"dense": {"x": np.zeros((1, 1, 1))}}, r"\[batch, k\], got shape \[1, 1, 1\]"),
    "uneven": (
        {"dense": {"x": [[1, 2], [3]]}},
        "must have 2 numbers in each list as in the first, got 1 at 1",
    ),
    "negative weight": ({"labels": [1], "weights": [-1]}, "not be negative, got -1.0 at sample 0"),
    "NaN weight": ({"labels": [1], "weights": [NAN]}, "sample weights 'weights': must be finite"),
    "wide weights": ({"labels": [1], "weights": [[1]]}, r"must be \[batch\], got shape \[1, 1\]"),
    "lengths": (
        {"features": {"user": [1, 2]}, "dense": {"age": [1]}, "labels": [1, 0]},
        "as many samples; got feature 'user': 2, dense column 'age': 1, label 'label': 2",
    ),
    "weights length": ({"labels": [1], "weights": [1, 1]}, "label 'label': 1, sample weights: 2"),
    "nothing": ({}, "needs a feature, a dense column or a label"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_batch_is_refused_by_name(kind):
    arguments, message = REFUSED[kind]
    with pytest.raises(DataError, match=message):
        Batch(**arguments)


def test_unlike_batches_do_not_join():
    one = Batch(features={"user": [1]}, labels=[1])
    with pytest.raises(DataError, match=r"features must be the same, got \['user'\] and \[\]"):
        Batch.concat([one, Batch(labels=[1])])
    with pytest.raises(DataError, match="one batch has sample weights"):
        Batch.concat([one, Batch(features={"user": [1]}, labels=[1], weights=[1])])
    with pytest.raises(DataError, match="at least one batch"):
        Batch.concat([])


def test_labels_that_must_be_binary():
    require_binary(torch.tensor([0.0, 1.0]), "AUC")
    require_binary(np.array([True, False]), "AUC")
    for labels in (np.array([0, 2]), torch.tensor([0.0, 2.0])):
        with pytest.raises(DataError, match=r"AUC needs labels that are 0 or 1, got 2"):
            require_binary(labels, "AUC")
    with pytest.raises(DataError, match="got nan"):
        require_binary(np.array([NAN]), "AUC")
