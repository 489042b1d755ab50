"""A description for Paddle is one that Paddle's own parser takes, and says what it cannot hold."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from hypothesis import HealthCheck, given, settings

import downpour as dp
from benchmarks.quality_torch import load_example
from downpour.cli import main
from downpour.plan.plan import Plan
from downpour.rules import Summary
from tests.paddle_messages import paddle_parse
from tests.paddle_models import USES, Use, loss
from tests.plans import ctr_table, dense_table, plain_table, plans, small_plan

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

EXAMPLES = ("movielens", "esmm", "mmoe", "fleet_strategy", "fleet_desc")


@pytest.fixture
def example(request: Any, ratings: pa.Table, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An example over fewer ratings."""
    loaded = load_example(request.param)
    monkeypatch.setattr(loaded, "load", lambda: ratings.slice(0, 2000))
    return loaded


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_paddle_parses_any_plan(plan: Plan) -> None:
    text = str(plan.fleet_desc(extensions=False))
    theirs = paddle_parse(text)
    tables = theirs.server_param.downpour_server_param.downpour_table_param
    assert {*plan.ids.values()} <= {table.table_id for table in tables}
    assert len(theirs.trainer_param) == len(plan.programs)
    has_all = text == str(plan.fleet_desc())
    assert has_all == (not plan.extensions)
    if not has_all:
        with pytest.raises(text_format.ParseError):
            paddle_parse(str(plan.fleet_desc()))


@pytest.mark.parametrize("example", EXAMPLES, indirect=True)
def test_paddle_parses_what_the_command_prints_for_an_example(example: Any) -> None:
    done = CliRunner().invoke(main, ["plan", example.__name__, "--format", "prototxt"])
    assert done.exit_code == 0, done.output
    said = paddle_parse(done.stdout)
    assert said.server_param.downpour_server_param.downpour_table_param[0].table_id == 0
    comments = [line for line in done.stdout.splitlines() if line.startswith("#")]
    assert "--format downpour has them all" in comments[0]
    assert comments[1].startswith("# table 0 'embedding': ")
    with_all = CliRunner().invoke(main, ["plan", example.__name__, "--format", "downpour"])
    plan = Plan.from_fleet_desc(with_all.stdout)
    assert comments[1:] == [f"# {line}" for line in plan.extensions]


def test_a_description_without_extensions_has_the_same_fields_but_those() -> None:
    plan = small_plan()
    mine, theirs = plan.fleet_desc(), plan.fleet_desc(extensions=False)
    for table in mine.server_param.downpour_server_param.downpour_table_param:
        table.ClearField("sparse")
        table.ClearField("dense")
    for entry in (mine.trainer_param[0].sparse_table[0],):
        entry.ClearField("times_batch_size")
        entry.ClearField("counts")
    assert mine == theirs


