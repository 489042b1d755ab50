"""Pooling by torch's own operations gives what the kernels give."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import downpour as dp
from downpour.lookup import table_keys
from downpour.pooling import BagLayout, pool
from downpour.torch_pooling import torch_pool
from downpour.transfer import HOST, Transfer
from tests.devices import any_device
from tests.networks import Network, planned, random_batches
from tests.test_pooling import cases, layout

if TYPE_CHECKING:
    from downpour.lookup import TableKeys

device = any_device  # a fixture


def pooled(by: Any, rows: np.ndarray, bags: BagLayout) -> tuple[np.ndarray, np.ndarray]:
    """The bags, and the gradient of the rows where each element of a bag has another one."""
    leaf = torch.from_numpy(rows).requires_grad_()
    out = by(leaf, bags)
    out.backward(torch.arange(out.numel(), dtype=out.dtype).view(out.shape))
    assert out.is_contiguous()
    assert leaf.grad is not None
    return out.detach().numpy(), leaf.grad.numpy()


def assert_same(rows: np.ndarray, bags: BagLayout) -> None:
    for ours, theirs in zip(pooled(torch_pool, rows, bags), pooled(pool, rows, bags), strict=True):
        assert ours.dtype == theirs.dtype
        rtol, atol = (1e-12, 1e-13) if rows.dtype == float else (1e-5, 1e-6)  # sums may cancel
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)


@given(cases, st.sampled_from([1, 3, 8]), st.sampled_from([np.float32, np.float64]))
def test_it_is_what_the_kernels_give(case: dict[str, Any], dim: int, dtype: Any) -> None:
    rng = np.random.default_rng(case["seed"])
    rows = rng.standard_normal((case["num_rows"], dim)).astype(dtype)
    assert_same(rows, layout(**case))


@given(cases, st.data())
def test_features_may_be_any_of_the_tables(case: dict[str, Any], data: st.DataObject) -> None:
    bags = layout(**case)
    chosen = data.draw(st.permutations(range(bags.num_features)))
    chosen = chosen[: data.draw(st.integers(1, bags.num_features))]
    some = replace(bags, starts=bags.starts[chosen], offset_at=bags.offset_at[chosen])
    assert_same(np.random.default_rng(0).standard_normal((case["num_rows"], 3)), some)


@pytest.mark.parametrize("num_rows", [0, 2])
def test_bags_may_all_be_empty(num_rows: int) -> None:
    bags = BagLayout(
        batch_size=3,
        inverse=np.zeros(0, np.int32),
        starts=np.zeros(2, np.int64),
        offset_at=np.array([0, 4]),
        offsets=np.zeros(8, np.int64),
        scale=np.zeros(0),
    )
    assert_same(np.ones((num_rows, 2)), bags)


class Source:
    """Rows of the model's table on a device, the same for the same keys."""

    def __init__(self, where: torch.device) -> None:
        self.spec = planned(Network(dtype=torch.float64)).sparse_table("embedding")
        self.transfer = Transfer(where)

    def rows(
        self, table: str, features: tuple[str, ...], batch: dp.Batch
    ) -> tuple[torch.Tensor, TableKeys]:
        keys = table_keys(self.spec, features, batch)
        rows = np.sin(keys.unique.astype(np.float64)[:, None] + np.arange(4))
        return self.transfer.to_device(rows), keys


def weighted(batch: dp.Batch) -> dp.Batch:
    """With weights on its items, some of them 0."""
    items = batch.features["item"]
    item = dp.Jagged(items.values, items.offsets, np.arange(len(items.values)) % 3)
    return dp.Batch(features={**batch.features, "item": item}, labels=batch.labels)


BATCHES = random_batches(1, 3)
ALL = [*BATCHES, *map(weighted, BATCHES)]
IDS = [("user", "item"), ("item",), ("user",)]


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("features", IDS, ids="-".join)
def test_a_module_pools_alike_on_a_device(
    device: torch.device, features: tuple[str, ...], pooling: Any
) -> None:
    here, there = (dp.SparseEmbedding(features, 4, pooling=pooling, table="t") for _ in range(2))
    here.dtype = there.dtype = "float64"
    here.connect(Source(HOST))
    there.connect(Source(device))
    for batch in ALL:
        assert_equal(there(batch), here(batch), device)


@pytest.mark.parametrize("features", IDS, ids="-".join)
def test_unpooled_rows_are_alike_on_a_device(
    device: torch.device, features: tuple[str, ...]
) -> None:
    here, there = (dp.SparseEmbedding(features, 4, pooling="none", table="t") for _ in range(2))
    here.connect(Source(HOST))
    there.connect(Source(device))
    for batch in ALL:
        theirs = here(batch)
        for feature, own in there(batch).items():
            assert_equal(own.values, theirs[feature].values, device)
            assert_equal(own.offsets, theirs[feature].offsets, device)
            padded = zip(own.to_padded(2), theirs[feature].to_padded(2), strict=True)
            assert all(assert_equal(ours, other, device) for ours, other in padded)
            assert own.to_padded()[0].shape == theirs[feature].to_padded()[0].shape


def assert_equal(own: torch.Tensor, other: torch.Tensor, device: torch.device) -> bool:
    assert own.device == device
    np.testing.assert_allclose(own.cpu().numpy(), other.numpy(), rtol=1e-12)
    return True
