"""A setting that is one of a few words lists them when it is none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import downpour as dp
from downpour.accessor import EmbeddingAccessor
from downpour.engine.cluster import Cluster
from downpour.plan.fleet_desc import (
    data_norm_of_strategy,
    dense_of_strategy,
    sparse_of_strategy,
)
from downpour.plan.plan import Plan
from downpour.plan.specs import FsClient
from downpour.settings import require_choice

if TYPE_CHECKING:
    from collections.abc import Callable

VALUE = {"sparse_accessor_class": "DownpourSparseValueAccessor"}
UNIT = {"sparse_accessor_class": "DownpourUnitAccessor"}
SCHEMA = dp.Schema(features=["a"], labels=["b"])
PLAN = Plan(sparse=(), dense=(), programs={})
CHOICES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "pooling": (lambda it: dp.SparseEmbedding("a", 2, pooling=it), "sum mean none"),
    "dtype of rows": (lambda it: EmbeddingAccessor(dim=1, rule=dp.SGD(0.1), dtype=it),
                      "float32 float64"),
    "dtype of CTR rows": (lambda it: dp.CtrAccessor(dtype=it), "float32 float64"),
    "format": (lambda it: dp.Files(["a"], SCHEMA, batch_size=2, format=it),
               "csv tsv parquet arrow"),
    "placement": (lambda it: dp.Sections(placement=it), "round_robin hash"),
    "split_method": (lambda it: dp.DistributeTranspilerConfig(split_method=it),
                     "RoundRobin HashName"),
    "weighting": (lambda it: dp.FedAvg(weighting=it), "samples equal"),
    "rows_over": (lambda it: dp.FedAvg(rows_over=it), "all touched"),
    "optimizer_state": (lambda it: dp.FedAvg(optimizer_state=it), "kept fresh"),
    "mode": (lambda it: dp.EarlyStop(patience=1, mode=it), "max min"),
    "on_worker_loss": (lambda it: Cluster(servers=1, workers=1, on_worker_loss=it),
                       "stop continue"),
    "on_worker_loss of connect": (lambda it: dp.connect(PLAN, ["a:1"], on_worker_loss=it),
                                  "stop continue"),
    "consistency of connect": (lambda it: dp.connect(PLAN, ["a:1"], consistency=it),
                               "Sync() Async() HalfAsync() Geo()"),
    "fs_type": (lambda it: FsClient(fs_type=it), "HDFS AFS"),
    "sparse_optimizer": (lambda it: sparse_of_strategy("e", {**VALUE, "sparse_optimizer": it}),
                         "naive adagrad adam"),
    "embedx_sparse_optimizer": (
        lambda it: sparse_of_strategy("e", {**UNIT, "embedx_sparse_optimizer": it}),
        "naive adagrad std_adagrad adam"),
    "sparse_accessor_class": (
        lambda it: sparse_of_strategy("e", {"sparse_accessor_class": it}),
        "DownpourCtrAccessor DownpourUnitAccessor DownpourSparseValueAccessor"),
    "sparse_table_class": (lambda it: sparse_of_strategy("e", {"sparse_table_class": it}),
                           "DownpourSparseTable MemorySparseTable"),
    "dense_table_class": (lambda it: dense_of_strategy({"dense_table_class": it}),
                          "DownpourDenseTable MemoryDenseTable"),
    "dense_accessor_class": (lambda it: dense_of_strategy({"dense_accessor_class": it}),
                             "DownpourDenseValueAccessor CommMergeAccessor"),
    "dense_optimizer": (lambda it: dense_of_strategy({"dense_optimizer": it}), "adam naive"),
    "datanorm_operation": (lambda it: data_norm_of_strategy({"datanorm_operation": it}),
                           "summary"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_a_word_that_is_none_of_the_choices_lists_them(name: str) -> None:
    make, choices = CHOICES[name]
    with pytest.raises(dp.SettingError, match="'nonesuch'") as caught:
        make("nonesuch")
    assert [it for it in choices.split() if it not in str(caught.value)] == []


@pytest.mark.parametrize("name", [it for it in CHOICES if "class" not in it and it != "format"])
@pytest.mark.parametrize("value", [[], 1, {}])
def test_what_is_no_word_lists_the_choices_too(name: str, value: Any) -> None:
    make, choices = CHOICES[name]
    with pytest.raises(dp.SettingError) as caught:
        make(value)
    is_text = "must be a text" in str(caught.value)  # of a key of a strategy
    assert is_text or all(it in str(caught.value) for it in choices.split())


def test_a_sparse_table_is_offered_no_class_of_a_dense_one() -> None:
    with pytest.raises(dp.SettingError, match=r"take DownpourSparseTable or MemorySparseTable$"):
        sparse_of_strategy("e", {"sparse_table_class": "DownpourSparseSSDTable"})


def test_a_choice_is_a_word_among_others() -> None:
    require_choice("it", "a", ("a", "b"))
    with pytest.raises(dp.SettingError, match=r"^it must be one of a, b, got \['a'\]$"):
        require_choice("it", ["a"], ("a", "b"))
