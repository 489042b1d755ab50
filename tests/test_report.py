from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import pytest

from downpour.errors import SavedRunError
from downpour.report import render_report, values, write_report
from downpour.report.charts import Line, curve_chart, moving_spread, tick_texts

if TYPE_CHECKING:
    from pathlib import Path


def run_metrics() -> dict[str, Any]:
    """A small run of two epochs with everything in it."""
    curve = [[step, 1 / step] for step in range(1, 101)]
    evaluation = {"auc": 0.75, "auc_bucketed": 0.7501, "logloss": 0.5, "copc": 0.8, "seconds": 1.0}
    epoch = {"steps": 50, "samples": 5000, "seconds": 2.0, "samples_per_s": 2500.0, "loss": 0.6}
    return {
        "format": 1,
        "name": "tiny",
        "stopped": "finished",
        "settings": {"seed": 0, "optimizer": {"lr": 0.05}, "features": ["user", "item"]},
        "versions": {"downpour": "0.1.0"},
        "machine": {"cores": 2},
        "epochs": [
            epoch | {"epoch": 1, "losses": {"click": 0.6}, "eval": evaluation},
            epoch | {"epoch": 2, "losses": {"click": 0.6}, "eval": evaluation | {"auc": 0.7812}},
        ],
        "final": evaluation | {"auc": 0.7812, "samples": 1234},
        "samples_per_s": 2500.0,
        "phases_s": {"read": 1.0, "compute": 2.5, "other": 0.5},
        "tables": {
            "embedding": {
                "kind": "sparse",
                "rows": 4321,
                "bytes": 2**20,
                "row_bytes": 40,
                "load": 0.7,
                "growths": 3,
            },
            "dense.click": {"kind": "dense", "size": 99, "bytes": 2**10},
        },
        "staleness": {"mean": 0.5, "max": 2},
        "curves": {
            "loss": curve,
            "auc": [[50, 0.75], [100, 0.7812]],
            "logloss": [[50, 0.5], [100, 0.4]],
            "rows": {"embedding": [[1, 10], [100, 4321]]},
            "bytes": {"embedding": [[1, 1000], [100, 2**20]], "dense.click": [[1, 1024]]},
            "samples_per_s": [[10, 2400], [20, 2600]],
            "learning_rate": {"embedding": [[1, 0.1], [100, 0.125]], "dense.click": [[1, 0.01]]},
            "gradient_norm": {"dense.click": [[1, 2.5], [100, 1.5]]},
        },
        "calibration": [{"predicted": 0.2, "actual": 0.25, "count": 100}] * 2,
        "features": {"user": {"keys": 20_000, "unique": 943, "samples": 10_000}},
        "plan": "program click\n  PullSparse embedding",
    }


class PageText(HTMLParser):
    """The text of a page; fails where tags do not match."""

    OPEN_ENDED = ("meta", "link")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.OPEN_ENDED:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.texts.append(data.strip())


def text_of(metrics: dict[str, Any]) -> str:
    return "\n".join(PageText(render_report(metrics)).texts)


def test_report_says_what_the_run_found(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(run_metrics()))
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    text = "\n".join(PageText(path.read_text(encoding="utf-8")).texts)
    for expected in [
        "tiny",
        "Finished",
        "Trained to its end in 4.0 s: 2 epochs, 100 steps, 10,000 samples.",
        "0.7812",
        "on 1,234 held-back samples",
        "bucketed AUC 0.7501",
        "predicts 25.0 % too many clicks",
        "40 ms a step",
        "4,321",
        "40 bytes each",
        "Per row: key, weights and the rule's state.",
        "about 943",
        "how many are different is an estimate",
        "Of dense tables, before clipping.",
        "0.125",
        "Held-back data. Best: 0.7812 at step 100.",
        "5.0 percentage points",
        "Pulled rows lagged 0.50 steps on average, 2 steps at most.",
        "21",  # times each user came
        "62.5 %",  # of the time is compute
        "optimizer.lr",
        "user, item",
        "PullSparse embedding",
    ]:
        assert expected in text


def test_report_stands_alone() -> None:
    page = render_report(run_metrics())
    assert len(page) < 100_000
    assert not re.search(
        r"https?://|@import|url\(|<script|<link(?! rel=\"icon\" href=\"data:)", page
    )
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == 11  # the mark and 10 charts


def test_charts_take_their_colours_from_the_page() -> None:
    svg = curve_chart("A <title>", [Line(points=[(1, 2), (2, 3)])], x_label="step")
    tree = ElementTree.fromstring(svg.replace("xlink:", ""))
    assert tree.get("aria-label") == "A <title>"
    assert "var(--series-1)" in svg
    assert "font-family" not in svg
    assert not re.search(r"#[0-9a-f]{6}", re.sub(r'href="[^"]*"', "", svg))


def test_ids_differ_between_charts() -> None:
    ids = re.findall(r'\bid="([^"]*)"', render_report(run_metrics()))
    assert len(ids) == len(set(ids))


