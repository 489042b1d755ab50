"""docs/benchmarks.md: the tables between its markers are made from the result files.

A question's tables stand between `<!-- generated: NAME -->` and `<!-- end: NAME -->`; what is
written around them stays. A question without markers gets a section at the end.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.grids import Grid, make_grids
from benchmarks.results import Result

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def rebuild_page(results: Path, page: Path) -> None:
    """Put every result of the folder into the page, which need not exist yet."""
    text = page.read_text() if page.exists() else "# Benchmarks\n"
    for path in sorted(results.glob("*.json")):
        text = place(text, Result.load(path))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text)


def place(text: str, result: Result) -> str:
    """Return the page's text with this result between its markers."""
    begin, end = f"<!-- generated: {result.name} -->", f"<!-- end: {result.name} -->"
    block = f"{begin}\n{render(result)}\n{end}"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: block, text)
    return f"{text.rstrip()}\n\n## {result.name.replace('_', ' ').capitalize()}\n\n{block}\n"


def render(result: Result) -> str:
    """Return the Markdown of one result."""
    return "\n".join(_lines(result)).rstrip()


def _lines(result: Result) -> Iterator[str]:
    yield f"{result.question}\n"
    for title, figures in (("ratio", result.ratios), ("figure", result.figures)):
        for grid in make_grids(title, figures):
            yield from _table(grid)
    for name, why in result.left_out.items():
        yield f"Left out: {name} ({why}).\n"
    if result.checks:
        failed = [name for name, passed in result.checks.items() if not passed]
        passed = "; ".join(name for name in result.checks if name not in failed)
        yield f"Checked: {passed or 'nothing held'}.\n"
        if failed:
            yield f"**Did not hold: {'; '.join(failed)}.**\n"
    machine = ", ".join(f"{key} {value}".replace("_", " ") for key, value in result.machine.items())
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    yield f"`{result.command}`, {result.date}; {machine}; {versions}."


def _table(grid: Grid) -> Iterator[str]:
    for row in (grid.head, ["---"] * len(grid.head), *grid.rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""
