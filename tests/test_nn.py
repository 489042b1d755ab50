"""SparseEmbedding: how the rows of a batch become bags, and how gradients come back."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import downpour as dp
from downpour.accessor import EmbeddingAccessor
from downpour.lookup import table_keys
from downpour.plan.specs import FeatureSpec, SparseTableSpec
from tests.networks import Network, a_batch, planned

if TYPE_CHECKING:
    from downpour.lookup import TableKeys

BAGS = [[5, 6], [], [6], [5, 8, 8]]
WEIGHTS = [0.5, 2.0, 1.0, 0.0, 1.5, 2.5]


@dataclass
class Source:
    """Row i of the ids seen has the value of its id everywhere; `rows_made` take gradients."""

    module: dp.SparseEmbedding
    rows_made: torch.Tensor | None = None
    keys: Any = None

    def rows(
        self, table: str, features: tuple[str, ...], batch: dp.Batch
    ) -> tuple[torch.Tensor, TableKeys]:
        spec = SparseTableSpec(
            id=0,
            name=table,
            accessor=EmbeddingAccessor(dim=self.module.dim, rule=dp.SGD(0.1)),
            features=tuple(FeatureSpec(name=name, space=None) for name in features),
            padding_key=self.module.padding_key,
        )
        self.keys = table_keys(spec, features, batch)
        ids = torch.from_numpy(self.keys.unique.view(np.int64)).to(torch.float64)
        rows = ids[:, None].repeat(1, self.module.dim).requires_grad_()
        self.rows_made = rows
        return rows, self.keys


def connected(**settings: Any) -> tuple[dp.SparseEmbedding, Source]:
    module = dp.SparseEmbedding(
        **{"features": "item", "dim": 2, "dtype": torch.float64, **settings}
    )
    source = Source(module)
    module.connect(source)
    return module, source


def bags(values: Any = BAGS, weights: Any = None) -> dp.Batch:
    flat = [value for bag in values for value in bag]
    jagged = dp.Jagged.from_lengths(np.array(flat, np.uint64), [*map(len, values)], weights)
    return dp.Batch(features={"item": jagged})


def pooled(values: Any = BAGS, weights: Any = None, **settings: Any) -> list[float]:
    module, _ = connected(**settings)
    out = module(bags(values, weights))
    assert out.shape == (len(values), 1, 2)
    return out[:, 0, 0].tolist()


def test_sum_pooling() -> None:
    assert pooled() == [11.0, 0.0, 6.0, 21.0]
    assert pooled(weights=WEIGHTS) == [5 * 0.5 + 6 * 2, 0.0, 6.0, 8 * 1.5 + 8 * 2.5]


def test_mean_pooling() -> None:
    assert pooled(pooling="mean") == [5.5, 0.0, 6.0, 7.0]


def test_mean_pooling_is_weighted_by_the_weights_of_ids() -> None:
    expected = [(5 * 0.5 + 6 * 2.0) / 2.5, 0.0, 6.0, 8.0]
    assert pooled(pooling="mean", weights=WEIGHTS) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_of_a_bag_goes_to_its_ids(pooling: Any, weighted: bool) -> None:
    module, source = connected(pooling=pooling)
    batch = bags(weights=WEIGHTS if weighted else None)
    factor = torch.arange(1.0, 5.0, dtype=torch.float64)
    (module(batch)[:, 0, 0] * factor).sum().backward()
    weight = np.array(WEIGHTS if weighted else [1.0] * 6)
    share = weight / np.array([weight[:2].sum()] * 2 + [weight[2]] + [weight[3:].sum()] * 3)
    each = (share if pooling == "mean" else weight) * [1, 1, 3, 4, 4, 4]
    ids = np.array([5, 6, 6, 5, 8, 8])
    expected = [each[ids == key].sum() for key in (5, 6, 8)]
    assert source.rows_made is not None
    np.testing.assert_allclose(source.rows_made.grad[:, 0], expected)  # type: ignore[index]
    assert not source.rows_made.grad[:, 1].any()  # type: ignore[index]


def test_weights_that_sum_to_zero_have_no_mean() -> None:
    assert pooled([[5, 6], [7]], [0.0, 0.0, 1.0], pooling="mean") == [0.0, 7.0]
    assert pooled([[5], [7]], [0.0, 2.0], pooling="mean") == [0.0, 7.0]


@pytest.mark.parametrize("values", [[[5, 6], [7]], [[5], [6], [7]]])
def test_a_mean_refuses_negative_weights(values: Any) -> None:
    jagged = dp.Jagged.from_lengths(
        [5, 6, 7], [*map(len, values)], [1.0, -1.0, 1.0], allow_negative=True
    )
    batch = dp.Batch(features={"item": jagged})
    with pytest.raises(dp.DataError, match=r"'item': a weighted mean.*-1\.0; use pooling='sum'"):
        connected(pooling="mean")[0](batch)
    assert connected()[0](batch).sum() == (2 * (5 - 6 + 7))


def test_features_are_in_the_modules_order() -> None:
    module, _ = connected(features=("item", "user"))
    out = module(a_batch([1, 2, 3, 4], BAGS))
    assert out[:, :, 0].tolist() == [[11.0, 1.0], [0.0, 2.0], [6.0, 3.0], [21.0, 4.0]]


def test_padding_is_never_looked_up() -> None:
    module, source = connected(padding_key=8, pooling="mean")
    assert module(bags())[:, 0, 0].tolist() == [5.5, 0.0, 6.0, 5.0]
    assert source.keys.unique.tolist() == [5, 6]
    assert connected(padding_key=6)[0](bags([[6], [7]])).tolist() == [[[0.0] * 2], [[7.0] * 2]]


def test_padding_may_be_minus_one_as_in_int64_ids() -> None:
    module, source = connected(padding_key=-1)
    batch = dp.Batch(features={"item": np.array([5, -1, 7])})
    assert module(batch)[:, 0, 0].tolist() == [5.0, 0.0, 7.0]
    assert source.keys.unique.tolist() == [5, 7]


def test_without_pooling_rows_are_jagged() -> None:
    module, _ = connected(features=("item", "user"), pooling="none")
    out = module(a_batch([1, 2, 3, 4], BAGS))
    assert out["item"].values[:, 0].tolist() == [5.0, 6.0, 6.0, 5.0, 8.0, 8.0]
    assert out["item"].offsets.tolist() == [0, 2, 2, 3, 6]
    assert out["user"].values[:, 1].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert out["user"].offsets.tolist() == [0, 1, 2, 3, 4]


def test_without_pooling_rows_are_multiplied_by_their_weights() -> None:
    module, _ = connected(pooling="none")
    out = module(bags(weights=WEIGHTS))["item"]
    assert out.values[:, 0].tolist() == [2.5, 12.0, 6.0, 0.0, 12.0, 20.0]


def padded(values: Any, max_length: int | None = None) -> tuple[list[Any], list[Any]]:
    rows, mask = connected(pooling="none")[0](bags(values))["item"].to_padded(max_length)
    assert rows.shape == (*mask.shape, 2)
    return rows[:, :, 0].tolist(), mask.tolist()


def test_jagged_rows_are_padded_with_zeros() -> None:
    rows, mask = padded(BAGS)
    assert rows == [[5.0, 6.0, 0.0], [0.0] * 3, [6.0, 0.0, 0.0], [5.0, 8.0, 8.0]]
    assert mask == [[True, True, False], [False] * 3, [True, False, False], [True] * 3]
    assert padded(BAGS, 1) == ([[5.0], [0.0], [6.0], [5.0]], [[True], [False], [True], [True]])


@given(
    values=st.lists(st.lists(st.integers(1, 9), max_size=4), max_size=5),
    max_length=st.none() | st.integers(0, 6),
)
def test_padding_keeps_the_first_ids_of_each_bag(
    values: list[list[int]], max_length: int | None
) -> None:
    rows, mask = padded(values, max_length)
    width = max(map(len, values), default=0) if max_length is None else max_length
    assert rows == [(bag + [0] * width)[:width] for bag in values]
    assert mask == [[i < len(bag) for i in range(width)] for bag in values]


@given(
    values=st.lists(st.lists(st.integers(1, 9), max_size=4), max_size=5),
    max_length=st.none() | st.integers(0, 6),
)
def test_padding_may_keep_the_last_ids_of_each_bag(
    values: list[list[int]], max_length: int | None
) -> None:
    jagged = connected(pooling="none")[0](bags(values))["item"]
    rows, mask = jagged.to_padded(max_length, keep="newest")
    width = max(map(len, values), default=0) if max_length is None else max_length
    kept = [bag[max(0, len(bag) - width) :] for bag in values]
    assert rows[:, :, 0].tolist() == [bag + [0] * (width - len(bag)) for bag in kept]
    assert mask.tolist() == [[i < len(bag) for i in range(width)] for bag in kept]


def test_padding_says_what_it_cannot_keep() -> None:
    jagged = connected(pooling="none")[0](bags())["item"]
    with pytest.raises(
        dp.SettingError, match=r"keep must be one of \('oldest', 'newest'\), got 'la"
    ):
        jagged.to_padded(2, keep="last")
    with pytest.raises(dp.SettingError, match="max_length must be at least 0, got -1"):
        jagged.to_padded(-1)


def test_gradients_pass_through_padding() -> None:
    module, source = connected(pooling="none")
    rows, _ = module(bags())["item"].to_padded(2)
    rows[:, :, 0].sum().backward()
    assert source.rows_made is not None
    assert source.rows_made.grad[:, 0].tolist() == [2.0, 2.0, 1.0]  # type: ignore[index]


@given(values=st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=6))
def test_sum_and_mean_equal_embedding_bags(values: list[list[int]]) -> None:
    flat = torch.tensor([value for bag in values for value in bag], dtype=torch.int64)
    offsets = torch.tensor(np.cumsum([0, *map(len, values)])[:-1])
    table = torch.arange(10.0, dtype=torch.float64)[:, None].repeat(1, 2)
    for mode in ("sum", "mean"):
        theirs = torch.nn.functional.embedding_bag(flat, table, offsets, mode=mode)
        np.testing.assert_allclose(pooled(values, pooling=mode), theirs[:, 0], rtol=1e-12)


class Kjt:
    """The methods of TorchRec's KeyedJaggedTensor that a batch asks for."""

    def keys(self) -> list[str]:
        return ["user", "item"]

    def values(self) -> torch.Tensor:
        return torch.tensor([1, 2, 5, 6, 6])

    def offsets(self) -> torch.Tensor:
        return torch.tensor([0, 1, 2, 4, 5])

    def weights_or_none(self) -> torch.Tensor:
        return torch.tensor([1.0, 2.0, 1.0, 1.0, 3.0])


