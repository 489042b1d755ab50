"""How fast is training over servers, beside embedded tables and beside Paddle's parameter server?

In every round each side trains the same batches once, one side after the other, in new processes
and from empty tables, so that a ratio is of one round. DOWNPOUR_PADDLE_PYTHON names an interpreter
that has Paddle (see `paddle_ps`); without it Paddle is left out.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import list_versions
from benchmarks.peers import PeerError
from benchmarks.results import Result, spread
from benchmarks.servers_sides import Answer, Side, measure
from benchmarks.train_step_job import Job, make_batches, save_batches
from downpour.metrics.latency import Latency

if TYPE_CHECKING:
    from collections.abc import Mapping

QUESTION = (
    "How fast is training with server and worker processes that share {threads} cores, over Arrow "
    "Flight: {num_features} features of one id, Zipf {exponent} over {num_ids:,} ids, and "
    "{num_dense} dense columns; batch {batch_size}, dim {dim}, Adagrad, MLP 256-128-1 with Adam, "
    "all tables from empty? (1+1: one server and one worker.)"
)
PADDLE = "DOWNPOUR_PADDLE_PYTHON"
SIDES = {
    "embedded": Side(servers=0),
    "async 1+1": Side(),
    "async 2+2": Side(servers=2, workers=2),
    "sync 1+1": Side(is_sync=True),
    "sync 2+2": Side(servers=2, workers=2, is_sync=True),
    "Paddle async 1+1": Side(is_paddle=True),
    "Paddle async 1+1, two threads": Side(is_paddle=True, threads=2),
    "Paddle async 2+2": Side(servers=2, workers=2, is_paddle=True),
}
RATIOS: tuple[tuple[str, str, float | None], ...] = (  # ours, theirs, aim
    ("async 1+1", "Paddle async 1+1", 3.0),
    ("async 1+1", "Paddle async 1+1, two threads", None),
    ("async 2+2", "Paddle async 2+2", 3.0),
    ("async 1+1", "embedded", None),
    ("async 2+2", "embedded", None),
    ("sync 1+1", "embedded", None),
    ("sync 2+2", "embedded", None),
)
LOSS_TOLERANCE = 0.03  # of the mean loss of the last steps
LEAST_STEPS = 50  # before, a side of half as many steps of two workers is behind
Rounds = dict[str, list[Answer]]


def run(*, quick: bool = False) -> Result:
    """Measure every side that can run here."""
    rounds, warmup = (1, 4) if quick else (5, 20)
    job = Job(num_batches=140)
    if quick:
        job = replace(job, num_ids=100_000, num_batches=16)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        job.save(folder)
        save_batches(make_batches(job), folder)
        measured, left_out = take_turns(job, folder, rounds, warmup)
    return summarise(job, measured, left_out, {"rounds": rounds, "warmup": warmup})


def take_turns(job: Job, folder: Path, rounds: int, warmup: int) -> tuple[Rounds, dict[str, str]]:
    """Each side's answers by round, and the sides that cannot run here, each with the reason."""
    named = os.environ.get(PADDLE)
    paddle = Path(named) if named else None
    measured: Rounds = {}
    left_out = {
        name: f"no environment: {PADDLE} names an interpreter with paddlepaddle"
        for name, side in SIDES.items()
        if side.is_paddle and paddle is None
    }
    for number in range(rounds):
        for name, side in SIDES.items():
            if name in left_out:
                continue
            try:
                answer = measure(side, job, folder, warmup, paddle)
            except (PeerError, OSError) as error:
                if not side.is_paddle:
                    raise
                left_out[name] = str(error)
                measured.pop(name, None)
                continue
            measured.setdefault(name, []).append(answer)
            where = f"round {number + 1} of {rounds}"
            said = f"servers: {where}: {name}: {answer['speed']:,.0f} samples/s"
            print(said, file=sys.stderr, flush=True)
    return measured, left_out


def summarise(
    job: Job, measured: Rounds, left_out: Mapping[str, str], plan: Mapping[str, int]
) -> Result:
    """Reduce the rounds to figures, ratios and checks."""
    versions = list_versions()
    for answers in measured.values():
        versions |= answers[-1].get("versions", {})
    return Result(
        name="servers",
        question=QUESTION.format(**asdict(job)),
        command="python -m benchmarks servers",
        figures={name: figures(answers) for name, answers in measured.items()},
        ratios=ratios(measured),
        left_out=left_out,
        checks=checks(measured),
        settings={**asdict(job), **plan},
        versions=versions,
    )


def figures(answers: list[Answer]) -> dict[str, object]:
    """The speed of a side, and where a worker's time goes."""
    found: dict[str, object] = {
        "speed": spread([answer["speed"] for answer in answers], "samples/s", digits=0),
        "last_loss": round(last_loss(answers[-1]), 4),
    }
    if "phases_ms" in answers[0]:
        busy = [ms for answer in answers for ms in answer["cpu_ms"]]
        found["worker_cpu_a_step"] = {"value": round(float(np.median(busy)), 1), "unit": "ms"}
        found["phases_in_ms_a_step"] = {
            name: round(float(np.median([it["phases_ms"].get(name, 0.0) for it in answers])), 2)
            for name in answers[0]["phases_ms"]
        }
    for kind in ("pull", "push"):
        parts = [Latency.from_dict(part) for answer in answers for part in answer.get(kind, [])]
        found |= percentiles(kind, sum(parts, Latency()))
    return found


def percentiles(kind: str, latency: Latency) -> dict[str, object]:
    """From the request to the answer, as the worker sees it."""
    found: dict[str, object] = {}
    for percent in (50, 99):
        seconds = latency.percentile(percent)
        if seconds is not None:
            found[f"{kind}_p{percent}"] = {"value": round(1e3 * seconds, 1), "unit": "ms"}
    return found


def ratios(measured: Rounds) -> dict[str, object]:
    """Taken within a round."""
    found: dict[str, object] = {}
    for ours, theirs, aim in RATIOS:
        if ours in measured and theirs in measured:
            pairs = zip(measured[ours], measured[theirs], strict=True)
            per_round = [a["speed"] / b["speed"] for a, b in pairs]
            ratio: dict[str, Any] = spread(per_round, "", digits=2)
            if aim is not None:
                ratio |= {"aim": aim, "met": bool(np.median(per_round) >= aim)}
            found[f"{ours} / {theirs}"] = ratio
    return found


def checks(measured: Rounds) -> dict[str, bool]:
    """Each side learns; Downpour's end where embedded tables do, on the same batches."""
    found = {}
    for name, answers in measured.items():
        found[f"the loss of {name} falls"] = last_loss(answers[-1]) < answers[-1]["losses"][0]
        is_embedded, steps = name == "embedded", len(answers[-1]["losses"])
        if not (is_embedded or SIDES[name].is_paddle) and steps >= LEAST_STEPS:
            apart = abs(last_loss(answers[-1]) / last_loss(measured["embedded"][-1]) - 1.0)
            found[f"{name} ends at the loss of embedded"] = apart <= LOSS_TOLERANCE
    return found


def last_loss(answer: Answer) -> float:
    """The mean loss of the last tenth of the steps."""
    losses = answer["losses"]
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))
