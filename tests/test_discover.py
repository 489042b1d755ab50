"""Discovery: what it sees of a loss, and that it leaves the model as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

import downpour as dp
from downpour.plan.program import Compute, PullDense, PullSparse, PushDense, PushSparse
from tests.networks import Network, a_batch, click, planned, weights_of


def buy(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model(batch).square().mean()


class WithState(Network):
    """Everything that a forward pass may leave behind."""

    assigned: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(8)
        self.drop = torch.nn.Dropout(0.5)
        self.register_buffer("assigned", torch.zeros(()))
        self.register_buffer("none", None)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        self.assigned = self.assigned + 1.0
        rows = self.drop(self.norm(self.embedding(batch).flatten(1)))
        return self.out(rows + torch.rand(8)).squeeze(1)


def test_discovery_leaves_the_model_as_it_was() -> None:
    model = WithState()
    model.out.weight.grad = torch.full((1, 8), 3.0)
    before, grad, buffer = weights_of(model), model.out.weight.grad, model.assigned
    random = torch.get_rng_state()
    planned(model, [click, buy])
    after = weights_of(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert model.out.weight.grad is grad
    assert torch.equal(grad, torch.full((1, 8), 3.0))
    assert model.out.bias.grad is None
    assert model.assigned is buffer
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert model.embedding.source is None


def test_discovery_leaves_the_model_as_it_was_when_a_loss_raises() -> None:
    model = WithState()
    before, random = weights_of(model), torch.get_rng_state()

    def broken(model: Any, batch: dp.Batch) -> torch.Tensor:
        raise ZeroDivisionError(model(batch).sum().item())

    with pytest.raises(ZeroDivisionError):
        planned(model, broken)
    after = weights_of(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.embedding.source is None


class Lazy(Network):
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.out = torch.nn.Sequential(
            torch.nn.LazyLinear(3), torch.nn.LazyBatchNorm1d(), torch.nn.LazyLinear(1)
        )
        self.count = torch.nn.Buffer(torch.zeros(()))
        self.unused = torch.nn.LazyBatchNorm1d()

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        self.count += 1
        return super().forward(batch)


def test_lazy_modules_get_shapes_and_values_as_in_a_first_forward() -> None:
    model, plain = Lazy(), Lazy().out.eval()
    torch.manual_seed(2)
    plan = planned(model)
    torch.manual_seed(2)
    plain(torch.zeros(4, 8))
    for ours, theirs in zip(model.out.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert [section.name for section in plan.dense[0].sections] == [
        "out.0.bias", "out.0.weight", "out.1.bias", "out.1.weight", "out.2.bias", "out.2.weight",
    ]  # fmt: skip
    assert torch.equal(model.out[1].running_mean, torch.zeros(3))
    assert model.out[1].num_batches_tracked == model.count == 0
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("part", ["model", "layer", "loss"])
def test_what_is_compiled_plans_as_what_is_not(part: str) -> None:
    model: Any = Network()
    plan = planned(model)
    compiled: Any = click
    if part == "model":
        model = torch.compile(model, backend="eager")
    elif part == "layer":
        model.out = torch.compile(model.out, backend="eager")
    else:
        compiled = torch.compile(click, backend="eager")
    again = planned(model, {"click": compiled})
    assert again == plan
    assert "_orig_mod" not in str(again)


def pooled(model: Any, batch: dp.Batch) -> torch.Tensor:
    rows = model.embedding(batch)
    return model.out(torch.cat([rows[:, 0], rows[:, 1].detach()], dim=1)).mean()


def by_no_grad(model: Any, batch: dp.Batch) -> torch.Tensor:
    rows = model.embedding(batch)
    with torch.no_grad():
        items = rows[:, 1] * 2.0
    return model.out(torch.cat([rows[:, 0], items], dim=1)).mean()


@pytest.mark.parametrize("loss", [pooled, by_no_grad])
def test_a_detached_feature_is_pulled_by_an_op_of_its_own_and_not_pushed(loss: Any) -> None:
    name = loss.__name__
    assert planned(Network(), loss).programs[name].ops == (
        PullDense(f"dense.{name}"),
        PullSparse("embedding", ("user",)),
        PullSparse("embedding", ("item",)),
        Compute(name),
        PushSparse("embedding", ("user",)),
        PushDense(f"dense.{name}", ("out.bias", "out.weight")),
    )


def test_a_detached_feature_without_pooling() -> None:
    def bags(model: Any, batch: dp.Batch) -> torch.Tensor:
        rows = model.embedding(batch)
        return (rows["user"].values.sum() * rows["item"].values.detach().sum()) ** 2

    ops = planned(Network(pooling="none"), bags).programs["bags"].ops
    assert PushSparse("embedding", ("user",)) in ops
    assert PullSparse("embedding", ("item",)) in ops


@pytest.mark.parametrize("init", [dp.Constant(0.0), dp.Uniform(0.1)])
def test_a_derivative_of_zero_on_the_example_is_not_detached(init: Any) -> None:
    model = Network(init=init)
    torch.nn.init.zeros_(model.out.weight)
    assert PushSparse("embedding", ("user", "item")) in planned(model).programs["click"].ops


def test_a_feature_that_is_empty_on_the_example_is_learned() -> None:
    plan = planned(Network(), example=a_batch(items=[[], [], [], []]))
    assert PushSparse("embedding", ("user", "item")) in plan.programs["click"].ops


def test_a_mask_that_is_empty_on_the_example_detaches_nothing() -> None:
    def masked(model: Any, batch: dp.Batch) -> torch.Tensor:
        return model(batch)[batch.label > 2.0].sum()

    plan = planned(Network(), masked)
    assert PushSparse("embedding", ("user", "item")) in plan.programs["masked"].ops


def test_anomaly_detection_does_not_stop_planning() -> None:
    with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
        assert planned(Network()) == planned(Network())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_changes_no_plan(use_reentrant: bool) -> None:
    class Checkpointed(Network):
        def forward(self, batch: dp.Batch) -> torch.Tensor:
            start = torch.zeros(1, requires_grad=True)  # re-entrant: one input must need a gradient
            return checkpoint(
                lambda _: Network.forward(self, batch), start, use_reentrant=use_reentrant
            )

    assert planned(Checkpointed()) == planned(Network())


@given(detached=st.sets(st.sampled_from(["a", "b", "c", "d"]), max_size=3), seed=st.integers(0, 9))
def test_the_features_pushed_are_those_that_are_not_detached(detached: set[str], seed: int) -> None:
    features = tuple("abcd")
    rng = np.random.default_rng(seed)
    example = dp.Batch(features={name: rng.integers(0, 5, 3) for name in features})
    keep = torch.tensor([name not in detached for name in features])

    def some(model: Any, batch: dp.Batch) -> torch.Tensor:
        rows = model(batch)
        parts = [rows[:, i] if keep[i] else rows[:, i].detach() for i in range(4)]
        return torch.stack(parts).square().sum()

    plan = planned(dp.SparseEmbedding(features, 2), some, example)
    learned = tuple(name for name in features if name not in detached)
    assert plan.programs["some"].ops[-1] == PushSparse("embedding", learned)
