"""What a client cannot train, and what no step of it may do: refused, and nothing is sent."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import downpour as dp
from tests.local_rounds import RULES, SGD, double, local_model, rounds_of, twins
from tests.networks import USERS, Network, a_batch, click, everything, planned

if TYPE_CHECKING:
    from downpour.federated.local import LocalModel

BATCHES = rounds_of(1)[0]


def ready(model: Any = None, losses: Any = click, **settings: Any) -> tuple[LocalModel, dp.Client]:
    """A client whose round has begun."""
    model = double() if model is None else model
    plan, ps, _ = twins(model, losses)
    local = local_model(model, plan, ps, **settings)
    local.recv([*BATCHES, a_batch()])
    return local, ps


def refused(
    model: Any, plan: dp.Plan, error: type[Exception], message: str, **settings: Any
) -> None:
    ps = dp.embedded(plan)
    before = everything(ps)
    with pytest.raises(error, match=message):
        local_model(model, plan, ps, **settings)
    assert everything(ps) == before


def test_rows_that_count_are_refused() -> None:
    model = Network(5, use_cvm=False)
    accessor = dp.CtrAccessor(rule=dp.SGD(1.0), click="label")
    plan = planned(model, sparse=accessor)
    refused(model, plan, dp.SettingError, r"'embedding' has the rows of a CtrAccessor: their show")


class Normed(Network):
    """A layer between the rows and the output."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.norm = layer

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        scores: torch.Tensor = self.out(self.norm(self.embedding(batch).flatten(1))).squeeze(1)
        return scores


def test_statistics_of_data_norms_are_refused() -> None:
    model = Normed(dp.DataNorm(8))
    refused(model, planned(model), dp.SettingError, r"statistics of DataNorms.*LayerNorm")


def test_a_batch_norm_of_one_sample_names_drop_last() -> None:
    local, ps = ready(Normed(torch.nn.BatchNorm1d(8, track_running_stats=False)))
    before = everything(ps)
    with pytest.raises(
        dp.DataError, match=r"^loss 'click': a BatchNorm needs more .*drop_last=True"
    ):
        local.step("click", a_batch().slice(0, 1))
    assert everything(ps) == before


def test_running_statistics_are_refused() -> None:
    model = Normed(torch.nn.BatchNorm1d(8))
    message = r"'norm' is a BatchNorm1d with running statistics.*Use LayerNorm or GroupNorm"
    refused(model, planned(model), dp.SettingError, message)


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.BatchNorm1d(8, track_running_stats=False),
        torch.nn.LayerNorm(8),
        torch.nn.GroupNorm(2, 8),
    ],
    ids=["batch", "layer", "group"],
)
def test_norms_without_running_statistics_train(layer: torch.nn.Module) -> None:
    model = Normed(layer)
    plan = planned(model, **RULES)
    local = local_model(model, plan, dp.embedded(plan))
    local.recv(BATCHES)
    assert np.isfinite(local.step("click", BATCHES[0]).loss)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("clip", dp.ClipByNorm(1.0)),
        ("window", 2),
        ("scale_sparse_gradient_with_batch_size", True),
    ],
)
def test_what_is_of_gradients_that_go_to_servers_is_refused(setting: str, value: Any) -> None:
    model = Network()
    plan = planned(model, **RULES, **{setting: value})
    refused(model, plan, dp.SettingError, rf"DownpourSGD\.{setting} is of steps")


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (partial(torch.optim.SparseAdam, lr=0.1), r"with SparseAdam: .*use torch\.optim\.Adam"),
        (torch.optim.LBFGS, r"with LBFGS: it computes the loss several times a step"),
        (lambda parameters: None, r"gives a torch optimizer, as .*; it gave None"),
    ],
    ids=["sparse adam", "lbfgs", "none"],
)
def test_optimizers_that_cannot_step_rows_are_refused(optimizer: Any, message: str) -> None:
    model = Network()
    refused(model, planned(model, **RULES), dp.SettingError, message, optimizer=optimizer)


def sampled(model: Any, batch: dp.Batch) -> torch.Tensor:
    """Its own batch has ids of its own."""
    own = batch.features["user"]
    other = dp.Batch(features={"user": own, "item": [999] * batch.size})
    return (model(batch) - model(other)).square().mean()


def test_ids_that_no_batch_of_the_round_has_are_refused() -> None:
    local, ps = ready(losses=sampled)
    before = everything(ps)
    message = r"'sampled' reads 1 ids of feature item \(table 'embedding'\) that are in no batch"
    with pytest.raises(dp.PlanError, match=message + r".*trains rows of its own batches only"):
        local.step("sampled", BATCHES[0])
    assert everything(ps) == before


def test_a_batch_of_other_ids_is_refused() -> None:
    local, _ = ready()
    with pytest.raises(dp.PlanError, match=r"ids of feature user, item"):
        local.step("click", a_batch(users=[1001, 5], items=[[5], [1001]]))


def test_a_batch_that_lacks_a_feature_is_refused_in_its_step_alone() -> None:
    local, _ = ready()
    half = dp.Batch(features={"user": USERS}, labels=[0, 1, 0, 1])
    local.recv([half])
    with pytest.raises(dp.DataError, match=r"the batch lacks feature 'item'"):
        local.step("click", half)


def broken(value: float) -> Any:
    def loss(model: Any, batch: dp.Batch) -> torch.Tensor:
        factor = value if batch.size == len(USERS) and batch.label[0] == 7 else 1.0
        return click(model, batch) * factor

    return loss


