"""The benchmarks' own arithmetic and pages; nothing here measures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmarks.__main__ import answer
from benchmarks.grids import make_grids, number
from benchmarks.page import place, rebuild_page
from benchmarks.results import Result, spread
from benchmarks.train_step import summarise
from benchmarks.train_step_job import Job, load_batches, make_batches, save_batches


def make_result(**changes: Any) -> Result:
    return Result(
        **{"name": "tables", "question": "How fast?", "command": "run", "figures": {"a": 1}}
        | changes
    )


def test_result_is_the_same_after_its_file(tmp_path: Path) -> None:
    result = make_result(ratios={"a / b": spread([1.0, 2.0, 4.0], "")}, left_out={"c": "not here"})
    assert Result.load(result.save(tmp_path)) == result


def test_machine_names_no_host() -> None:
    machine = make_result().machine
    assert set(machine) == {"cpu", "cores", "memory_gib", "system", "load_before"}


def test_spread_is_median_and_quartiles() -> None:
    measured = spread([1.0, 2.0, 3.0, 4.0, 5.0], "s")
    assert (measured["low"], measured["value"], measured["high"]) == (2.0, 3.0, 4.0)


def test_page_keeps_the_prose_around_its_tables(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "page.md"
    make_result().save(tmp_path)
    rebuild_page(tmp_path, page)
    page.write_text("before\n" + page.read_text() + "after\n")
    make_result(figures={"a": 2}).save(tmp_path)
    rebuild_page(tmp_path, page)
    text = page.read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "| a | 2 |" in text
    assert "| a | 1 |" not in text


def test_placing_a_result_twice_changes_nothing() -> None:
    result = make_result()
    once = place("# Benchmarks\n", result)
    assert place(once, result) == once


def test_mappings_of_the_same_things_make_one_table() -> None:
    figures = {"x": {"speed": 1, "phases": {"pull": 2}}, "y": {"speed": 3, "phases": {"pull": 4}}}
    speed, phases = make_grids("figure", figures)
    assert speed.rows == [["x", "1"], ["y", "3"]]
    assert phases.head == ["figure, phases", "pull"]
    assert phases.rows == [["x", "2"], ["y", "4"]]


def test_other_figures_are_a_list_without_curves() -> None:
    figures = {"a": {"b": 1}, "c": 2, "curve": list(range(100))}
    (grid,) = make_grids("figure", figures)
    assert grid.rows == [["a: b", "1"], ["c", "2"]]


@pytest.mark.parametrize(
    ("value", "text"), [(1.2, "1.20"), (117.4, "117"), (True, "True"), (12_345, "12\u202f345")]
)
def test_number_shows_what_matters(value: object, text: str) -> None:
    assert number(value) == text


def test_job_and_batches_travel_through_files(tmp_path: Path) -> None:
    job = Job(batch_size=8, num_features=3, num_ids=50, num_batches=2)
    batches = make_batches(job)
    job.save(tmp_path)
    save_batches(batches, tmp_path)
    assert Job.load(tmp_path) == job
    for saved, made in zip(load_batches(tmp_path), batches, strict=True):
        np.testing.assert_array_equal(saved, made)
    assert batches.ids.shape == (2, 8, 3)
    assert batches.ids.min() >= 0
    assert batches.ids.max() < 50


def test_ratios_are_taken_within_a_round() -> None:
    def answers(*seconds: float, loss: float = 0.4) -> list[dict[str, Any]]:
        return [
            {"seconds": [s], "losses": [0.7 if n == 0 else loss], "facts": {}}
            for n, s in enumerate(seconds)
        ]

    measured = {
        "downpour Adagrad": answers(1.0, 2.0, 4.0),
        "torch Adagrad": answers(2.0, 4.0, 8.0, loss=0.5),
    }
    result = summarise(Job(), measured, {}, {"rounds": 3})
    ratio: Any = result.ratios["downpour Adagrad / torch Adagrad"]
    assert (ratio["low"], ratio["value"], ratio["high"], ratio["met"]) == (2.0, 2.0, 2.0, True)
    assert result.checks["the loss of torch Adagrad falls"]
    assert not result.checks["downpour Adagrad ends at the loss of torch Adagrad"]
    json.dumps(result.ratios)


def test_missing_data_is_said_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOWNPOUR_DATA", str(tmp_path))
    console = Console(record=True, width=500)
    assert not answer("quality_gowalla", quick=True, console=console)
    assert "quality_gowalla failed" in (text := console.export_text())
    assert "train.txt.gz or test.txt.gz is missing" in text
