"""A run's folder as one page: `report.html`, which needs nothing beside it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from downpour.errors import SavedRunError
from downpour.report import learning, resources, rounds, summary
from downpour.report.values import flat_pairs, mapping

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["FORMAT", "read_metrics", "render_report", "write_report"]

FORMAT = 1
"""The newest format of metrics.json that is understood."""


def write_report(run_dir: Path, metrics: Mapping[str, Any] | None = None) -> Path:
    """Write `run_dir/report.html` from `run_dir/metrics.json`, or these metrics; give its path.

    Raises SavedRunError where metrics.json is missing, no JSON object, or of a newer format. Parts
    of it that are missing are told of in the report.
    """
    page = render_report(read_metrics(run_dir) if metrics is None else metrics)
    path = run_dir / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def read_metrics(run_dir: Path) -> dict[str, Any]:
    """The metrics.json of a run's folder; raises SavedRunError as `write_report` does."""
    path = run_dir / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise SavedRunError(
            f"{path} does not exist; a report is made of the folder that a run wrote"
        ) from None
    except ValueError as error:
        raise SavedRunError(
            f"{path} is no JSON ({error}); was the run's last write cut off?"
        ) from None
    if not isinstance(metrics, dict):
        raise SavedRunError(f"{path} must hold a JSON object, got a {type(metrics).__name__}")
    if metrics.get("format", FORMAT) != FORMAT:
        raise SavedRunError(
            f"{path} has format {metrics['format']!r}, this Downpour reads format {FORMAT}; "
            "use the version of Downpour that wrote it, or a newer one"
        )
    return metrics


def render_report(metrics: Mapping[str, Any]) -> str:
    """The page of one run, from the content of its metrics.json."""
    import jinja2

    known = dict(metrics)
    round_grid = rounds.round_grid(known)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("downpour.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    status, size = summary.status(known)
    calibration_lead, calibration_charts = learning.calibration_charts(known)
    return environment.get_template("report.html").render(
        name=str(known.get("name") or "Unnamed run"),
        stopped=str(known.get("stopped")),
        status=status,
        summary=size,
        key_figures=summary.key_figures(known),
        learning_charts=learning.learning_charts(known),
        span_name=rounds.span_name(known),
        epoch_grid=learning.epoch_grid(known),
        round_lead=rounds.lead(known),
        round_grid=round_grid,
        round_charts=rounds.round_charts(known) if round_grid else [],
        dropped_clients=rounds.dropped_clients(known),
        calibration_lead=calibration_lead,
        calibration_charts=calibration_charts,
        growth_charts=resources.growth_charts(known),
        table_grid=resources.table_grid(known),
        feature_grid=resources.feature_grid(known),
        phases=resources.phases(known),
        speed_chart=resources.speed_chart(known),
        # Clients of a federation pull once a round: steps say nothing of how old their rows were.
        staleness="" if round_grid else resources.staleness_text(known),
        settings=flat_pairs(known.get("settings")),
        versions=flat_pairs(known.get("versions")),
        machine=flat_pairs(known.get("machine")),
        plan=known["plan"] if isinstance(known.get("plan"), str) else "",
        downpour_version=str(mapping(known.get("versions")).get("downpour") or ""),
    )
