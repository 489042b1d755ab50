"""Small runs for processes that import this file, as the command line does."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

sys.path.append(str(Path(__file__).parents[1]))

import downpour as dp
from tests.small_runs import Net, click, frame, small_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LAST = 28  # samples in the last of 22 batches


class Norm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(8)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        logits: torch.Tensor = self.top(self.norm(self.embedding(batch).flatten(1))).squeeze(1)
        return logits


class Endless:
    def batches(self, epoch: int = 0) -> Iterator[dp.Batch]:
        while True:
            yield from frame(320, batch_size=32).batches()

    def num_batches(self) -> int | None:
        return None


class OneSpoiled(Endless):
    """Endless, but for one batch that has as few samples as the last one of others."""

    def batches(self, epoch: int = 0) -> Iterator[dp.Batch]:
        for number, batch in enumerate(super().batches(epoch)):
            yield batch.slice(0, LAST) if number == 61 else batch


def infinite_at_last(model: torch.nn.Module, batch: dp.Batch) -> torch.Tensor:
    value = click(model, batch)
    return value / 0 if batch.size == LAST else value


def killed_at_last(model: torch.nn.Module, batch: dp.Batch) -> torch.Tensor:
    if batch.size == LAST:
        os.kill(os.getpid(), signal.SIGKILL)
    return click(model, batch)


class Falling:
    """Falls from evaluation to evaluation; `at` is called at the evaluation of a number, from 1.

    The first call of all is that before training.
    """

    def __init__(self) -> None:
        self.calls = -1
        self.at: dict[int, Callable[[], object]] = {}

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        self.calls += 1
        self.at.get(self.calls, lambda: None)()
        return {"score": -float(self.calls)}


def best_is_first() -> dp.Run:
    stop = dp.EarlyStop(metric="score", patience=2)
    return small_run(Norm, data=frame(700), evaluate=Falling(), early_stop=stop, epochs=5)


def frozen_at_last(model: torch.nn.Module, batch: dp.Batch) -> torch.Tensor:
    if batch.size == LAST:
        os.kill(os.getpid(), signal.SIGSTOP)
    return click(model, batch)


def run() -> dp.Run:
    return small_run(data=frame(700), eval_data=frame(200, seed=1), epochs=2)


def with_buffers() -> dp.Run:
    return small_run(Norm, data=frame(700))


def of_one_batch() -> dp.Run:
    return small_run(data=frame(32))


def failing() -> dp.Run:
    return small_run(data=frame(700), losses=infinite_at_last)


def fatal() -> dp.Run:
    return small_run(data=frame(700), losses=killed_at_last)


def endless() -> dp.Run:
    return small_run(data=Endless(), consistency=dp.Async())


def endless_sync() -> dp.Run:
    return small_run(data=Endless())


def one_fails() -> dp.Run:
    """One worker fails, and the others would go on for ever."""
    return small_run(data=OneSpoiled(), losses=infinite_at_last, consistency=dp.Async())


def frozen() -> dp.Run:
    """One worker hangs, and the others would go on for ever."""
    return small_run(data=OneSpoiled(), losses=frozen_at_last, consistency=dp.Async())
