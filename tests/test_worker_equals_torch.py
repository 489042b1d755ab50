"""What a worker does around a step equals plain torch: windows, clipping, schedules and more."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.checkpoint import checkpoint

import downpour as dp
from tests.networks import (
    NUM_IDS,
    Network,
    assert_same,
    click,
    dense_parameters,
    plain,
    planned,
    random_batches,
    sparse_parameters,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BATCHES = random_batches(3, 11)


def double(**settings: Any) -> Network:
    return Network(dtype=torch.float64, init=dp.Normal(0.5), **settings)


def train(model: Any, plan: dp.Plan, ps: dp.Client, batches: Sequence[dp.Batch] = BATCHES) -> None:
    (program,) = plan.programs
    with dp.Worker(plan, model, ps) as worker:
        for batch in batches:
            worker.step(program, batch)


def optimizers_of(model: Any) -> list[torch.optim.Optimizer]:
    """Those of `RULES` in torch, first the rows'."""
    return [
        torch.optim.Adagrad(sparse_parameters(model), lr=0.5, eps=1e-10),
        torch.optim.Adam(dense_parameters(model), lr=0.1),
    ]


RULES: dict[str, Any] = {"sparse": dp.Adagrad(0.5), "dense": dp.Adam(0.1)}


def torch_train(
    model: Any,
    loss: Any = click,
    before_step: Callable[[], Any] = lambda: None,
    after_step: Callable[[], Any] = lambda: None,
    optimizers: Sequence[torch.optim.Optimizer] | None = None,
) -> None:
    optimizers = optimizers_of(model) if optimizers is None else optimizers
    for batch in BATCHES:
        model.zero_grad()
        loss(model, batch).backward()
        before_step()
        for optimizer in optimizers:
            optimizer.step()
        after_step()


@pytest.mark.parametrize("window", [1, 2, 4, 11, 20])
def test_a_window_sums_dense_gradients_and_steps_rows_with_each_batch(window: int) -> None:
    model = double()
    plan = planned(model, window=window, **RULES)
    ps = dp.embedded(plan)
    theirs = plain(model, ps)
    rows, dense = optimizers_of(theirs)
    for number, batch in enumerate(BATCHES, 1):
        click(theirs, batch).backward()
        rows.step()
        rows.zero_grad()
        if number % window == 0 or number == len(BATCHES):  # what is left is pushed on closing
            dense.step()
            dense.zero_grad()
    train(model, plan, ps)
    assert_same(model, ps, theirs)
    assert ps.steps == {"embedding": 11, "dense.click": math.ceil(11 / window)}


def test_dense_parameters_are_read_and_sent_once_a_window() -> None:
    model = double()
    plan = planned(model, window=3)
    ps = dp.embedded(plan)
    sent, seen = [], []
    with dp.Worker(plan, model, ps) as worker:
        for batch in BATCHES[:7]:
            worker.step("click", batch)
            sent.append(ps.steps["dense.click"])
            seen.append(model.out.weight.detach().clone())
    assert sent == [0, 0, 1, 1, 1, 2, 2]
    same = [torch.equal(before, after) for before, after in itertools.pairwise(seen)]
    assert same == [True, False, True, True, False, True]  # what a push made is in the model


@pytest.mark.parametrize("limit", [0.01, 0.1, 100.0])
@pytest.mark.parametrize("kind", ["norm", "value"])
def test_clipping_equals_torchs(kind: str, limit: float) -> None:
    model = double()
    clip = dp.ClipByNorm(limit) if kind == "norm" else dp.ClipByValue(limit)
    plan = planned(model, clip=clip)
    ps = dp.embedded(plan)
    theirs = plain(model, ps)
    torchs = clip_grad_norm_ if kind == "norm" else clip_grad_value_
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.5)
    torch_train(theirs, click, lambda: torchs(theirs.parameters(), limit), optimizers=[sgd])
    train(model, plan, ps)
    assert_same(model, ps, theirs)


def wave(step: int) -> float:
    return 1.0 + 0.5 * math.sin(step)


@pytest.mark.parametrize(
    "schedule",
    [
        wave,
        dp.StepDecay(every=3, factor=0.5),
        dp.Warmup(steps=4, after=dp.Cosine(steps=5)),
        dp.TorchSchedule(torch.optim.lr_scheduler.LambdaLR, lr_lambda=wave),
    ],
)
def test_schedules_equal_torchs_lambda_lr(schedule: Any) -> None:
    model = double()
    rules: dict[str, Any] = {
        "sparse": dp.Adagrad(0.5, schedule=schedule),
        "dense": dp.Adam(0.1, schedule=schedule),
    }
    plan = planned(model, **rules)
    ps = dp.embedded(plan)
    theirs = plain(model, ps)
    optimizers = optimizers_of(theirs)
    of_rows, of_dense = (
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: schedule(done + 1))
        for optimizer in optimizers
    )

    def next_rates() -> None:
        of_rows.step()
        of_dense.step()

    torch_train(theirs, after_step=next_rates, optimizers=optimizers)
    train(model, plan, ps)
    assert_same(model, ps, theirs)


class Towers(torch.nn.Module):
    """Users and items in tables of their own, dims alike."""

    def __init__(self) -> None:
        super().__init__()
        settings: dict[str, Any] = {"dtype": torch.float64, "init": dp.Normal(0.5)}
        self.user = dp.SparseEmbedding("user", 3, **settings)
        self.item = dp.SparseEmbedding("item", 3, **settings)
        self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        return (self.user(batch) * self.item(batch)).sum((1, 2)) * self.scale


