"""Charts of a curve for each of several tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from downpour.report.charts import SERIES, Line, curve_chart
from downpour.report.parts import Chart
from downpour.report.values import Point, mapping, points

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_LINES = len(SERIES)


def named_points(value: object) -> dict[str, list[Point]]:
    """The named curves that have points."""
    lines = {str(name): points(line) for name, line in mapping(value).items()}
    return {name: line for name, line in lines.items() if line}


def lines_chart(
    title: str,
    lines: dict[str, list[Point]],
    legend_text: Callable[[float], str],
    end_text: Callable[[float], str],
    *,
    absent: str,
    note: str = "",
) -> Chart:
    """The curves that end highest, each with its end in the legend; without any, `absent`."""
    if not lines:
        return Chart(title=title, absent=absent)
    largest = sorted(lines.items(), key=lambda item: item[1][-1][1], reverse=True)[:MAX_LINES]
    svg = curve_chart(
        f"{title} over steps",
        [Line(points=line, color=color) for color, (_, line) in enumerate(largest)],
        x_label="step",
        from_zero=True,
        end_text=end_text if len(lines) == 1 else None,
    )
    cut = f"The {MAX_LINES} largest of {len(lines)} tables." if len(lines) > MAX_LINES else ""
    legend = tuple((name, legend_text(line[-1][1])) for name, line in largest)
    return Chart(title=title, note=" ".join(filter(None, (note, cut))), svg=svg, legend=legend)