def test_a_keyed_jagged_tensor_is_read_as_any_batch() -> None:
    module, _ = connected(features=("user", "item"))
    out = module(dp.Batch.from_kjt(Kjt()))
    assert out[:, :, 0].tolist() == [[1.0, 11.0], [4.0, 18.0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": ()}, "one or more different names"),
        ({"features": ("a", "a")}, "one or more different names"),
        ({"features": ""}, "one or more different names"),
        ({"features": ("a", 3)}, "one or more different names"),
        ({"dim": 0}, "dim must be an int >= 1, got 0"),
        ({"dim": 2.5}, "dim must be an int >= 1, got 2.5"),
        ({"dim": "8"}, "dim must be an int >= 1, got '8'"),
        ({"pooling": "max"}, r"pooling must be one of .*'sum', 'mean', 'none'.*, got 'max'"),
        ({"pooling": None}, "pooling must be one of"),
        ({"dtype": torch.float16}, r"float32 or torch.float64, got torch.float16"),
        ({"spaces": {"genre": "item"}}, r"spaces names \['genre'\]"),
        ({"padding_key": 2**64}, "padding_key must be an int of 64 bits, got 18446744073709551616"),
        ({"padding_key": 0.5}, "padding_key must be an int of 64 bits, got 0.5"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(dp.SettingError, match=message):
        dp.SparseEmbedding(**{"features": "item", "dim": 2, **settings})


@pytest.mark.parametrize("bounds", [(1.0, -1.0), (0.0, float("inf"))])
def test_bounds_that_are_refused(bounds: Any) -> None:
    with pytest.raises(dp.SettingError, match="bounds must be finite"):
        planned(Network(bounds=bounds))


def test_a_module_that_is_not_connected_says_what_to_do() -> None:
    with pytest.raises(dp.PlanError, match=r"is not connected to a table.*downpour.Worker"):
        dp.SparseEmbedding("item", 2)(bags())


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch"])
def test_a_copy_of_a_model_is_not_connected(how: str) -> None:
    model = Network()
    plan = planned(model)
    with dp.Worker(plan, model, dp.embedded(plan)) as worker:
        if how == "deepcopy":
            again = copy.deepcopy(model)
        elif how == "pickle":
            again = pickle.loads(pickle.dumps(model))
        else:
            file = io.BytesIO()
            torch.save(model, file)
            again = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
        assert model.embedding.source is worker
    assert again.embedding.source is None
    assert again.embedding.table == "embedding"
    assert planned(again) == plan


def test_a_module_has_no_state_of_its_own_and_says_what_it_reads() -> None:
    module = dp.SparseEmbedding(("user", "item"), 2, pooling="mean")
    assert module.state_dict() == {}
    assert list(module.parameters()) == []
    assert repr(module) == "SparseEmbedding(features=('user', 'item'), dim=2, pooling='mean')"


def test_spaces_say_which_ids_are_one_row() -> None:
    def rows_of(**settings: Any) -> int:
        model = Network(**settings)
        ps = dp.embedded(plan := planned(model))
        with dp.Worker(plan, model, ps) as worker:
            worker.step("click", a_batch([5, 6], [[5], [6]]))
        return len(ps.export("embedding").keys)

    assert rows_of() == 4
    assert rows_of(spaces=None) == 2
    assert rows_of(spaces={"item": "user"}) == 2
    assert rows_of(spaces={"item": "thing", "user": "thing"}) == 2
    assert rows_of(spaces={"item": "thing"}) == 4
    assert rows_of(padding_key=6) == 2
