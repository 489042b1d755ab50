"""Questions that are scripts: their `main` prints one JSON object."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks.peers import ROOT
from benchmarks.results import Result


def run_script(name: str, question: str, *, quick: bool) -> Result:
    """Run `python -m benchmarks.NAME` and take what it prints as the result.

    The object may hold `figures`, `ratios`, `checks`, `settings`, `left_out` and `question`;
    without `figures` all of it is figures.
    """
    command = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if quick else [])]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    if "figures" not in answer:
        answer = {"figures": answer}
    parts = ("figures", "ratios", "checks", "settings", "left_out", "question")
    known = {key: answer[key] for key in parts if key in answer}
    return Result(
        **{"question": question, **known}, name=name, command=f"python -m benchmarks {name}"
    )
