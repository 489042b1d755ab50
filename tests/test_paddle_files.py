"""The fourteen descriptions that Paddle itself wrote: each is read for its model, or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import downpour as dp
from downpour.plan.plan import Plan
from tests.paddle_messages import PADDLE, paddle_parse
from tests.paddle_models import USES

if TYPE_CHECKING:
    from pathlib import Path

READ = [name for name in USES if name != "ssd"]


def file_of(name: str) -> Path:
    return PADDLE / f"{name}.prototxt"


def plan_of(name: str, **strategy: Any) -> dp.Plan:
    return USES[name].plan({"fleet_desc_file": file_of(name), **strategy})


def said(text: str) -> dict[str, Any]:
    """What a description says, by Paddle's parser, but for what has the same meaning in two ways.

    That is: defaults that are written or not, numbers of rules that a table does not have, names of
    variables in Paddle's graph, and what ours says of programs in fields that Paddle leaves empty.
    """
    message = paddle_parse(text)
    server = message.server_param.downpour_server_param
    for table in server.downpour_table_param:
        accessor = table.accessor
        if table.type == table.DESCRIPTOR.fields_by_name["type"].enum_type.values[1].number:
            for name in ("shard_num", "enable_sparse_table_cache", "sparse_table_cache_rate",
                         "sparse_table_cache_file_num"):  # fmt: skip
                table.ClearField(name)
            rule = accessor.dense_sgd_param
            rule.ClearField("naive")  # none of these tables learns by it
            if rule.name == "adam" and not rule.adam.avg_decay_rate:
                rule.adam.avg_decay_rate = 0.999993
        elif accessor.downpour_accessor_param.ssd_unseenday_threshold == 1:
            accessor.downpour_accessor_param.ClearField("ssd_unseenday_threshold")
    for trainer in message.trainer_param:
        for name in ("push_dense_per_batch", "program_config"):
            trainer.ClearField(name)
        for entry in trainer.sparse_table:
            entry.ClearField("slot_value")
            entry.ClearField("slot_gradient")
    message.fs_client_param.ClearField("fs_type")
    return {
        "tables": {table.table_id: str(table) for table in server.downpour_table_param},
        "trainers": [str(trainer) for trainer in message.trainer_param],
        "files": str(message.fs_client_param),
        "service": str(server.service_param),
    }


def test_there_is_a_model_for_each_file() -> None:
    assert {path.stem for path in PADDLE.glob("*.prototxt")} == {*USES}


@pytest.mark.parametrize("name", READ)
def test_a_file_of_paddles_is_read_and_goes_on_as_paddle_would_write_it(name: str) -> None:
    plan = plan_of(name)
    assert Plan.from_fleet_desc(str(plan.fleet_desc())) == plan
    theirs = said(file_of(name).read_text(encoding="utf-8"))
    if name == "nodense":  # the empty table, which there is not here, and what a trainer has of it
        assert "fea_dim: 0\n" in theirs["tables"].pop(1)
        empty = "dense_table {\n  table_id: 1\n}\n"
        assert empty in theirs["trainers"][0]
        theirs["trainers"][0] = theirs["trainers"][0].replace(empty, "")
    assert said(str(plan.fleet_desc(extensions=False))) == theirs


def test_a_file_for_tables_on_ssd_is_refused_with_the_way_out() -> None:
    with pytest.raises(dp.PlanError, match=r"ssd.prototxt:5: table_class: 'DownpourSparseSSDTabl"):
        plan_of("ssd")
    with pytest.raises(dp.PlanError, match="rows are in memory, not on disk; take DownpourSparseT"):
        plan_of("ssd")
