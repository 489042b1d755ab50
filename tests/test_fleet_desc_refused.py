"""What a description cannot hold, and what is no plan's own description, is refused by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import downpour as dp
from downpour.accessor import Lifecycle
from downpour.plan.fleet_desc import encode
from downpour.plan.fleet_desc.description import read_text
from downpour.plan.plan import Plan
from downpour.rules import BaseRule
from downpour.tables.dense import Section
from tests.plans import ctr_table, dense_table, plain_table, small_plan
from tests.test_fleet_desc import SMALL

# What no message can hold.


@dataclass(frozen=True, kw_only=True)
class OwnSGD(dp.SGD):
    """A rule that somebody wrote."""


@dataclass(frozen=True)
class OwnInit(dp.Constant):
    """A first value that somebody wrote."""


class OwnScheduler(torch.optim.lr_scheduler.ConstantLR):
    """A scheduler that somebody wrote."""


def half(step: int) -> float:
    return 0.5


@pytest.mark.parametrize(
    ("table", "match"),
    [
        (plain_table(rule=OwnSGD(0.1)), r"table 'embedding': rule: OwnSGD\(lr=0.1.*not one of SGD"),
        (ctr_table(rule=OwnSGD(0.1)), r"table 'embedding': w: rule: OwnSGD"),
        (
            plain_table(rule=dp.SGD(0.1, schedule=half)),
            r"schedule: <function half.*is not one of C",
        ),
        (
            plain_table(rule=dp.SGD(0.1, schedule=dp.Warmup(steps=1, after=half))),
            r"after: <function half.*take one of them, or pickle the plan",
        ),
        (plain_table(init=OwnInit()), r"init: OwnInit\(value=0.0\) is not one of Constant"),
        (
            plain_table(rule=dp.SGD(0.1, schedule=dp.TorchSchedule(OwnScheduler))),
            r"OwnScheduler.*can name only those of torch.optim.lr_scheduler",
        ),
        (
            plain_table(
                rule=dp.Adam(
                    0.1,
                    schedule=dp.TorchSchedule(torch.optim.lr_scheduler.LambdaLR, lr_lambda=half),
                )
            ),
            r"schedule: lr_lambda: <function half",
        ),
        (replace(plain_table(), seed=2**63), "'embedding': a description cannot hold.*range"),
        (replace(plain_table(), padding_key=-1), "'embedding': a description cannot hold.*range"),
    ],
)
def test_what_is_not_downpours_own_is_refused_by_name(table: Any, match: str) -> None:
    with pytest.raises(dp.PlanError, match=match):
        encode(small_plan(table))


def test_a_dense_rule_of_somebody_is_refused_by_name() -> None:
    assert issubclass(OwnSGD, BaseRule)
    with pytest.raises(dp.PlanError, match=r"table 'dense.click': rule: OwnSGD"):
        encode(small_plan(dense=(dense_table(rule=OwnSGD(0.1)),)))


def test_ops_of_another_order_are_refused() -> None:
    plan = small_plan()
    program = plan.programs["click"]
    other = replace(program, ops=program.ops[::-1])
    with pytest.raises(dp.PlanError, match=r"'click': a description cannot hold ops .*as minimize"):
        encode(replace(plan, programs={"click": other}))


def test_sections_with_a_gap_are_refused() -> None:
    dense = dense_table(
        sections=(Section("out.bias", 0, 1, (1,)), Section("out.weight", 4, 8, (8,)))
    )
    with pytest.raises(dp.PlanError, match=r"'dense.click': a description cannot hold sections"):
        encode(small_plan(dense=(dense,)))


# What is not a plan's own.


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (('name: "embedding"', ""), r"fleet_desc:93: times_batch_size: .* and table 0 has none"),
        (('name: "dense.click"', ""), r"fleet_desc:93: times_batch_size: .* and table 1 has none"),
        (("embedx_dim: 8", ""), None),
        (("embedx_dim: 8 fea_dim: 11", ""), "no embedx_dim of its tables"),
        (('program_id: "click"', ""), "program_id: is missing"),
        (('program_id: "click"', 'program_id: "buy"'), None),
        (("embedding.item@GRAD", "embedding.item"), "slot_gradient: must be .*GRAD.*by slot_key"),
        (('counts: "item"', 'counts: ["item", "user"]'), r"counts\[1\]: must be among item, by sl"),
        (("embedding.user", "user"), r"slot_value: must be \['embedding.item', 'embedding.user'\]"),
        (("out.bias@GRAD", "out.bias"), "dense_gradient_variable_name: must be .*out.bias@GRAD"),
        (("fea_dim: 9", "fea_dim: 8"), "fea_dim: must be 9, as its sections, got 8"),
        (("pull_dense_table_id: 1", "pull_dense_table_id: [1, 1]"), "1 is given twice"),
        (('name: "out.weight"', 'name: "out.bias"'), "name: must be a name of no other section"),
        (('space: "goods"', 'space: "goods" unique_ids: true'), "space: there is unique_ids"),
        (('name: "dense.click"', 'name: "dense.click" dtype: "int8"'), "dtype: must be one of fl"),
        (("shape: [1, 8]", "shape: [-1, -8]"), r"shape: must be >= 0, got \[-1, -8\]"),
        (("sparse_table {\n    table_id: 0", "sparse_table {\n"), None),
        (("sparse_table {\n    table_id: 0", "sparse_table { table_id: 1"), "no sparse table 1"),
        (("program_config {", "weigh_samples { table_id: 9 } program_config {"), "sparse table 9"),
        (("use_cvm: true", 'dtype: "int8"'), "dtype: .*must be one of float32, float64"),
        (('name: "user" slot: 0', ""), "name: is missing: the feature's name"),
    ],
)  # fmt: skip
def test_a_text_that_is_no_plan_is_refused_with_the_line(
    change: tuple[str, str], match: str | None
) -> None:
    text = SMALL.replace("fea_dim: 11\n        embedx_dim: 8", "embedx_dim: 8 fea_dim: 11")
    assert change[0] in text
    changed = text.replace(*change)
    if match is None:
        assert Plan.from_fleet_desc(changed).sparse
        return
    with pytest.raises(dp.PlanError, match=match):
        Plan.from_fleet_desc(changed)


def test_tables_without_names_are_no_plans_own() -> None:
    head = SMALL[: SMALL.index("trainer_param")]
    for name, line in (("embedding", 4), ("dense.click", 46)):
        with pytest.raises(dp.PlanError, match=rf"fleet_desc:{line}: .*and this has no name"):
            Plan.from_fleet_desc(head.replace(f'name: "{name}"', ""))


def test_a_trainer_without_a_program_is_no_plans_own() -> None:
    text = SMALL[: SMALL.index("  program_config")] + "}"
    with pytest.raises(dp.PlanError, match=r"fleet_desc:\d+: program_config is missing"):
        Plan.from_fleet_desc(text)


def test_a_table_of_a_program_needs_its_names() -> None:
    begin, end = SMALL.index("  sparse_table {"), SMALL.index("  push_dense_per_batch")
    with pytest.raises(dp.PlanError, match="sparse_table_id: table 0 has no sparse_table"):
        Plan.from_fleet_desc(SMALL[:begin] + SMALL[end:])


def test_two_programs_of_one_name_are_refused() -> None:
    with pytest.raises(dp.PlanError, match="two programs are called 'click'"):
        Plan.from_fleet_desc(SMALL + SMALL[SMALL.index("trainer_param") :])


def test_an_exact_number_that_contradicts_its_field_is_refused() -> None:
    plan = small_plan(ctr_table(lifecycle=Lifecycle(base_threshold=1 / 3)))
    text = str(encode(plan))
    assert "base_threshold: 0.333333343\n" in text
    with pytest.raises(dp.PlanError, match=r"base_threshold: 0.333\d+ is the exact form .* 0.5"):
        read_text(text.replace("base_threshold: 0.333333343", "base_threshold: 0.5"))


def test_exact_bounds_that_contradict_their_field_are_refused() -> None:
    text = str(encode(small_plan(ctr_table(bounds=(-1 / 3, 1.0)))))
    with pytest.raises(dp.PlanError, match=r"weight_bounds: \[-0.333\d+, 1.0\] is the exact form"):
        read_text(text.replace("weight_bounds: 1\n", "weight_bounds: 2\n", 1))