def sampled(model: Any, batch: dp.Batch) -> torch.Tensor:
    """Two batches of negatives a batch; their items overlap with one another and the batch's."""
    score = model(batch).exp()
    for shift in (1, 2):
        items = (np.arange(batch.size) + shift) % NUM_IDS
        score = (
            score
            + (model.user(batch) * model.item(dp.Batch(features={"item": items}))).exp()[:, 0, 0]
        )
    return score.mean().log()


def test_batches_made_inside_the_loss_are_merged_into_one_update_a_key() -> None:
    model = Towers()
    plan = planned(model, sampled, **RULES)
    ps = dp.embedded(plan, num_shards=2)
    theirs = plain(model, ps)
    torch_train(theirs, sampled)
    train(model, plan, ps)
    assert_same(model, ps, theirs)
    assert set(ps.steps.values()) == {len(BATCHES)}


def test_one_batch_made_inside_the_loss_may_be_read_twice() -> None:
    def twice(model: Any, batch: dp.Batch) -> torch.Tensor:
        other = dp.Batch(features={"item": np.arange(batch.size), "user": [3] * batch.size})
        return (model(other) * model(other) + model(batch)).mean()

    model = Towers()
    plan = planned(model, twice, **RULES)
    ps = dp.embedded(plan)
    theirs = plain(model, ps)
    torch_train(theirs, twice)
    train(model, plan, ps)
    assert_same(model, ps, theirs)


class Checkpointed(Network):
    use_reentrant = False

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        start = torch.zeros(1, requires_grad=True)  # re-entrant: one input must need a gradient
        return checkpoint(
            lambda _: Network.forward(self, batch), start, use_reentrant=self.use_reentrant
        )


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_changes_no_result(use_reentrant: bool) -> None:
    model = Checkpointed(dtype=torch.float64)
    model.use_reentrant = use_reentrant
    plan = planned(model, **RULES)
    ps = dp.embedded(plan)
    theirs = plain(model, ps)
    torch_train(theirs)
    train(model, plan, ps)
    assert_same(model, ps, theirs)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at it itself
@pytest.mark.parametrize("part", ["model", "layer"])
def test_a_compiled_model_trains_and_evaluates_as_it_was_written(part: str) -> None:
    model: Any = double()
    compiled = model
    if part == "model":
        compiled = torch.compile(model, backend="aot_eager")
    else:
        model.out = torch.compile(model.out, backend="eager")
    plan = planned(compiled, **RULES)
    ps = dp.embedded(plan)
    theirs = plain(double(), ps)
    torch_train(theirs)
    train(compiled, plan, ps, BATCHES)
    assert_same(model, ps, theirs)
    with torch.no_grad():
        np.testing.assert_allclose(compiled(BATCHES[0]), theirs(BATCHES[0]), rtol=1e-9)


def test_an_ordinary_embedding_with_sparse_gradients_is_dense_to_us() -> None:
    class Positions(Network):
        def __init__(self) -> None:
            super().__init__(dtype=torch.float64)
            self.position = torch.nn.Embedding(9, 1, sparse=True, dtype=torch.float64)

        def forward(self, batch: dp.Batch) -> torch.Tensor:
            return super().forward(batch) + self.position(torch.arange(batch.size)).squeeze(1)

    model = Positions()
    plan = planned(model)
    ps = dp.embedded(plan)
    theirs = plain(model, ps)
    torch_train(theirs, optimizers=[torch.optim.SGD(theirs.parameters(), lr=0.5)])
    train(model, plan, ps)
    assert_same(model, ps, theirs)


class Heads(Network):
    def __init__(self) -> None:
        super().__init__(dtype=torch.float64)
        self.other = torch.nn.Linear(8, 1, dtype=torch.float64)


def buy(model: Any, batch: dp.Batch) -> torch.Tensor:
    rows = model.embedding(batch).flatten(1)
    return (model.other(rows) - model.out(rows)).square().mean()


def test_programs_that_share_parameters_are_steps_one_after_the_other() -> None:
    model = Heads()
    plan = planned(model, [click, buy])
    ps = dp.embedded(plan)
    theirs = plain(model, ps)
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.5)
    with dp.Worker(plan, model, ps) as worker:
        for batch in BATCHES:
            for name, loss in (("click", click), ("buy", buy)):
                worker.step(name, batch)
                sgd.zero_grad()
                loss(theirs, batch).backward()
                sgd.step()
    assert_same(model, ps, theirs)


@settings(max_examples=20)
@given(
    ids=st.lists(st.lists(st.integers(0, NUM_IDS - 1), max_size=4), min_size=1, max_size=6),
    num_shards=st.integers(1, 4),
)
def test_any_bags_learn_as_in_torch(ids: list[list[int]], num_shards: int) -> None:
    labels = np.arange(len(ids)) % 2
    batch = dp.Batch(features={"user": [bag[::-1] for bag in ids], "item": ids}, labels=labels)
    model = double()
    plan = planned(model, example=batch, **RULES)
    ps = dp.embedded(plan, num_shards=num_shards)
    theirs = plain(model, ps)
    optimizers = optimizers_of(theirs)
    for _ in range(3):
        theirs.zero_grad()
        click(theirs, batch).backward()
        for optimizer in optimizers:
            optimizer.step()
    train(model, plan, ps, [batch] * 3)
    assert_same(model, ps, theirs)
