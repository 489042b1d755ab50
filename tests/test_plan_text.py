"""A plan as people and programs read it, and the bytes that it moves."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

import downpour as dp
from downpour.plan.program import Compute, PushSparse, WeighSamples
from downpour.plan.text import as_dict, lines
from downpour.plan.traffic import traffic_of
from downpour.settings import short
from tests.networks import Network, a_batch, click, planned


def counted(**settings: Any) -> dp.Plan:
    """A plan of CTR rows and data-norm."""
    model = torch.nn.Module()
    model.embedding = dp.SparseEmbedding(("user", "item"), dim=5, use_cvm=True)
    model.norm = dp.DataNorm(10)
    model.out = torch.nn.Linear(10, 1)

    def fit(model: Any, batch: dp.Batch) -> torch.Tensor:
        return model.out(model.norm(model.embedding(batch).flatten(1))).mean()

    return planned(model, fit, sparse=dp.CtrAccessor(), **settings)


TREE = """\
plan: 1 sparse, 1 dense, 1 data-norm, ClipByNorm(max_norm=2.0)
├─ 0 sparse embedding: CTR, seen as 5
│  ├─ features user item
│  ├─ w G2SumAdagrad(lr=0.001), first Constant(value=0.0), within [-10.0, 10.0]
│  ├─ embedx 2 from score 10, G2SumAdagrad(lr=0.001), first Uniform(low=-0.0001, high=0.0001), \
within [-10.0, 10.0]
│  ├─ show and click of 'label', score = (show - click) * 0.1 + click * 1
│  └─ 48 bytes a row, 16 more with embedx
├─ 1 dense dense.fit: 11 elements
│  ├─ out.bias [1], out.weight [1, 10]
│  └─ SGD(lr=0.5)
├─ 2 data-norm data_norm.fit: 30 elements
│  ├─ norm.batch_size [10], norm.batch_square_sum [10], norm.batch_sum [10]
│  └─ Summary(decay=0.999999)
└─ program fit
   ├─ PullDense    dense.fit, every 2 batches
   ├─ PullDense    data_norm.fit, every 2 batches
   ├─ PullSparse   embedding: user item
   ├─ Compute      fit
   ├─ PushSparse   embedding: user item, * batch size, counts show and click
   ├─ PushDense    dense.fit, every 2 batches
   ├─ PushDense    data_norm.fit, every 2 batches, scale_datanorm 0.5
   └─ skipped lookup_table lookup_table_grad"""


def test_a_plan_of_everything_prints() -> None:
    plan = counted(
        window=2,
        clip=dp.ClipByNorm(2.0),
        scale_sparse_gradient_with_batch_size=True,
        scale_datanorm=0.5,
    )
    assert str(plan) == TREE


def test_what_only_some_programs_do_prints_too() -> None:
    ops = (
        WeighSamples("embedding", "user", 4.0, 2.0),
        Compute("fit", ("out.bias", "out.weight"), ("tower", "gate")),
        PushSparse("embedding", ("user", "item"), counts=("item",)),
    )
    plan = counted()
    plan = replace(plan, programs={"fit": replace(plan.programs["fit"], ops=ops)})
    for line in (
        "WeighSamples embedding user, shown less than 4 times, ratio 2",
        "Compute      fit, no gradient for out.bias out.weight, output detached of tower gate",
        "PushSparse   embedding: user item, counts show and click of item",
    ):
        assert line in str(plan)
    (program,) = as_dict(plan)["programs"]
    assert program["weighs"] == [
        {"table": "embedding", "feature": "user", "threshold": 4.0, "ratio": 2.0}
    ]
    assert (program["no_grad"], program["detached"]) == (
        ("out.bias", "out.weight"), ["tower", "gate"],
    )  # fmt: skip
    assert program["pushes"][0]["counts"] == ("item",)


# By hand: three users and three items are six keys of 8 bytes; a row is pulled and pushed as 4
# floats; the dense table has 9.
@pytest.mark.parametrize(("window", "dense"), [(1, 36), (4, 9)])
def test_bytes_by_hand(window: int, dense: int) -> None:
    plan = planned(Network(), window=window)
    moved = traffic_of(plan, a_batch())
    assert list(moved.values()) == [dense, 6 * (8 + 4 * 4), 6 * (8 + 4 * 4), dense]
    text = "\n".join(lines(plan, moved))
    assert f"program click: {2 * dense + 288} bytes a step" in text
    assert f"PushDense    dense.click{', every 4 batches' * (window > 1)}  {dense} bytes" in text


# A CTR row is pulled as show, click, w and 2 of embedx; it is pushed as slot, show, click, places
# and 3 gradients.
def test_bytes_of_ctr_rows_by_hand() -> None:
    moved = list(traffic_of(counted(), a_batch()).values())
    assert moved[2:4] == [6 * (8 + 5 * 4), 6 * (8 + 7 * 4)]


def test_plain_data_says_what_programs_need() -> None:
    plan = counted()
    said = json.loads(json.dumps(as_dict(plan, traffic_of(plan, a_batch()))))
    sparse, dense, norm = said["tables"]
    assert (sparse["id"], sparse["kind"], sparse["dim"]) == (0, "sparse", 3)
    assert (sparse["rule"], sparse["embedx_dim"]) == ("G2SumAdagrad(lr=0.001)", 2)
    assert [feature["slot"] for feature in sparse["features"]] == [0, 1]
    assert (dense["id"], dense["kind"], dense["size"]) == (1, "dense", 11)
    assert (norm["id"], norm["kind"], norm["size"], norm["rule"]) == (
        2, "data_norm", 30, "Summary(decay=0.999999)",
    )  # fmt: skip
    (program,) = said["programs"]
    assert program["loss"] == "fit"
    assert [(op["op"], op["id"]) for op in program["pulls"]] == [
        ("PullDense", 1), ("PullDense", 2), ("PullSparse", 0),
    ]  # fmt: skip
    assert [(op["op"], op["id"]) for op in program["pushes"]] == [
        ("PushSparse", 0), ("PushDense", 1), ("PushDense", 2),
    ]  # fmt: skip
    assert program["pulls"][2]["bytes"] == 6 * 28
    assert program["skipped_ops"] == ["lookup_table", "lookup_table_grad"]


def test_long_lists_are_cut() -> None:
    names = [f"feature_{number}" for number in range(300)]
    model = dp.SparseEmbedding(names, 2)
    example = dp.Batch(features={name: [1, 2] for name in names}, labels=[0, 1])
    plan = planned(model, {"sum": lambda m, b: m(b).sum()}, example)
    text = str(plan)
    assert "features feature_0 feature_1" in text
    assert "and 293 more" in text
    assert max(map(len, text.splitlines())) < 120


def test_values_are_written_as_one_would() -> None:
    assert short(dp.Adam(0.1)) == "Adam(lr=0.1)"
    assert short(dp.Adam(0.1, eps=1e-6)) == "Adam(lr=0.1, eps=1e-06)"
    warm = dp.SGD(0.1, schedule=dp.Warmup(steps=5, after=dp.Exponential(factor=0.9)))
    assert short(warm) == ("SGD(lr=0.1, schedule=Warmup(steps=5, after=Exponential(factor=0.9)))")
    assert short(3.5) == "3.5"


def views(model: Any, batch: dp.Batch) -> torch.Tensor:
    weight = model.out.weight.view(2, -1)[0].expand(3, -1)
    return click(model, batch) + weight.square().sum() + model.out.weight.t().sum()


def test_parameters_that_are_read_through_views_are_planned_once() -> None:
    (dense,) = planned(Network(), views).dense
    assert [section.name for section in dense.sections] == ["out.bias", "out.weight"]
