"""How fast is a whole training step beside plain PyTorch and TorchRec?

Each engine trains in a process of its own. The processes take turns: in every round each runs
the same number of steps while the others wait, and a ratio is taken within a round, so that
what else the machine does falls on all of them. Who goes first changes from round to round.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import list_versions
from benchmarks.peers import Peer, start_peers
from benchmarks.results import Result, spread
from benchmarks.train_step_job import Job, make_batches, save_batches
from benchmarks.train_step_peer import ENGINES

if TYPE_CHECKING:
    from collections.abc import Mapping

QUESTION = (
    "How fast is a whole training step (pull, forward, backward, push, update) on the same "
    "batches and the same network: {num_features} features of one id, Zipf {exponent} over "
    "{num_ids:,} ids, and {num_dense} dense columns; batch {batch_size}, dim {dim}, MLP 256-128-1 "
    "with Adam, {threads} threads?"
)
# (ours, theirs, aim): the same rule on both sides, except where the name says otherwise.
RATIOS: tuple[tuple[str, str, float | None], ...] = (
    ("downpour Adagrad", "torch Adagrad", 1.3),
    ("downpour RowwiseAdagrad", "torchrec fused", 1.3),
    ("downpour RowwiseAdagrad", "torchrec DMP", None),
    ("downpour Adagrad, from empty", "torch Adagrad", None),
    ("downpour RowwiseAdagrad, from empty", "torchrec fused", None),
    ("free embedding", "torch Adagrad", None),
    ("free embedding", "torchrec fused", None),
)
SAME_RULE = (
    ("torch Adagrad", "downpour Adagrad", "downpour Adagrad, from empty"),
    (
        "torchrec fused",
        "torchrec DMP",
        "downpour RowwiseAdagrad",
        "downpour RowwiseAdagrad, from empty",
    ),
)
LOSS_TOLERANCE = 0.03  # of the last round's mean loss; the initial rows differ between engines
Rounds = dict[str, list[dict[str, Any]]]


def run(*, quick: bool = False, engines: tuple[str, ...] = tuple(ENGINES)) -> Result:
    """Measure every engine that can run here."""
    rounds, steps, warmup = (2, 5, 3) if quick else (9, 30, 10)
    job = Job(num_batches=warmup + rounds * steps)
    if quick:
        job = replace(job, num_ids=100_000)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        job.save(folder)
        save_batches(make_batches(job), folder)
        peers, left_out = start_peers(engines, folder)
        try:
            measured = take_turns(peers, rounds, steps, warmup)
        finally:
            for peer in peers:
                peer.close()
    return summarise(job, measured, left_out, {"rounds": rounds, "steps": steps})


def take_turns(peers: list[Peer], rounds: int, steps: int, warmup: int) -> Rounds:
    """Warm every peer up, then let them run in turns; the answers of each round by peer."""
    for peer in peers:
        peer.run(warmup)
    measured: Rounds = {peer.name: [] for peer in peers}
    for number in range(rounds):
        start = number % len(peers) if peers else 0
        for peer in peers[start:] + peers[:start]:
            measured[peer.name].append(peer.run(steps))
        print(f"train_step: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return measured


def summarise(
    job: Job, measured: Rounds, left_out: Mapping[str, str], plan: Mapping[str, int]
) -> Result:
    """Reduce the rounds to figures, ratios and checks."""
    speeds = {
        name: [len(a["seconds"]) * job.batch_size / sum(a["seconds"]) for a in answers]
        for name, answers in measured.items()
    }
    versions = list_versions()
    for answers in measured.values():
        versions |= answers[-1]["facts"].get("versions", {})
    return Result(
        name="train_step",
        question=QUESTION.format(**asdict(job)),
        command="python -m benchmarks train_step",
        figures={name: _figures(measured[name], speeds[name]) for name in measured},
        ratios=_ratios(speeds),
        left_out=left_out,
        checks=_checks(measured),
        settings={**asdict(job), **plan},
        versions=versions,
    )


def _figures(answers: list[dict[str, Any]], speeds: list[float]) -> dict[str, object]:
    milliseconds = [1e3 * second for answer in answers for second in answer["seconds"]]
    facts = {key: fact for key, fact in answers[-1]["facts"].items() if key != "versions"}
    return {
        "speed": spread(speeds, "samples/s", digits=0),
        "step": spread(milliseconds, "ms", digits=2),
        "slowest step": {"value": round(max(milliseconds), 2), "unit": "ms"},
        "last loss": round(float(np.mean(answers[-1]["losses"])), 4),
        **facts,
    }


def _ratios(speeds: Mapping[str, list[float]]) -> dict[str, object]:
    ratios: dict[str, object] = {}
    for ours, theirs, aim in RATIOS:
        if ours in speeds and theirs in speeds:
            per_round = [a / b for a, b in zip(speeds[ours], speeds[theirs], strict=True)]
            ratio = spread(per_round, "")
            if aim is not None:
                ratio |= {"aim": aim, "met": bool(np.median(per_round) >= aim)}
            ratios[f"{ours} / {theirs}"] = ratio
    return ratios


def _checks(measured: Rounds) -> dict[str, bool]:
    """Each engine learned something, and engines with the same rule learned the same."""
    checks = {}
    for group in SAME_RULE:
        present = [name for name in group if name in measured]
        first = {name: float(np.mean(measured[name][0]["losses"])) for name in present}
        last = {name: float(np.mean(measured[name][-1]["losses"])) for name in present}
        for name in present:
            checks[f"the loss of {name} falls"] = last[name] < first[name]
        for name in present[1:]:
            apart = abs(last[name] / last[present[0]] - 1.0)
            checks[f"{name} ends at the loss of {present[0]}"] = apart <= LOSS_TOLERANCE
    return checks
