"""Async training: how stale reads may be, how much may be on its way, and that nothing is lost."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import downpour as dp
from downpour.consistency import Async
from downpour.remote.connect import connect
from downpour.serving.service import Service
from tests.networks import planned, random_batches
from tests.servers import (
    Jittery,
    Slow,
    assert_same_bits,
    jitter,
    servers,
    train_embedded,
    train_epoch,
    train_on,
)
from tests.test_sync_models import CASES

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_STEPS = 12
FRESH = Async(max_staleness=0)


class Ones(torch.nn.Module):
    """A row and a number, of which each sample adds 1 to the gradient."""

    def __init__(self) -> None:
        super().__init__()
        settings: dict[str, Any] = {"dtype": torch.float64, "init": dp.Constant(0.0)}
        self.rows = dp.SparseEmbedding("id", 1, **settings)
        self.number = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.seen: list[tuple[float, float]] = []


def total(model: Any, batch: dp.Batch) -> torch.Tensor:
    rows = model.rows(batch)
    # SGD of rate 1 takes 1 away in each step: so many steps the values have seen.
    model.seen.append((-float(rows.detach()[0, 0, 0]), -float(model.number.detach())))
    value: torch.Tensor = rows.sum() + model.number.sum()
    return value


def of_rows(model: Any, batch: dp.Batch) -> torch.Tensor:
    value: torch.Tensor = model.rows(batch).sum()
    return value


def ones(loss: Any = total, **settings: Any) -> tuple[Any, dp.Plan]:
    """The model and its plan."""
    model = Ones()
    rules: dict[str, Any] = {"sparse": dp.SGD(1.0), "dense": dp.SGD(1.0), **settings}
    plan = planned(model, {"total": loss}, BATCHES[0], **rules)
    model.seen.clear()  # planning runs the loss
    return model, plan


BATCHES = [dp.Batch(features={"id": [7]}) for _ in range(NUM_STEPS)]


class Gated(Service):
    """Applies no push of rows before its gate is open; at each it notes the learning rate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.rates: list[float] = []
        self.at_push: Callable[[], None] = lambda: None

    def write(self, message: Any, session: Any, owner: object) -> Any:
        if message.header["op"] == "push":
            assert self.gate.wait(300.0)
            self.at_push()
            self.rates += message.header["lr"]
        return super().write(message, session, owner)

    def opens_at(self, step: int) -> Callable[[], None]:
        """Open the gate at one of the calls, which count from 1."""
        calls = iter(range(1, 1000))

        def call() -> None:
            if next(calls) == step:
                self.gate.set()

        return call


# Staleness.


@pytest.mark.parametrize("prefetch", [True, False], ids=["prefetched", "in step"])
@pytest.mark.parametrize("name", CASES)
def test_a_worker_alone_without_staleness_learns_bit_for_bit_as_embedded(
    name: str, prefetch: bool
) -> None:
    model, plan = CASES[name].made()
    (share,) = CASES[name].shares(1)
    with servers(3) as addresses:
        made = train_on(addresses, plan, model, [share], consistency=FRESH, prefetch=prefetch)
    assert_same_bits(made, train_embedded(plan, model, share))


# So many steps and one more can begin before a push is applied; the last of them has seen none.
@pytest.mark.parametrize("prefetch", [True, False], ids=["prefetched", "in step"])
@pytest.mark.parametrize("staleness", [0, 1, 2, 3])
def test_a_read_lacks_as_many_steps_as_it_may_and_no_more(staleness: int, prefetch: bool) -> None:
    (model, plan), service = ones(), Gated()
    setting = Async(max_staleness=staleness, max_in_flight=staleness + 1)
    with (
        servers(1, lambda: service) as addresses,
        connect(plan, addresses, consistency=setting) as ps,
        dp.Worker(plan, model, ps) as worker,
    ):
        opens = service.opens_at(staleness + 2)
        train_epoch(worker, BATCHES, prefetch=prefetch, pause=opens)
        assert ps.staleness.most == staleness
    lacking = np.arange(NUM_STEPS)[:, None] - np.array(model.seen)
    assert lacking[:, 0].max() == staleness
    assert lacking[:, 1].max() <= staleness
    assert lacking.min() >= 0


