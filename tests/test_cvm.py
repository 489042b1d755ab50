"""CTR rows as the model sees them: CVM, pooling, and no gradient for show and click."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import downpour as dp
from downpour.accessor import EmbeddingAccessor
from downpour.lookup import table_keys
from downpour.plan.specs import FeatureSpec, SparseTableSpec

if TYPE_CHECKING:
    from downpour.lookup import TableKeys

BAGS = [[7, 7, 9], [], [9]]
ROWS = {7: [1.0, 0.0, 10.0, 20.0], 9: [1.0, 1.0, 30.0, 40.0]}  # show, click, w and embedx


class Counted:
    """Rows of a table, by key."""

    def __init__(self) -> None:
        self.rows_made = torch.zeros(0)

    def rows(
        self, table: str, features: tuple[str, ...], batch: dp.Batch
    ) -> tuple[torch.Tensor, TableKeys]:
        own = tuple(FeatureSpec(name=name, space=None) for name in features)
        accessor = EmbeddingAccessor(dim=4, rule=dp.SGD(0.1))
        spec = SparseTableSpec(id=0, name="rows", accessor=accessor, features=own)
        keys = table_keys(spec, features, batch)
        self.rows_made = torch.tensor([ROWS[int(key)] for key in keys.unique]).requires_grad_()
        return self.rows_made, keys


def seen(*, weights: Any = None, **settings: Any) -> tuple[Any, Counted]:
    module = dp.SparseEmbedding("item", **settings)
    source = Counted()
    module.connect(source)
    flat = [value for bag in BAGS for value in bag]
    jagged = dp.Jagged.from_lengths(np.array(flat), [*map(len, BAGS)], weights)
    return module(dp.Batch(features={"item": jagged})), source


def cvm(show: float, click: float) -> list[float]:
    """The first two columns (Paddle, cvm_op.h 00444507)."""
    return [np.log(show + 1), np.log(click + 1) - np.log(show + 1)]


# By hand: the first bag has 7, 7 and 9: show 3, click 1, and log 4, log 2 - log 4.
def test_a_bags_show_and_click_are_summed_before_the_logarithms() -> None:
    out, _ = seen(dim=4, use_cvm=True)
    expected = [[*cvm(3, 1), 50.0, 80.0], [*cvm(0, 0), 0.0, 0.0], [*cvm(1, 1), 30.0, 40.0]]
    assert cvm(3, 1) == pytest.approx([1.3862944, -0.6931472])
    np.testing.assert_allclose(out[:, 0].detach(), expected, rtol=1e-6)


def test_without_cvm_the_two_are_dropped() -> None:
    out, _ = seen(dim=2)
    assert out[:, 0].tolist() == [[50, 80], [0, 0], [30, 40]]


@pytest.mark.parametrize(("use_cvm", "dim"), [(True, 4), (False, 2)])
def test_the_two_get_no_gradient(use_cvm: bool, dim: int) -> None:
    out, source = seen(dim=dim, use_cvm=use_cvm)
    out.sum().backward()
    assert source.rows_made.grad is not None
    assert source.rows_made.grad.tolist() == [[0, 0, 2, 2], [0, 0, 2, 2]]


def test_a_mean_is_of_counts_too() -> None:
    out, _ = seen(dim=4, use_cvm=True, pooling="mean")
    expected = [*cvm(1, 1 / 3), 50 / 3, 80 / 3]
    np.testing.assert_allclose(out[0, 0].detach(), expected, rtol=1e-6)


def test_without_pooling_each_id_has_its_own() -> None:
    out, _ = seen(dim=4, use_cvm=True, pooling="none")
    one, other = [*cvm(1, 0), 10.0, 20.0], [*cvm(1, 1), 30.0, 40.0]
    np.testing.assert_allclose(out["item"].values.detach(), [one, one, other, other], rtol=1e-6)
    assert out["item"].offsets.tolist() == [0, 3, 3, 4]
