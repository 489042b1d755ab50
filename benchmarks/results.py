"""The answer to one question, and its file."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.machine import describe_machine, list_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What one question measured.

    `figures` and `ratios` map a name to a number, or to a mapping with `value`, `unit`, and
    where there were rounds `low` and `high` (their quartiles); they may be nested. `left_out`
    maps what was not measured to why. `checks` are promises that the run itself tested.
    """

    name: str
    question: str
    command: str
    figures: Mapping[str, object]
    ratios: Mapping[str, object] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    checks: Mapping[str, bool] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    machine: Mapping[str, object] = field(default_factory=describe_machine)
    versions: Mapping[str, str] = field(default_factory=list_versions)
    date: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")

    def save(self, folder: Path) -> Path:
        """Write NAME.json into the folder, made if it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path

    @staticmethod
    def load(path: Path) -> Result:
        return Result(**json.loads(path.read_text()))


def print_answer(run: Callable[..., object], about: str | None) -> None:
    """The `main` of a question that is a script: print the figures as JSON."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    print(json.dumps(run(quick=parser.parse_args().quick), indent=1))


def spread(values: list[float], unit: str, digits: int = 3) -> dict[str, object]:
    """Return the median of some rounds' values with their quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {
        "value": round(float(middle), digits),
        "low": round(float(low), digits),
        "high": round(float(high), digits),
        "unit": unit,
        "rounds": len(values),
    }
