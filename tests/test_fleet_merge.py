"""minimize with a description file: what the file says wins or is refused, by file and line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import downpour as dp
from downpour.plan.program import PullDense, PushDense
from tests.networks import Network, a_batch, click

if TYPE_CHECKING:
    from pathlib import Path

    import torch


class Net(Network):
    """CTR rows as the model sees them without CVM: w and an embedx of 4."""

    def __init__(self) -> None:
        super().__init__(dim=5)
        self.norm = dp.DataNorm(10)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        return self.out(self.norm(self.embedding(batch).flatten(1))).squeeze(1)


def other(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model(batch).square().mean()


def table(number: int, body: str, kind: str = "SPARSE") -> str:
    name = "Sparse" if kind == "SPARSE" else "Dense"
    return (
        f"downpour_table_param {{\n table_id: {number}\n table_class: 'Downpour{name}Table'\n"
        f" type: PS_{kind}_TABLE\n accessor {{\n {body}\n }}\n}}\n"
    )


def file_of(*tables: str, rest: str = "") -> str:
    return f"server_param {{ downpour_server_param {{\n{''.join(tables)}}} }}\n{rest}\n"


CTR = "accessor_class: 'DownpourCtrAccessor' embedx_dim: 4 embedx_threshold: 3"
ADAM = (
    "accessor_class: 'DownpourDenseValueAccessor' "
    "dense_sgd_param { name: 'adam' adam { learning_rate: 0.25 } }"
)
SUMMARY = (
    "accessor_class: 'DownpourDenseValueAccessor' "
    "dense_sgd_param { name: 'summary' summary { summary_decay_rate: 0.5 } }"
)


@pytest.fixture
def plan_by(tmp_path: Path) -> Any:
    """Plan with a file of this text."""

    def plan(
        text: str, losses: Any = click, strategy: dict[str, Any] | None = None, **settings: Any
    ) -> dp.Plan:
        path = tmp_path / "fleet.prototxt"
        path.write_text(text)
        given = {"fleet_desc_file": path, **(strategy or {})}
        optimizer = dp.DownpourSGD(**settings)
        return optimizer.minimize(losses, model=Net(), example=a_batch(), strategy=given)

    return plan


def test_tables_of_the_file_win_whole_and_the_others_are_planned(plan_by: Any) -> None:
    plan = plan_by(file_of(table(0, CTR), table(2, SUMMARY, "DENSE")), dense=dp.Adam(0.125))
    rows = plan.sparse[0].accessor
    assert (rows.embedx_dim, rows.embedx_threshold) == (4, 3.0)
    assert rows.rules[0] == dp.G2SumAdagrad(0.05)  # the message's default, not learning_rate
    dense, norm = plan.dense
    assert (dense.rule, norm.rule) == (dp.Adam(0.125), dp.Summary(0.5))


def test_one_trainer_is_of_all_programs(plan_by: Any) -> None:
    rest = 'trainer_param { push_dense_per_batch: 4 skip_op: "lookup" }'
    plan = plan_by(file_of(rest=rest), [click, other])
    for program in plan.programs.values():
        assert program.skipped_ops == ("lookup",)
        every = {op.every for op in program.ops if isinstance(op, PullDense | PushDense)}
        assert every == {4}
    assert plan.skipped_ops == ("lookup",)


def test_a_trainer_each_is_matched_by_order(plan_by: Any) -> None:
    rest = "trainer_param { push_dense_per_batch: 2 }\ntrainer_param { }"
    plan = plan_by(file_of(rest=rest), [click, other])
    everies = [program.ops[0].every for program in plan.programs.values()]
    assert everies == [2, 1]


def test_trainers_that_have_each_others_names_are_refused(plan_by: Any) -> None:
    trainer = "trainer_param {{ program_config {{ program_id: '{}' }} }}\n".format
    plan_by(file_of(rest=trainer("click") + trainer("other")), [click, other])
    plan_by(file_of(rest=trainer("140234") + trainer("140235")), [click, other])
    with pytest.raises(dp.PlanError, match="program_id is 'other', and by its place it is of"):
        plan_by(file_of(rest=trainer("other") + trainer("click")), [click, other])


def test_the_first_versions_windows_are_read(plan_by: Any) -> None:
    rest = "trainer_param { pull_dense_per_batch: 3 push_dense_per_batch: 6 }"
    ops = plan_by(file_of(rest=rest)).programs["click"].ops
    assert {op.every for op in ops if isinstance(op, PullDense)} == {3}
    assert {op.every for op in ops if isinstance(op, PushDense)} == {6}


def test_what_is_around_the_tables_is_kept(plan_by: Any) -> None:
    rest = 'fs_client_param { uri: "hdfs://a" user: "me" }'
    text = "server_param { downpour_server_param { service_param { server_thread_num: 4 } } }"
    plan = plan_by(text + rest, strategy={"fs_user": "me", "fs_passwd": "secret"})
    assert plan.service.server_thread_num == 4
    assert (plan.fs_client.uri, plan.fs_client.user) == ("hdfs://a", "me")
    assert plan.opt_info["fs_passwd"] == "secret"
    assert "secret" not in str(plan) + repr(plan)


def test_a_plan_read_as_a_file_is_that_plan(plan_by: Any) -> None:
    settings: dict[str, Any] = {"dense": dp.Adam(0.1), "clip": dp.ClipByNorm(1.0)}
    strategy = {"scale_datanorm": 0.5}
    first = plan_by(file_of(table(0, CTR)), [click, other], strategy, window=3, **settings)
    again = plan_by(str(first.fleet_desc()), [click, other], strategy)
    assert again == first


CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "a table that the losses do not have": (
        file_of(table(7, CTR)), {},
        r"fleet.prototxt:3: table_id is 7, of a sparse table, and the losses have none",
    ),
    "a table of another type": (
        file_of(table(1, CTR)), {},
        r"table_id is 1, of a sparse table, and.*theirs are 0: sparse, 1: dense",
    ),
    "another width": (
        file_of(table(0, CTR.replace("embedx_dim: 4", "embedx_dim: 8"))), {},
        r"embedx_dim is 8.*dim 5 less 1 \(w\) is 4; write embedx_dim 4, or .*dim=9",
    ),
    "another size": (
        file_of(table(1, ADAM + " fea_dim: 99", "DENSE")), {},
        "prototxt:7: fea_dim is 99.*table 1 have 11 elements; write fea_dim: 11",
    ),
    "a rule for statistics on parameters": (
        file_of(table(1, SUMMARY, "DENSE")), {},
        "prototxt:7: name is of Summary, and table 1 holds parameters; 'summary' is the rule",
    ),
    "a rule for parameters on statistics": (
        file_of(table(2, ADAM, "DENSE")), {}, "AdamD2Sum, and table 2 holds data-norm statistics",
    ),
    "three trainers for one loss": (
        file_of(rest="trainer_param { }\n" * 3), {}, "there are 3 trainer_param for 1 losses",
    ),
    "an op that is not there": (
        file_of(rest="trainer_param { skip_op: 'lookup_table' skip_op: 'conv' }"), {},
        r"prototxt:3: skip_op\[1\]: 'conv' matches no op of loss 'click'",
    ),
    "look-ups that are not skipped": (
        file_of(rest="trainer_param { skip_op: 'push_sparse' }"), {},
        "prototxt:3: skip_op: must name lookup_table",
    ),
    "other features": (
        file_of(rest="trainer_param { sparse_table { table_id: 0 slot_key: 'user' } }"), {},
        "prototxt:3: slot_key is user, and loss 'click' reads user, item in table 0",
    ),
    "other parameters": (
        file_of(rest="trainer_param { dense_table { table_id: 1 dense_variable_name: 'w' } }"), {},
        "dense_variable_name and .*in table 1 differ in out.bias, out.weight, w",
    ),
    "a trainer's table that is not there": (
        file_of(rest="trainer_param { dense_table { table_id: 5 } }"), {},
        "prototxt:3: table_id is 5, and the loss uses 1, 2 there",
    ),
    "a table that a program_config leaves out": (
        file_of(
            rest="trainer_param { program_config { program_id: 'x' pull_sparse_table_id: 0 "
            "push_sparse_table_id: 0\n pull_dense_table_id: 1 push_dense_table_id: 1 } }"
        ), {},
        "prototxt:4: pull_dense_table_id: lacks 2, which loss 'click' uses there",
    ),
    "a program_config without pushes": (
        file_of(
            rest="trainer_param { program_config { program_id: 'x' pull_sparse_table_id: 0 } }"
        ), {},
        "push_sparse_table_id: lacks 0, which loss 'click' uses there; write all four lists",
    ),
    "an op that is skipped twice": (
        file_of(rest="trainer_param { skip_op: 'lookup_table' skip_op: 'lookup_table' }"), {},
        r"prototxt:3: skip_op\[1\]: 'lookup_table' is given twice",
    ),
    "a converter that is given twice": (
        file_of(table(0, CTR + " table_accessor_save_param { param: 1 }" * 2)), {},
        "must have each param once",
    ),
    "another window": (
        file_of(rest="trainer_param { push_dense_per_batch: 4 }"), {"window": 2},
        "prototxt:3: push_dense_per_batch: .*every 4 batches, and DownpourSGD.window is 2",
    ),
    "a table that the strategy has, too": (
        file_of(table(0, CTR)), {"strategy": {"embedding": {}}},
        r"table 'embedding' \(id 0\) is set by strategy\['embedding'\] and by .*fleet.prototxt",
    ),
    "a table that the optimizer has, too": (
        file_of(table(0, CTR)), {"sparse": {"embedding": dp.SGD(0.1)}}, "keep one",
    ),
    "dense tables that the strategy has, too": (
        file_of(table(1, ADAM, "DENSE")), {"strategy": {"dense_table": {}}},
        "strategy dense_table is {}, and all tables that it is of are set by .*:2; keep one",
    ),
    "a rule for all tables, where the file has each": (
        file_of(table(0, CTR)), {"sparse": dp.SGD(0.1)},
        "DownpourSGD.sparse is SGD.*all tables that it is of are set by",
    ),
    "a rule for all tables, where the strategy has each": (
        file_of(), {"sparse": dp.SGD(0.1), "strategy": {"embedding": {}}},
        "DownpourSGD.sparse is SGD.*all tables that it is of are set by the strategy",
    ),
    "fs_user": (
        file_of(rest='fs_client_param { user: "me" }'), {"strategy": {"fs_user": "you"}},
        "strategy fs_user and fs_client_param of the description differ",
    ),
    "an unknown field": (
        file_of(table(0, CTR + " embed_dim: 4")), {}, "fleet.prototxt.*embed_dim",
    ),
    "a loss that is not there": (
        file_of(), {"strategy": {"loss_names": ["buy"]}}, "loss_names is buy, and the losses are",
    ),
    "a name that is not there": (
        file_of(), {"strategy": {"check_nan_var_names": ["fc_0"]}}, "has 'fc_0', which is no loss",
    ),
    "slots that are kept": (
        file_of(), {"strategy": {"dump_slot": False}}, "dump_slot=False, and rows keep their slot",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_contradicts_the_model_is_refused(name: str, plan_by: Any) -> None:
    text, settings, message = CASES[name]
    with pytest.raises(dp.PlanError, match=message):
        plan_by(text, **settings)


@pytest.mark.parametrize(
    ("was", "becomes", "message"),
    [
        ('name: "item"', 'name: "thing"', "feature is .*'thing'"),
        ("embedding", "rows", "name is 'rows', and the model's is 'embedding'"),
        ("seed: 1", "seed: 2", "seed is 2, and the model's is 1"),
        ("shape: 10", "shape: 11", "section is|fea_dim"),
        ("push_dense_per_batch: 2", "push_dense_per_batch: 3", "every 3 batches|is not the one"),
    ],
)
def test_a_plan_of_another_model_is_refused(
    was: str, becomes: str, message: str, tmp_path: Path
) -> None:
    def plan(strategy: Any) -> dp.Plan:
        return dp.DownpourSGD(window=2).minimize(
            click, model=Net(), example=a_batch(), strategy=strategy, seed=1
        )

    path = tmp_path / "fleet.prototxt"
    text = str(plan({}).fleet_desc())
    assert was in text
    path.write_text(text)
    assert plan({"fleet_desc_file": path}) == plan({})
    path.write_text(text.replace(was, becomes))
    with pytest.raises(dp.PlanError, match=message):
        plan({"fleet_desc_file": path})


def test_a_file_that_is_not_there_is_an_error() -> None:
    with pytest.raises(dp.PlanError, match=r"fleet_desc_file 'nowhere\.prototxt' cannot be"):
        dp.DownpourSGD().minimize(
            click,
            model=Net(),
            example=a_batch(),
            strategy={"fleet_desc_file": "nowhere.prototxt"},
        )


def test_a_strategys_tables_are_read_as_the_file_is() -> None:
    strategy = {
        "embedding": {"sparse_embedx_threshold": 3, "sparse_learning_rate": 0.5},
        "dense_table": {"dense_learning_rate": 0.25},
        "datanorm_table": {"datanorm_decay_rate": 0.5},
        "check_nan_var_names": ["out.weight", "embedding", "click", "user"],
        "loss_names": ["click"],
        "dump_slot": True,
        "scale_datanorm": 0.0,
    }
    plan = dp.DownpourSGD().minimize(click, model=Net(), example=a_batch(), strategy=strategy)
    assert plan.sparse[0].accessor.rules[0] == dp.G2SumAdagrad(0.5)
    dense, norm = plan.dense
    assert (dense.rule, norm.rule) == (dp.AdamD2Sum(0.25), dp.Summary(0.5))
    (push,) = (op for op in plan.programs["click"].ops if op == _push_of(norm, plan))
    assert push.scale_datanorm == 0.0
    assert plan.opt_info["scale_datanorm"] == 0.0


def plain(model: Any, batch: dp.Batch) -> torch.Tensor:
    """Nothing but rows."""
    return model.embedding(batch).sum()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"use_cvm": True, "embedding": {"sparse_accessor_class": "DownpourSparseValueAccessor"}},
         "use_cvm=True, and the plan has no rows that count"),
        ({"no_cvm": True, "click_name": "label"}, "click_name, and the plan has no rows that"),
        ({"scale_datanorm": 0.5}, "scale_datanorm, and the plan has no DataNorm"),
        ({"datanorm_table": {}}, "datanorm_table, and the plan has no DataNorm"),
        ({"dense_table": {}}, "dense_table, and the plan has no dense parameter"),
    ],
)  # fmt: skip
def test_settings_of_what_the_plan_does_not_have_are_refused(
    setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(dp.PlanError, match=message):
        dp.DownpourSGD().minimize(plain, model=Net(), example=a_batch(), strategy=setting)


@pytest.mark.parametrize("setting", ["dense_table", "datanorm_table"])
def test_settings_of_tables_are_read_though_there_is_none(setting: str) -> None:
    with pytest.raises(dp.SettingError, match="typo"):
        dp.DownpourSGD().minimize(
            plain, model=Net(), example=a_batch(), strategy={setting: {"typo": 1}}
        )


def test_a_click_that_is_named_twice_is_refused() -> None:
    optimizer = dp.DownpourSGD(sparse=dp.CtrAccessor(click="label"))
    with pytest.raises(dp.PlanError, match=r"CtrAccessor.click is 'label', and .*click_name='buy'"):
        optimizer.minimize(click, model=Net(), example=a_batch(), strategy={"click_name": "buy"})


def test_a_scale_that_is_said_twice_is_refused() -> None:
    with pytest.raises(dp.SettingError, match=r"scale_datanorm is 0.25, and strategy has"):
        dp.DownpourSGD(scale_datanorm=0.25).minimize(
            click, model=Net(), example=a_batch(), strategy={"scale_datanorm": 0.5}
        )


def _push_of(norm: Any, plan: dp.Plan) -> Any:
    pushes = (op for op in plan.programs["click"].ops if isinstance(op, PushDense))
    return next(op for op in pushes if op.table == norm.name)


@pytest.mark.parametrize(
    ("settings", "strategy", "message"),
    [
        ({"dense": dp.SGD(0.1)}, {"dense_table": {}}, "DownpourSGD.dense is .*keep one"),
        ({"data_norm": dp.Summary()}, {"datanorm_table": {}}, "DownpourSGD.data_norm is"),
        ({}, {"dense_table": {"dense_lr": 1.0}}, "dense_lr"),
        ({}, {"embeding": {}}, r"strategy has settings of \['embeding'\].*it has: embedding"),
        ({"sparse": {"embeding": dp.SGD(0.1)}}, {}, "DownpourSGD.sparse has rules for"),
    ],
)
def test_settings_that_are_said_twice_or_of_nothing_are_refused(
    settings: dict[str, Any], strategy: dict[str, Any], message: str
) -> None:
    with pytest.raises(dp.SettingError, match=message):
        dp.DownpourSGD(**settings).minimize(
            click, model=Net(), example=a_batch(), strategy=strategy
        )
