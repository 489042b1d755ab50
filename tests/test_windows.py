"""A window is counted by program, shows in the plan, and loses nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import downpour as dp
from downpour.plan.program import PullDense, PushDense
from tests.networks import (
    Network,
    a_batch,
    assert_same,
    click,
    plain,
    planned,
    random_batches,
)

BATCHES = random_batches(3, 7)


class TwoHeads(Network):
    """A body and two heads: the body is trained by both losses."""

    def __init__(self) -> None:
        super().__init__(dtype=torch.float64)
        self.body = torch.nn.Linear(8, 8, dtype=torch.float64)
        self.head = torch.nn.Linear(8, 1, dtype=torch.float64)

    def hidden(self, batch: dp.Batch) -> torch.Tensor:
        return self.body(self.embedding(batch).flatten(1))


def first(model: Any, batch: dp.Batch) -> torch.Tensor:
    return (model.out(model.hidden(batch)).squeeze(1) - batch.label).square().mean()


def second(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model.head(model.hidden(batch)).square().mean()


def test_a_window_is_in_the_ops() -> None:
    plan = planned(TwoHeads(), [first, second], window=4)
    names = ("body.bias", "body.weight", "out.bias", "out.weight")
    assert plan.programs["first"].ops[0] == PullDense("dense.first", 4)
    assert plan.programs["first"].ops[-1] == PushDense("dense.first", names, 4)
    assert plan.programs["second"].ops[:2] == (
        PullDense("dense.first", 4), PullDense("dense.second", 4),
    )  # fmt: skip
    assert plan.programs["second"].ops[-2] == PushDense("dense.first", names[:2], 4)
    assert plan != planned(TwoHeads(), [first, second], window=3)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 9])
def test_each_program_has_a_window_of_its_own(window: int) -> None:
    model = TwoHeads()
    rate = 0.05
    plan = planned(model, [first, second], window=window, sparse=dp.SGD(rate), dense=dp.SGD(rate))
    ps = dp.embedded(plan)
    theirs = plain(model, ps)
    rows = torch.optim.SGD([theirs.embedding.weight], lr=rate)
    dense = torch.optim.SGD(
        [it for n, it in theirs.named_parameters() if "embed" not in n], lr=rate
    )
    sums: dict[str, list[Any]] = {}
    with dp.Worker(plan, model, ps) as worker:
        for number, batch in enumerate(BATCHES, 1):
            for loss in (first, second):
                _accumulate(theirs, loss, batch, rows, sums)
                if window == 1:  # the second program pulls what the first has pushed
                    _push(theirs, dense, sums.pop(loss.__name__))
                assert np.isfinite(worker.step(loss.__name__, batch).loss)
            for name in [*sums] if number % window == 0 else []:
                _push(theirs, dense, sums.pop(name))
        for total in sums.values():  # what is left goes out on closing
            _push(theirs, dense, total)
    assert_same(model, ps, theirs)


def _accumulate(model: Any, loss: Any, batch: dp.Batch, rows: Any, sums: dict[str, Any]) -> None:
    """Step the rows; add the dense gradients to the loss's sum."""
    model.zero_grad()
    loss(model, batch).backward()
    rows.step()
    grads = [None if it.grad is None else it.grad.clone() for it in model.parameters()]
    before = sums.setdefault(loss.__name__, [None] * len(grads))
    sums[loss.__name__] = [
        b if g is None else g if b is None else b + g for b, g in zip(before, grads, strict=True)
    ]


def _push(model: Any, dense: Any, grads: list[Any]) -> None:
    model.zero_grad()
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        parameter.grad = grad
    dense.step()


def test_a_window_that_is_flushed_begins_anew_with_a_pull() -> None:
    model = TwoHeads()
    plan = planned(model, [first], window=3)
    ps = dp.embedded(plan)
    with dp.Worker(plan, model, ps) as worker:
        for batch in BATCHES[:2]:
            worker.step("first", batch)
        worker.flush()
        assert ps.steps["dense.first"] == 1
        worker.step("first", BATCHES[2])
        flat = np.concatenate([it.detach().numpy().ravel() for it in (model.out.bias,)])
        assert np.isin(flat, ps.pull_dense("dense.first")).all()


def test_the_order_of_programs_is_part_of_a_plan() -> None:
    def of(*losses: Any) -> dp.Plan:
        return planned(Network(), dict.fromkeys(losses, click))

    assert of("a", "b") == of("a", "b")
    plans = of("a", "b"), of("b", "a")
    assert plans[0].programs.keys() == plans[1].programs.keys()
    assert plans[0] != plans[1]


def test_the_program_of_a_loss_is_found_by_its_function() -> None:
    plan = planned(TwoHeads(), [first, second])
    assert plan.program_for(second) is plan.programs["second"]
    with pytest.raises(dp.PlanError, match=r"not made of .*click.*: first, second"):
        plan.program_for(click)


def test_programs_say_which_ops_do_not_run_in_a_worker() -> None:
    plan = planned(torch.nn.Linear(1, 1), {"fit": lambda m, b: m(b.label[:, None]).mean()})
    assert plan.skipped_ops == ()
    assert planned(TwoHeads(), [first, second]).skipped_ops == ("lookup_table", "lookup_table_grad")


def test_look_ups_and_their_gradients_are_not_run_by_torch() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorded(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.ops: set[str] = set()

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.ops.add(str(func))
            return func(*args, **(kwargs or {}))

    model = Network()
    plan = planned(model)
    with dp.Worker(plan, model, dp.embedded(plan)) as worker, Recorded() as recorded:
        worker.step("click", a_batch())
    assert any("mm" in name for name in recorded.ops)
    assert not [name for name in recorded.ops if "embedding" in name or "index" in name]
