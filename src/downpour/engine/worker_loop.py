"""What a worker process does: train on its share of the batches, epoch by epoch."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save as tensor_bytes

from downpour.data.ahead import read_ahead
from downpour.history import FeatureCount
from downpour.plan.losses import named_losses
from downpour.remote.half_async import HalfAsyncClient
from downpour.threaded_worker import ThreadedWorker
from downpour.train import check_labels
from downpour.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from downpour.features import Batch
    from downpour.plan.plan import Plan
    from downpour.remote.client import RemoteClient
    from downpour.remote.membership import Membership
    from downpour.run import Run
    from downpour.worker import StepResult


class WorkerLoop:
    """Trains worker `rank` of a run: batches rank, rank + num_workers, ... of its data.

    At the end of each epoch all meet; where the run has a chief, it says whether to go on.
    """

    def __init__(self, run: Run, plan: Plan, client: RemoteClient) -> None:
        assert client.membership is not None
        self.run, self.client = run, client
        self._member: Membership = client.membership
        self.worker: Worker | ThreadedWorker = (
            ThreadedWorker(plan, run.model, client, device=run.device)
            if isinstance(client, HalfAsyncClient)
            else Worker(plan, run.model, client, device=run.device)
        )
        client.phases_s = self.worker.phases_s
        client.gradient_norms = self.worker.gradient_norms
        self._programs = list(named_losses(run.losses))

    def train(self) -> None:
        """Train all epochs. Raises what the data, the model, the tables or the servers raise."""
        torch.manual_seed(self.run.seed + self._member.rank)
        for number in range(1, self.run.epochs + 1):
            start = time.perf_counter()
            epoch = _Share()
            self.client.counted["epoch"] = number
            self._train_epoch(number, epoch)
            self.worker.flush()
            self.client.finish()
            brought = {
                **epoch.summary(),
                "seconds": time.perf_counter() - start,
                "report": self.client.report(),
                "buffers": _buffers(self.run.model),
            }
            name = f"epoch {number} trained"
            self._member.meet(name, json.dumps(brought), with_chief=True)
            told = self._member.meet(f"epoch {number} over", with_chief=True).get(-1)
            if told and json.loads(told)["stop"]:
                break

    def _train_epoch(self, number: int, epoch: _Share) -> None:
        self.run.model.train()
        self.client.begin_epoch()
        with contextlib.closing(self._batches(number - 1, epoch)) as batches:
            if isinstance(self.worker, ThreadedWorker):
                self._step_threads(self.worker, batches, epoch)
            else:
                self._step_each(self.worker, batches, epoch)
        while self.client.others_go_on:
            for program in self._programs:
                self.worker.idle(program)

    def _step_each(self, worker: Worker, batches: Generator[Batch], epoch: _Share) -> None:
        """A batch at a time, with the rows of the next one on their way."""
        current = self._next(batches)
        while current is not None:
            following = None if self._member.stop_reason else self._next(batches)
            for place, program in enumerate(self._programs):
                if place + 1 < len(self._programs):
                    worker.prefetch(self._programs[place + 1], current)
                elif following is not None:
                    worker.prefetch(self._programs[0], following)
                done = worker.step(program, current, goes_on=following is not None)
                self._count_loss(epoch, program, [done])
            self._count_batches(epoch, [current])
            current = following

    def _step_threads(
        self, worker: ThreadedWorker, batches: Generator[Batch], epoch: _Share
    ) -> None:
        """A batch a thread at a time."""
        assert isinstance(self.client, HalfAsyncClient)
        while not self._member.stop_reason:
            group = [it for _ in range(self.client.threads) if (it := self._next(batches))]
            if not group:
                break
            for program in self._programs:
                self._count_loss(epoch, program, worker.step_many(program, group))
            self._count_batches(epoch, group)

    def _count_loss(self, epoch: _Share, program: str, done: Sequence[StepResult]) -> None:
        total = sum(each.loss * each.samples for each in done)
        for losses in (epoch.losses, self.client.losses):
            losses[program] = losses.get(program, 0.0) + total

    def _count_batches(self, epoch: _Share, batches: Sequence[Batch]) -> None:
        samples = sum(batch.size for batch in batches)
        epoch.steps += len(batches)
        epoch.samples += samples
        self.client.counted["steps"] += len(batches)
        self.client.counted["samples"] += samples

    def _batches(self, epoch: int, share: _Share) -> Generator[Batch]:
        """This worker's batches; a thread reads them, and counts their keys."""

        def read() -> Generator[Batch]:
            every = (batch for batch in self.run.data.batches(epoch) if batch.size)
            for batch in islice(every, self._member.rank, None, self._member.num_workers):
                check_labels(self.run, batch)
                share.count(batch)
                yield batch

        return read_ahead(read())

    def _next(self, batches: Generator[Batch]) -> Batch | None:
        start = time.perf_counter()
        batch = next(batches, None)
        self.worker.phases_s["read"] += time.perf_counter() - start
        return batch


class _Share:
    """Sums over this worker's steps of one epoch."""

    def __init__(self) -> None:
        self.steps = self.samples = 0
        self.losses: dict[str, float] = {}
        self._features: dict[str, FeatureCount] = {}

    def count(self, batch: Batch) -> None:
        """Count the keys of a batch."""
        for name, jagged in batch.features.items():
            self._features.setdefault(name, FeatureCount()).add(batch.size, jagged.values)

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        features = {name: count.as_dict() for name, count in self._features.items()}
        return {
            "steps": self.steps,
            "samples": self.samples,
            "losses": self.losses,
            "features": features,
        }


def _buffers(model: torch.nn.Module) -> str:
    """The model's buffers, as BatchNorm's, as text; they stay with each worker."""
    buffers = {
        name: value.detach().cpu().contiguous().clone() for name, value in model.named_buffers()
    }
    return base64.b64encode(tensor_bytes(buffers)).decode() if buffers else ""
