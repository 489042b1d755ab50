"""startup: the first values of the dense parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import downpour as dp
from tests.networks import Network, a_batch, click

VALUES = {"out.weight": torch.arange(8.0)[None], "out.bias": torch.tensor([7.0])}


def plan_of(model: Any, startup: Any) -> dp.Plan:
    return dp.DownpourSGD().minimize(click, model=model, example=a_batch(), startup=startup)


def fill(model: Any) -> None:
    torch.nn.init.constant_(model.out.weight, 0.25)
    torch.nn.init.constant_(model.out.bias, 0.5)


@pytest.mark.parametrize(
    ("startup", "flat"),
    [
        (VALUES, [7, *range(8)]),
        ({f"_orig_mod.{name}": value for name, value in VALUES.items()}, [7, *range(8)]),
        ({name: value.numpy() for name, value in VALUES.items()}, [7, *range(8)]),
        (lambda model: VALUES, [7, *range(8)]),
        (fill, [0.5] + [0.25] * 8),
    ],
)
def test_tables_and_model_begin_with_it(startup: Any, flat: list[float]) -> None:
    model = Network()
    plan = plan_of(model, startup)
    before = model.out.weight.detach().clone()
    ps = dp.embedded(plan)
    assert torch.equal(model.out.weight, before)  # planning changes nothing
    with dp.Worker(plan, model, ps):
        assert ps.pull_dense("dense.click").tolist() == flat
        assert model.out.bias.item() == flat[0]


def test_a_second_worker_takes_what_the_tables_have() -> None:
    model, other = Network(), Network()
    plan = plan_of(model, VALUES)
    ps = dp.embedded(plan)
    with dp.Worker(plan, model, ps) as first, dp.Worker(plan, other, ps) as second:
        first.step("click", a_batch())
        second.pull_dense()
        ours = torch.cat([other.out.bias, other.out.weight.flatten()]).detach().numpy()
        np.testing.assert_array_equal(ours, ps.pull_dense("dense.click"))


def test_it_is_no_part_of_what_a_plan_says() -> None:
    model = Network()
    assert plan_of(model, VALUES) == plan_of(model, None)


@pytest.mark.parametrize(
    ("startup", "error", "message"),
    [
        (3, dp.PlanError, "must be a function of the model or a state_dict, got 3"),
        ({}, dp.PlanError, "lacks out.bias, out.weight, which the losses train"),
        ({**VALUES, "oot": torch.zeros(1)}, dp.PlanError, "has oot, which the model does not"),
        (
            {**VALUES, "out.bias": torch.zeros(2)},
            dp.PlanError,
            r"'out.bias' must be \[1\], got \[2\]",
        ),
        ({3: torch.zeros(1)}, dp.PlanError, "has 3, which the model does not"),
        ({**VALUES, "out.bias": "x"}, dp.PlanError, "'out.bias' must be a tensor, got 'x'"),
        ({**VALUES, "out.bias": None}, dp.PlanError, "'out.bias' must be a tensor, got None"),
        (
            {**VALUES, "out.bias": torch.tensor([1j])},
            dp.PlanError,
            "'out.bias' must be real numbers, got torch.complex64",
        ),
        ({**VALUES, "out.bias": torch.tensor([torch.nan])}, dp.NonFiniteError, "'out.bias' holds"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_when_planning(
    startup: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        plan_of(Network(), startup)


def test_a_function_that_gives_another_state_dict_is_refused() -> None:
    model = Network()
    plan = plan_of(model, lambda model: {})
    with pytest.raises(dp.PlanError, match=r"lacks out.bias, out.weight"):
        dp.Worker(plan, model, dp.embedded(plan))


FILLS: dict[str, Any] = {
    "keys": lambda model: model.load_state_dict(
        {"out.weight": torch.ones(1, 8), "out.bias": torch.ones(1)}
    ),
    "a module": lambda model: model.out.apply(ones),
    "a list": lambda model: [parameter.data.fill_(1.0) for parameter in model.parameters()],
}


@pytest.mark.parametrize("name", FILLS)
def test_a_function_may_give_what_its_last_call_gave(name: str) -> None:
    model = Network()
    plan = plan_of(model, FILLS[name])
    ps = dp.embedded(plan)
    with dp.Worker(plan, model, ps):
        assert ps.pull_dense("dense.click").tolist() == [1.0] * 9


def ones(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        torch.nn.init.ones_(parameter)
