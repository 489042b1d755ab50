"""The dict that the reference hands its trainers, derived from a plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import downpour as dp
from downpour.plan.plan import Plan
from downpour.plan.program import Compute, PushDense, PushSparse, WeighSamples
from downpour.plan.specs import FsClient
from downpour.rules import Summary
from tests.plans import SKIPPED, ctr_table, dense_table, plain_table, small_plan


def with_ops(plan: Plan, *ops: Any) -> Plan:
    """The plan with these ops for those of their kind, or before the loss."""
    kinds = tuple(type(op) for op in ops)
    program = plan.programs["click"]
    kept = [op for op in program.ops if not isinstance(op, kinds)]
    loss = next(index for index, op in enumerate(kept) if isinstance(op, Compute))
    made = (*kept[:loss], *ops, *kept[loss:])
    order = sorted(made, key=lambda op: isinstance(op, PushSparse) + 2 * isinstance(op, PushDense))
    return replace(plan, programs={"click": replace(program, ops=tuple(order))})


def test_a_small_plan() -> None:
    plan = small_plan()
    assert plan.opt_info == {
        "trainer": "DistMultiTrainer",
        "device_worker": "DownpourSGD",
        "optimizer": "DownpourSGD",
        "fleet_desc": plan.fleet_desc(),
        "worker_skipped_ops": list(SKIPPED),
        "program_configs": {
            "click": {"pull_sparse": [0], "push_sparse": [0], "pull_dense": [1], "push_dense": [1]}
        },
        "use_cvm": True,
        "no_cvm": False,
        "scale_sparse_gradient_with_batch_size": True,
        "scale_datanorm": -1,
        "dump_slot": True,
        "adjust_ins_weight": {},
        "loss_names": ["click"],
    }


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (ctr_table(), {"use_cvm": True, "no_cvm": False, "dump_slot": True}),
        (ctr_table(slots=False), {"use_cvm": True, "no_cvm": False, "dump_slot": False}),
        (replace(ctr_table(), use_cvm=False), {"use_cvm": False, "no_cvm": False}),
        (plain_table(), {"use_cvm": False, "no_cvm": True, "dump_slot": False}),
    ],
)
def test_what_rows_count(table: Any, expected: dict[str, bool]) -> None:
    info = small_plan(table).opt_info
    assert {name: info[name] for name in expected} == expected


def test_a_plan_without_tables_counts_nothing() -> None:
    info = Plan(sparse=(), dense=(), programs={}).opt_info
    assert not info["no_cvm"]
    assert (info["loss_names"], info["program_configs"]) == ([], {})


def test_gradients_that_are_not_scaled() -> None:
    info = with_ops(small_plan(), PushSparse("embedding", ("item",), counts=("item",))).opt_info
    assert not info["scale_sparse_gradient_with_batch_size"]


def test_the_scale_of_data_norm() -> None:
    plan = small_plan(dense=(dense_table(rule=Summary()),))
    push = PushDense("dense.click", ("out.bias",), 2, scale_datanorm=0.5)
    assert with_ops(plan, push).opt_info["scale_datanorm"] == 0.5


def test_the_weighing_of_samples() -> None:
    plan = with_ops(small_plan(), WeighSamples("embedding", "item", 100.0, 0.5))
    assert plan.opt_info["adjust_ins_weight"] == {
        "need_adjust": True,
        "nid_slot": "item",
        "nid_adjw_threshold": 100.0,
        "nid_adjw_ratio": 0.5,
        "ins_weight_slot": "weights",
    }


def test_the_file_system_where_it_is_said() -> None:
    info = small_plan(fs_client=FsClient(uri="hdfs://host", user="me", passwd="p")).opt_info
    assert (info["fs_uri"], info["fs_user"], info["fs_passwd"]) == ("hdfs://host", "me", "p")
    assert "fs_hadoop_bin" not in info


def test_a_plan_that_cannot_be_described_is_refused() -> None:
    rule = dp.SGD(0.1, schedule=lambda step: 1.0)
    with pytest.raises(dp.PlanError, match="schedule: <function"):
        _ = small_plan(plain_table(rule=rule)).opt_info
