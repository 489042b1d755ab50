"""Transpiled programs over rows that count show and click, and over statistics of data-norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import downpour as dp
from tests.networks import NUM_IDS, Counted, head, planned, random_batches, weights_of
from tests.plain_ctr import assert_same_rows
from tests.plain_training import PlainTraining
from tests.servers import assert_close, joined, servers
from tests.transpiled_runs import SPLIT, reading, trained, transpiled

FLOAT: dict[str, Any] = {"dtype": torch.float64}
IDS = np.arange(NUM_IDS)


def counted(rank: int, num_batches: int = 6) -> list[dp.Batch]:
    rng, made = np.random.default_rng(rank), []
    for batch in random_batches(rank, num_batches):
        labels = {name: rng.integers(0, 2, batch.size) for name in TWO}
        dense = {"x": rng.normal([3.0, -1.0], [2.0, 0.5], (batch.size, 2))}
        made.append(dp.Batch(features=batch.features, dense=dense, labels=labels))
    return made


TWO = {label: head(label) for label in ("clicked", "bought")}


def counting(model: Any, losses: Any, **settings: Any) -> dp.Plan:
    """A plan of rows that count, by Adagrad unless told otherwise, and of statistics."""
    accessor = {"rule": dp.G2SumAdagrad(0.3), "embedx_threshold": 1.2, "click": "clicked"}
    rules: dict[str, Any] = {
        "sparse": dp.CtrAccessor(init=dp.Normal(0.1), **{**accessor, **settings}),
        "dense": dp.Adam(0.05),
        "data_norm": dp.Summary(0.9),
    }
    return planned(model, losses, dp.Batch.concat(counted(9, 2)), **rules)


def test_rows_that_count_and_statistics_learn_as_in_plain_torch() -> None:
    model, shares = Counted(), [counted(rank) for rank in range(3)]
    plan = counting(model, {"clicked": TWO["clicked"]})
    theirs = PlainTraining(model, plan, {"user": IDS, "item": IDS})
    theirs.train(joined(shares))
    with servers(2) as addresses:
        made = trained(addresses, plan, model, shares, **SPLIT)
        with reading(transpiled(plan, addresses, **SPLIT)) as ps:
            assert_same_rows(ps, theirs.rows, rtol=1e-11)
    others = weights_of(theirs.model)
    del others["embedding.weight"]
    assert_close(weights_of(made.models[0]), others, rtol=1e-11)
    assert 0 < theirs.rows.has_embedx.sum() < len(theirs.rows.has_embedx)


def both(model: Any, batch: dp.Batch) -> torch.Tensor:
    return TWO["clicked"](model, batch) + TWO["bought"](model, batch)


def test_losses_over_rows_that_count_are_as_one_loss_that_is_their_sum() -> None:
    model, shares, made = Counted(), [counted(rank) for rank in range(2)], []
    for losses in (TWO, {"both": both}):
        plan = counting(model, losses, show_scale=False)
        with servers(2) as addresses:
            weights = weights_of(trained(addresses, plan, model, shares).models[1])
            with reading(transpiled(plan, addresses)) as ps:
                rows = [ps.pull("embedding", IDS, feature=name) for name in ("user", "item")]
        made.append({**weights, "rows": np.concatenate(rows)})
    assert_close(made[0], made[1], rtol=1e-12)


def test_losses_that_each_count_the_places_of_ids_are_refused() -> None:
    model = Counted()
    with servers() as addresses:
        made = transpiled(counting(model, TWO), addresses)
        with (
            dp.Executor(made, model) as executor,
            pytest.raises(dp.PlanError, match=r"'clicked' and 'bought' both push .*'user'.* sum"),
        ):
            executor.run(made.trainer_startup)
