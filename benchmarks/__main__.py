"""`python -m benchmarks [QUESTION ...]`: measure, print, save, and rebuild docs/benchmarks.md."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.grids import make_grids
from benchmarks.page import PAGE, rebuild_page
from benchmarks.peers import PeerError
from benchmarks.results import FOLDER, Result
from benchmarks.script import run_script
from downpour.errors import DownpourError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TABLES = "How fast are a sparse table's kernels beside `np.take` on rows of the same width?"
CTR_TABLE = (
    "What do rows with statistics and an embedx of their own cost beside plain rows of as many "
    "weights, at 1 million keys in batches of 100,000?"
)
GROWTH = "What does a batch cost while a table grows from empty to 50 million keys?"


def run_module(name: str, *, quick: bool) -> Result:
    """Answer by the `run` of benchmarks/NAME.py, whose torch is not imported before."""
    result: Result = importlib.import_module(f"benchmarks.{name}").run(quick=quick)
    return result


QUESTIONS: dict[str, Callable[..., Result]] = {
    "tables": partial(run_script, "tables", TABLES),
    "ctr_table": partial(run_script, "ctr_table", CTR_TABLE),
    "growth": partial(run_script, "growth", GROWTH),
    "planning": partial(run_module, "planning"),
    "startup": partial(run_module, "startup"),
    "train_step": partial(run_module, "train_step"),
    "servers": partial(run_module, "servers"),
    "federated": partial(run_module, "federated"),
    "quality_movielens": partial(run_module, "quality_movielens"),
    "quality_gowalla": partial(run_module, "quality_gowalla"),
}


def main() -> int:
    """Answer the questions asked for; 1 if one failed or a check did not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(QUESTIONS))
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing saved: a trial")
    asked = parser.parse_args()
    unknown = set(asked.questions) - set(QUESTIONS)
    if unknown:
        parser.error(f"unknown questions {sorted(unknown)}; there are {', '.join(QUESTIONS)}")
    console = Console()
    good = [answer(name, asked.quick, console) for name in asked.questions or QUESTIONS]
    if not asked.quick:
        rebuild_page(FOLDER, PAGE)
        console.print(f"{_shown(PAGE)} is rebuilt from {_shown(FOLDER)}/*.json")
    return 0 if all(good) else 1


def answer(name: str, quick: bool, console: Console) -> bool:
    """Measure one question, print and save it; whether it ran and its checks hold."""
    try:
        result = QUESTIONS[name](quick=quick)
    except (subprocess.CalledProcessError, PeerError, DownpourError) as error:
        console.print(f"[red]{name} failed[/red]: {error}")
        return False
    show(result, console)
    if not quick:
        console.print(f"saved to {_shown(result.save(FOLDER))}\n")
    return all(result.checks.values())


def show(result: Result, console: Console) -> None:
    """Print a result as tables."""
    console.rule(f"{result.name}", align="left")
    console.print(result.question)
    for title, figures in (("ratio", result.ratios), ("figure", result.figures)):
        for grid in make_grids(title, figures):
            table = Table(*grid.head, box=box.SIMPLE_HEAD, pad_edge=False)
            for row in grid.rows:
                table.add_row(*row)
            console.print(table)
    for name, why in result.left_out.items():
        console.print(f"left out: {name} ({why})", style="yellow")
    for name, passed in result.checks.items():
        if not passed:
            console.print(f"check failed: {name}", style="red")


def _shown(path: Path) -> str:
    return str(path.relative_to(FOLDER.parents[1]))


if __name__ == "__main__":
    sys.exit(main())
