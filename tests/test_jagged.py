from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from downpour.errors import DataError
from downpour.hashing import hash_strings
from downpour.jagged import Jagged

A, B = hash_strings(["a", "b"]).tolist()

ONE_EACH = {
    "list": [5, 7, 5],
    "tuple": (5, 7, 5),
    "numpy": np.array([5, 7, 5]),
    "numpy int8": np.array([5, 7, 5], np.int8),
    "numpy uint64": np.array([5, 7, 5], np.uint64),
    "numpy strided": np.array([5, 0, 7, 0, 5])[::2],
    "torch": torch.tensor([5, 7, 5]),
    "torch int32": torch.tensor([5, 7, 5], dtype=torch.int32),
    "arrow": pa.array([5, 7, 5]),
    "arrow slice": pa.array([0, 5, 7, 5, 0], pa.uint32())[1:4],
    "arrow chunks": pa.chunked_array([[5], [7, 5]]),
    "arrow dictionary": pa.array([5, 7, 5]).dictionary_encode(),
    "arrow text": pa.array(["5", "7", "5"]),
    "pandas": pd.Series([5, 7, 5]),
    "pandas nullable": pd.Series([5, 7, 5], dtype="Int64"),
    "pandas categories": pd.Series([5, 7, 5], dtype="category"),
    "polars": pl.Series([5, 7, 5]),
}


@pytest.mark.parametrize("kind", ONE_EACH)
def test_one_id_a_sample_comes_from_anything(kind):
    feature = Jagged.of(ONE_EACH[kind])
    assert feature == Jagged(np.array([5, 7, 5], np.uint64))
    assert feature.is_single
    assert feature.offsets.tolist() == [0, 1, 2, 3]
    assert feature.tensor.tolist() == [5, 7, 5]


BAGS = {
    "lists": [[5, 7], [], [9]],
    "arrow": pa.array([[5, 7], [], [9]]),
    "arrow null": pa.array([[5, 7], None, [9, None]]),
    "arrow large": pa.array([[5, 7], [], [9]], pa.large_list(pa.int32())),
    "arrow view": pa.array([[5, 7], [], [9]], pa.list_view(pa.int64())),
    "arrow slice": pa.array([[1], [5, 7], [], [9], [1]])[1:4],
    "arrow text": pa.array([["5", "7"], [], ["9"]]),
    "numpy objects": np.array([[5, 7], [], [9]], object),
    "pandas": pd.Series([[5, 7], [], [9]]),
    "polars": pl.Series([[5, 7], [], [9]]),
    "torch nested": torch.nested.nested_tensor_from_jagged(
        torch.tensor([5, 7, 9]), torch.tensor([0, 2, 2, 3])
    ),
}


@pytest.mark.parametrize("kind", BAGS)
def test_bags_come_from_anything(kind):
    feature = Jagged.of(BAGS[kind])
    assert feature.to_list() == [[5, 7], [], [9]]
    assert feature.offsets_tensor.tolist() == [0, 2, 2, 3]
    assert not feature.is_single


@pytest.mark.parametrize(
    "data",
    [
        np.array([[1, 2], [3, 4]]),
        torch.tensor([[1, 2], [3, 4]]),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)),
    ],
    ids=["numpy", "torch", "arrow"],
)
def test_a_rectangle_is_as_many_ids_a_sample(data):
    assert Jagged.of(data).to_list() == [[1, 2], [3, 4]]


def test_a_missing_id_is_an_empty_bag():
    for data in ([5, None, 7], pd.Series([5, None, 7], dtype="Int64"), pl.Series([5, None, 7])):
        assert Jagged.of(data).to_list() == [[5], [], [7]]
    assert Jagged.of(["a", None]).to_list() == [[A], []]
    assert Jagged.of(pa.array(["a", None, "a"]).dictionary_encode()).to_list() == [[A], [], [A]]