def test_values_are_escaped() -> None:
    evil = "<script>alert('x')</script>"
    metrics = run_metrics() | {"name": evil, "plan": evil, "settings": {evil: evil}}
    metrics["features"] = {evil: {"keys": 1, "unique": 1, "samples": 1}}
    metrics["tables"] = {evil: {"kind": evil, "rows": 1}}
    metrics["curves"]["rows"] = {evil: [[1, 2]], "$x_{": [[1, 3]]}
    page = render_report(metrics)
    assert "<script" not in page
    assert text_of(metrics).count(evil) >= 7
    assert "$x_{" in page


def test_empty_metrics_give_sentences() -> None:
    text = text_of({})
    for expected in [
        "Unnamed run",
        "Not one epoch was finished.",
        "No loss was recorded.",
        "No AUC was recorded",
        "No calibration was recorded",
        "No growth was recorded.",
        "No table was recorded.",
        "No feature was recorded.",
        "No time by phase was recorded.",
        "No plan was recorded.",
    ]:
        assert expected in text


@pytest.mark.parametrize("part", sorted(run_metrics()))
def test_each_part_may_be_missing_or_odd(part: str) -> None:
    whole = run_metrics()
    whole |= {"curves": {}, "calibration": []}  # drawn in the other tests
    if part != "format":
        assert "run report" in text_of(whole | {part: [None, {"a": "b"}]})
        assert "run report" in text_of(whole | {part: {"a": None, "b": {"rows": "x"}}})
    assert "run report" in text_of({name: whole[name] for name in whole if name != part})


@pytest.mark.parametrize(
    "curve",
    [
        [[1, 2]],
        [[1, 5], [2, 5]],
        [[1, 0], [2, 0]],
        [[1, math.nan], [2, 1e308]],
        [[1, 1e299], [2, 1]],
        [[1, -1e-300]],
        [["a"], None, 3, [1, 2, 3], [2, True]],
    ],
)
def test_any_curve_can_be_drawn(curve: Any) -> None:
    metrics = run_metrics()
    named = {"embedding": curve}
    metrics["curves"] = {"loss": curve, "auc": curve, "rows": named, "bytes": named}
    assert "Training loss" in text_of(metrics)


def test_no_auc_of_one_class_is_told() -> None:
    metrics = run_metrics()
    metrics["final"] |= {"auc": None, "copc": 0.0}
    assert "none: on 1,234 held-back samples of one class" in text_of(metrics)


def without_evaluation(**changes: Any) -> str:
    metrics = run_metrics()
    metrics["final"], metrics["curves"] = {}, {}
    metrics["epochs"] = [{"epoch": 1, "steps": 5}]
    return text_of(metrics | changes)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"stopped": "interrupted"}, "the run was interrupted before its first evaluation"),
        ({"stopped": "failed: OSError: gone"}, "the run failed before its first evaluation"),
        ({"settings": {"eval_data": None, "evaluate": None}}, "the run has no evaluation data"),
        ({"epochs": [{"eval": {"auc": None}}]}, "it was not defined, as where all labels are of o"),
        ({}, "there was no evaluation"),
    ],
)
def test_why_there_is_no_result_is_said(changes: dict[str, Any], why: str) -> None:
    assert f"No AUC was recorded: {why}" in without_evaluation(**changes)


BEST = {"metric": "logloss", "mode": "min", "value": 0.4321, "epoch": 1, "step": 50, "undefined": 0}


@pytest.mark.parametrize(
    ("best", "model", "row", "note"),
    [
        (BEST, {"epoch": 1, "step": 50, "is_best": True}, "1", "Log loss, whose model is kept."),
        (BEST, {"epoch": 2, "step": 100, "is_best": False}, "1",
         "Log loss; the model kept is that of the last step."),
        (None, {"epoch": 2, "step": 100, "is_best": False}, "2", "best AUC."),
        (BEST | {"epoch": None}, None, "2", "best AUC."),
    ],
)  # fmt: skip
def test_the_best_epoch_is_set_apart(best: Any, model: Any, row: str, note: str) -> None:
    page = render_report(run_metrics() | {"best": best, "model": model})
    assert re.findall(r'class="best">\s*<th scope="row">([^<]*)<', page) == [row]
    assert f"Set apart: the epoch of the {'best ' if 'best' not in note else ''}{note}" in page


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"best": BEST, "model": {"epoch": 1, "step": 50, "is_best": True}},
            "Its model is that of the best evaluation: Log loss 0.4321 after step 50, epoch 1.",
        ),
        ({"model": None}, "No model of this run was saved."),
        (
            {"model": None, "has_earlier_model": True},
            "No model of this run was saved; model/ is that of an earlier run.",
        ),
    ],
)
def test_which_model_the_folder_has_is_said(changes: dict[str, Any], said: str) -> None:
    for stopped in ("finished", "interrupted", "failed: OSError: gone"):
        text = text_of(run_metrics() | changes | {"stopped": stopped})
        assert said in text
        assert "what was trained is kept" not in text


