"""Models over CTR rows learn what the same rows in plain torch learn."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import downpour as dp
from downpour.plan.program import PushSparse, WeighSamples
from downpour.tables.pushes import PUSH_SHOW
from tests.plain_ctr import PlainCtrRows, assert_same_rows

IDS = np.arange(12)
KEYS = {"user": IDS, "item": IDS}
EMBEDX = 3
RULE = dp.G2SumAdagrad(0.3)


def batches(seed: int = 0, num: int = 25) -> list[dp.Batch]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(num):
        size = int(rng.integers(1, 8))
        lengths = rng.integers(0, 4, size)
        items = dp.Jagged.from_lengths(rng.choice(IDS, lengths.sum()), lengths)
        labels = {"click": rng.integers(0, 2, size), "buy": rng.integers(0, 2, size)}
        features = {"user": rng.choice(IDS, size), "item": items}
        made.append(dp.Batch(features=features, labels=labels))
    return made


class Net(torch.nn.Module):
    """Users and items of one table, and a head for each loss."""

    def __init__(self, *, use_cvm: bool = True, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        dim = EMBEDX + (3 if use_cvm else 1)
        self.embedding: Any = dp.SparseEmbedding(
            ("user", "item"), dim, use_cvm=use_cvm, dtype=dtype
        )
        self.click = torch.nn.Linear(2 * dim, 1, dtype=dtype)
        self.buy = torch.nn.Linear(2 * dim, 1, dtype=dtype)

    def seen(self, batch: dp.Batch) -> torch.Tensor:
        return self.embedding(batch).flatten(1)


def click(model: Any, batch: dp.Batch) -> torch.Tensor:
    logits = model.click(model.seen(batch)).squeeze(1)
    return binary_cross_entropy_with_logits(logits, batch.labels["click"].to(logits.dtype))


def buy(model: Any, batch: dp.Batch) -> torch.Tensor:
    logits = model.buy(model.seen(batch)).squeeze(1)
    return binary_cross_entropy_with_logits(logits, batch.labels["buy"].to(logits.dtype))


def accessor(**settings: Any) -> dp.CtrAccessor:
    return dp.CtrAccessor(**{"rule": RULE, "embedx_threshold": 1.2, "click": "click", **settings})


def plan_of(model: Any, losses: Any = click, rows: Any = None, **settings: Any) -> dp.Plan:
    optimizer = dp.DownpourSGD(
        sparse=accessor() if rows is None else rows, dense=dp.SGD(0.1), **settings
    )
    return optimizer.minimize(losses, model=model, example=batches()[0])


def compare(losses: list[Any], rows: Any, *, use_cvm: bool = True, num_shards: int = 1,
            **settings: Any) -> tuple[dp.Client, PlainCtrRows]:  # fmt: skip
    """Train both sides; the losses of each step are the same."""
    model = Net(use_cvm=use_cvm)
    plan = plan_of(model, losses, rows, **settings)
    theirs = copy.deepcopy(model)
    theirs.embedding = PlainCtrRows(plan.sparse[0], plan, KEYS)
    heads = [*theirs.click.parameters(), *theirs.buy.parameters()]
    optimizer = torch.optim.SGD(heads, lr=0.1)
    ps = dp.embedded(plan, num_shards=num_shards)
    with dp.Worker(plan, model, ps) as worker:
        for batch in batches():
            for place, loss in enumerate(losses):
                theirs.zero_grad()
                value = loss(theirs, batch)
                value.backward()
                optimizer.step()
                scales = settings.get("scale_sparse_gradient_with_batch_size")
                theirs.embedding.step(
                    batch, scale=batch.size if scales else 1.0, counts=None if place == 0 else ()
                )
                step = worker.step(loss.__name__, batch)
                assert step.loss == pytest.approx(value.item(), rel=1e-9)
    return ps, theirs.embedding


@pytest.mark.parametrize("use_cvm", [True, False])
@pytest.mark.parametrize("scales", [True, False])
@pytest.mark.parametrize(
    "rows",
    [
        accessor(),
        accessor(show_scale=False),
        accessor(embedx_threshold=0.0),
        accessor(embedx_rule=dp.SGD(0.2), bounds=(-0.05, 0.05), embedx_bounds=(-0.02, 0.02)),
        accessor(rule=dp.SGD(0.5), nonclk_coeff=0.3, click_coeff=0.5, slots=False),
    ],
)
def test_one_loss_learns_as_in_torch(rows: Any, scales: bool, use_cvm: bool) -> None:
    ps, theirs = compare(
        [click], rows, use_cvm=use_cvm, scale_sparse_gradient_with_batch_size=scales
    )
    assert_same_rows(ps, theirs, rtol=1e-9)
    assert theirs.has_embedx.any()


@pytest.mark.parametrize("num_shards", [1, 3])
def test_two_losses_count_a_batch_once(num_shards: int) -> None:
    ps, theirs = compare([click, buy], accessor(), num_shards=num_shards)
    assert_same_rows(ps, theirs, rtol=1e-9)
    samples = sum(batch.size for batch in batches())
    assert float(theirs.show[: len(IDS)].sum()) == samples


def test_any_number_of_shards_changes_no_bit() -> None:
    def rows(num_shards: int) -> np.ndarray:
        model = Net(dtype=torch.float32)
        plan = plan_of(model, [click, buy])
        ps = dp.embedded(plan, num_shards=num_shards)
        with dp.Worker(plan, model, ps) as worker:
            for batch in batches():
                for name in ("click", "buy"):
                    worker.step(name, batch)
        return np.concatenate([ps.pull("embedding", IDS, feature=name) for name in KEYS])

    one = rows(1)
    for num_shards in (2, 3, 7):
        assert np.array_equal(rows(num_shards), one)


def test_slots_are_the_places_of_features_and_are_kept_in_rows() -> None:
    model = Net()
    plan = plan_of(model)
    assert [feature.slot for feature in plan.sparse[0].features] == [0, 1]
    ps = dp.embedded(plan)
    with dp.Worker(plan, model, ps) as worker:
        worker.step("click", batches()[0])
    statistics = ps.export("embedding").statistics
    assert statistics is not None
    num_users = len(np.unique(batches()[0].features["user"].values))
    assert np.count_nonzero(statistics["slot"] == 0) == num_users
    without = plan_of(Net(), rows=accessor(slots=False))
    assert {feature.slot for feature in without.sparse[0].features} == {None}


def test_evaluation_makes_no_rows_and_sees_no_counts_of_unknown_ids() -> None:
    model = Net()
    plan = plan_of(model)
    ps = dp.embedded(plan)
    with dp.Worker(plan, model, ps), torch.no_grad():
        seen = model.embedding(batches()[0])
    assert not seen.any()  # log(0 + 1), w of 0, and no embedx
    assert len(ps.export("embedding").keys) == 0


def weighted(model: Any, batch: dp.Batch) -> torch.Tensor:
    logits = model.click(model.seen(batch)).squeeze(1)
    target = batch.labels["click"].to(logits.dtype)
    assert batch.weights is not None
    SEEN.append(batch.weights.tolist())
    return binary_cross_entropy_with_logits(logits, target, batch.weights)


SEEN: list[Any] = []


# By hand: 3 shows of threshold 4 and ratio 2 give log(e + 1 / 4 * 2).
def test_rarely_shown_ids_weigh_more() -> None:
    model = Net()
    adjust = {
        "need_adjust": True, "nid_slot": "user", "nid_adjw_threshold": 4.0, "nid_adjw_ratio": 2.0,
    }  # fmt: skip
    optimizer = dp.DownpourSGD(sparse=accessor(), dense=dp.SGD(0.1))
    strategy = {"adjust_ins_weight": adjust, "use_cvm": True}
    plan = optimizer.minimize(weighted, model=model, example=batches()[0], strategy=strategy)
    assert WeighSamples("embedding", "user", 4.0, 2.0) in plan.programs["weighted"].ops
    batch = dp.Batch(
        features={"user": [[1], [2], []], "item": [[], [], [3]]},
        labels={"click": [1, 0, 1], "buy": [0, 0, 0]},
        weights=[1.0, 1.0, 5.0],
    )
    ps = dp.embedded(plan)
    with dp.Worker(plan, model, ps) as worker:
        shown = np.zeros((2, ps.plan.sparse[0].accessor.push_dim))
        shown[:, PUSH_SHOW] = 3.0, 4.0
        ps.push("embedding", [1, 2], shown, feature="user")
        SEEN.clear()
        worker.step("weighted", batch)
    (weights,) = SEEN
    assert weights == pytest.approx([np.log(np.e + 0.5), 1.0, 5.0], rel=1e-6)


CASES: dict[str, tuple[Any, Any, Any, str]] = {
    "embedx_dim with CVM": (
        Net(), accessor(embedx_dim=4), None,
        r"embedx_dim is 4.*dim 6 less 3 \(show, click, w\) is 3; write embedx_dim 3, or .*dim=7",
    ),
    "embedx_dim without CVM": (
        Net(use_cvm=False), accessor(embedx_dim=8), None,
        r"dim 4 less 1 \(w\) is 3; write embedx_dim 3, or SparseEmbedding\(..., dim=9\)",
    ),
    "a rule that CTR rows do not take": (
        Net(), {"embedding": dp.SGD(0.1, weight_decay=0.1)}, {"click_name": "buy", "use_cvm": True},
        "rules take neither weight_decay nor batch_l2",
    ),
    "no single label": (
        Net(), accessor(click=None), None,
        r"no single label \(it has: click, buy\); say which is the click",
    ),
    "no such label": (Net(), accessor(click="like"), None, "no label 'like'"),
    "a strategy that says no CVM": (
        Net(), accessor(), {"use_cvm": False},
        r"use_cvm=False, and its .*use_cvm=True; write SparseEmbedding\(..., dim=4, use_cvm=False",
    ),
    "a strategy that says CVM": (
        Net(use_cvm=False), accessor(), {"use_cvm": True},
        r"write SparseEmbedding\(..., dim=6, use_cvm=True\)",
    ),
    "no_cvm over CTR rows": (Net(), accessor(), {"no_cvm": True}, "rows count show and click"),
    "no_cvm and a model with CVM": (Net(), None, {"no_cvm": True}, "rows count"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_plans_that_do_not_fit_say_what_to_write(name: str) -> None:
    model, rows, strategy, message = CASES[name]
    optimizer = dp.DownpourSGD(sparse=rows)
    with pytest.raises((dp.PlanError, dp.SettingError), match=message):
        optimizer.minimize(click, model=model, example=batches()[0], strategy=strategy)


def test_a_module_and_an_accessor_must_not_both_say_the_first_values() -> None:
    model = Net()
    model.embedding.init = dp.Uniform(0.5)
    with pytest.raises(dp.PlanError, match=r"init is Constant.*say it in one place"):
        plan_of(model)


def test_a_rule_is_the_rule_of_both_parts_where_the_model_asks_for_counts() -> None:
    optimizer = dp.DownpourSGD(sparse=RULE)
    strategy = dp.Strategy(use_cvm=True, click_name="buy")
    plan = optimizer.minimize(click, model=Net(), example=batches()[0], strategy=strategy)
    rows = plan.sparse[0].accessor
    assert isinstance(rows, dp.CtrAccessor)
    assert (rows.rules, rows.embedx_dim, rows.click) == ((RULE, RULE), 3, "buy")
    op = plan.programs["click"].ops[-2]
    assert op == PushSparse("embedding", ("user", "item"), True, counts=("user", "item"))


def test_a_strategy_counts_shows_unless_it_says_otherwise() -> None:
    def rows(strategy: Any, **settings: Any) -> str:
        optimizer = dp.DownpourSGD(**settings)
        model = Net(use_cvm=False)
        plan = optimizer.minimize(click, model=model, example=batches()[0], strategy=strategy)
        return type(plan.sparse[0].accessor).__name__

    assert rows({"click_name": "click"}) == "CtrAccessor"
    assert rows({"no_cvm": True}) == "EmbeddingAccessor"
    assert rows({}, sparse=dp.SGD(0.1)) == "EmbeddingAccessor"
    assert rows(None) == "EmbeddingAccessor"
