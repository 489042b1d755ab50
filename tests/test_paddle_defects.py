"""The defects of Paddle's Downpour that must not come back: each is impossible here."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

import downpour as dp
from downpour.plan.fleet_desc import sparse_of_strategy
from downpour.server import Server
from tests.networks import Network, a_batch, planned, random_batches, rows_of

IDS = np.arange(20)


@pytest.mark.parametrize(
    "settings",
    [
        {"sparse": torch.optim.Adam},
        {"sparse": "ftrl"},
        {"dense": torch.optim.RMSprop},
        {"dense": dp.RowAdam(0.1)},
    ],
)
def test_no_optimizer_is_replaced_silently(settings: dict[str, Any]) -> None:
    with pytest.raises(dp.SettingError):
        dp.DownpourSGD(**settings)


def test_a_strategys_optimizer_is_not_replaced_either() -> None:
    with pytest.raises(dp.DownpourError, match="ftrl"):
        sparse_of_strategy(
            "embedding",
            {"sparse_accessor_class": "DownpourSparseValueAccessor", "sparse_optimizer": "ftrl"},
        )


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_decay_of_statistics_is_the_one_that_was_set(decay: float) -> None:
    model = torch.nn.Sequential(dp.DataNorm(1), torch.nn.Linear(1, 1))
    plan = planned(
        model, {"fit": lambda m, b: m(b.label[:, None]).mean()}, data_norm=dp.Summary(decay)
    )
    ps = dp.embedded(plan)
    with dp.Worker(plan, model, ps) as worker:
        worker.step("fit", a_batch())
    assert ps.pull_dense("data_norm.fit")[0] == pytest.approx(1e4 * decay + 4)


def test_a_push_has_been_applied_when_a_step_returns() -> None:
    model = Network()
    plan = planned(model)
    ps = dp.embedded(plan)
    before = rows_of(ps, "embedding", ["user"])
    with dp.Worker(plan, model, ps) as worker:
        worker.step("click", a_batch())
        assert ps.steps == {"embedding": 1, "dense.click": 1}
        assert not np.array_equal(rows_of(ps, "embedding", ["user"]), before)


class Failing(Server):
    """A server whose pulls fail for a while."""

    failures = 5

    def read(self, *arguments: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise dp.TableError("the rows cannot be read now")
        super().read(*arguments)


class FailingPush(Server):
    """A server whose first push of a dense table fails."""

    failures = 1

    def push_dense(self, *arguments: Any, **settings: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise dp.TableError("the parameters cannot be pushed now")
        super().push_dense(*arguments, **settings)


@pytest.mark.parametrize("window", [1, 2])
def test_a_push_that_fails_does_not_end_the_pushes_of_its_table(window: int) -> None:
    model = Network()
    plan = planned(model, window=window)
    ps = dp.Client(plan, [FailingPush(plan)])
    with dp.Worker(plan, model, ps) as worker:
        for _ in range(window - 1):
            worker.step("click", a_batch())
        with pytest.raises(dp.TableError, match="cannot be pushed now"):
            worker.step("click", a_batch())
        for _ in range(window):
            worker.step("click", a_batch())
        assert ps.steps["dense.click"] == 1


def test_pulls_that_fail_are_errors_and_training_can_go_on() -> None:
    model = Network()
    plan = planned(model)
    ps = dp.Client(plan, [Failing(plan)])
    with dp.Worker(plan, model, ps) as worker:
        for _ in range(Failing.failures):
            with pytest.raises(dp.TableError, match="cannot be read now"):
                worker.step("click", a_batch())
        assert worker.step("click", a_batch()).samples == 4


@pytest.mark.parametrize(("before", "after"), [(3, 2), (1, 4), (7, 1)])
def test_rows_load_on_any_number_of_shards(before: int, after: int) -> None:
    model = Network()
    plan = planned(model, sparse=dp.Adagrad(0.1))
    ps, other = dp.embedded(plan, num_shards=before), dp.embedded(plan, num_shards=after)
    with dp.Worker(plan, model, ps) as worker:
        for batch in random_batches(0, 3):
            worker.step("click", batch)
    other.restore("embedding", ps.export("embedding"))
    features = ["user", "item"]
    assert np.array_equal(rows_of(other, "embedding", features), rows_of(ps, "embedding", features))


def test_nothing_is_saved_by_a_numbered_mode_or_confirmed_by_a_stub() -> None:
    names = [name for name in dir(dp.Client) if not name.startswith("_")]
    assert not {"confirm", "revert"} & {*names}
    for name in names:
        member = getattr(dp.Client, name)
        if callable(member):
            assert "mode" not in inspect.signature(member).parameters


def test_slots_are_numbered_by_the_plan_and_not_by_names() -> None:
    def mean(model: Any, batch: dp.Batch) -> torch.Tensor:
        return model(batch).mean()

    features = ("12", "2", "user")
    batch = dp.Batch(features=dict.fromkeys(features, IDS[:3]), labels=[0, 1, 1])
    model = dp.SparseEmbedding(features, dim=3)
    plan = planned(model, mean, batch, sparse=dp.CtrAccessor(rule=dp.SGD(0.1)))
    assert [feature.slot for feature in plan.sparse[0].features] == [0, 1, 2]
    ps = dp.embedded(plan)
    with dp.Worker(plan, model, ps) as worker:
        worker.step("mean", batch)
    statistics = ps.export("embedding").statistics
    assert statistics is not None
    assert sorted(statistics["slot"].tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_what_deletes_rows_has_one_set_of_defaults() -> None:
    by_strategy = sparse_of_strategy("embedding", {}).settings["lifecycle"]
    assert by_strategy == dp.CtrAccessor().lifecycle == dp.Lifecycle()


def test_first_values_are_one_function_of_seed_table_and_key() -> None:
    def embedx(num_shards: int, seed: int) -> np.ndarray:
        model = dp.SparseEmbedding("user", dim=9)
        rows = dp.CtrAccessor(embedx_threshold=0.0, rule=dp.SGD(0.1))
        plan = dp.DownpourSGD(sparse=rows).minimize(
            {"sum": lambda m, b: m(b).sum()}, model=model, example=a_batch(), seed=seed
        )
        ps = dp.embedded(plan, num_shards=num_shards)
        ps.push("embedding", IDS, np.zeros((20, plan.sparse[0].accessor.push_dim)))
        return ps.pull("embedding", IDS)[:, 3:]

    first = embedx(1, 0)
    assert np.array_equal(embedx(3, 0), first)
    assert not np.array_equal(embedx(1, 1), first)
    assert (first < 0).any()  # symmetric: as many below zero as above
    assert (first > 0).any()
    assert abs(np.sign(first).mean()) < 0.3
    assert np.abs(first).max() <= 1e-4
