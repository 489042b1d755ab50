"""A plan says itself as the reference's message, whose text is read back as an equal plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from google.protobuf import text_format
from hypothesis import HealthCheck, given, settings

import downpour as dp
from downpour.accessor import CtrAccessor, Lifecycle
from downpour.plan.fleet_desc import decode, encode
from downpour.plan.fleet_desc.fleet_desc_pb2 import PSParameter
from downpour.plan.plan import Plan
from downpour.plan.program import Compute, PullDense, PushDense
from downpour.plan.specs import FsClient, Service, TableFiles
from downpour.rules import Summary
from tests.plans import ctr_table, dense_table, plain_table, plans, small_plan

SMALL = """
server_param {
  downpour_server_param {
    downpour_table_param {
      table_id: 0
      table_class: "DownpourSparseTable"
      shard_num: 1000
      accessor {
        accessor_class: "DownpourCtrAccessor"
        sparse_sgd_param {
          learning_rate: 0.05
          initial_g2sum: 3
          initial_range: 0.0001
          weight_bounds: -10
          weight_bounds: 10
        }
        fea_dim: 11
        embedx_dim: 8
        embedx_threshold: 10
        downpour_accessor_param {
          nonclk_coeff: 0.1
          click_coeff: 1
          base_threshold: 1.5
          delta_threshold: 0.25
          delta_keep_days: 16
          show_click_decay_rate: 0.98
          delete_threshold: 0.8
          delete_after_unseen_days: 30
          ssd_unseenday_threshold: 1
        }
      }
      type: PS_SPARSE_TABLE
      compress_in_save: true
      enable_sparse_table_cache: true
      sparse_table_cache_rate: 0.00055
      sparse_table_cache_file_num: 16
      sparse {
        name: "embedding"
        feature { name: "user" slot: 0 }
        feature { name: "item" space: "goods" slot: 1 }
        padding_key: 0
        use_cvm: true
        click: "label"
      }
    }
    downpour_table_param {
      table_id: 1
      table_class: "DownpourDenseTable"
      shard_num: 1000
      accessor {
        accessor_class: "DownpourDenseValueAccessor"
        dense_sgd_param {
          name: "adam"
          adam {
            learning_rate: 5e-06
            ada_decay_rate: 0.9999
            ada_epsilon: 1e-08
            mom_decay_rate: 0.99
          }
        }
        fea_dim: 9
      }
      type: PS_DENSE_TABLE
      compress_in_save: true
      enable_sparse_table_cache: true
      sparse_table_cache_rate: 0.00055
      sparse_table_cache_file_num: 16
      dense {
        name: "dense.click"
        section { name: "out.bias" shape: 1 }
        section { name: "out.weight" shape: [1, 8] }
      }
    }
    service_param {
      server_class: "DownpourBrpcPsServer"
      client_class: "DownpourBrpcPsClient"
      service_class: "DownpourPsService"
      start_server_port: 0
      server_thread_num: 12
    }
  }
}
trainer_param {
  dense_table {
    table_id: 1
    dense_variable_name: ["out.bias", "out.weight"]
    dense_gradient_variable_name: ["out.bias@GRAD", "out.weight@GRAD"]
  }
  sparse_table {
    table_id: 0
    slot_key: ["item", "user"]
    slot_value: ["embedding.item", "embedding.user"]
    slot_gradient: "embedding.item@GRAD"
    times_batch_size: true
    counts: "item"
  }
  push_dense_per_batch: 2
  skip_op: ["lookup_table", "lookup_table_grad"]
  program_config {
    program_id: "click"
    push_sparse_table_id: 0
    push_dense_table_id: 1
    pull_sparse_table_id: 0
    pull_dense_table_id: 1
  }
}
"""


def table_of(plan: Plan, index: int = 0) -> Any:
    """A table of a plan's message."""
    return encode(plan).server_param.downpour_server_param.downpour_table_param[index]


def read_back(plan: Plan) -> Plan:
    return Plan.from_fleet_desc(str(plan.fleet_desc()))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_any_plan_is_read_back_from_its_text(plan: Plan) -> None:
    assert read_back(plan) == plan


def test_a_plan_is_read_back_from_its_message_and_its_bytes() -> None:
    plan = small_plan()
    assert Plan.from_fleet_desc(plan.fleet_desc()) == plan
    assert (
        Plan.from_fleet_desc(PSParameter.FromString(plan.fleet_desc().SerializeToString())) == plan
    )


def test_a_small_plan_says_what_is_expected() -> None:
    assert encode(small_plan()) == text_format.Parse(SMALL, PSParameter())
    assert Plan.from_fleet_desc(SMALL) == small_plan()


def test_people_read_short_numbers() -> None:
    text = str(encode(small_plan()))
    assert "show_click_decay_rate: 0.98\n" in text
    assert "learning_rate: 0.05\n" in text