def marked() -> dp.Batch:
    return a_batch(labels=[7.0, 0.0, 1.0, 0.0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_refused_and_the_model_stays(value: float) -> None:
    local, ps = ready(losses={"click": broken(value)})
    before, weight = everything(ps), local.model.out.weight.clone()  # type: ignore[union-attr]
    with pytest.raises(dp.NonFiniteError, match=r"loss 'click' is (nan|inf|-inf); the client made"):
        local.step("click", marked())
    assert torch.equal(local.model.out.weight, weight)  # type: ignore[union-attr]
    assert everything(ps) == before
    local.recv(BATCHES)
    assert np.isfinite(local.step("click", BATCHES[0]).loss)


class Spoilt(torch.autograd.Function):
    """Passes what is there, and gives a gradient of infinity."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return torch.full_like(grads[0], torch.inf)


def spoils_rows(model: Any, batch: dp.Batch) -> torch.Tensor:
    rows = model.embedding(batch)
    if batch.label[0] == 7:
        rows = torch.cat([Spoilt.apply(rows[:, :1]), rows[:, 1:]], 1)
    return model.out(rows.flatten(1)).square().mean()


def spoils_out(model: Any, batch: dp.Batch) -> torch.Tensor:
    scores = model(batch).detach() + model.out.bias
    if batch.label[0] == 7:
        scores = Spoilt.apply(scores)
    return scores.square().mean() + model.embedding(batch).square().mean()


@pytest.mark.parametrize(
    ("loss", "where"),
    [
        (spoils_rows, r"feature user \(table 'embedding'\)"),
        (spoils_out, r"parameter 'out\.bias'"),
    ],
    ids=["rows", "parameter"],
)
def test_a_gradient_that_is_not_finite_is_refused_by_its_name(loss: Any, where: str) -> None:
    local, _ = ready(losses={"click": loss})
    rows = local.rows("embedding", ("user",), marked())[0].clone()
    with pytest.raises(dp.NonFiniteError, match=rf"'click': the gradient of {where} holds NaN or"):
        local.step("click", marked())
    assert torch.equal(local.rows("embedding", ("user",), marked())[0], rows)


def steep(model: Any, batch: dp.Batch) -> torch.Tensor:
    return (model.embedding(batch) * 1e38).sum()


def test_gradients_that_are_finite_are_taken_though_their_sum_is_not() -> None:
    model = Network()
    plan = planned(model, steep, **RULES)
    local = local_model(
        model, plan, dp.embedded(plan), optimizer=partial(torch.optim.SGD, lr=1e-38)
    )
    local.recv([a_batch()])
    local.step("steep", a_batch())
    rows, _ = local.rows("embedding", ("user",), a_batch(users=[5, 7, 5, 9]))
    assert torch.isfinite(rows).all()
    assert (rows < -0.5).all()


def biased(model: Any, batch: dp.Batch) -> torch.Tensor:
    """It reaches the bias on a batch that is marked, and not on the example."""
    value: torch.Tensor = model.embedding(batch).square().mean()
    return value + model.out.bias.sum() if batch.label[0] == 7 else value


def test_a_parameter_that_was_not_planned_is_refused() -> None:
    local, _ = ready(losses={"click": biased})
    with pytest.raises(dp.PlanError, match=r"'click' reaches parameter 'out\.bias', which it did"):
        local.step("click", marked())


class Sides(Network):
    """Users and items by modules of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = dp.SparseEmbedding("user", 4)
        self.items = dp.SparseEmbedding("item", 4, table="embedding")


def one_side(model: Any, batch: dp.Batch) -> torch.Tensor:
    items = model.items(batch)
    own = items if batch.label[0] == 7 else items.detach()
    return (model.embedding(batch) + own).square().mean()


def test_a_feature_that_was_not_planned_is_refused() -> None:
    model = Sides()
    plan = planned(model, {"click": one_side}, **RULES)
    local = local_model(model, plan, dp.embedded(plan))
    local.recv([a_batch()])
    assert local.step("click", a_batch()).samples == len(USERS)
    with pytest.raises(dp.PlanError, match=r"reaches feature item of table 'embedding', which it"):
        local.step("click", marked())


def test_an_update_that_is_not_finite_is_not_sent() -> None:
    local, ps = ready(optimizer=partial(torch.optim.SGD, lr=1e308))
    before = everything(ps)
    local.step("click", BATCHES[0])
    with torch.no_grad():
        local.model.out.weight.fill_(torch.inf)  # type: ignore[union-attr]
    with pytest.raises(dp.NonFiniteError, match=r"update of table 'dense\.click' holds NaN"):
        local.send()
    assert everything(ps) == before


@pytest.mark.parametrize("call", ["step", "send", "send again"])
def test_steps_are_in_rounds(call: str) -> None:
    model = double()
    plan, ps, _ = twins(model)
    local = local_model(model, plan, ps)
    if call == "send again":
        local.recv([])
        local.send()
    with pytest.raises(dp.PlanError, match=re.escape("recv(batches) begins one")):
        local.step("click", BATCHES[0]) if call == "step" else local.send()


def test_a_program_that_there_is_not_is_refused() -> None:
    local, _ = ready(optimizer=SGD)
    with pytest.raises(dp.PlanError, match=r"no program 'clik'; the plan has: click"):
        local.step("clik", BATCHES[0])
