"""How long does Downpour take to start, beside torch itself?

Every case is a process of its own, timed from outside, so that the interpreter counts too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import Result, spread

ROOT = Path(__file__).parents[1]
QUESTION = (
    "How long does `import downpour` take, and the first training step of a small model, with "
    "empty and with filled kernel cache, beside importing torch alone?"
)
IMPORTS = {
    "python alone": "pass",
    "import downpour": "import downpour",
    "import torch": "import torch",
    "import torch, downpour": "import torch, downpour",
}
LAZY = "import sys, downpour; sys.exit(bool({'torch', 'numba', 'pyarrow'} & set(sys.modules)))"


def run(*, quick: bool = False) -> Result:
    """Time the imports and the first steps."""
    repeats = 2 if quick else 7
    figures: dict[str, object] = {}
    for name, code in IMPORTS.items():
        figures[name] = spread([_seconds("-c", code) for _ in range(repeats)], "s")
    figures |= _first_steps(1 if quick else 3)
    lazy = subprocess.run([sys.executable, "-c", LAZY], cwd=ROOT, check=False).returncode == 0
    return Result(
        name="startup",
        question=QUESTION,
        command="python -m benchmarks startup",
        figures=figures,
        checks={"import downpour imports neither torch nor numba nor pyarrow": lazy},
    )


def _first_steps(repeats: int) -> dict[str, object]:
    """Time a process that trains two steps: kernels compiled anew, then loaded from the cache."""
    cold, warm = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(_train(cache))
            warm.append(_train(cache))
    figures: dict[str, object] = {}
    for name, runs in (("cold", cold), ("warm", warm)):
        figures[f"{name} kernel cache"] = {
            part: spread([seconds[part] for seconds in runs], "s") for part in runs[0]
        }
    return figures


def _train(cache: str) -> dict[str, float]:
    """Run benchmarks.startup_step with its kernels cached in this folder."""
    environment = os.environ | {"NUMBA_CACHE_DIR": cache}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.startup_step"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    total = time.perf_counter() - start
    parts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return parts | {"whole process": total}


def _seconds(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)
    return time.perf_counter() - start