def test_a_text_column_splits_into_bags():
    feature = Jagged.of(["a b", "", None, " 3  a"], separator=" ")
    assert feature.to_list() == [[A, B], [], [], [3, A]]
    assert Jagged.of(pd.Series(["a|b", None]), separator="|").to_list() == [[A, B], []]
    assert Jagged.of(pd.Series(["a|b"], dtype="category"), separator="|").to_list() == [[A, B]]


def test_numbers_and_their_texts_hash_alike_when_hashed():
    five = int(hash_strings(["5"])[0])
    for data in ([5], ["5"], np.array([5]), np.array([[5]]), torch.tensor([5]), [[5]]):
        assert Jagged.of(data, hashed=True).to_list() == [[five]]
    assert Jagged.of(["5"], hashed=False).to_list() == [[5]]


def test_ids_are_taken_by_their_bits():
    assert Jagged.of([-1]).values.tolist() == [2**64 - 1]
    assert Jagged.of(np.array([-1], np.int8)).values.tolist() == [2**64 - 1]
    assert Jagged.of([2**63, 1]).tensor.tolist() == [-(2**63), 1]
    assert Jagged.of([[2**63], [1]]).to_list() == [[2**63], [1]]
    assert Jagged.of([True, False]).to_list() == [[1], [0]]


def test_whole_floats_are_the_ids_that_pandas_made_them_of():
    floats = [5.0, NAN, 2.0**53 - 1, -7.0]
    doubles: list[Any] = [floats, np.array(floats), torch.tensor(floats, dtype=torch.float64)]
    for data in doubles:
        assert Jagged.of(data).to_list() == [[5], [], [2**53 - 1], [2**64 - 7]]
    halves: list[Any] = [
        pd.Series([5, None]),
        pl.Series([5.0, NAN]),
        np.array([5, NAN], np.float16),
    ]
    for data in halves:
        assert Jagged.of(data).to_list() == [[5], []]
    assert Jagged.of(np.array([[5.0, NAN], [NAN, 7.0]])).to_list() == [[5], [7]]
    assert Jagged.of(pd.Series([5, None]), hashed=True) == Jagged.of(["5", None], hashed=True)


def test_no_samples_and_only_empty_bags():
    assert len(Jagged.of([])) == 0
    assert len(Jagged.of(np.array([], np.int64))) == 0
    assert Jagged.of([[], []]).to_list() == [[], []]
    assert Jagged.of([None, None]).to_list() == [[], []]


WEIGHTS = {
    "lists": ([[5, 7], [], [9]], [[1, 2], [], [3]]),
    "arrow": (pa.array([[5, 7], None, [9]]), pa.array([[1.0, 2.0], None, [3.0]])),
    "flat": ([[5, 7], [], [9]], np.array([1.0, 2.0, 3.0])),
    "missing id": ([[5, None, 7], [], [9]], [[1, 8, 2], [], [3]]),
    "text": (pa.array([[5, 7], [], [9]]), pa.array([[1, 2], [], [3]])),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_come_in_the_form_of_their_ids(kind):
    data, weights = WEIGHTS[kind]
    feature = Jagged.of(data, weights=weights)
    assert feature == Jagged([5, 7, 9], [0, 2, 2, 3], [1, 2, 3])
    assert feature.weights is not None
    assert feature.weights.dtype == np.float32


def test_weights_split_as_their_texts_do():
    feature = Jagged.of(["a  b", None, "3"], weights=["1 2.5", None, " 4"], separator=" ")
    assert feature == Jagged([A, B, 3], [0, 2, 2, 3], [1, 2.5, 4])


def test_weights_of_one_id_a_sample():
    weights = Jagged.of([5, None, 7], weights=[1, 2, 3]).weights
    assert weights is not None
    assert weights.tolist() == [1, 3]
    square = Jagged.of(np.array([[1, 2]]), weights=np.array([[0.5, 0.25]]))
    assert square == Jagged([1, 2], [0, 2], [0.5, 0.25])


class JaggedTensor:
    """The methods of TorchRec's that are used."""

    def values(self) -> torch.Tensor:
        return torch.tensor([5, 7, 9])

    def offsets(self) -> torch.Tensor:
        return torch.tensor([0, 2, 2, 3])

    def weights_or_none(self) -> torch.Tensor | None:
        return torch.tensor([1.0, 2.0, 3.0], requires_grad=True)


def test_a_torchrec_jagged_tensor_is_taken_by_its_methods():
    assert Jagged.of(JaggedTensor()) == Jagged([5, 7, 9], [0, 2, 2, 3], [1, 2, 3])


def test_lengths_make_offsets():
    for lengths in ([2, 0, 1], torch.tensor([2, 0, 1]), np.array([2, 0, 1], np.int32)):
        assert Jagged.from_lengths([5, 7, 9], lengths).to_list() == [[5, 7], [], [9]]
    assert Jagged.from_lengths([5, 7], [1, 1]).is_single


def bags() -> st.SearchStrategy[list[list[int]]]:
    single = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=1), max_size=8)
    return st.one_of(single, st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=8))


