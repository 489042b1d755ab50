"""The pieces a report is made of, and where metrics.json holds what several of them need."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from downpour.report.values import mapping, number, sequence, total

Metrics = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyFigure:
    """One large number at the top."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A drawing, or where there is nothing to draw the sentence that says why."""

    title: str
    note: str = ""
    svg: str = ""
    absent: str = ""
    legend: tuple[tuple[str, str], ...] = ()  # a name and a value for each line, in colour order
    is_wide: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A table of texts: the first column names the row, the others are numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: int | None = None  # the row to set in bold
    shares: tuple[float, ...] = ()  # a bar in [0, 1] for each row
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A part of the time: its share in [0, 1] and the number of its colour from 1."""

    name: str
    seconds: str
    share: float
    percent: str
    per_step: str
    color: int


def epochs_of(metrics: Metrics) -> list[Metrics]:
    """What is known of each epoch."""
    return [epoch for epoch in map(mapping, sequence(metrics.get("epochs"))) if epoch]


def epoch_total(metrics: Metrics, name: str) -> float | None:
    """The sum of one number over the epochs, None where nothing is known."""
    return total([number(epoch.get(name)) for epoch in epochs_of(metrics)])


def mappings(value: object) -> dict[str, Metrics]:
    """The named mappings in a mapping, without empty ones."""
    return {str(name): mapping(each) for name, each in mapping(value).items() if mapping(each)}


def tables_of(metrics: Metrics) -> dict[str, Metrics]:
    """What is known of each table."""
    return mappings(metrics.get("tables"))


def phase_seconds(metrics: Metrics) -> dict[str, float | None]:
    """The time of each phase in seconds."""
    return {str(n): number(s) for n, s in mapping(metrics.get("phases_s")).items()}


def evaluation_names(*evaluations: Metrics) -> list[str]:
    """The metrics in evaluations, in their own order, without those told beside another."""
    names = dict.fromkeys(name for evaluation in evaluations for name in evaluation)
    return [str(name) for name in names if name not in ("auc_bucketed", "samples", "seconds")]


def row_bytes(table: Metrics) -> float | None:
    """What a row of a sparse table takes, with its key and its rule's state, on average.

    The table's memory is more: it has the index as well, and is taken in pages.
    """
    rows, size = number(table.get("rows")), number(table.get("row_bytes"))
    if not rows or size is None:
        return None
    embedx = (number(table.get(name)) or 0.0 for name in ("embedx_rows", "embedx_bytes"))
    return size + math.prod(embedx) / rows


def why_not_evaluated(metrics: Metrics) -> str:
    """Why there is no result of an evaluation, to be said after a colon."""
    settings, stopped = mapping(metrics.get("settings")), str(metrics.get("stopped"))
    evaluations = [mapping(epoch.get("eval")) for epoch in epochs_of(metrics)]
    if any(evaluations) or mapping(metrics.get("final")):
        return "it was not defined, as where all labels are of one class"
    if "eval_data" in settings and settings["eval_data"] is None and not settings.get("evaluate"):
        return "the run has no evaluation data"
    if stopped == "interrupted":
        return "the run was interrupted before its first evaluation"
    if stopped.startswith("failed"):
        return "the run failed before its first evaluation"
    return "there was no evaluation"


def kept_model(metrics: Metrics) -> Metrics:
    """What metrics.json says of the model in the folder, if it is this run's."""
    return mapping(metrics.get("model"))


def metric_label(name: str) -> str:
    """What the report calls a metric; those it does not know keep their name."""
    labels = {"auc": "AUC", "logloss": "Log loss", "copc": "COPC", "rmse": "RMSE", "mae": "MAE"}
    return labels.get(name, name)
