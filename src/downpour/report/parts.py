"""The pieces a report is made of, and where metrics.json holds what several of them need."""

from __future__ import annotations

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


def metric_label(name: str) -> str:
    """What the report calls a metric; those it does not know keep their name."""
    labels = {"auc": "AUC", "logloss": "Log loss", "copc": "COPC", "rmse": "RMSE", "mae": "MAE"}
    return labels.get(name, name)