@pytest.mark.parametrize(
    ("accessor", "name"),
    [
        ({}, "DownpourCtrAccessor"),
        ({"embedx_init": dp.Normal(0.1)}, "DownpourCtrAccessor"),
        ({"bounds": None}, "DownpourCtrAccessor"),
        ({"slots": False}, "DownpourFeatureValueAccessor"),
        ({"rule": dp.SGD(0.1)}, "DownpourDoubleUnitAccessor"),
        ({"rule": dp.G2SumAdagrad(0.1, per_element=True)}, "DownpourDoubleUnitAccessor"),
        ({"embedx_rule": dp.G2SumAdagrad(0.1)}, "DownpourDoubleUnitAccessor"),
        ({"embedx_bounds": (-1.0, 1.0)}, "DownpourDoubleUnitAccessor"),
        ({"init": dp.Uniform(0.1)}, "DownpourDoubleUnitAccessor"),
        ({"rule": dp.SGD(0.1), "slots": False}, "DownpourDoubleUnitAccessor"),
        ({"show_scale": False}, "DownpourUnitAccessor"),
        ({"rule": dp.SGD(0.1), "show_scale": False}, "DownpourUnitAccessor"),
    ],
)
def test_ctr_rows_have_the_accessor_that_can_hold_them(accessor: dict[str, Any], name: str) -> None:
    plan = small_plan(ctr_table(**accessor))
    assert table_of(plan).accessor.accessor_class == name
    assert read_back(plan) == plan


def test_plain_rows_have_the_accessor_without_show_and_click() -> None:
    plan = small_plan(plain_table())
    accessor = table_of(plan).accessor
    assert accessor.accessor_class == "DownpourSparseValueAccessor"
    assert (accessor.embedx_dim, accessor.fea_dim) == (4, 4)
    assert read_back(plan) == plan


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (dp.SGD(0.1), "naive"),
        (dp.G2SumAdagrad(0.1), "adagrad"),
        (dp.G2SumAdagrad(0.1, per_element=True), "std_adagrad"),
        (dp.RowAdam(0.1), "adam"),
        (dp.SharedAdam(0.1), "SparseSharedAdamSGDRule"),
        (dp.Adam(0.1), ""),
        (dp.Adagrad(0.1), ""),
    ],
)
def test_a_rule_of_rows_has_the_name_of_the_reference_where_it_has_one(
    rule: Any, name: str
) -> None:
    param = table_of(small_plan(plain_table(rule=rule))).accessor.sparse_commonsgd_param
    assert param.name == name
    assert param.extension.HasField("rule") == (not name)


@pytest.mark.parametrize(
    ("rule", "name"),
    [(dp.AdamD2Sum(), "adam"), (dp.SGD(0.1), "naive"), (Summary(), "summary"), (dp.Adam(0.1), "")],
)
def test_a_dense_rule_has_the_name_of_the_reference_where_it_has_one(rule: Any, name: str) -> None:
    plan = small_plan(dense=(dense_table(rule=rule),))
    assert table_of(plan, 1).accessor.dense_sgd_param.name == name
    assert read_back(plan) == plan


@pytest.mark.parametrize("value", [0.98, 1.5, 0.1, 1e-3, 16.0])
def test_a_short_number_is_said_once(value: float) -> None:
    lifecycle = Lifecycle(base_threshold=value)
    assert not table_of(small_plan(ctr_table(lifecycle=lifecycle))).sparse.HasField("exact")


@pytest.mark.parametrize("value", [0.1 + 0.2, 1 / 3, 1e300, 2.0**-149 / 2])
def test_a_number_that_a_float_cannot_hold_is_exact_beside_it(value: float) -> None:
    plan = small_plan(ctr_table(lifecycle=Lifecycle(base_threshold=value)))
    assert table_of(plan).sparse.exact.base_threshold == value
    assert read_back(plan) == plan


@pytest.mark.parametrize("value", [7.5, 2.0**40])
def test_a_threshold_that_is_no_uint32_is_exact_beside_it(value: float) -> None:
    plan = small_plan(ctr_table(embedx_threshold=value))
    assert table_of(plan).accessor.embedx_threshold == min(int(value), 2**32 - 1)
    assert read_back(plan) == plan


def test_bounds_that_a_float_cannot_hold_are_exact_beside_it() -> None:
    plan = small_plan(ctr_table(bounds=(-1 / 3, 1e300)))
    param = table_of(plan).accessor.sparse_sgd_param
    assert list(param.extension.weight_bounds) == [-1 / 3, 1e300]
    assert read_back(plan) == plan


@pytest.mark.parametrize(
    "table",
    [
        ctr_table(lifecycle=Lifecycle(ssd_unseenday_threshold=3.0)),
        ctr_table(lifecycle=Lifecycle(base_threshold=2, delta_keep_days=1)),
        ctr_table(embedx_threshold=7, nonclk_coeff=0, click_coeff=1),
        ctr_table(bounds=(-1, 1), embedx_bounds=[0, 1], embedx_init=dp.Uniform(1)),
        ctr_table(rule=dp.G2SumAdagrad(1, initial_g2sum=3, per_element=1), init=dp.Constant(0)),
        ctr_table(embedx_rule=dp.Adagrad(1, eps=0), embedx_init=dp.Normal(1, 2)),
        plain_table(rule=dp.RowAdam(1, betas=(0, 0), eps=1), bounds=(-1, 1)),
        plain_table(rule=dp.Adam(1, betas=[0, 0.5], weight_decay=0, batch_l2=1), bounds=[-1, 1]),
        plain_table(rule=dp.SGD(1, schedule=dp.Warmup(steps=3.0, start=1))),
    ],
)
def test_numbers_of_other_types_are_read_back_as_equal(table: Any) -> None:
    assert read_back(small_plan(table)) == small_plan(table)


