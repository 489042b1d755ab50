"""Values of Downpour's own in a text: what they cannot be is said of the setting, on its line."""

from __future__ import annotations

from dataclasses import fields

import pytest

import downpour as dp
from downpour import rules
from downpour.plan.fleet_desc.description import read_text
from downpour.plan.fleet_desc.rules import DENSE_RULES, SPARSE_RULES
from downpour.plan.fleet_desc.values import CLIPS, INITS, KINDS, SCHEDULES

TABLE = """\
server_param { downpour_server_param { downpour_table_param {
table_class: 'DownpourSparseTable'
accessor { accessor_class: 'DownpourSparseValueAccessor' sparse_commonsgd_param { extension {
init { type: 'Uniform' setting { name: 'low' number: -1 } setting { name: 'high' number: 1 } }
rule {
type: 'Adam'
setting { name: 'lr' number: 0.1 }
setting { name: 'betas' tuple { item { number: 0.9 } item { number: 0.99 } } }
setting { name: 'schedule' value {
type: 'Warmup'
setting { name: 'steps' whole: 5 }
setting { name: 'start' number: 0.5 }
setting { name: 'after' value {
type: 'TorchSchedule'
setting { name: 'scheduler' text: 'StepLR' }
setting { name: 'step_size' whole: 3 }
} } } }
} } } } } } }
"""


def test_a_value_within_a_value_is_read() -> None:
    table = read_text(TABLE).sparse[0]
    schedule = table.settings["rule"].schedule
    assert table.settings["rule"] == dp.Adam(0.1, betas=(0.9, 0.99), schedule=schedule)
    assert (schedule.steps, schedule.after.settings) == (5, {"step_size": 3})


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("'Adam'", "'Own'", "6: type: must be one of SGD, Adagrad, Adam, Ftrl"),
        ("'Adam'", "'AdamD2Sum'", "6: type: must be one of SGD, Adagrad, Adam, Ftrl"),
        ("'lr'", "'rate'", "7: setting: Adam has no 'rate'; it has: lr, schedule, weight_decay"),
        ("setting { name: 'lr' number: 0.1 }", "", "6: type: Adam needs a setting of name 'lr'"),
        ("'betas' t", "'lr' t", "8: setting[1]: 'lr' of Adam is given twice; keep one"),
        ("number: 0.1", "text: 'x'", "7: setting: Adam.lr must be a finite number, got 'x'"),
        ("number: 0.1", "", "7: setting: Adam.lr must be a finite number, got None"),
        ("number: 0.1", "value { type: 'Linear' setting { name: 'steps' whole: 1 } }",
            "7: setting: Adam.lr must be a finite number, got Linear(steps=1, end=0.0)"),
        ("number: 0.1", "number: nan", "7: setting: Adam.lr must be a finite number, got nan"),
        ("number: 0.1", "number: -1", "7: setting: Adam.lr must be a finite number > 0.0, got -1"),
        ("item { number: 0.9 }", "", "8: setting[1]: Adam.betas must be two numbers, got (0.99,)"),
        ("{ number: 0.9 }", "{ text: 'x' }", "8: setting[1]: Adam.betas must be two numbers, got "),
        ("0.99", "1", "8: setting[1]: Adam.betas[1] must be a finite number >= 0.0 and < 1.0, got"),
        ("'schedule' value {\n", "'weight_decay' value {\n",
            "9: setting[2]: Adam.weight_decay must be a finite number, got Warmup(steps=5"),
        ("'schedule' value {\n", "'schedule' text: 'x' } setting { value {\n",
            "9: setting[2]: Adam.schedule must be one of Cosine, Exponential, Linear, StepDecay, "),
        ("'Warmup'", "'SGD'", "10: type: must be one of Cosine, Exponential, Linear, StepDecay, T"),
        ("whole: 5", "text: 'x'", "11: setting: Warmup.steps must be a finite number, got 'x'"),
        ("whole: 5", "whole: 0", "11: setting: Warmup.steps must be >= 1, got 0"),
        ("number: 0.5", "number: 2", "12: setting[1]: Warmup.start must be in [0, 1], got 2"),
        ("'scheduler' t", "'x' t", "14: type: TorchSchedule needs a setting of name 'scheduler'"),
        ("'step_size'", "'self'", "16: setting[1]: no scheduler has 'self'; take it out"),
        ("'StepLR'", "'Optimizer'", "15: setting: torch.optim.lr_scheduler has no scheduler 'Opti"),
        ("text: 'StepLR'", "whole: 3", "15: setting: torch.optim.lr_scheduler has no scheduler 3"),
        ("'StepLR'", "'ReduceLROnPlateau'", "15: setting: TorchSchedule cannot run ReduceLROnPla"),
        ("number: -1", "text: 'x'", "4: setting: Uniform.low must be a finite number, got 'x'"),
        ("number: -1", "number: 3", "4: init: Uniform: low must be <= high, both finite, got [3"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_on_its_line(old: str, new: str, said: str) -> None:
    assert TABLE.count(old) == 1
    with pytest.raises(dp.PlanError) as caught:
        read_text(TABLE.replace(old, new), "f")
    assert str(caught.value).startswith(f"f:{said}")


def test_a_switch_is_true_or_false() -> None:
    rule = "'G2SumAdagrad'\nsetting { name: 'per_element' number: 7 }"
    begin, end = TABLE.index("'Adam'"), TABLE.index("\n} } } } } } }")
    with pytest.raises(dp.PlanError, match=r"f:7: setting: G2SumAdagrad.per_element must be true "):
        read_text(TABLE[:begin] + rule + TABLE[end:], "f")


@pytest.mark.parametrize("shape", ["value { type: 'Warmup' setting {", "list { item {", "tuple { "])
def test_what_is_nested_too_deep_is_refused(shape: str) -> None:
    text = "clip {\nsetting { " + shape * 5000
    with pytest.raises(dp.PlanError, match=r"^f:2: .*: is nested in 100 messages or more"):
        read_text(text, "f")


def test_every_rule_can_be_named() -> None:
    assert {*SPARSE_RULES, *DENSE_RULES} == {*rules.__all__} - {"BaseRule", "Rule"}
    assert {*SPARSE_RULES} - {*DENSE_RULES} == {
        "G2SumAdagrad", "RowAdam", "RowwiseAdagrad", "SharedAdam",
    }  # fmt: skip
    assert {*DENSE_RULES} - {*SPARSE_RULES} == {"AdamD2Sum", "Summary"}


def test_every_setting_is_of_a_kind_that_is_checked() -> None:
    types = {**SPARSE_RULES, **DENSE_RULES, **SCHEDULES, **INITS, **CLIPS}
    for of in {*types.values()} - {dp.TorchSchedule}:  # whose settings torch checks
        for field in fields(of):
            assert {*str(field.type).split(" | ")} <= {*KINDS}, (of, field.name)
