"""Clipping of gradients: values that a plan carries, with torch's arithmetic."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import downpour as dp

floats = st.floats(-1e3, 1e3)
gradients = st.lists(
    arrays(
        np.float64, array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=4), elements=floats
    ),
    min_size=1,
    max_size=4,
)


def with_grads(grads: list[np.ndarray]) -> list[torch.nn.Parameter]:
    parameters = [torch.nn.Parameter(torch.zeros(grad.shape).double()) for grad in grads]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = torch.from_numpy(grad.copy())
    return parameters


@given(grads=gradients, limit=st.floats(1e-3, 1e4))
def test_by_value_equals_torch(grads: list[np.ndarray], limit: float) -> None:
    parameters = with_grads(grads)
    clip_grad_value_(parameters, limit)
    dp.ClipByValue(limit).apply(grads)
    for ours, theirs in zip(grads, parameters, strict=True):
        assert np.array_equal(ours, theirs.grad.numpy())


@given(grads=gradients, limit=st.floats(1e-3, 1e4))
def test_by_norm_equals_torch(grads: list[np.ndarray], limit: float) -> None:
    parameters = with_grads(grads)
    clip_grad_norm_(parameters, limit)
    dp.ClipByNorm(limit).apply(grads)
    for ours, theirs in zip(grads, parameters, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-12)


def test_a_norm_within_the_limit_changes_no_bit() -> None:
    grads = [np.array([0.3, 0.4], np.float32)]
    before = copy.deepcopy(grads)
    dp.ClipByNorm(0.6).apply(grads)
    assert np.array_equal(grads, before)


def test_a_norm_too_large_for_float32_is_clipped_and_not_lost() -> None:
    grads = [np.full(4, 1e30, np.float32), np.zeros((0, 3), np.float32)]
    dp.ClipByNorm(2.0).apply(grads)
    np.testing.assert_allclose(grads[0], np.ones(4), rtol=1e-6)


def test_without_gradients_there_is_nothing_to_clip() -> None:
    dp.ClipByNorm(1.0).apply([])
    dp.ClipByValue(1.0).apply([])


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf"), "1", None])
@pytest.mark.parametrize("kind", [dp.ClipByNorm, dp.ClipByValue])
def test_limits_that_are_none_are_refused(kind: Any, limit: Any) -> None:
    with pytest.raises(dp.SettingError, match="must be a finite number above 0, got"):
        kind(limit)


@pytest.mark.parametrize("clip", [dp.ClipByNorm(1.5), dp.ClipByValue(0.5)])
def test_clips_are_values(clip: Any) -> None:
    assert pickle.loads(pickle.dumps(clip)) == clip
    assert hash(copy.deepcopy(clip)) == hash(clip)
    assert clip != type(clip)(9.0)
