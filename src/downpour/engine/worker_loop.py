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
from downpour.run_plan import check_labels
from downpour.serving.members import CHIEF
from downpour.threaded_worker import ThreadedWorker
from downpour.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from downpour.features import Batch
    from downpour.plan.plan import Plan
    from downpour.remote.client import RemoteClient
    from downpour.remote.membership import Membership
    from downpour.run import Run
    from downpour.stopping import Stopping
    from downpour.worker import StepResult

INTERRUPTED = "interrupted"  # why all stop where a signal has asked one of them to


class WorkerLoop:
    """Trains worker `rank` of a run: batches rank, rank + num_workers, ... of its data.

    At the end of each epoch all meet; where the run has a chief, it says whether to go on.
    leaves_alone: whether the others go on where this worker is asked to stop; else all stop.
    """

    def __init__(
        self, run: Run, plan: Plan, client: RemoteClient, *, leaves_alone: bool = False
    ) -> None:
        assert client.membership is not None
        self.run, self.client = run, client
        self._member: Membership = client.membership
        self._leaves_alone = leaves_alone
        self._is_leaving = self._has_halted = False
        self._stopping: Stopping | None = None
        self.worker: Worker | ThreadedWorker = (
            ThreadedWorker(plan, run.model, client, device=run.device)
            if isinstance(client, HalfAsyncClient)
            else Worker(plan, run.model, client, device=run.device)
        )
        client.phases_s = self.worker.phases_s
        client.gradient_norms = self.worker.gradient_norms
        self._programs = list(named_losses(run.losses))

    def train(self, stopping: Stopping | None = None) -> None:
        """Train all epochs. Raises what the data, the model, the tables or the servers raise.

        stopping: says when a signal asks to stop, which is after the step under way.
        """
        self._stopping = stopping
        torch.manual_seed(self.run.seed + self._member.rank)
        for number in range(1, self.run.epochs + 1):
            start = time.perf_counter()
            epoch = _Share()
            self.client.counted["epoch"] = number
            self._train_epoch(number, epoch)
            self.worker.flush()
            self.client.finish()
            if self._is_leaving:
                break
            brought = {
                **epoch.summary(),
                "seconds": time.perf_counter() - start,
                "report": self.client.report(),
                "buffers": _buffers(self.run.model),
                "stop": self._is_to_stop(),
            }
            name = f"epoch {number} trained"
            self._member.meet(name, json.dumps(brought), with_chief=True)
            if self._all_stop(number):
                break

    def _all_stop(self, number: int) -> bool:
        """Whether an epoch was the last, which all are told alike: by the chief if there is one."""
        own = json.dumps({"stop": self._is_to_stop()})
        told = self._member.meet(f"epoch {number} over", own, with_chief=True)
        deciding = [told[CHIEF]] if CHIEF in told else told.values()
        return any(json.loads(text)["stop"] for text in deciding)

    def _is_to_stop(self) -> bool:
        """Whether this worker ends after the step under way.

        A signal is for the whole run, or where the others may go on without a worker for this one.
        """
        if self._stopping is not None and self._stopping.requested:
            if self._leaves_alone:
                self._is_leaving = True
            elif not self._has_halted:
                self._has_halted = True
                self._member.halt(INTERRUPTED)
                self.client.asks_to_stop = True
        return bool(self._member.stop_reason) or self._has_halted or self._is_leaving

    def _train_epoch(self, number: int, epoch: _Share) -> None:
        self.run.model.train()
        self.client.begin_epoch()
        with contextlib.closing(self._batches(number - 1, epoch)) as batches:
            if isinstance(self.worker, ThreadedWorker):
                self._step_threads(self.worker, batches, epoch)
            else:
                self._step_each(self.worker, batches, epoch)
        while self.client.others_go_on and not self._is_leaving:
            self._is_to_stop()
            for program in self._programs:
                self.worker.idle(program)

    def _step_each(self, worker: Worker, batches: Generator[Batch], epoch: _Share) -> None:
        """A batch at a time, with the rows of the next one on their way.

        In sync training all workers stop after the same step: that in which one of them has said
        that it is to stop. Others stop when they hear of it.
        """
        current = self._next(batches)
        while current is not None:
            is_last = self._is_to_stop() and not self.client.stops_together
            following = None if is_last or self._is_leaving else self._next(batches)
            for place, program in enumerate(self._programs):
                if place + 1 < len(self._programs):
                    worker.prefetch(self._programs[place + 1], current)
                elif following is not None:
                    worker.prefetch(self._programs[0], following)
                done = worker.step(program, current, goes_on=following is not None)
                self._count_loss(epoch, program, [done])
            self._count_batches(epoch, [current])
            current = None if self.client.all_stop else following

    def _step_threads(
        self, worker: ThreadedWorker, batches: Generator[Batch], epoch: _Share
    ) -> None:
        """A batch a thread at a time."""
        assert isinstance(self.client, HalfAsyncClient)
        while not self._is_to_stop():
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