def test_a_row_counts_without_what_the_arena_has_in_stock() -> None:
    metrics = run_metrics()
    metrics["tables"] = {
        "a": {"rows": 100, "row_bytes": 48, "bytes": 2**30},
        "b": {"rows": 300, "row_bytes": 40, "embedx_rows": 30, "embedx_bytes": 80, "bytes": 2**30},
    }
    text = text_of(metrics)
    assert "48 bytes each" in text  # (100 * 48 + 300 * 40 + 30 * 80) / 400
    assert text.count("48 bytes") == 3


def test_other_metrics_show_under_their_own_names() -> None:
    metrics = run_metrics()
    metrics["final"] = {"recall_at_20": 0.1612, "samples": 10}
    metrics["epochs"] = [{"epoch": 1, "eval": {"recall_at_20": 0.1612}}]
    metrics["curves"] = {"recall_at_20": [[1, 0.1], [2, 0.1612]]}
    text = text_of(metrics)
    assert text.count("recall_at_20") == 3
    assert "AUC" not in text
    assert "Best: 0.1612 at step 2" in text


def test_many_tables_show_the_largest() -> None:
    metrics = run_metrics()
    metrics["curves"]["rows"] = {f"table_{i}": [[1, i], [2, 2 * i]] for i in range(9)}
    text = text_of(metrics)
    assert "The 6 largest of 9 tables." in text
    assert "table_3" in text
    assert "table_2" not in text


@pytest.mark.parametrize(
    ("stopped", "expected"),
    [
        ("early_stop", "Stopped after 4.0 s, as evaluation no longer improved: 2 epochs"),
        ("interrupted", "Interrupted after 4.0 s; what was trained is kept: 2 epochs"),
        (None, "Trained for 4.0 s: 2 epochs"),
    ],
)
def test_how_a_run_ended(stopped: str | None, expected: str) -> None:
    assert expected in text_of(run_metrics() | {"stopped": stopped})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "metrics.json does not exist"),
        ("{", "is no JSON"),
        ("[]", "must hold a JSON object, got a list"),
        ('{"format": 2}', "has format 2, this Downpour reads format 1"),
    ],
)
def test_unreadable_metrics_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(SavedRunError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_report_of_a_file_is_refused_as_that_of_a_folder_without_metrics(tmp_path: Path) -> None:
    (tmp_path / "run.py").touch()
    with pytest.raises(SavedRunError, match=r"run\.py/metrics\.json does not exist"):
        write_report(tmp_path / "run.py")


def test_moving_spread_of_a_ramp_is_the_ramp() -> None:
    x = np.arange(1000.0)
    places, mean, low, high = moving_spread(x, 2 * x)
    assert len(places) == 240
    inner = slice(10, -10)
    np.testing.assert_allclose(mean[inner], 2 * places[inner])
    np.testing.assert_allclose((low + high)[inner] / 2, 2 * places[inner])
    np.testing.assert_allclose((high - low)[inner], 2 * 20 * 0.8)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([0.0, 0.25, 0.5], ["0", "0.25", "0.50"]),
        ([0.0, 1000.0, 2000.0], ["0", "1,000", "2,000"]),
        ([0.0, 25_000.0], ["0", "25k"]),
        ([1e6, 1.5e6], ["1.0M", "1.5M"]),
        ([0.55, 0.555], ["0.550", "0.555"]),
        ([3.0], ["3"]),
        ([], []),
    ],
)
def test_tick_texts(places: list[float], expected: list[str]) -> None:
    assert tick_texts(places) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (values.seconds_text(0.0123), "12.3 ms"),
        (values.seconds_text(41.23), "41.2 s"),
        (values.seconds_text(725), "12 min 5 s"),
        (values.seconds_text(12_000), "3 h 20 min"),
        (values.bytes_text(123), "123 bytes"),
        (values.bytes_text(1.25 * 2**20), "1.25 MiB"),
        (values.bytes_text(1000 * 2**30), "1,000 GiB"),
        (values.compact_text(950), "950"),
        (values.compact_text(9_500), "9,500"),
        (values.compact_text(12_300), "12.3k"),
        (values.count_text(1e200), "1e+200"),
        (values.score_text(None), "\N{EN DASH}"),
        (values.plural(1, "epoch"), "1 epoch"),
    ],
)
def test_numbers_as_text(text: str, expected: str) -> None:
    assert text == expected


def test_importing_the_report_leaves_matplotlib_alone() -> None:
    code = "import sys, downpour.report; sys.exit(bool({'matplotlib', 'torch'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_drawing_leaves_matplotlibs_state_alone() -> None:
    import matplotlib as mpl

    before, has_pyplot = dict(mpl.rcParams.copy()), "matplotlib.pyplot" in sys.modules
    render_report(run_metrics())
    assert dict(mpl.rcParams.copy()) == before
    assert ("matplotlib.pyplot" in sys.modules) == has_pyplot