@pytest.mark.parametrize("staleness", [0, 1, 2, 3])
def test_no_timing_makes_a_read_staler_than_it_may_be(staleness: int) -> None:
    model, plan = ones()
    setting = Async(max_staleness=staleness)
    with (
        servers(2, Jittery) as addresses,
        connect(plan, addresses, consistency=setting) as ps,
        dp.Worker(plan, model, ps) as worker,
    ):
        train_epoch(worker, BATCHES * 2, prefetch=True, pause=jitter)
        assert ps.staleness.most <= staleness
        assert ps.staleness.count == 2 * NUM_STEPS
    lacking = np.arange(2 * NUM_STEPS)[:, None] - np.array(model.seen)
    assert 0 <= lacking.min() <= lacking.max() <= staleness


def test_a_batch_may_be_prefetched_just_before_its_own_step() -> None:
    model, plan = ones()
    with (
        servers() as addresses,
        connect(plan, addresses, consistency=FRESH) as ps,
        dp.Worker(plan, model, ps) as worker,
    ):
        for batch in BATCHES[:3]:
            worker.prefetch("total", batch)
            worker.step("total", batch)
    assert model.seen == [(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)]


def test_a_batch_that_was_prefetched_and_never_came_holds_nothing_up() -> None:
    model, plan = ones()
    with (
        servers() as addresses,
        connect(plan, addresses, consistency=FRESH) as ps,
        dp.Worker(plan, model, ps) as worker,
    ):
        worker.prefetch("total", BATCHES[1])
        for batch in (BATCHES[0], BATCHES[2], BATCHES[1]):
            worker.step("total", batch)
    assert model.seen == [(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)]


# Pushes on their way.


# The timer lets the step that has no room get to its push before the first one is applied.
@pytest.mark.parametrize("most", [1, 2, 4])
def test_no_more_steps_are_on_their_way_than_may_be(most: int) -> None:
    (model, plan), service = ones(of_rows), Gated()
    setting = Async(max_in_flight=most, max_staleness=100)
    with (
        servers(1, lambda: service) as addresses,
        connect(plan, addresses, consistency=setting) as ps,
        dp.Worker(plan, model, ps) as worker,
    ):
        under_way: list[int] = []
        service.at_push = lambda: under_way.append(ps.report()["in_flight"])
        opener = threading.Timer(0.05, service.gate.set)
        steps = iter(range(NUM_STEPS))
        train_epoch(worker, BATCHES, pause=lambda: opener.start() if next(steps) == most else None)
    assert len(under_way) == NUM_STEPS
    assert max(under_way) == most


def test_rates_follow_the_pushes_that_are_sent_and_not_those_acknowledged() -> None:
    schedule = dp.StepDecay(every=1, factor=0.5)
    model, plan = ones(sparse=dp.SGD(1.0, schedule=schedule), dense=dp.SGD(1.0, schedule=schedule))
    service = Gated()
    with (
        servers(1, lambda: service) as addresses,
        connect(plan, addresses, consistency=Async(max_staleness=3)) as ps,
        dp.Worker(plan, model, ps) as worker,
    ):
        train_epoch(worker, BATCHES, pause=service.opens_at(4))
    assert service.rates == [0.5**step for step in range(NUM_STEPS)]


def test_a_closed_worker_leaves_all_that_it_pushed_in_the_model() -> None:
    model, plan = ones()
    with servers(2, Slow) as addresses:
        train = {"consistency": Async(max_staleness=3), "prefetch": True}
        made = train_on(addresses, plan, model, [BATCHES], **train)
    assert float(made.models[0].number.detach()) == -NUM_STEPS


def test_workers_with_unequal_numbers_of_batches_do_not_wait_for_each_other() -> None:
    model, plan = CASES["window"].made()
    shares = [random_batches(rank, number) for rank, number in enumerate((7, 3, 0))]
    with servers(2) as addresses:
        made = train_on(addresses, plan, model, shares, consistency=Async(), prefetch=True)
    assert [len(losses) for losses in made.losses] == [7, 3, 0]
    assert (made.tables["embedding"], made.tables["dense.click"]) == (10, 4)
