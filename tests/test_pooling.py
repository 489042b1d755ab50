"""The pooling kernels against numpy, and their gradient against autograd's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from downpour import pooling
from downpour.pooling import BagLayout, pool


def layout(seed: int, *, num_rows: int, batch: int, jagged: list[bool], scaled: bool) -> BagLayout:
    """Features with any number of ids a sample, or with one each."""
    rng = np.random.default_rng(seed)
    starts, offset_at, start = [], [], 0
    offsets: list[np.ndarray] = []
    for is_jagged in jagged:
        lengths = rng.integers(0, 4, batch) if is_jagged else np.ones(batch, np.int64)
        starts.append(start)
        offset_at.append(sum(map(len, offsets)) if is_jagged else -1)
        offsets += [np.concatenate([[0], np.cumsum(lengths)])] if is_jagged else []
        start += int(lengths.sum())
    return BagLayout(
        batch_size=batch,
        inverse=rng.integers(0, num_rows, start).astype(np.int32),
        starts=np.array(starts, np.int64),
        offset_at=np.array(offset_at, np.int64),
        offsets=np.concatenate([*offsets, np.zeros(0, np.int64)]).astype(np.int64),
        scale=rng.random(start if scaled else 0),
    )


def ids_of(bags: BagLayout, sample: int, feature: int) -> slice:
    start, at = bags.starts[feature], bags.offset_at[feature]
    if at < 0:
        return slice(start + sample, start + sample + 1)
    return slice(start + bags.offsets[at + sample], start + bags.offsets[at + sample + 1])


def pool_twin(rows: np.ndarray, bags: BagLayout) -> np.ndarray:
    out = np.zeros((bags.batch_size, bags.num_features, rows.shape[1]), rows.dtype)
    for b in range(bags.batch_size):
        for f in range(bags.num_features):
            ids = ids_of(bags, b, f)
            scale = bags.scale[ids] if len(bags.scale) else np.ones(ids.stop - ids.start)
            out[b, f] = (rows[bags.inverse[ids]] * scale[:, None]).sum(axis=0)
    return out


def backward_twin(grad: np.ndarray, bags: BagLayout, num_rows: int) -> np.ndarray:
    rows = np.zeros((num_rows, grad.shape[2]), grad.dtype)
    for b in range(bags.batch_size):
        for f in range(bags.num_features):
            for i in range(*ids_of(bags, b, f).indices(len(bags.inverse))):
                scale = bags.scale[i] if len(bags.scale) else 1.0
                rows[bags.inverse[i]] += scale * grad[b, f]
    return rows


cases: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    seed=st.integers(0, 1000),
    num_rows=st.integers(1, 9),
    batch=st.integers(1, 12),
    jagged=st.lists(st.booleans(), min_size=1, max_size=4),
    scaled=st.booleans(),
)


@given(cases, st.sampled_from([1, 3, 8, 16]))
def test_kernels_are_their_twins(case: dict[str, Any], dim: int) -> None:
    bags, num_rows = layout(**case), case["num_rows"]
    rng = np.random.default_rng(case["seed"])
    rows = rng.standard_normal((num_rows, dim))
    pooled = pool(torch.from_numpy(rows), bags).numpy()
    np.testing.assert_allclose(pooled, pool_twin(rows, bags), rtol=1e-12, atol=1e-12)
    grad = rng.standard_normal(pooled.shape)
    summed = np.full_like(rows, np.nan)  # what is not written shows
    pooling.pool_bags_backward(
        np.uint64(grad.ctypes.data), np.uint64(grad.strides[0]), np.uint64(grad.strides[1]),
        bags.batch_size, bags.inverse, bags.starts, bags.offset_at, bags.offsets, bags.scale,
        summed,
    )  # fmt: skip
    np.testing.assert_allclose(summed, backward_twin(grad, bags, num_rows), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_gradient_is_right(scaled: bool) -> None:
    bags = layout(0, num_rows=6, batch=7, jagged=[True, False, True], scaled=scaled)
    rows = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: pool(rows, bags), rows)


@pytest.mark.parametrize("reach", ["part", "expanded", "transposed"])
def test_gradients_come_with_any_strides(reach: str) -> None:
    bags = layout(1, num_rows=9, batch=8, jagged=[False, True], scaled=False)
    rows = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    pooled = pool(rows, bags)
    weight = torch.randn(8, 11, dtype=torch.float64)
    if reach == "part":  # a part of a longer row, as after torch.cat
        loss = (torch.cat([pooled.flatten(1), torch.ones(8, 3)], 1) * weight).sum()
        grad = weight[:, :8].reshape(8, 2, 4)
    elif reach == "expanded":
        loss, grad = pooled.sum(), torch.ones(8, 2, 4, dtype=torch.float64)
    else:
        other = torch.randn(4, 2, 8, dtype=torch.float64)
        loss, grad = (pooled.permute(2, 1, 0) * other).sum(), other.permute(2, 1, 0)
    loss.backward()
    expected = backward_twin(grad.contiguous().numpy(), bags, 9)
    np.testing.assert_allclose(rows.grad.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_a_large_batch_on_several_threads_gives_the_same_bits() -> None:
    from downpour.team import with_torch_threads

    bags = layout(2, num_rows=3000, batch=4000, jagged=[False, True, True], scaled=False)
    rows = torch.randn(3000, 16)
    grad = torch.randn(4000, 3, 16)

    def both() -> tuple[np.ndarray, np.ndarray]:
        leaf = rows.clone().requires_grad_()
        out = pool(leaf, bags)
        out.backward(grad)
        return out.detach().numpy(), leaf.grad.numpy()

    alone = both()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with with_torch_threads():
            shared = both()
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(alone[0], shared[0])
    assert np.array_equal(alone[1], shared[1])
