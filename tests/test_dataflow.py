"""What a loss is computed from is pulled, be it without a gradient; what it ignores is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import downpour as dp
from downpour.plan.program import PullDense

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
WIDTH = 8


class Parts(torch.nn.Module):
    """A part that the first loss trains, one for the second, and others that the third does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.teacher, self.student = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 1)
        self.lstm = torch.nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.norm = torch.nn.BatchNorm1d(WIDTH)
        self.script: Any = torch.jit.script(torch.nn.Linear(WIDTH, WIDTH))
        self.ema = torch.tensor(0.0)  # no buffer

    def others(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x[:, None])[0].sum() + self.norm(x).square().mean() + self.script(x).sum()


def x_of(batch: dp.Batch) -> torch.Tensor:
    return batch.dense["x"].float()


def a_batch(seed: int = 0) -> dp.Batch:
    x = np.random.default_rng(seed).normal(size=(6, WIDTH)).astype(np.float32)
    return dp.Batch(dense={"x": x}, labels=np.arange(6) % 2)


def teach(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model.teacher(x_of(batch)).square().mean()


def train_others(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model.others(x_of(batch))


def copied(values: torch.Tensor) -> torch.Tensor:
    made = torch.zeros_like(values)
    torch._foreach_add_([made], [values])
    return made.copy_(made)


# By what a loss does with the output z of another's part; each result has no gradient.
USES: dict[str, Callable[[torch.Tensor], Any]] = {
    "detach": lambda z: z.detach(),
    "comparison": lambda z: (z > 0).float(),
    "argmax": lambda z: z.argmax(),
    "round": lambda z: z.detach().round(),
    "nan_to_num": lambda z: torch.nan_to_num(z.detach()),
    "data": lambda z: z.data,
    "item": lambda z: 2.0 if z.sum().item() > 0 else 1.0,
    "branch": lambda z: 2.0 if z.sum() > 0 else 1.0,
    "numpy": lambda z: torch.from_numpy(np.sign(z.detach().numpy())),
    "tolist": lambda z: sum(z[0].tolist()),
    "in place": lambda z: copied(z.detach()),
    "out": lambda z: torch.add(z.detach(), 1, out=torch.empty_like(z.detach())),
    "sparse": lambda z: torch.sparse.mm(z.detach().to_sparse(), torch.ones(WIDTH, 1)),
    "vmap": lambda z: torch.vmap(torch.sin)(z.detach()),
    "cond": lambda z: torch.cond(z.sum() > 0, torch.sin, torch.cos, (z.detach().sum(),)),
}


def pulled(*losses: Any) -> tuple[str, ...]:
    """The dense tables that the last loss pulls."""
    plan = dp.DownpourSGD().minimize(losses, model=Parts(), example=a_batch())
    return plan.programs[losses[-1].__name__].tables(PullDense)


@pytest.mark.parametrize("name", USES)
def test_what_is_used_without_a_gradient_is_pulled(name: str) -> None:
    def loss(model: Any, batch: dp.Batch) -> torch.Tensor:
        used = USES[name](model.teacher(x_of(batch)))
        used = used.sum() if isinstance(used, torch.Tensor) else used
        return model.student(x_of(batch)).mean() * used

    assert pulled(teach, train_others, loss) == ("dense.teach", "dense.loss")


@pytest.mark.parametrize("name", ["lstm", "norm", "script"])
def test_whatever_has_the_parameters(name: str) -> None:
    def loss(model: Any, batch: dp.Batch) -> torch.Tensor:
        x = x_of(batch)
        with torch.no_grad():
            made = model.lstm(x[:, None])[0] if name == "lstm" else getattr(model, name)(x)
        return model.student(x).mean() * made.round().sum()

    assert pulled(teach, train_others, loss) == ("dense.train_others", "dense.loss")


def test_what_is_computed_and_not_used_is_not_pulled() -> None:
    def loss(model: Any, batch: dp.Batch) -> torch.Tensor:
        x = x_of(batch)
        kept = torch.cat([model.teacher(x), model.norm(x), model.lstm(x[:, None])[0][:, 0]])
        del kept  # its memory may be used again
        return model.student(torch.zeros_like(x).add_(x)).mean()

    assert pulled(teach, train_others, loss) == ("dense.loss",)


def hard(model: Any, batch: dp.Batch) -> torch.Tensor:
    """The student learns the teacher's decisions."""
    with torch.no_grad():
        decided = (model.teacher(x_of(batch))[:, 0] > 0).float()
    return binary_cross_entropy_with_logits(model.student(x_of(batch)).squeeze(1), decided)


@pytest.mark.parametrize("losses", [[teach, hard], [hard, teach]])
def test_decisions_of_another_part_train_as_in_torch(losses: list[Any]) -> None:
    model, theirs = Parts(), Parts()
    plan = dp.DownpourSGD(dense=dp.SGD(0.5)).minimize(losses, model=model, example=a_batch())
    optimizer = torch.optim.SGD([*theirs.teacher.parameters(), *theirs.student.parameters()], 0.5)
    with dp.Worker(plan, model, dp.embedded(plan)) as worker:
        for seed in range(6):
            for loss in losses:
                optimizer.zero_grad()
                value = loss(theirs, a_batch(seed))
                value.backward()
                optimizer.step()
                ours = worker.step(loss.__name__, a_batch(seed)).loss
                assert ours == pytest.approx(value.item(), rel=1e-5)


def test_a_loss_runs_once_and_state_that_is_no_buffer_has_its_values() -> None:
    calls: list[str] = []

    def moving(model: Any, batch: dp.Batch) -> torch.Tensor:
        calls.append("moving")
        value = model.teacher(x_of(batch)).square().mean()
        model.ema = 0.9 * model.ema + 0.1 * value.detach()
        return value

    def after(model: Any, batch: dp.Batch) -> torch.Tensor:
        calls.append("after")
        return model.student(x_of(batch)).mean() * moving(model, batch).detach()

    model = Parts()
    dp.DownpourSGD().minimize([moving, after], model=model, example=a_batch())
    assert calls == ["moving", "after", "moving"]
    assert bool(torch.isfinite(model.ema))
