"""The sides of `servers`: each trains the job once, in new processes, from empty tables."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.peers import ROOT, PeerError
from benchmarks.servers_worker import Share

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.train_step_job import Job

START_TIMEOUT_S, TRAIN_TIMEOUT_S = 120.0, 900.0
LISTENING = "listening on "
# Threads that have nothing to do wait asleep: awake, they would hold a core that another needs.
SHARED_CORES = {"OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """So many servers (0: embedded tables) and workers. threads: batches at a time in a worker of
    Paddle's; Downpour's workers share the job's threads among them.
    """

    servers: int = 1
    workers: int = 1
    is_sync: bool = False
    is_paddle: bool = False
    threads: int = 1


Answer = dict[str, Any]


def measure(side: Side, job: Job, folder: Path, warmup: int, paddle: Path | None) -> Answer:
    """Train the job once; speed in samples/s, losses, and what else the side says of itself.

    warmup: batches of all workers together. Raises PeerError.
    """
    if side.is_paddle:
        assert paddle is not None
        return measure_paddle(side, folder, warmup, paddle)
    with running_servers(side.servers, folder) as addresses:
        shares = [
            Share(
                servers=addresses,
                is_sync=side.is_sync,
                rank=rank,
                num_workers=side.workers,
                warmup=warmup // side.workers,
                threads=max(1, job.threads // side.workers),
            )
            for rank in range(side.workers)
        ]
        answers = train_shares(shares, folder)
    return summary(answers, job.batch_size, warmup // side.workers)


def summary(answers: list[Answer], batch_size: int, warmup: int) -> Answer:
    """All workers' samples while all of them were past their warm-up, a second."""
    start = max(answer["ends"][warmup - 1] for answer in answers)
    stop = min(answer["ends"][-1] for answer in answers)
    steps = sum(start < end <= stop for answer in answers for end in answer["ends"])
    losses = [sum(step) / len(step) for step in zip(*(it["losses"] for it in answers), strict=True)]
    return {
        "speed": steps * batch_size / (stop - start),
        "losses": losses,
        **{name: [answer[name] for answer in answers] for name in ("pull", "push", "cpu_ms")},
        "phases_ms": answers[0]["phases_ms"],
    }


def train_shares(shares: list[Share], folder: Path) -> list[Answer]:
    """Let all workers train at once; their answers."""
    with contextlib.ExitStack() as running:
        workers = []
        for share in shares:
            own = SHARED_CORES if share.servers else {}
            command = ["-m", "benchmarks.servers_worker", str(folder), share.text()]
            workers.append(running.enter_context(process(command, own, folder)))
        outputs = [worker.communicate(timeout=TRAIN_TIMEOUT_S)[0] for worker in workers]
        for worker in workers:
            if worker.returncode:
                raise PeerError(f"a worker ended with {worker.returncode}: {last_words(folder)}")
    return [json.loads(output) for output in outputs]


@contextlib.contextmanager
def running_servers(number: int, folder: Path) -> Iterator[tuple[str, ...]]:
    """Start servers that have no tables yet; their addresses."""
    own = {**SHARED_CORES, "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as running:
        servers = [
            running.enter_context(process(["-m", "downpour", "server"], own, folder))
            for _ in range(number)
        ]
        lines = [server.stdout.readline().strip() for server in servers if server.stdout]
        if not all(line.startswith(LISTENING) for line in lines):
            raise PeerError(f"a server did not start: {last_words(folder)}")
        yield tuple(line.removeprefix(LISTENING) for line in lines)


@contextlib.contextmanager
def process(
    command: list[str], environment: dict[str, str], folder: Path
) -> Iterator[subprocess.Popen[str]]:
    """A process of this interpreter, ended with the block at the latest."""
    with (folder / "processes.log").open("a") as log:
        child = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.communicate(timeout=START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()


def measure_paddle(side: Side, folder: Path, warmup: int, paddle: Path) -> Answer:
    """Let Paddle's interpreter train the job."""
    options = {
        "servers": side.servers,
        "trainers": side.workers,
        "threads": side.threads,
        "warmup": warmup,
    }
    command = [f"--{name}={value}" for name, value in options.items()]
    done = subprocess.run(
        [paddle, ROOT / "benchmarks" / "paddle_ps.py", folder, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=TRAIN_TIMEOUT_S,
    )
    if done.returncode:
        words = done.stderr.strip().splitlines()[-1:] or ["no word"]
        raise PeerError(f"Paddle ended with {done.returncode}: {words[0][:300]}")
    said = json.loads(done.stdout.strip().splitlines()[-1])
    losses = [said["first_loss"], said["last_loss"]]
    return {"speed": said["samples_per_s"], "losses": losses, "versions": said["versions"]}


def last_words(folder: Path) -> str:
    lines = (folder / "processes.log").read_text().strip().splitlines()
    return lines[-1][:300] if lines else "no word"
