"""DataNorm: its formulas, what it pushes, and the table that keeps its statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import downpour as dp
from downpour.data_norm import scale_statistics
from downpour.plan.program import PullDense, PushDense
from downpour.tables import sections_of
from tests.networks import planned

EPS = 1e-4


class Normalised(torch.nn.Module):
    """Two numbers a sample, normalised, then a linear layer."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = dp.DataNorm(2, dtype=torch.float64, **settings)
        self.out = torch.nn.Linear(2, 1, dtype=torch.float64)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        return self.out(self.norm(batch.dense["x"].double())).squeeze(1)


def fit(model: Any, batch: dp.Batch) -> torch.Tensor:
    return (model(batch) - batch.label).square().mean()


def fit_again(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model(batch).square().mean()


def batches(num: int = 5) -> list[dp.Batch]:
    random = np.random.default_rng(0)
    return [
        dp.Batch(
            dense={"x": random.normal([3.0, -1.0], [2.0, 0.5], (size, 2))},
            labels=random.random(size),
        )
        for size in random.integers(2, 9, num)
    ]


# By hand, with the formulas of Paddle's data_norm_op.cc (0066e86c): size 4, sum 8 and square sum 16
# give the mean 2 and the scale sqrt(4 / 16) = 0.5. The inputs 1 and 5 are then -0.5 and 1.5; their
# batch adds 2, 6 and (1 - 2)^2 + (5 - 2)^2 + 2 eps = 10 + 2 eps.
def test_formulas_by_hand() -> None:
    norm = dp.DataNorm(1, batch_size=4.0, batch_square_sum=16.0, dtype=torch.float64)
    torch.nn.init.constant_(norm.batch_sum, 8.0)
    x = torch.tensor([[1.0], [5.0]], dtype=torch.float64, requires_grad=True)
    y = norm(x)
    assert y.flatten().tolist() == [-0.5, 1.5]
    y.backward(torch.tensor([[1.0], [-2.0]], dtype=torch.float64))
    assert x.grad.flatten().tolist() == [0.5, -1.0]
    grads = [norm.batch_size.grad, norm.batch_sum.grad, norm.batch_square_sum.grad]
    assert [float(grad) for grad in grads] == pytest.approx([2.0, 6.0, 10.0 + 2 * EPS])


def test_a_new_one_changes_nothing() -> None:
    x = torch.randn(4, 3)
    assert torch.allclose(dp.DataNorm(3)(x), x)


def test_inputs_may_have_more_dimensions() -> None:
    norm, flat = dp.DataNorm(2), dp.DataNorm(2)
    x = torch.randn(3, 5, 2)
    norm(x).sum().backward()
    flat(x.reshape(15, 2)).sum().backward()
    for name in ("batch_size", "batch_sum", "batch_square_sum"):
        ours, theirs = getattr(norm, name).grad, getattr(flat, name).grad
        torch.testing.assert_close(ours, theirs)
    assert norm.batch_size.grad.tolist() == [15.0, 15.0]


# By hand: N = 4, g = 12 and scale = 0.5 give (12 - 4 * 0.5) / 4 + 4 * 0.5 = 4.5.
def test_scaling_by_hand() -> None:
    sections = sections_of({"n.batch_size": (1,), "n.batch_square_sum": (1,), "n.batch_sum": (1,)})
    grad = np.array([4.0, 12.0, 10.0])
    scale_statistics(grad, {section.name: section for section in sections}, 4, 0.5)
    assert grad.tolist() == [1.0, 4.5, 2.5]


def test_statistics_have_a_table_of_their_own_after_the_dense_one() -> None:
    plan = planned(Normalised(), fit, batches()[0], data_norm=dp.Summary(0.99))
    dense, norm = plan.dense
    assert [section.name for section in dense.sections] == ["out.bias", "out.weight"]
    assert (norm.id, norm.name, norm.rule) == (1, "data_norm.fit", dp.Summary(0.99))
    names = ("norm.batch_size", "norm.batch_square_sum", "norm.batch_sum")
    assert tuple(section.name for section in norm.sections) == names
    ops = plan.programs["fit"].ops
    assert ops[:2] == (PullDense("dense.fit"), PullDense("data_norm.fit"))
    assert ops[-1] == PushDense("data_norm.fit", names)
    assert norm.is_data_norm
    assert not dense.is_data_norm


def train(model: Any, data: list[dp.Batch], losses: Any = fit, **settings: Any) -> dp.Client:
    plan = planned(model, losses, data[0], **settings)
    ps = dp.embedded(plan)
    with dp.Worker(plan, model, ps) as worker:
        for batch in data:
            for program in plan.programs:
                worker.step(program, batch)
    return ps


def statistics(model: Any) -> list[list[float]]:
    norm = model.norm
    return [it.tolist() for it in (norm.batch_size, norm.batch_sum, norm.batch_square_sum)]


@pytest.mark.parametrize("scale", [None, 0.0, 0.25])
@pytest.mark.parametrize("decay", [0.999999, 0.5, 1.0])
def test_the_table_keeps_decayed_sums(decay: float, scale: float | None) -> None:
    model, data = Normalised(), batches()
    train(model, data, data_norm=dp.Summary(decay), scale_datanorm=scale)
    size, total, square = np.full(2, 1e4), np.zeros(2), np.full(2, 1e4)
    for batch in data:
        x, n = batch.dense["x"].double().numpy(), batch.size
        own = [np.full(2, n), x.sum(0), ((x - total / size) ** 2).sum(0) + n * EPS]
        if scale is not None:
            own = [own[0] / n, own[1] / n, (own[2] - n * scale) / n + n * scale]
        size, total, square = size * decay + own[0], total * decay + own[1], square * decay + own[2]
    expected = [size.tolist(), total.tolist(), square.tolist()]
    np.testing.assert_allclose(statistics(model), expected, rtol=1e-12)


def test_statistics_are_of_a_window_and_flushed() -> None:
    model, data = Normalised(), batches(5)
    ps = train(model, data, data_norm=dp.Summary(1.0), window=2)
    assert ps.steps["data_norm.fit"] == 3
    samples = sum(batch.size for batch in data)
    assert statistics(model)[0] == pytest.approx([1e4 + samples] * 2, rel=1e-12)


class Two(torch.nn.Module):
    """A second norm, for samples that have something in their first feature."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.rare = (dp.DataNorm(2, dtype=torch.float64) for _ in range(2))


def of_two(model: Any, batch: dp.Batch) -> torch.Tensor:
    x = batch.dense["x"].double()
    value = model.norm(x).square().mean()
    return value + model.rare(x).square().mean() if float(batch.label.sum()) > 0 else value


# By hand: the first of two batches brings N / N, sums / N and (g - N s) / N + N s; the second, that
# does not reach `rare`, nothing. The reference's formula on nothing would be N s - s.
def test_scaling_leaves_what_a_batch_of_a_window_has_not_reached() -> None:
    x = np.array([[1.0, 2.0], [3.0, 4.0]])
    data = [dp.Batch(dense={"x": x}, labels=[1, 1]), dp.Batch(dense={"x": x}, labels=[0, 0])]
    model = Two()
    train(model, data, of_two, data_norm=dp.Summary(0.5), window=2, scale_datanorm=0.25)
    square = ((x**2).sum(0) + 2 * EPS - 2 * 0.25) / 2 + 2 * 0.25
    assert model.rare.batch_size.tolist() == [5001.0] * 2
    assert model.rare.batch_sum.tolist() == [2.0, 3.0]
    np.testing.assert_allclose(model.rare.batch_square_sum.tolist(), 5000 + square, rtol=1e-12)
    np.testing.assert_allclose(model.norm.batch_square_sum.tolist(), 5000 + 2 * square, rtol=1e-12)


def test_two_losses_share_one_table_and_each_adds_to_it() -> None:
    model, data = Normalised(), batches()
    ps = train(model, data, [fit, fit_again], data_norm=dp.Summary(1.0))
    assert [table.name for table in ps.plan.dense] == ["dense.fit", "data_norm.fit"]
    samples = sum(batch.size for batch in data)
    assert statistics(model)[0] == pytest.approx([1e4 + 2 * samples] * 2, rel=1e-12)


def test_clipping_leaves_statistics_alone() -> None:
    clipped, free = Normalised(), Normalised()
    train(clipped, batches(), clip=dp.ClipByNorm(1e-3), dense=dp.SGD(1e-9))
    train(free, batches(), dense=dp.SGD(1e-9))
    assert statistics(clipped) == statistics(free)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_counts_a_batch_once(use_reentrant: bool) -> None:
    class Checkpointed(Normalised):
        def forward(self, batch: dp.Batch) -> torch.Tensor:
            start = torch.zeros(1, requires_grad=True)
            return checkpoint(
                lambda _: Normalised.forward(self, batch), start, use_reentrant=use_reentrant
            )

    checkpointed, ordinary = Checkpointed(), Normalised()
    train(checkpointed, batches())
    train(ordinary, batches())
    assert statistics(checkpointed) == statistics(ordinary)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at it itself
def test_a_compiled_model_counts_alike() -> None:
    compiled, ordinary = Normalised(), Normalised()
    train(torch.compile(compiled, backend="eager"), batches())
    train(ordinary, batches())
    np.testing.assert_allclose(statistics(compiled), statistics(ordinary), rtol=1e-12)


def test_statistics_that_are_frozen_or_in_no_grad_set_stay() -> None:
    frozen, listed = Normalised(), Normalised()
    frozen.norm.requires_grad_(False)
    plan = planned(frozen, fit, batches()[0])
    assert [table.name for table in plan.dense] == ["dense.fit"]
    names = ["norm.batch_size", "norm.batch_sum", "norm.batch_square_sum"]
    optimizer = dp.DownpourSGD()
    plan = optimizer.minimize(fit, model=listed, example=batches()[0], no_grad_set=names)
    with dp.Worker(plan, listed, dp.embedded(plan)) as worker:
        worker.step("fit", batches()[0])
    assert statistics(listed) == [[1e4] * 2, [0.0] * 2, [1e4] * 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_features": 0}, "num_features must be an int >= 1, got 0"),
        ({"eps": 0.01}, r"eps must be in \[0, 0.001\], got 0.01"),
        ({"eps": -1e-4}, "eps must be in"),
        ({"eps": "small"}, "eps must be in .*got 'small'"),
        ({"batch_size": None}, "batch_size must be > 0 and finite as torch.float32, got None"),
        ({"dtype": torch.float16}, r"dtype must be torch.float32 or float64, got torch.float16"),
        ({"batch_size": 0.0}, "batch_size must be > 0 and finite"),
        ({"batch_square_sum": float("inf")}, "batch_square_sum must be > 0 and finite"),
    ],
)
def test_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(dp.SettingError, match=message):
        dp.DataNorm(**{"num_features": 2, **settings})


def test_what_is_no_tensor_is_refused() -> None:
    values: Any = [1.0, 2.0]
    with pytest.raises(dp.DataError, match="DataNorm needs a tensor, got list"):
        dp.DataNorm(2)(values)


def test_an_input_of_another_width_is_refused() -> None:
    with pytest.raises(dp.DataError, match=r"DataNorm\(2\) needs inputs \[..., 2\], got \[4, 3\]"):
        dp.DataNorm(2)(torch.zeros(4, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dense": dp.Summary()}, "Summary updates data-norm statistics"),
        ({"data_norm": dp.SGD(0.1)}, "data_norm takes Summary"),
        ({"scale_datanorm": -1.0}, "scale_datanorm must be a number >= 0 or None"),
        ({"scale_sparse_gradient_with_batch_size": 1}, "must be a bool or None, got 1"),
    ],
)
def test_settings_of_the_optimizer_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(dp.SettingError, match=message):
        dp.DownpourSGD(**settings)


@pytest.mark.parametrize("name", ["batch_size", "batch_square_sum"])
def test_statistics_begin_with_a_weight(name: str) -> None:
    model = Normalised()
    state = {**model.state_dict(), f"norm.{name}": torch.tensor([1.0, 0.0])}
    with pytest.raises(dp.PlanError, match=rf"'norm.{name}' is a weight .* must be > 0, got 0.0"):
        dp.DownpourSGD().minimize(fit, model=model, example=batches()[0], startup=state)


def test_a_batch_without_samples_is_no_division_by_zero() -> None:
    model = Normalised()
    plan = planned(model, fit_again, batches()[0], scale_datanorm=0.5)
    empty = dp.Batch(dense={"x": np.zeros((0, 2))}, labels=[])
    with dp.Worker(plan, model, dp.embedded(plan)) as worker:
        with pytest.raises(dp.NonFiniteError, match="is nan"):  # the mean of nothing
            worker.step("fit_again", empty)
        assert worker.step("fit_again", batches()[0]).samples == batches()[0].size
