"""A model on another device learns what it learns on the CPU."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import downpour as dp
from downpour.consistency import HalfAsync
from downpour.errors import NonFiniteError
from downpour.remote.connect import connect
from downpour.threaded_worker import ThreadedWorker
from tests import test_ctr_training as ctr
from tests.devices import GPU, any_device, needs_gpu
from tests.networks import Network, planned, random_batches
from tests.servers import assert_close, held, servers, train_epoch
from tests.test_sync_models import CASES

device = any_device  # a fixture
FLOAT: dict[str, Any] = {"init": dp.Normal(0.5), "dtype": torch.float64}
MODELS = {name: CASES[name] for name in CASES if "towers" not in name}  # those make CPU tensors


def trained(
    plan: dp.Plan, model: Any, where: Any, batches: list[dp.Batch], **settings: Any
) -> dict[str, Any]:
    """The losses of a copy of a model on a device, its parameters, and what the tables hold."""
    own = copy.deepcopy(model).to(where)
    with dp.embedded(plan) as ps:
        with dp.Worker(plan, own, ps, device=where) as worker:
            assert worker.device == where
            losses = train_epoch(worker, batches, **settings)
        assert all(parameter.device == where for parameter in own.parameters())
        values = {name: it.cpu().numpy() for name, it in own.state_dict().items()}
        return {"losses": losses, "model": values, **held(ps)}


def assert_learns_alike(
    device: torch.device, plan: dp.Plan, model: Any, batches: list[dp.Batch], **settings: Any
) -> None:
    there = trained(plan, model, device, batches, **settings)
    assert_close(there, trained(plan, model, torch.device("cpu"), batches), rtol=1e-9)


@pytest.mark.parametrize("prefetch", [False, True], ids=["found late", "found ahead"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_learns_the_same_there(device: torch.device, name: str, prefetch: bool) -> None:
    model, plan = MODELS[name].made()
    (batches,) = MODELS[name].shares(1)
    assert_learns_alike(device, plan, model, batches, prefetch=prefetch)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_planned_there_as_here(device: torch.device, name: str) -> None:
    model, plan = MODELS[name].made()
    model.to(device)
    example = dp.Batch.concat(MODELS[name].batches(9, 2))
    settings = {"sparse": dp.Adagrad(0.3), "dense": dp.Adam(0.05), **MODELS[name].settings}
    before = {key: value.cpu().numpy() for key, value in model.state_dict().items()}
    there = planned(model, MODELS[name].losses, example, **settings)
    assert str(there) == str(plan)
    for key, value in model.state_dict().items():
        assert np.array_equal(value.cpu().numpy(), before[key])


class Lazy(torch.nn.Module):
    """A layer that has no shape before the first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = dp.SparseEmbedding(("user", "item"), 4, pooling="mean", **FLOAT)
        self.out = torch.nn.LazyLinear(1, dtype=torch.float64)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        logits: torch.Tensor = self.out(self.embedding(batch).flatten(1)).squeeze(1)
        return logits


@needs_gpu
def test_lazy_modules_get_their_shapes_there() -> None:
    model = Lazy().to(GPU)
    plan = planned(model)
    assert model.out.weight.device == GPU
    with dp.Worker(plan, model, dp.embedded(plan)) as worker:
        assert np.isfinite(worker.step("click", random_batches(0, 1)[0]).loss)


def rarely_shown(model: Any, batch: dp.Batch) -> torch.Tensor:
    logits = model.click(model.seen(batch)).squeeze(1)
    target = batch.labels["click"].to(logits.dtype)
    assert batch.weights is not None
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, target, batch.weights)


def test_samples_are_weighed_there(device: torch.device) -> None:
    model, batches = (
        ctr.Net(),
        [
            dp.Batch(features={**it.features, "item": it.features["user"]}, labels=it.labels)
            for it in ctr.batches(num=6)
        ],
    )
    adjust = {
        "need_adjust": True, "nid_slot": "user", "nid_adjw_threshold": 4.0, "nid_adjw_ratio": 2.0,
    }  # fmt: skip
    plan = dp.DownpourSGD(sparse=ctr.accessor(), dense=dp.SGD(0.1)).minimize(
        rarely_shown,
        model=model,
        example=batches[0],
        strategy={"adjust_ins_weight": adjust, "use_cvm": True},
    )
    assert_learns_alike(device, plan, model, batches)


class Rows(torch.nn.Module):
    """Rows and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = dp.SparseEmbedding(("user", "item"), 1, **FLOAT)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        logits: torch.Tensor = self.rows(batch).sum(dim=(1, 2))
        return logits


def test_a_model_without_parameters_is_where_it_is_said(device: torch.device) -> None:
    assert_learns_alike(device, planned(Rows()), Rows(), random_batches(0, 4))


def against_others(model: Any, batch: dp.Batch) -> torch.Tensor:
    """Each sample against the same user with items of other samples, in a batch made here."""
    users, items = batch.features["user"], batch.features["item"]
    places = np.arange(batch.size)[::-1]
    other = dp.Batch(features={"user": users, "item": items.select(places)})
    difference: torch.Tensor = model(batch) - model(other)
    return -torch.nn.functional.logsigmoid(difference + batch.label).mean()


def test_batches_that_a_loss_makes_are_read_there(device: torch.device) -> None:
    model = Network(**FLOAT)
    assert_learns_alike(device, planned(model, against_others), model, random_batches(0, 5))


def on_a_nan(model: Any, batch: dp.Batch) -> torch.Tensor:
    """The gradient of the bias is NaN where the label is."""
    value: torch.Tensor = (model(batch) + (model.out.bias * batch.dense["x"]).sqrt()).mean()
    return value


def test_a_gradient_that_is_not_finite_is_named(device: torch.device) -> None:
    model = Network(**FLOAT).to(device)
    torch.nn.init.constant_(model.out.bias, 0.0)
    features = random_batches(0, 1)[0].features
    size = len(features["user"])
    good = dp.Batch(features=features, dense={"x": np.zeros(size)})
    with pytest.raises(NonFiniteError, match=r"gradient of parameter 'out.bias'"):
        planned_and_stepped(model, good)


def planned_and_stepped(model: Any, batch: dp.Batch) -> None:
    plan = planned(model, on_a_nan, batch)
    with dp.Worker(plan, model, dp.embedded(plan)) as worker:
        worker.step("on_a_nan", batch)


@needs_gpu
def test_planning_leaves_the_random_state_of_a_gpu() -> None:
    model = torch.nn.Sequential(Network(), torch.nn.Dropout()).to(GPU)
    before = torch.cuda.get_rng_state(GPU)
    planned(model)
    assert torch.equal(torch.cuda.get_rng_state(GPU), before)


@needs_gpu
def test_threads_train_copies_on_a_gpu() -> None:
    model = Network(**FLOAT)
    plan, batches = planned(model), random_batches(0, 6)
    here = trained(plan, model, torch.device("cpu"), [dp.Batch.concat(batches)])
    with servers() as addresses, connect(plan, addresses, consistency=HalfAsync(threads=3)) as ps:
        own = copy.deepcopy(model).to(GPU)
        with ThreadedWorker(plan, own, ps) as worker:  # type: ignore[arg-type]
            worker.step_many("click", [dp.Batch.concat(batches[i : i + 2]) for i in (0, 2, 4)])
        assert_close(held(ps)["weights of dense.click"], here["weights of dense.click"], rtol=1e-9)