RULE = dp.Adam(0.1, schedule=dp.Warmup(steps=10, after=dp.Cosine(steps=100)))
LINES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "names": (
        ctr_table(), {},
        r"table 0 'embedding': sparse.name 'embedding', sparse.feature 'user' 'item', "
        r"sparse.padding_key 0, sparse.use_cvm True, sparse.click 'label'",
    ),
    "a rule": (
        None, {"dense": (dense_table(rule=RULE),)},
        r"table 1 'dense.click': accessor.dense_sgd_param.extension.rule Adam\(lr=0.1, schedule="
        r"Warmup\(steps=10, after=Cosine\(steps=100\)\)\), dense.name 'dense.click', dense.section "
        r"'out.bias' 'out.weight'",
    ),
    "a first value": (
        ctr_table(embedx_init=dp.Normal(0.5)), {},
        r"accessor.sparse_sgd_param.extension.init Normal\(std=0.5\)",
    ),
    "weight decay": (
        plain_table(rule=dp.SGD(0.1, weight_decay=0.25)), {},
        r"accessor.sparse_commonsgd_param.extension.weight_decay 0.25",
    ),
    "a number that its field cannot hold": (
        ctr_table(embedx_threshold=7.5), {}, r"sparse.exact.embedx_threshold 7.5",
    ),
    "bounds": (
        ctr_table(bounds=(-0.5, 1 / 3)), {},
        r"accessor.sparse_sgd_param.extension.weight_bounds -0.5 0.333333",
    ),
    "a program": (
        None, {}, r"program 'click': sparse_table.times_batch_size True, sparse_table.counts 'item'"
    ),
    "a clip": (None, {"clip": dp.ClipByValue(0.5)}, r"clip: ClipByValue\(.*0.5\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_what_is_left_out_is_said_in_words(name: str) -> None:
    table, given, line = LINES[name]
    plan = small_plan(table, **given)
    assert re.search(line, "\n".join(plan.extensions)), plan.extensions


@pytest.mark.parametrize(
    "accessor",
    [
        {"rule": dp.SGD(0.1)},
        {"show_scale": False},
        {"embedx_rule": dp.RowAdam(0.1), "embedx_bounds": (-1.0, 1.0)},
        {"rule": dp.G2SumAdagrad(0.1, per_element=True), "show_scale": False},
    ],
)
def test_show_scale_needs_no_field_of_ours(accessor: dict[str, Any]) -> None:
    """Paddle says it by the class of the accessor."""
    plan = small_plan(ctr_table(**accessor))
    assert "show_scale" not in "".join(plan.extensions)
    assert Plan.from_fleet_desc(plan.fleet_desc()) == plan


def test_losses_that_share_parameters_have_copies_for_paddle(tmp_path: Path) -> None:
    use = USES["shared_bottom"]
    plan = use.plan(dense=dp.AdamD2Sum(0.25))
    assert [(block.id, block.size) for block in plan.dense] == [(1, 81), (2, 5)]
    theirs = paddle_parse(str(plan.fleet_desc(extensions=False)))
    tables = theirs.server_param.downpour_server_param.downpour_table_param
    assert [(it.table_id, it.accessor.fea_dim) for it in tables] == [(0, 11), (1, 81), (2, 81)]
    (entry,) = theirs.trainer_param[1].dense_table
    assert entry.table_id == 2
    assert [*entry.dense_variable_name] == ["b.bias", "b.weight", "hidden.bias", "hidden.weight"]
    config = theirs.trainer_param[1].program_config[0]
    assert [*config.push_dense_table_id] == [*config.pull_dense_table_id] == [2]
    path = tmp_path / "f.prototxt"
    path.write_text(str(plan.fleet_desc(extensions=False)), encoding="utf-8")
    assert use.plan({"fleet_desc_file": path}) == plan


def test_a_loss_whose_parameters_are_all_shared_has_its_own_table_for_paddle(
    tmp_path: Path,
) -> None:
    use = Use(USES["norm"].model, {"click": loss(), "again": loss()})
    plan = use.plan(dense=dp.AdamD2Sum(0.25))
    assert [(block.id, block.name) for block in plan.dense] == [
        (1, "dense.click"), (2, "data_norm.click"),
    ]  # fmt: skip
    text = str(plan.fleet_desc(extensions=False))
    tables = paddle_parse(text).server_param.downpour_server_param.downpour_table_param
    rules = [(it.table_id, it.accessor.dense_sgd_param.name) for it in tables]
    assert rules[1:] == [(1, "adam"), (2, "summary"), (3, "adam"), (4, "summary")]
    path = tmp_path / "f.prototxt"
    path.write_text(text, encoding="utf-8")
    assert use.plan({"fleet_desc_file": path}) == plan


def test_copies_that_would_learn_by_another_rule_are_said() -> None:
    plan = USES["shared_bottom"].plan(dense=dp.AdamD2Sum(0.25))
    first, second = plan.dense
    plan = replace(plan, dense=(first, replace(second, rule=dp.SGD(0.5))))
    assert plan.extensions[-1].startswith("program 'b': what it trains of table 1 learns by AdamD2")
    assert "its copy in table 2 by SGD(lr=0.5" in plan.extensions[-1]


def test_a_plan_that_is_numbered_in_another_way_has_no_copies() -> None:
    plan = USES["shared_bottom"].plan()
    moved = replace(plan, dense=(plan.dense[0], replace(plan.dense[1], id=7)))
    theirs = paddle_parse(str(moved.fleet_desc(extensions=False)))
    sizes = [it.accessor.fea_dim for it in theirs.server_param.downpour_server_param.
             downpour_table_param]  # fmt: skip
    assert sizes == [11, 81, 5]


def test_a_plan_of_statistics_alone_parses() -> None:
    plan = small_plan(dense=(dense_table(rule=Summary(0.5)),))
    assert paddle_parse(str(plan.fleet_desc(extensions=False)))
