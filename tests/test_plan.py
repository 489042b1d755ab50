"""A plan is a value: it prints, compares, hashes and travels, and says what it does not have."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch

import downpour as dp
from downpour.plan.plan import Plan
from downpour.plan.program import PullDense, PullSparse, PushSparse
from tests.networks import Network, a_batch, click, planned

TEXT = """\
plan: 1 sparse, 1 dense
├─ 0 sparse embedding: dim 4
│  ├─ features user item@thing
│  ├─ SGD(lr=0.5), first Uniform(low=-0.01, high=0.01)
│  └─ 24 bytes a row
├─ 1 dense dense.click: 9 elements
│  ├─ out.bias [1], out.weight [1, 8]
│  └─ SGD(lr=0.5)
└─ program click
   ├─ PullDense    dense.click
   ├─ PullSparse   embedding: user item
   ├─ Compute      click
   ├─ PushSparse   embedding: user item
   ├─ PushDense    dense.click
   └─ skipped lookup_table lookup_table_grad"""


def test_a_plan_prints_its_tables_and_programs() -> None:
    assert str(planned(Network(spaces={"item": "thing"}))) == TEXT


def test_a_plan_prints_what_is_not_the_default() -> None:
    plan = planned(Network(spaces=None, padding_key=0), window=4, clip=dp.ClipByNorm(1.0))
    assert str(plan).startswith("plan: 1 sparse, 1 dense, ClipByNorm(max_norm=1.0)\n")
    for line in ("features user@* item@*", "padding_key 0", "dense.click, every 4 batches"):
        assert line in str(plan)


def test_plans_of_one_model_and_settings_are_equal_whoever_made_them() -> None:
    assert planned(Network()) == planned(Network())
    assert hash(planned(Network())) == hash(planned(Network()))


@pytest.mark.parametrize(
    ("network", "settings"),
    [
        ({"dim": 5}, {}),
        ({"spaces": None}, {}),
        ({"padding_key": 0}, {}),
        ({"init": dp.Normal(0.1)}, {}),
        ({"bounds": (-1.0, 1.0)}, {}),
        ({"table": "other"}, {}),
        ({}, {"window": 2}),
        ({}, {"clip": dp.ClipByValue(1.0)}),
        ({}, {"sparse": dp.SGD(0.25)}),
        ({}, {"dense": dp.Adam(0.5)}),
        ({}, {"losses": {"other": click}}),
        ({}, {"losses": {"click": click, "other": click}}),
    ],
)
def test_plans_that_differ_in_one_setting_differ(
    network: dict[str, Any], settings: dict[str, Any]
) -> None:
    assert planned(Network(**network), **settings) != planned(Network())


def test_seeds_are_part_of_a_plan() -> None:
    model, optimizer = Network(), dp.DownpourSGD()
    plans = {
        optimizer.minimize(click, model=model, example=a_batch(), seed=seed) for seed in (0, 0, 1)
    }
    assert len(plans) == 2


def test_a_plan_is_pickled_without_its_losses() -> None:
    plan = planned(Network(), {"local": lambda model, batch: click(model, batch)})
    again = pickle.loads(pickle.dumps(plan))
    assert again == plan
    assert again.losses == {}
    assert plan.losses.keys() == {"local"}


def test_training_with_a_plan_without_losses_is_refused() -> None:
    model = Network()
    plan = pickle.loads(pickle.dumps(planned(model)))
    with (
        dp.Worker(plan, model, dp.embedded(plan)) as worker,
        pytest.raises(dp.PlanError, match=r"no function for loss 'click'.*was pickled"),
    ):
        worker.step("click", a_batch())


def test_a_plan_is_frozen() -> None:
    plan = planned(Network())
    for part in (plan, plan.sparse[0], plan.dense[0], plan.programs["click"]):
        with pytest.raises(FrozenInstanceError):
            part.name = "other"  # type: ignore[union-attr, misc]


def test_the_programs_of_a_plan_are_a_value() -> None:
    programs = planned(Network()).programs
    assert programs == planned(Network()).programs
    assert hash(programs) == hash(planned(Network()).programs)
    with pytest.raises(TypeError):
        programs["buy"] = programs["click"]  # type: ignore[index]


class Task:
    """A loss that is a method."""

    def click(self, model: Any, batch: dp.Batch) -> torch.Tensor:
        return click(model, batch)


def test_a_program_is_found_by_the_function_it_was_made_of() -> None:
    task = Task()
    plan = planned(Network(), task.click)
    assert plan.program_for(task.click) is plan.programs["click"]
    with pytest.raises(dp.PlanError, match=r"was not made of .*; it has the functions: click"):
        plan.program_for(Task().click)


def test_what_a_plan_does_not_have_is_refused_with_what_it_has() -> None:
    plan = planned(Network())
    with pytest.raises(dp.PlanError, match="no sparse table 'a'; the plan has: 'embedding'"):
        plan.sparse_table("a")
    with pytest.raises(dp.PlanError, match=r"no dense table 'a'; the plan has: 'dense.click'"):
        plan.dense_table("a")
    with pytest.raises(dp.PlanError, match="no program 'buy'; the plan has: click"):
        plan.program("buy")
    with pytest.raises(dp.PlanError, match="not read by feature 'genre'; it is by: user, item"):
        plan.sparse[0].feature("genre")
    with pytest.raises(dp.PlanError, match="no sparse table 'a'; the plan has: none"):
        replace(plan, sparse=()).sparse_table("a")


def test_a_program_names_its_tables_by_kind_of_op() -> None:
    program = planned(Network()).program("click")
    assert program.tables(PullDense, PullSparse) == ("dense.click", "embedding")
    assert program.tables(PushSparse) == ("embedding",)


def test_an_empty_plan_prints() -> None:
    assert str(Plan(sparse=(), dense=(), programs={})) == "plan: 0 sparse, 0 dense"


def test_sections_fill_their_block() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Conv1d(1, 2, 3))
    loss = {"all": lambda m, b: sum(p.sum() for p in m.parameters())}
    (block,) = planned(model, loss).dense
    assert [(it.name, it.offset, it.shape) for it in block.sections] == [
        ("0.bias", 0, (2,)), ("0.weight", 2, (2, 3)), ("1.bias", 8, (2,)),
        ("1.weight", 10, (2, 1, 3)),
    ]  # fmt: skip
    assert block.size == 16
