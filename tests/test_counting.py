"""Shows and clicks: each feature of a batch is counted once, by one program."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import downpour as dp
from downpour.plan.program import PushSparse
from tests.networks import a_batch
from tests.plain_ctr import PlainCtrRows, assert_same_rows
from tests.test_ctr_training import IDS, KEYS, Net, accessor, batches, buy, click, plan_of


class Parts(torch.nn.Module):
    """Users and items of one table, looked up apart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.user, self.item = (
            dp.SparseEmbedding(name, 6, table="rows", use_cvm=True, dtype=torch.float64)
            for name in KEYS
        )
        self.out = torch.nn.Linear(6, 1, dtype=torch.float64)


def of_user(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model.out(model.user(batch).squeeze(1)).square().mean()


def of_item(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model.out(model.item(batch).squeeze(1)).square().mean()


def of_both(model: Any, batch: dp.Batch) -> torch.Tensor:
    return of_user(model, batch) + of_item(model, batch)


def of_item_beside_users(model: Any, batch: dp.Batch) -> torch.Tensor:
    return of_item(model, batch) + model.out(model.user(batch).detach().squeeze(1)).sum() * 0.1


def counted(losses: Any, **settings: Any) -> dict[str, tuple[str, ...]]:
    """The features that each program counts."""
    plan = plan_of(Parts(), losses, accessor(**settings))
    return {name: op.counts for name, it in plan.programs.items() for op in it.ops_of(PushSparse)}


def test_the_first_program_that_pushes_a_feature_counts_it() -> None:
    both = ("user", "item")
    assert counted([of_both, of_item]) == {"of_both": both, "of_item": ()}
    assert counted([of_item, of_both]) == {"of_item": ("item",), "of_both": ("user",)}
    assert counted([of_item, of_user]) == {"of_item": ("item",), "of_user": ("user",)}
    beside = counted([of_item_beside_users, of_both])
    assert beside == {"of_item_beside_users": ("item",), "of_both": ("user",)}


def test_a_program_may_be_chosen_to_count_before_the_others() -> None:
    chosen = counted([of_item, of_both], counted_by="of_both")
    assert chosen == {"of_item": (), "of_both": ("user", "item")}
    chosen = counted([of_both, of_item], counted_by="of_item")
    assert chosen == {"of_both": ("user",), "of_item": ("item",)}
    with pytest.raises(dp.PlanError, match=r"counted_by='sell'.*no program.*: of_both, of_item"):
        counted([of_both, of_item], counted_by="sell")
    with pytest.raises(dp.PlanError, match=r"counted_by='of_user'.*no program"):
        plan_of(Parts(), {"of_item": of_item}, accessor(counted_by="of_user"))


@pytest.mark.parametrize(
    "losses", [[of_item, of_both], [of_both, of_item], [of_item, of_user], [of_user, of_both]]
)
@pytest.mark.parametrize("num_shards", [1, 3])
def test_losses_over_some_features_count_and_learn_as_plain_torch(
    losses: list[Any], num_shards: int
) -> None:
    model = Parts()
    plan = plan_of(model, losses, accessor())
    rows = PlainCtrRows(plan.sparse[0], plan, KEYS)
    theirs: Any = copy.deepcopy(model)
    theirs.user, theirs.item = (OneOf(rows, place) for place in range(2))
    optimizer = torch.optim.SGD(theirs.out.parameters(), lr=0.1)
    ps = dp.embedded(plan, num_shards=num_shards)
    with dp.Worker(plan, model, ps) as worker:
        for batch in batches():
            for loss in losses:
                theirs.zero_grad()
                rows.zero_grad()
                value = loss(theirs, batch)
                value.backward()
                optimizer.step()
                (push,) = plan.programs[loss.__name__].ops_of(PushSparse)
                rows.step(batch, counts=push.counts, pushed=push.features)
                assert worker.step(loss.__name__, batch).loss == pytest.approx(value.item())
    assert_same_rows(ps, rows, rtol=1e-9)
    shown = rows.show.sum().item()
    assert shown == sum(len(batch.features[name].values) for batch in batches() for name in KEYS)


class OneOf(torch.nn.Module):
    """One feature of rows that others share."""

    def __init__(self, rows: PlainCtrRows, place: int) -> None:
        super().__init__()
        self.shared, self.place = [rows], place  # in a list: it is no module of this one

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        return self.shared[0](batch)[:, self.place : self.place + 1]


def shows_of(loss: Any, batch: dp.Batch) -> list[list[float]]:
    """[show, click] of each id after one step of a loss: users, then items."""
    model = Net()
    plan = plan_of(model, loss, accessor(embedx_threshold=0.0))
    ps = dp.embedded(plan)
    with dp.Worker(plan, model, ps) as worker:
        worker.step(loss.__name__, batch)
    pulled = [ps.pull("embedding", IDS, feature=name)[:, :2] for name in KEYS]
    return np.concatenate(pulled).tolist()


def over_some(model: Any, batch: dp.Batch) -> torch.Tensor:
    """A loss over a part of its batch."""
    return click(model, batch.select([0]))


def over_reweighted(model: Any, batch: dp.Batch) -> torch.Tensor:
    return click(model, batch.reweighted([1.0] * batch.size))


@pytest.mark.parametrize("loss", [over_some, over_reweighted])
def test_a_batch_is_counted_whole_whatever_the_loss_reads_of_it(loss: Any) -> None:
    batch = dp.Batch(
        features={"user": [1, 2], "item": [[3], [3, 4]]}, labels={"click": [1, 0], "buy": [0, 0]}
    )
    assert shows_of(loss, batch) == shows_of(click, batch)


def negatives(model: Any, batch: dp.Batch) -> torch.Tensor:
    """A loss that makes a batch of its own."""
    made = dp.Batch(features={"user": IDS[:2], "item": IDS[:2]})
    return click(model, batch) + model.click(model.seen(made)).square().mean()


def test_a_batch_that_a_loss_makes_is_trained_and_not_counted() -> None:
    model = Net()
    plan = plan_of(model, negatives, accessor(embedx_threshold=0.0))
    ps = dp.embedded(plan)
    before = ps.pull("embedding", IDS[:2], feature="user")
    with dp.Worker(plan, model, ps) as worker:
        batch = dp.Batch(features={"user": [7], "item": [[8]]}, labels={"click": [1], "buy": [0]})
        worker.step("negatives", batch)
    after = ps.pull("embedding", IDS[:2], feature="user")
    assert after[:, :2].tolist() == [[0, 0]] * 2
    assert not np.array_equal(after[:, 2], before[:, 2])
    assert ps.pull("embedding", [7], feature="user")[0, :2].tolist() == [1, 1]


def test_counting_is_the_same_for_two_losses_in_either_order() -> None:
    def counts(losses: list[Any]) -> np.ndarray:
        model = Net()
        plan = plan_of(model, losses)
        ps = dp.embedded(plan)
        with dp.Worker(plan, model, ps) as worker:
            for batch in batches():
                for loss in losses:
                    worker.step(loss.__name__, batch)
        return np.concatenate([ps.pull("embedding", IDS, feature=it)[:, :2] for it in KEYS])

    assert np.array_equal(counts([click, buy]), counts([buy, click]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"labels": {"buy": [0, 1, 1, 0]}},
            dp.DataError,
            "by label 'click', which the batch lacks",
        ),
        ({"labels": {"click": [0, 1, -1, 0]}}, dp.DataError, "of at least 0, got .*least -1"),
        ({"labels": {"click": [[0.0]] * 4}}, dp.DataError, r"numbers \[batch\]"),
    ],
)
def test_clicks_that_cannot_be_are_refused_and_nothing_is_changed(
    change: dict[str, Any], error: Any, message: str
) -> None:
    def mean(model: Any, batch: dp.Batch) -> torch.Tensor:
        return model.click(model.seen(batch)).mean()

    model = Net()
    plan = plan_of(model, mean)
    ps = dp.embedded(plan)
    bad = dp.Batch(features=a_batch().features, **change)
    with dp.Worker(plan, model, ps) as worker:
        with pytest.raises(error, match=message):
            worker.step("mean", bad)
        assert ps.steps == {"embedding": 0, "dense.mean": 0}
        assert not ps.pull("embedding", IDS, feature="user").any()