@settings(deadline=None)
@given(bags(), st.booleans(), st.data())
def test_slice_select_and_concat_act_as_on_lists(lists, weighted, data):
    flat = [key for bag in lists for key in bag]
    weights = np.array(flat, np.float32) + 1 if weighted else None
    feature = Jagged.from_lengths(np.array(flat, np.int64), [len(bag) for bag in lists], weights)
    start, stop = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))
    places = data.draw(st.lists(st.sampled_from(range(len(lists))))) if lists else []
    cases = [
        (feature.slice(start, stop), lists[start:stop]),
        (feature.select(np.array(places, np.int64)), [lists[place] for place in places]),
        (Jagged.concat([feature, feature]), lists + lists),
    ]
    for part, expected in cases:
        assert part.to_list() == expected
        again = [key + 1 for bag in expected for key in bag]
        assert part.weights is None or part.weights.tolist() == again
        assert Jagged(part.values, part.offsets, part.weights).is_single >= part.is_single


@settings(deadline=None)
@given(bags())
def test_lists_and_pickles_give_it_back(lists):
    feature = Jagged.of(lists) if lists else Jagged.of([])
    assert feature.to_list() == lists
    assert pickle.loads(pickle.dumps(feature)) == feature
    assert [feature[i].tolist() for i in range(len(feature))] == lists


def test_concat_fills_missing_weights_with_ones():
    joined = Jagged.concat([Jagged([1], weights=[0.5]), Jagged([2])])
    assert joined == Jagged([1, 2], weights=[0.5, 1])


def test_offsets_of_one_id_a_sample_are_shared():
    one, two = Jagged([1, 2, 3]), Jagged.of([[4], [5], [6]])
    assert one.offsets is two.offsets
    assert not one.offsets.flags.writeable


def test_read_only_memory_is_copied_and_writable_memory_shared():
    mine = np.array([1, 2])
    assert np.shares_memory(Jagged(mine).values, mine)
    mine.flags.writeable = False
    assert not np.shares_memory(Jagged(mine).values, mine)


def test_it_shows_what_it_is():
    assert repr(Jagged([1, 2], [0, 2])) == "Jagged(1 samples, 2 values)"
    assert repr(Jagged([1], weights=[1])) == "Jagged(1 samples, 1 values, weighted)"
    assert Jagged([1, 2]) != Jagged([1, 2], [0, 2])
    assert Jagged([1]) != Jagged([1], weights=[1])
    assert Jagged([1]) != [1]
    with pytest.raises(IndexError, match="sample 1 of a feature of 1"):
        Jagged([1])[1]


NAN, INF = float("nan"), float("inf")


