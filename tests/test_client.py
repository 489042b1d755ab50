"""A client: rows by raw id from numpy, whatever the number of shards, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import downpour as dp
from downpour.hashing import hash_strings
from downpour.tables import TableStats
from downpour.transport import DenseStats
from tests.networks import Network, everything, planned

DIM = 4
SHARDS = [1, 2, 3, 4, 5]


def one_table(num_shards: int = 1, **settings: Any) -> dp.Client:
    """A table of one feature, and no dense one."""
    model = dp.SparseEmbedding("user", DIM, table="users", **settings)
    plan = planned(
        model,
        {"sum": lambda model, batch: model(batch).sum()},
        dp.Batch(features={"user": [1]}),
        sparse=dp.Adagrad(0.5),
    )
    return dp.embedded(plan, num_shards=num_shards)


def grads(num_keys: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_keys, DIM)).astype(np.float32)


def test_a_pull_gives_each_id_its_row_repeats_included() -> None:
    ps = one_table()
    rows = ps.pull("users", [7, 9, 7])
    assert rows.shape == (3, DIM)
    assert rows.dtype == np.float32
    assert np.array_equal(rows[0], rows[2])
    assert not np.array_equal(rows[0], rows[1])


TEXTS = ["7", " 7.0", "Paris", "18446744073709551615", "-1"]
BY_DOOR: dict[str, Any] = {
    "list": TEXTS,
    "numpy": np.array(TEXTS),
    "arrow": pa.array(TEXTS),
    "pandas": pd.Series(TEXTS),
    "polars": pl.Series(TEXTS),
    "mixed": [7, 7.0, "Paris", 2**64 - 1, -1],
    "keys": np.array([7, 7, hash_strings(["Paris"])[0], 2**64 - 1, 2**64 - 1], np.uint64),
}


@pytest.mark.parametrize("door", BY_DOOR)
def test_ids_are_read_as_in_training(door: str) -> None:
    ps = one_table(num_shards=2)
    data = dp.Frame(pa.table({"user": TEXTS}), dp.Schema(features=["user"]), batch_size=9)
    (batch,) = data.batches()
    rows = ps.pull("users", batch.features["user"].values)
    assert np.array_equal(ps.pull("users", BY_DOOR[door]), rows)
    ps.set("users", BY_DOOR[door], np.arange(5, dtype=np.float32)[:, None] + np.zeros(DIM))
    assert ps.pull("users", TEXTS)[:, 0].tolist() == [1, 1, 2, 4, 4]
    ps.push("users", BY_DOOR[door], grads(5))
    assert len(ps.export("users").keys) == 3


def test_hashed_ids_are_read_as_in_training() -> None:
    ps = one_table()
    schema = dp.Schema(features=[dp.Feature("user", hashed=True)])
    (batch,) = dp.Frame(pa.table({"user": ["007", "7"]}), schema, batch_size=9).batches()
    rows = ps.pull("users", batch.features["user"].values)
    assert np.array_equal(ps.pull("users", ["007", 7], hashed=True), rows)
    ps.set("users", ["007"], grads(1), hashed=True)
    ps.push("users", ["007"], grads(1), hashed=True)
    assert len(ps.export("users").keys) == 1
    with pytest.raises(dp.TableError, match="hashed must be None, True or False, got 'yes'"):
        ps.pull("users", ["7"], hashed="yes")  # type: ignore[arg-type]


def test_a_pull_makes_rows_only_when_told_to() -> None:
    ps = one_table(num_shards=2)
    before = ps.pull("users", [1, 2, 3])
    assert len(ps.export("users").keys) == 0
    assert np.array_equal(ps.pull("users", [1, 2, 3], create=True), before)
    assert len(ps.export("users").keys) == 3


def test_a_push_sums_the_gradients_of_one_id_and_steps_once() -> None:
    summed, apart = one_table(), one_table()
    some = grads(3)
    apart.push("users", [5, 6, 5], some)
    summed.push("users", [5, 6], np.stack([some[0] + some[2], some[1]]))
    assert np.array_equal(apart.pull("users", [5, 6]), summed.pull("users", [5, 6]))
    assert apart.steps == {"users": 1}


def test_a_push_is_one_step_of_the_rule() -> None:
    ps = one_table()
    weight = torch.nn.Parameter(torch.from_numpy(ps.pull("users", [5, 6])))
    optimizer = torch.optim.Adagrad([weight], lr=0.5, eps=1e-10)
    for seed in range(3):
        weight.grad = torch.from_numpy(grads(2, seed))
        optimizer.step()
        ps.push("users", [5, 6], grads(2, seed))
    np.testing.assert_allclose(ps.pull("users", [5, 6]), weight.detach(), rtol=1e-5)


def test_of_rows_set_for_one_id_the_last_stays() -> None:
    ps = one_table(num_shards=3)
    rows = grads(4)
    ps.set("users", [1, 2, 1, 3], rows)
    assert np.array_equal(ps.pull("users", [1, 2, 3]), rows[[2, 1, 3]])


def test_the_rule_starts_afresh_where_a_row_is_set() -> None:
    ps, fresh = one_table(), one_table()
    ps.push("users", [1], grads(1))
    for client in (ps, fresh):
        client.set("users", [1], np.zeros((1, DIM)))
        client.push("users", [1], grads(1, 1))
    assert np.array_equal(ps.pull("users", [1]), fresh.pull("users", [1]))


@given(ids=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_int64_ids_are_uint64_ids_of_the_same_bits(ids: list[int]) -> None:
    ps = one_table()
    unsigned = np.array(ids, np.uint64)
    signed = unsigned.view(np.int64)
    ps.push("users", unsigned, grads(len(ids)))
    expected = ps.pull("users", unsigned)
    assert np.array_equal(ps.pull("users", signed), expected)
    assert np.array_equal(ps.pull("users", torch.from_numpy(signed)), expected)
    assert len(ps.export("users").keys) == len(set(ids))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64])
def test_ids_of_any_width_are_the_same_ids(dtype: Any) -> None:
    ps = one_table()
    assert np.array_equal(ps.pull("users", np.array([3, 4], dtype)), ps.pull("users", [3, 4]))


def test_no_ids_are_no_rows_but_a_step() -> None:
    ps = one_table(num_shards=2)
    assert ps.pull("users", []).shape == (0, DIM)
    ps.push("users", [], np.zeros((0, DIM)))
    ps.set("users", [], np.zeros((0, DIM)))
    assert ps.steps == {"users": 1}
    assert len(ps.export("users").keys) == 0


def test_features_with_spaces_of_their_own_are_told_apart() -> None:
    ps = dp.embedded(planned(Network()))
    rows = {name: ps.pull("embedding", [5], feature=name) for name in ("user", "item")}
    assert not np.array_equal(rows["user"], rows["item"])
    with pytest.raises(dp.TableError, match=r"several id spaces.*feature=, one of: user, item"):
        ps.pull("embedding", [5])


def test_features_of_one_space_need_no_name() -> None:
    ps = dp.embedded(planned(Network(spaces={"item": "user"})))
    named = ps.pull("embedding", [5], feature="item")
    assert np.array_equal(ps.pull("embedding", [5]), named)
    assert np.array_equal(ps.pull("embedding", [5], feature="user"), named)


NAN = np.full((2, DIM), np.nan)
REFUSED: list[tuple[str, tuple[Any, ...], type[Exception], str]] = [
    ("pull", ("items", [1]), dp.TableError, r"no sparse table 'items'; the plan has: users"),
    ("pull", ("users", [1, 0.5]), dp.TableError, "table 'users': keys: row 1 holds 0.5, which is"),
    ("pull", ("users", ["1", "1e3"]), dp.TableError, "row 1 holds '1e3', which may be a number or"),
    ("pull", ("users", [[1, 2]]), dp.TableError, r"keys must be ids \[n\], one each, got bags"),
    ("pull", ("users", np.array([[1, 2]])), dp.TableError, r"keys must be ids \[n\], one each"),
    ("pull", ("users", 3), dp.TableError, "cannot read a int as a column"),
    ("pull", ("users", "abc"), dp.TableError, "one entry a sample, got the single text 'abc'"),
    ("pull", ("users", [1, None]), dp.TableError, r"keys must be ids \[n\], and entry 1 is"),
    ("pull", ("users", ["a", "nan"]), dp.TableError, "entry 1 is missing"),
    ("push", ("items", [1], grads(1)), dp.TableError, "no sparse table 'items'"),
    ("push", ("users", [1], grads(2)), dp.TableError, r"gradients must be.*\[1, 4\].*\[2, 4\]"),
    ("push", ("users", [1], grads(1)[:, :3]), dp.TableError, r"numbers \[1, 4\].*\[1, 3\]"),
    ("push", ("users", [1], grads(1)[0]), dp.TableError, r"got float32 \[4\]"),
    ("push", ("users", [1], grads(1) + 1j), dp.TableError, "got complex64"),
    ("push", ("users", [1, 9], NAN), dp.NonFiniteError, "gradients hold NaN or infinity"),
    ("push", ("users", [1, 9], NAN - np.inf), dp.NonFiniteError, "gradients hold NaN"),
    ("push", ("users", [1, 9], NAN * 0 + 1e39), dp.NonFiniteError, "gradients hold NaN or inf"),
    ("push", ("users", [9, 9], np.full((2, DIM), 3e38)), dp.NonFiniteError, "sum to infinity"),
    ("set", ("items", [1], grads(1)), dp.TableError, "no sparse table 'items'"),
    ("set", ("users", [1], grads(2)), dp.TableError, r"rows must be numbers \[1, 4\]"),
    ("set", ("users", [1, 9], NAN), dp.NonFiniteError, "rows hold NaN or infinity"),
    ("set", ("users", [1.5], grads(1)), dp.TableError, "keys: row 0 holds 1.5, which is not a"),
    ("set", ("users", [1, 9], np.full((2, DIM), 1e39)), dp.NonFiniteError, "rows hold NaN"),
]  # fmt: skip


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize(("verb", "arguments", "error", "message"), REFUSED)
def test_what_is_refused_changes_nothing(
    verb: str, arguments: tuple[Any, ...], error: type[Exception], message: str, num_shards: int
) -> None:
    ps = one_table(num_shards)
    ps.push("users", [1, 2], grads(2))
    before = everything(ps)
    with pytest.raises(error, match=message):
        getattr(ps, verb)(*arguments)
    assert everything(ps) == before


@pytest.mark.parametrize("verb", ["pull", "push", "set"])
def test_a_feature_that_does_not_read_the_table_is_refused(verb: str) -> None:
    ps = one_table()
    values = () if verb == "pull" else (grads(1),)
    with pytest.raises(dp.TableError, match="not read by feature 'item'; it is by: user"):
        getattr(ps, verb)("users", [1], *values, feature="item")


def test_a_table_learns_in_its_own_type_whatever_is_given() -> None:
    ps = one_table(dtype=torch.float64)
    ps.set("users", [1], np.full((1, DIM), 2, np.int32))
    ps.push("users", [1], np.ones((1, DIM), np.float16))
    assert ps.pull("users", [1]).dtype == np.float64
    assert np.array_equal(ps.pull("users", [1]), np.full((1, DIM), 2.0 - 0.5 / (1.0 + 1e-10)))


def test_the_number_of_shards_changes_no_bit() -> None:
    rng = np.random.default_rng(1)
    requests = [rng.integers(0, 40, 30) for _ in range(6)]

    def after(num_shards: int) -> dict[str, Any]:
        ps = one_table(num_shards)
        for seed, ids in enumerate(requests):
            ps.push("users", ids, grads(len(ids), seed))
            ps.set("users", ids[:2], grads(2, seed))
        return {**everything(ps), "pulled": ps.pull("users", np.arange(50)).tolist()}

    first = after(1)
    assert all(after(num_shards) == first for num_shards in SHARDS)


@pytest.mark.parametrize("num_shards", SHARDS)
def test_what_is_exported_is_restored_on_any_number_of_shards(num_shards: int) -> None:
    model = Network()
    plan = planned(model, sparse=dp.Adam(0.1, weight_decay=0.1), dense=dp.Adam(0.1))
    ps = dp.embedded(plan, num_shards=2)
    with dp.Worker(plan, model, ps) as worker:
        for _ in range(3):
            worker.step("click", dp.Batch(features={"user": [1, 2], "item": [3, 4]}, labels=[0, 1]))
    other = dp.embedded(plan, num_shards=num_shards)
    other.restore("embedding", ps.export("embedding"))
    other.restore_dense("dense.click", ps.export_dense("dense.click"))
    assert everything(other) == everything(ps)


@pytest.mark.parametrize("num_shards", SHARDS)
def test_stats_are_those_of_all_shards_together(num_shards: int) -> None:
    plan = planned(Network())
    ps = dp.embedded(plan, num_shards=num_shards)
    ps.pull("embedding", [1, 2, 3], feature="user", create=True)
    stats = ps.stats()
    merged, parts = stats["embedding"], [server.stats()["embedding"] for server in ps.servers]
    assert isinstance(merged, TableStats)
    assert merged.rows == 3
    for name in ("rows", "arena_bytes", "index_bytes", "growths"):
        assert getattr(merged, name) == sum(getattr(part, name) for part in parts)
    assert merged.load == pytest.approx(3 * 8 / merged.index_bytes)  # an entry has 8 bytes
    assert stats["dense.click"] == DenseStats(size=9, bytes=36)


def test_stats_of_empty_tables_are_zeros() -> None:
    merged = one_table(num_shards=3).stats()["users"]
    assert isinstance(merged, TableStats)
    assert (merged.rows, merged.load, merged.growths) == (0, 0.0, 0)


def test_growths_are_those_of_all_shards() -> None:
    ps = one_table(num_shards=2)
    ps.pull("users", np.arange(200_000), create=True)
    merged = ps.stats()["users"]
    parts: list[Any] = [server.stats()["users"] for server in ps.servers]
    assert isinstance(merged, TableStats)
    assert merged.growths == parts[0].growths + parts[1].growths > 0
    assert parts[0].load + parts[1].load == pytest.approx(2.0 * merged.load, rel=0.5)


@pytest.mark.parametrize("num_shards", [0, -1, 1.5, True, "2"])
def test_a_number_of_shards_that_is_none_is_refused(num_shards: Any) -> None:
    with pytest.raises(dp.SettingError, match="num_shards must be an int >= 1"):
        one_table(num_shards)


def test_dense_tables_are_spread_over_shards_and_initialised_once() -> None:
    losses = {
        "one": lambda model, batch: model(batch).mean(),
        "two": lambda model, batch: (model.embedding(batch).sum() * model.other.weight).sum(),
    }
    model = Network()
    model.other = torch.nn.Linear(2, 1, bias=False)
    ps = dp.embedded(planned(model, losses), num_shards=3)
    assert ps.init_dense("dense.one", np.ones(9, np.float32))
    assert not ps.init_dense("dense.one", np.zeros(9, np.float32))
    assert np.array_equal(ps.pull_dense("dense.one"), np.ones(9))
    assert ps.init_dense("dense.two", np.zeros(2, np.float32))


DENSE_REFUSED: list[tuple[Any, Any, type[Exception], str]] = [
    (np.ones(8, np.float32), {"out.bias"}, dp.TableError, r"must be float32 \[9\], got.*\[8\]"),
    (np.ones(9), {"out.bias"}, dp.TableError, "must be float32"),
    (np.full(9, np.nan, np.float32), {"out.bias"}, dp.NonFiniteError, "NaN or infinity"),
    (np.ones(9, np.float32), {"bias"}, dp.TableError, "no section 'bias'"),
]  # fmt: skip


@pytest.mark.parametrize(("grad", "names", "error", "message"), DENSE_REFUSED)
def test_a_dense_push_that_is_refused_changes_nothing(
    grad: Any, names: Any, error: type[Exception], message: str
) -> None:
    ps = dp.embedded(planned(Network()))
    before = everything(ps)
    with pytest.raises(error, match=message):
        ps.push_dense("dense.click", grad, names)
    with pytest.raises(dp.PlanError, match=r"no dense table 'dense.buy'"):
        ps.push_dense("dense.buy", grad, names)
    assert everything(ps) == before


def test_a_client_closes_with_its_block() -> None:
    with one_table() as ps:
        assert ps.pull("users", [1]).shape == (1, DIM)