def test_what_is_the_default_is_not_said_beside_the_message() -> None:
    own = table_of(small_plan(plain_table())).sparse
    assert str(own).split() == [
        "name:", '"embedding"', "feature", "{", "name:", '"user"', "}",
        "feature", "{", "name:", '"item"', "unique_ids:", "true", "}",
    ]  # fmt: skip


def test_schedules_are_values_within_values() -> None:
    schedule = dp.Warmup(steps=10, after=dp.Cosine(steps=100))
    plan = small_plan(plain_table(rule=dp.SGD(0.1, schedule=schedule)))
    extension = table_of(plan).accessor.sparse_commonsgd_param.extension
    assert extension.schedule.type == "Warmup"
    assert extension.schedule.setting[1].value.type == "Cosine"
    assert read_back(plan) == plan


def test_a_schedule_of_torch_is_its_name_and_settings() -> None:
    schedule = dp.TorchSchedule(torch.optim.lr_scheduler.MultiStepLR, milestones=[3, 5], gamma=0.3)
    plan = small_plan(dense=(dense_table(rule=dp.Adam(0.1, schedule=schedule)),))
    again = read_back(plan)
    assert again == plan
    assert again.dense[0].rule.lr_at(4) == pytest.approx(0.03)


def test_files_service_and_clip_are_said() -> None:
    files = TableFiles(shard_num=10, compress=False, cache=False, converters=((1, "zip", "unzip"),))
    plan = small_plan(
        replace(ctr_table(), files=files),
        clip=dp.ClipByNorm(2.0),
        service=Service(start_server_port=80, server_thread_num=1),
        fs_client=FsClient(fs_type="AFS", uri="afs://host", passwd="secret"),
    )
    assert encode(plan).fs_client_param.uri == "afs://host"
    assert read_back(plan) == plan


def test_a_message_without_text_says_the_path_of_a_field() -> None:
    message = encode(small_plan())
    tables = message.server_param.downpour_server_param.downpour_table_param
    tables[1].accessor.dense_sgd_param.adam.learning_rate = -1
    with pytest.raises(
        dp.PlanError,
        match=r"^fleet_desc: server_param.downpour_server_param.downpour_table_param\[1\].accessor"
        r".dense_sgd_param.adam.learning_rate: AdamD2Sum.lr must be a finite number > 0.0, got -1",
    ):
        Plan.from_fleet_desc(message)


def test_decode_gives_the_arguments_of_a_plan() -> None:
    plan = small_plan()
    read = decode(encode(plan))
    assert {*read} == {"sparse", "dense", "programs", "clip", "service", "fs_client", "launch"}
    assert Plan(**read) == plan


@pytest.mark.parametrize("given", [3, None, b"", {}])
def test_what_is_neither_text_nor_message_is_refused(given: Any) -> None:
    with pytest.raises(dp.PlanError, match="is read from a PSParameter or its text, got"):
        Plan.from_fleet_desc(given)


def test_windows_that_differ_are_said_of_their_table() -> None:
    plan = small_plan()
    program = plan.programs["click"]
    ops = tuple(replace(op, every=5) if isinstance(op, PullDense) else op for op in program.ops)
    plan = replace(plan, programs={"click": replace(program, ops=ops)})
    (trainer,) = encode(plan).trainer_param
    assert (trainer.push_dense_per_batch, trainer.dense_table[0].pull_every) == (2, 5)
    assert read_back(plan) == plan


def test_an_empty_plan_is_read_back() -> None:
    plan = Plan(sparse=(), dense=(), programs={})
    assert read_back(plan) == plan


def test_what_gets_no_gradient_and_data_norm_are_said() -> None:
    plan = small_plan(dense=(dense_table(rule=Summary(0.9)),))
    program = plan.programs["click"]
    ops = tuple(
        Compute("click", ("user", "tower"), ("twin",)) if isinstance(op, Compute)
        else replace(op, scale_datanorm=0.5) if isinstance(op, PushDense) else op
        for op in program.ops
    )  # fmt: skip
    plan = replace(plan, programs={"click": replace(program, ops=ops)})
    (trainer,) = encode(plan).trainer_param
    assert (list(trainer.no_grad), list(trainer.detached)) == (["user", "tower"], ["twin"])
    assert trainer.dense_table[0].scale_datanorm == 0.5
    assert read_back(plan) == plan


def test_the_accessor_of_the_small_plan_is_the_reference_default() -> None:
    accessor = small_plan().sparse[0].accessor
    assert accessor == CtrAccessor(embedx_dim=8, rule=dp.G2SumAdagrad(), click="label")