REFUSED: dict[str, tuple[Any, str]] = {
    "floats": (lambda: Jagged.of([1.0, 2.5]), "row 1 holds 2.5, which is not a whole number"),
    "float values": (lambda: Jagged([1.0]), "ids must be integers, got float64"),
    "numpy floats": (lambda: Jagged.of(np.array([2.0**53])), r"a float of 2\*\*53 or more.*Int64"),
    "torch floats": (lambda: Jagged.of(torch.tensor([2.0**24])), r"16777216.0, a float of 2\*\*24"),
    "infinity": (lambda: Jagged.of(pd.Series([1, None, INF])), "row 2 holds inf, which is not"),
    "times": (lambda: Jagged.of(pa.array([1], pa.timestamp("s"))), "cast the column to integers"),
    "lists of lists of lists": (lambda: Jagged.of([[[1]]]), "must be integers or texts, got list"),
    "three dimensions": (
        lambda: Jagged.of(np.zeros((1, 1, 1), int)),
        r"\[batch, k\], got shape \(1, 1, 1\)",
    ),
    "splitting numbers": (
        lambda: Jagged.of([5], separator=" "),
        "separator=' ' splits texts, got int64",
    ),
    "no number": (lambda: Jagged.of(["x"], hashed=False), "row 0 holds 'x'"),
    "one text": (lambda: Jagged.of("abc"), "one entry a sample"),
    "nested values": (lambda: Jagged([[1]]), "ids must be integers"),
    "offsets too far": (lambda: Jagged([1, 2], [0, 3]), "run from 0 to num_values = 2, got 0 to 3"),
    "offsets from 1": (lambda: Jagged([1, 2], [1, 2]), "got 1 to 2"),
    "no offsets": (lambda: Jagged([1, 2], []), "got none"),
    "falling offsets": (lambda: Jagged([1, 2], [0, 2, 1, 2]), "must not fall, got 2 then 1 at 1"),
    "float offsets": (lambda: Jagged([1, 2], [0.0, 2.0]), "offsets must be integers"),
    "2-D offsets": (lambda: Jagged([1, 2], [[0, 2]]), "offsets must be integers"),
    "negative length": (
        lambda: Jagged.from_lengths([1], [2, -1]),
        "not be negative, got -1 at sample 1",
    ),
    "short lengths": (lambda: Jagged.from_lengths([1, 2], [1]), "got 0 to 1"),
    "too few weights": (
        lambda: Jagged([1, 2], weights=[1]),
        r"\[num_values\] = \[2\], got shape \(1,\)",
    ),
    "NaN weight": (lambda: Jagged([1, 2], weights=[1, NAN]), "must be finite, got nan at value 1"),
    "negative weight": (
        lambda: Jagged([1, 2], weights=[1, -2]),
        "not be negative, got -2.0 at value 1",
    ),
    "text weight": (lambda: Jagged([1], weights=["x"]), "weights must be numbers"),
    "missing weight": (lambda: Jagged.of([[1]], weights=[[None]]), "a weight is missing"),
    "weights misplaced": (
        lambda: Jagged.of([[1], [2, 3]], weights=[[1, 2], [3]]),
        "sample 0 has 2 weights for 1",
    ),
    "weights too few": (lambda: Jagged.of([1, 2], weights=[1]), "1 weights for 2 ids"),
    "weights of other samples": (
        lambda: Jagged.of([[1]], weights=[[1], [2]]),
        "weights have 2 samples, their ids 1",
    ),
    "split text weights": (
        lambda: Jagged.of(["1"], weights=["x"], separator=" "),
        "weights must be numbers",
    ),
    "lists of text weights": (
        lambda: Jagged.of([[1]], weights=[["x"]]),
        "weights must be numbers, got string",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_feature_is_refused(kind):
    make, message = REFUSED[kind]
    with pytest.raises(DataError, match=message):
        make()


def test_negative_weights_where_allowed():
    weights = Jagged([1], weights=[-1], allow_negative=True).weights
    assert weights is not None
    assert weights.tolist() == [-1]
