"""Schedules: the factor of a step, as values and as torch's own schedulers."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from downpour.errors import SettingError
from downpour.rules import SGD
from downpour.schedules import Cosine, Exponential, Linear, StepDecay, TorchSchedule, Warmup


@pytest.mark.parametrize(
    ("schedule", "step", "factor"),
    [
        (Warmup(steps=4), 1, 0.0),
        (Warmup(steps=4, start=0.2), 3, 0.6),
        (Warmup(steps=4), 5, 1.0),
        (Warmup(steps=4), 500, 1.0),
        (Warmup(steps=4, after=Linear(steps=10)), 10, 0.5),
        (Linear(steps=10, end=0.5), 1, 1.0),
        (Linear(steps=10, end=0.5), 6, 0.75),
        (Linear(steps=10, end=0.5), 999, 0.5),
        (Cosine(steps=10), 1, 1.0),
        (Cosine(steps=10, end=0.2), 6, 0.6),
        (Cosine(steps=10, end=0.2), 999, 0.2),
        (StepDecay(every=3, factor=0.5), 3, 1.0),
        (StepDecay(every=3, factor=0.5), 7, 0.25),
        (Exponential(factor=0.9), 1, 1.0),
        (Exponential(factor=0.9), 3, 0.81),
    ],
)
def test_factor_of_a_step(schedule: Any, step: int, factor: float) -> None:
    assert schedule(step) == pytest.approx(factor, abs=1e-12)


TORCH_SCHEDULERS: list[tuple[Any, dict[str, Any]]] = [
    (lr_scheduler.StepLR, {"step_size": 7, "gamma": 0.5}),
    (lr_scheduler.CosineAnnealingWarmRestarts, {"T_0": 10}),
    (lr_scheduler.OneCycleLR, {"max_lr": 2.0, "total_steps": 50}),
    (lr_scheduler.LambdaLR, {"lr_lambda": (0.5).__pow__}),
]


@pytest.mark.parametrize(("scheduler", "settings"), TORCH_SCHEDULERS)
def test_torch_schedule_is_the_scheduler(scheduler: Any, settings: dict[str, Any]) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
    running, expected = scheduler(optimizer, **settings), []
    for _ in range(40):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        running.step()
    schedule = TorchSchedule(scheduler, **settings)
    assert [schedule(step) for step in (40, 1, 17)] == [expected[i] for i in (39, 0, 16)]


def test_torch_schedule_is_a_value() -> None:
    schedule = TorchSchedule(lr_scheduler.StepLR, step_size=7)
    schedule(20)
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule
    assert hash(copy) == hash(schedule)
    assert copy(20) == schedule(20)
    assert schedule != TorchSchedule(lr_scheduler.StepLR, step_size=8)


def test_any_function_of_the_step_will_do() -> None:
    rule = SGD(0.5, schedule=lambda step: 1.0 / step)
    assert [rule.lr_at(step) for step in (1, 2, 4)] == [0.5, 0.25, 0.125]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Warmup(steps=0), "Warmup.steps must be >= 1, got 0"),
        (lambda: Warmup(steps=1, start=2.0), "Warmup.start must be in"),
        (lambda: Linear(steps=5, end=-1.0), "Linear.end must be finite"),
        (lambda: Cosine(steps=-1), "Cosine.steps must be >= 1"),
        (lambda: StepDecay(every=1, factor=1.5), "StepDecay.factor must be in"),
        (lambda: Exponential(factor=0.0), "Exponential.factor must be in"),
        (lambda: TorchSchedule(lr_scheduler.ReduceLROnPlateau), "needs a metric"),
        (
            lambda: TorchSchedule("StepLR"),
            "takes a class of torch.optim.lr_scheduler, as StepLR, got",
        ),
        (
            lambda: TorchSchedule(lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=3)(9),
            "OneCycleLR has no step 9",
        ),
    ],
)
def test_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()
