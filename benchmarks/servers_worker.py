"""One worker of `servers`, in a process of its own: it trains its share and says how it went.

The parent starts `python -m benchmarks.servers_worker FOLDER SHARE`; SHARE is a `Share` as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import downpour as dp
from benchmarks.train_step_downpour import Network, click, make_batch
from benchmarks.train_step_job import Job, load_batches
from downpour.remote.client import RemoteClient

if TYPE_CHECKING:
    from collections.abc import Sequence

    from downpour.client import Client
    from downpour.plan.plan import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What a worker does: every `num_workers`-th batch of the job, from `rank` on.

    servers: their addresses; none for embedded tables. is_sync: or asynchronous. warmup: its first
    batches, which are not measured. threads: torch's.
    """

    servers: tuple[str, ...]
    is_sync: bool
    rank: int
    num_workers: int
    warmup: int
    threads: int

    def text(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def of(text: str) -> Share:
        said = json.loads(text)
        return Share(**{**said, "servers": tuple(said["servers"])})


def make_client(plan: Plan, share: Share) -> Client:
    """Tables that are empty, here or on the servers."""
    if not share.servers:
        return dp.embedded(plan)
    return dp.connect(
        plan,
        share.servers,
        consistency=dp.Sync() if share.is_sync else dp.Async(),
        rank=share.rank,
        num_workers=share.num_workers,
    )


def train(job: Job, folder: Path, share: Share) -> dict[str, Any]:
    """Train the share; when each step ended, its loss, and of the measured steps the phases."""
    every = load_batches(folder)
    places = range(share.rank, job.num_batches, share.num_workers)
    batches = [make_batch(*(column[at] for column in every)) for at in places]
    model = Network(job, list(batches[0].features))
    optimizer = dp.DownpourSGD(
        sparse=dp.Adagrad(lr=job.embedding_lr, eps=job.eps), dense=dp.Adam(lr=job.dense_lr)
    )
    plan = optimizer.minimize([click], model=model, example=batches[0])
    with make_client(plan, share) as client, dp.Worker(plan, model, client) as worker:
        gc.collect()
        ends, losses = [], []
        for number in range(len(batches)):
            if number == share.warmup:
                before, busy_s = dict(worker.phases_s), time.process_time()
            losses.append(step(worker, batches, number))
            ends.append(time.monotonic())  # a clock that all processes share
        phases = {name: s - before.get(name, 0.0) for name, s in worker.phases_s.items()}
        busy_s = time.process_time() - busy_s
        report = client.report() if isinstance(client, RemoteClient) else {}
    steps = len(batches) - share.warmup
    return {
        "ends": ends,
        "losses": losses,
        "phases_ms": {name: 1e3 * seconds / steps for name, seconds in phases.items()},
        "cpu_ms": 1e3 * busy_s / steps,
        "pull": report.get("pull", {}),
        "push": report.get("push", {}),
        "staleness": report.get("staleness_max", 0),
    }


def step(worker: dp.Worker, batches: Sequence[dp.Batch], number: int) -> float:
    """Train on a batch, with the next one announced; its loss."""
    goes_on = number + 1 < len(batches)
    if goes_on:
        worker.prefetch("click", batches[number + 1])
    return worker.step("click", batches[number], goes_on=goes_on).loss


def main() -> None:
    folder, share = Path(sys.argv[1]), Share.of(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not end up in the answer
    torch.set_num_threads(share.threads)
    answers.write(json.dumps(train(Job.load(folder), folder, share)) + "\n")


if __name__ == "__main__":
    main()
