"""One engine of `train_step`, in a process of its own that waits between rounds.

The parent starts `python -m benchmarks.train_step_peer ENGINE FOLDER` and talks to it in lines
of JSON: the peer says it is ready, answers each `{"steps": n}` with its seconds and losses, and
ends with its standard input.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Protocol

import torch

from benchmarks.train_step_job import Batches, Job, load_batches


class Engine(Protocol):
    """The network with one way to hold and train the embedding."""

    def step(self, index: int) -> float:
        """Train on batch `index`; its loss."""

    def facts(self) -> dict[str, object]:
        """Versions, bytes, phases: whatever the engine can say about itself by now."""


# The module that holds each engine, and the name it goes by there.
ENGINES = {
    "free embedding": ("train_step_torch", "FreeEmbedding"),
    "torch Adagrad": ("train_step_torch", "TorchAdagrad"),
    "torchrec fused": ("train_step_torchrec", "FusedTable"),
    "torchrec DMP": ("train_step_torchrec", "ModelParallel"),
    "downpour Adagrad": ("train_step_downpour", "WarmAdagrad"),
    "downpour Adagrad, from empty": ("train_step_downpour", "EmptyAdagrad"),
    "downpour RowwiseAdagrad": ("train_step_downpour", "WarmRowwise"),
    "downpour RowwiseAdagrad, from empty": ("train_step_downpour", "EmptyRowwise"),
}


def make_engine(name: str, job: Job, batches: Batches) -> Engine:
    """Import the engine's module and set the engine up, its table warm if it is to be."""
    module, cls = ENGINES[name]
    engine: Engine = getattr(importlib.import_module(f"benchmarks.{module}"), cls)(job, batches)
    return engine


def train(engine: Engine, first: int, steps: int, num_batches: int) -> dict[str, object]:
    """Run `steps` steps from step number `first` on; seconds and loss of each."""
    seconds, losses = [], []
    gc.collect()
    for number in range(first, first + steps):
        start = time.perf_counter()
        losses.append(engine.step(number % num_batches))
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "losses": losses}


def serve(engine: Engine, job: Job, requests: IO[str], answers: IO[str]) -> None:
    """Answer the parent until it closes the pipe."""

    def say(answer: dict[str, object]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    say({"ready": True})
    done = 0
    for line in requests:
        steps = int(json.loads(line)["steps"])
        answer = train(engine, done, steps, job.num_batches)
        done += steps
        say(answer | {"facts": engine.facts()})


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not end up between the answers
    job = Job.load(folder)
    torch.set_num_threads(job.threads)
    serve(make_engine(name, job, load_batches(folder)), job, sys.stdin, answers)


if __name__ == "__main__":
    main()
