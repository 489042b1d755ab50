"""A description of ours is read back for its own model: equal, or the setting is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import downpour as dp
from tests.paddle_models import BATCH, USES, Clicks, Use, loss

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WEIGH = {"need_adjust": True, "nid_slot": "user", "nid_adjw_threshold": 5, "nid_adjw_ratio": 0.5}


def minimized(use: Use, path: Path, optimizer: dp.DownpourSGD | None = None, **given: Any) -> Any:
    """The plan of a model under nothing but its description, or with what else is given."""
    strategy = {"fleet_desc_file": path, **given.pop("strategy", {})}
    return (optimizer or dp.DownpourSGD()).minimize(
        use.losses, model=use.model(), example=BATCH, strategy=strategy, **given
    )


def written(plan: dp.Plan, path: Path) -> Path:
    path.write_text(str(plan.fleet_desc()), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("scales", [None, True, False])
def test_a_description_is_read_back_for_its_own_model(
    name: str, scales: bool | None, tmp_path: Path
) -> None:
    use = USES[name]
    optimizer = dp.DownpourSGD(
        0.25,
        window=3,
        dense=dp.Adam(0.1),
        clip=dp.ClipByNorm(1.0),
        scale_sparse_gradient_with_batch_size=scales,
    )
    plan = optimizer.minimize(use.losses, model=use.model(), example=BATCH)
    assert minimized(use, written(plan, tmp_path / "f")) == plan


rates = st.sampled_from([0.25, 0.5])
rules = st.one_of(
    st.none(), st.builds(dp.SGD, rates), st.builds(dp.Adagrad, rates), st.builds(dp.RowAdam, rates),
    st.builds(dp.CtrAccessor, rule=st.builds(dp.G2SumAdagrad, rates), slots=st.booleans(),
              show_scale=st.booleans(), embedx_threshold=st.sampled_from([0.0, 7.5])),
)  # fmt: skip
optimizers = st.builds(
    dp.DownpourSGD,
    rates,
    window=st.integers(1, 3),
    sparse=rules,
    dense=st.one_of(st.none(), st.builds(dp.Adam, rates), st.builds(dp.SGD, rates)),
    data_norm=st.one_of(st.none(), st.builds(dp.Summary, rates)),
    clip=st.sampled_from([None, dp.ClipByValue(0.5)]),
    scale_sparse_gradient_with_batch_size=st.sampled_from([None, True, False]),
    scale_datanorm=st.sampled_from([None, 0.5]),
)


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(optimizer=optimizers, name=st.sampled_from(["two", "two_norm", "shared_bottom", "nodense"]))
def test_whatever_an_optimizer_says_is_read_back(
    optimizer: dp.DownpourSGD, name: str, tmp_path: Path
) -> None:
    use = USES[name]
    plan = optimizer.minimize(use.losses, model=use.model(), example=BATCH)
    assert minimized(use, written(plan, tmp_path / "f")) == plan


def test_what_a_strategy_said_is_read_back(tmp_path: Path) -> None:
    strategy: dict[str, Any] = {
        "use_cvm": True,
        "scale_sparse_gradient_with_batch_size": False,
        "scale_datanorm": 0.5,
        "embedding": {"sparse_accessor_class": "DownpourUnitAccessor", "sparse_shard_num": 7},
        "dense_table": {"dense_avg_decay": 0.5},
        "datanorm_table": {"datanorm_decay_rate": 0.5},
        "fs_uri": "hdfs://there",
    }
    use = Use(lambda: Clicks(11, use_cvm=True, norm=True))
    plan = use.plan(strategy)
    assert minimized(use, written(plan, tmp_path / "f")) == plan


def of(settings: dict[str, Any], **given: Any) -> Any:
    """How a plan is made whose description is read without that."""
    return lambda use: dp.DownpourSGD(**settings).minimize(
        use.losses, model=use.model(), example=BATCH, **given
    )


NORM = Use(lambda: Clicks(norm=True))
NAMED: dict[str, tuple[Use, Callable[[Use], dp.Plan], dict[str, Any], str]] = {
    "the seed": (
        NORM, of({}, seed=5), {}, r"seed is 5, and the model's is 0; give minimize\(seed=5\)",
    ),
    "gradients that are scaled": (
        NORM, of({}), {"optimizer": dp.DownpourSGD(scale_sparse_gradient_with_batch_size=True)},
        "scale_sparse_gradient_with_batch_size is True by DownpourSGD or the strategy; take it out",
    ),
    "gradients that are not, by the strategy": (
        NORM, of({"scale_sparse_gradient_with_batch_size": True}),
        {"strategy": {"scale_sparse_gradient_with_batch_size": False}},
        "scale_sparse_gradient_with_batch_size is False by DownpourSGD or the strategy; take it o",
    ),
    "data-norm's scale": (
        NORM, of({"scale_datanorm": 0.25}), {"strategy": {"scale_datanorm": 0.5}},
        "scale_datanorm is 0.5 by DownpourSGD or the strategy; take it out, or describe the same",
    ),
    "a window": (
        NORM, of({"window": 2}), {"optimizer": dp.DownpourSGD(window=3)},
        "every 2 batches, and DownpourSGD.window is 3",
    ),
    "what is not trained": (
        NORM, of({}, no_grad_set=["hidden.bias"]), {},
        r"program 'click' trains all but hidden.bias, and the plan of this model trains everything"
        r"; give minimize\(no_grad_set=\['hidden.bias'\]\), or a parameter_list that says the same",
    ),
    "a module without a gradient": (
        NORM, of({}, no_grad_set=["norm"]), {}, r"give minimize\(no_grad_set=\['norm'\]\)",
    ),
    "the weighing of samples": (
        Use(lambda: Clicks(11, use_cvm=True)),
        of({}, strategy={"use_cvm": True, "adjust_ins_weight": WEIGH}), {},
        "give the strategy adjust_ins_weight as the description has it, or take weigh_samples out",
    ),
    "another weighing of samples": (
        Use(lambda: Clicks(11, use_cvm=True)),
        of({}, strategy={"use_cvm": True, "adjust_ins_weight": WEIGH}),
        {"strategy": {"adjust_ins_weight": {**WEIGH, "nid_adjw_ratio": 0.25}}},
        "strategy adjust_ins_weight must say what weigh_samples does",
    ),
    "a weighing of samples that it has not": (
        Use(lambda: Clicks(11, use_cvm=True)), of({}, strategy={"use_cvm": True}),
        {"strategy": {"adjust_ins_weight": WEIGH}}, "give the strategy adjust_ins_weight as the d",
    ),
    "what the model sees": (
        NORM, of({}), {"strategy": {"use_cvm": True}, "optimizer": dp.DownpourSGD()},
        "strategy has use_cvm=True, and the plan has no rows that count",
    ),
    "a clip": (
        NORM, of({"clip": dp.ClipByNorm(1.0)}),
        {"optimizer": dp.DownpourSGD(clip=dp.ClipByNorm(2.0))},
        "DownpourSGD.clip is .* keep one",
    ),
    "a rule": (
        NORM, of({}), {"optimizer": dp.DownpourSGD(dense=dp.SGD(0.1))},
        "DownpourSGD.dense is .*keep one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_a_setting_that_differs_is_named(name: str, tmp_path: Path) -> None:
    use, make, given, message = NAMED[name]
    path = written(make(use), tmp_path / "f")
    with pytest.raises(dp.PlanError, match=message):
        minimized(use, path, **given)


def test_the_settings_that_are_named_read_it_back(tmp_path: Path) -> None:
    use = Use(lambda: Clicks(11, use_cvm=True))
    given: dict[str, Any] = {"seed": 5, "no_grad_set": ["hidden.bias"]}
    strategy = {"use_cvm": True, "adjust_ins_weight": WEIGH}
    plan = dp.DownpourSGD().minimize(
        use.losses, model=use.model(), example=BATCH, strategy=strategy, **given
    )
    again = {"adjust_ins_weight": WEIGH}
    assert minimized(use, written(plan, tmp_path / "f"), strategy=again, **given) == plan


def test_a_description_without_extensions_is_read_as_a_file_of_paddles(tmp_path: Path) -> None:
    """Where what it lacks is the default."""
    use = Use(lambda: Clicks(norm=True))
    plan = use.plan({"scale_datanorm": 0.0})
    path = tmp_path / "f"
    path.write_text(str(plan.fleet_desc(extensions=False)), encoding="utf-8")
    assert minimized(use, path, strategy={"scale_datanorm": 0.0}) == plan


def test_a_strategy_that_disagrees_with_the_model_on_cvm_names_both_ways_out() -> None:
    use = Use(lambda: Clicks(11, use_cvm=True))
    with pytest.raises(
        dp.PlanError, match=r"dim=9, use_cvm=False\), or {'use_cvm': True} in the s"
    ):
        use.plan({})


# What a description keeps for Paddle's servers.

KEPT = """
worker_class: "Worker" server_class: "Server" instance_class: "Instance" init_gflags: "-v=1"
server_param {{ downpour_server_param {{
  downpour_table_param {{
    table_id: 0 table_class: "{table}" sparse_table_mem_cache_rate: 0.25
    accessor {{ accessor_class: "{accessor}" embedx_dim: 8 {rules} }}
  }}
  downpour_table_param {{
    table_id: 1 table_class: "MemoryDenseTable"
    accessor {{ accessor_class: "CommMergeAccessor"
      dense_sgd_param {{ naive {{ learning_rate: 0.5 avg_decay_rate: 0.125 }} }} }}
  }}
  service_param {{ server_class: "BrpcPsServer" client_class: "BrpcPsClient"
    service_class: "PsService" }}
}} }}
""".format
SHARED = "sparse_sgd_param { initial_range: 0.5 }"
SPLIT = "embed_sgd_param { naive { } } embedx_sgd_param { adam { } }"
PLAIN = "sparse_commonsgd_param { name: 'adam' adam { } }"
CLASSES = {
    "DownpourCtrAccessor": SHARED,
    "DownpourFeatureValueAccessor": SHARED,
    "DownpourCtrDoubleAccessor": SHARED,
    "DownpourUnitAccessor": SPLIT,
    "DownpourDoubleUnitAccessor": SPLIT,
    "CtrCommonAccessor": SPLIT,
    "CtrDoubleAccessor": SPLIT,
    "SparseAccessor": SPLIT,
    "DownpourSparseValueAccessor": PLAIN,
}
SAME = SPLIT.replace("adam", "naive")  # which one rule could say too
ADAGRAD = "embed_sgd_param { adagrad { initial_range: 0 } } embedx_sgd_param { adagrad { } }"
FOUR_WAYS = "downpour_accessor_param { zero_init: false }", "ctr_accessor_param { zero_init: true }"


@pytest.mark.parametrize("table", ["DownpourSparseTable", "MemorySparseTable"])
@pytest.mark.parametrize(
    ("accessor", "rules"),
    [
        *CLASSES.items(),
        *[(name, rule) for rule in (SAME, ADAGRAD) for name, of in CLASSES.items() if of == SPLIT],
        *[(name, f"{rules} {way}") for name, rules in CLASSES.items() for way in FOUR_WAYS
          if rules != PLAIN],
    ],
)  # fmt: skip
def test_classes_are_kept_as_they_were_read(
    table: str, accessor: str, rules: str, tmp_path: Path
) -> None:
    path = tmp_path / "f"
    path.write_text(KEPT(table=table, accessor=accessor, rules=rules), encoding="utf-8")
    use = Use(lambda: Clicks(8 if rules == PLAIN else 9))
    plan = minimized(use, path)
    said = plan.fleet_desc(extensions=False)
    assert said.init_gflags == "-v=1"
    assert (said.worker_class, said.server_class, said.instance_class) == (
        "Worker", "Server", "Instance",
    )  # fmt: skip
    service = said.server_param.downpour_server_param.service_param
    assert (service.server_class, service.client_class, service.service_class) == (
        "BrpcPsServer", "BrpcPsClient", "PsService",
    )  # fmt: skip
    rows, dense = said.server_param.downpour_server_param.downpour_table_param
    assert (rows.table_class, rows.accessor.accessor_class) == (table, accessor)
    assert rows.sparse_table_mem_cache_rate == 0.25
    assert (dense.table_class, dense.accessor.accessor_class) == (
        "MemoryDenseTable", "CommMergeAccessor",
    )  # fmt: skip
    assert dense.accessor.dense_sgd_param.naive.avg_decay_rate == 0.125
    assert dp.Plan.from_fleet_desc(str(plan.fleet_desc())) == plan
    assert minimized(use, written(plan, path)) == plan


def test_what_is_kept_is_shown_by_a_plan_that_prints(tmp_path: Path) -> None:
    path = tmp_path / "f"
    text = KEPT(table="MemorySparseTable", accessor="CtrCommonAccessor", rules=SPLIT)
    path.write_text(text, encoding="utf-8")
    shown = str(minimized(Use(Clicks), path))
    assert "Launch(worker_class='Worker', server_class='Server'" in shown
    assert "table_class='MemorySparseTable', accessor_class='CtrCommonAccessor'" in shown
    assert "avg_decay=0.125" in shown


def test_a_rule_in_place_of_the_one_that_was_read_has_the_class_that_fits_it(
    tmp_path: Path,
) -> None:
    """As the rule of a federation."""
    path = tmp_path / "f"
    path.write_text(KEPT(table="DownpourSparseTable", accessor="DownpourSparseValueAccessor",
                         rules=PLAIN), encoding="utf-8")  # fmt: skip
    plan = minimized(Use(lambda: Clicks(8)), path)
    config = dp.DistributeTranspilerConfig(federation=dp.FedAdam())
    made = dp.DistributeTranspiler(config).transpile(0, plan)
    assert dp.Plan.from_fleet_desc(str(made.plan.fleet_desc())) == made.plan


def test_a_kept_class_that_cannot_hold_the_rows_is_refused() -> None:
    from dataclasses import replace

    from downpour.plan.specs import TableFiles

    plan = dp.DownpourSGD(sparse=dp.SGD(0.1)).minimize(loss(), model=Clicks(), example=BATCH)
    (rows,) = plan.sparse
    files = TableFiles(accessor_class="DownpourCtrAccessor")
    with pytest.raises(dp.PlanError):
        replace(plan, sparse=(replace(rows, files=files),)).fleet_desc()


# What is skipped.


def skipping(*names: str) -> str:
    return "trainer_param { " + " ".join(f"skip_op: '{name}'" for name in names) + " }"


@pytest.mark.parametrize(
    "names",
    [("lookup_table",), ("lookup",), ("lookup_table", "lookup_table_grad"), ("pull_sparse",)],
)
def test_look_ups_are_skipped_by_their_names(names: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text(skipping(*names), encoding="utf-8")
    assert minimized(Use(Clicks), path).skipped_ops == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("",), r"f:1: skip_op: '' is contained in the name of every op, so none would run; tak"),
        (("lookup_table", ""), r"f:1: skip_op\[1\]: '' is contained in the name of every op"),
        (("lookup_table", "dropout"),
            r"f:1: skip_op\[1\]: 'dropout' matches no op of loss 'click' that servers do; its look-"
            r"ups are lookup_table, lookup_table_grad. Any other op runs in the worker: take the "),
        (("lookup_table", "_grad"), r"skip_op\[1\]: '_grad' is contained in the names of ops th"),
        (("l",), r"skip_op: 'l' is contained in the names of ops that are no look-ups; write th"),
    ],
)  # fmt: skip
def test_what_would_skip_other_ops_is_refused(
    names: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "f"
    path.write_text(skipping(*names), encoding="utf-8")
    with pytest.raises(dp.PlanError, match=message):
        minimized(Use(Clicks), path)


def test_a_model_without_tables_skips_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text(skipping("lookup_table"), encoding="utf-8")
    use = Use(lambda: torch.nn.Linear(1, 1), {"fit": lambda m, b: m(b.label[:, None]).mean()})
    with pytest.raises(dp.PlanError, match=r"'lookup_table' matches no op of loss 'fit'.*are none"):
        minimized(use, path)
