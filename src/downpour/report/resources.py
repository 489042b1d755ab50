"""What the run took: tables, features and time."""

from __future__ import annotations

from downpour.report.charts import WIDE, Line, curve_chart
from downpour.report.lines import MAX_LINES, lines_chart, named_points
from downpour.report.parts import (
    Chart,
    Grid,
    Metrics,
    Phase,
    epoch_total,
    mappings,
    phase_seconds,
    row_bytes,
    tables_of,
)
from downpour.report.values import (
    NOTHING,
    bytes_text,
    compact_text,
    count_text,
    mapping,
    number,
    percent_text,
    plural,
    points,
    ratio,
    seconds_text,
)
from downpour.sizes import bytes_unit

NO_GROWTH = "No growth was recorded."


def growth_charts(metrics: Metrics) -> list[Chart]:
    """Rows and memory of each table over the run."""
    curves = mapping(metrics.get("curves"))
    rows, memory = named_points(curves.get("rows")), named_points(curves.get("bytes"))
    largest = max((y for line in memory.values() for _, y in line), default=0)
    size, unit = bytes_unit(largest)
    scaled = {name: [(x, y / size) for x, y in line] for name, line in memory.items()}
    return [
        lines_chart("Rows", rows, count_text, compact_text, absent=NO_GROWTH),
        lines_chart(
            f"Memory, {unit}" if memory else "Memory",
            scaled,
            lambda value: bytes_text(value * size),
            lambda value: f"{value:.3g}",
            absent=NO_GROWTH,
        ),
    ]


def table_grid(metrics: Metrics) -> Grid | None:
    """One row a table."""
    tables = tables_of(metrics)
    if not tables:
        return None
    rows = []
    for name, table in tables.items():
        size, memory = number(table.get("rows")), number(table.get("bytes"))
        load, growths = number(table.get("load")), number(table.get("growths"))
        rows.append(
            (
                name,
                str(table.get("kind", NOTHING)),
                count_text(size),
                count_text(number(table.get("size"))),
                bytes_text(memory),
                bytes_text(row_bytes(table)),
                percent_text(load),
                count_text(growths),
            )
        )
    columns = ("Table", "Kind", "Rows", "Values", "Memory", "Per row", "Index load", "Growths")
    note = "Per row: key, weights and the rule's state. Memory has the index too, and whole pages."
    return Grid(columns=columns, rows=tuple(rows), note=note)


def feature_grid(metrics: Metrics) -> Grid | None:
    """One row per feature: its keys, about how many different ones, and how many per sample."""
    features = mappings(metrics.get("features"))
    if not features:
        return None
    rows, sizes = [], []
    for name, feature in features.items():
        keys, unique = number(feature.get("keys")), number(feature.get("unique"))
        times, per_sample = ratio(keys, unique), ratio(keys, number(feature.get("samples")))
        sizes.append(keys or 0.0)
        rows.append(
            (
                name,
                count_text(keys),
                count_text(unique) if unique is None else f"about {count_text(unique)}",
                count_text(times),
                NOTHING if per_sample is None else f"{per_sample:.2f}",
            )
        )
    largest = max(sizes) or 1.0
    return Grid(
        columns=("Feature", "Keys", "Unique", "Times each", "Per sample"),
        rows=tuple(rows),
        shares=tuple(min(max(size / largest, 0.0), 1.0) for size in sizes),
    )


def phases(metrics: Metrics) -> list[Phase]:
    """Where the time went, in the order of a step."""
    seconds = {name: s for name, s in phase_seconds(metrics).items() if s is not None and s > 0}
    whole = sum(seconds.values())
    steps = epoch_total(metrics, "steps")
    colors = iter(range(1, MAX_LINES + 1))
    return [
        Phase(
            name=name,
            seconds=seconds_text(s),
            share=s / whole,
            percent=percent_text(s / whole),
            per_step=seconds_text(ratio(s, steps)),
            color=0 if name == "other" else next(colors, 0),
        )
        for name, s in seconds.items()
    ]


def speed_chart(metrics: Metrics) -> Chart:
    """Samples a second over the run."""
    speed = points(mapping(metrics.get("curves")).get("samples_per_s"))
    if not speed:
        return Chart(title="Samples a second", absent="No speed was recorded.", is_wide=True)
    svg = curve_chart(
        "Samples a second over steps",
        [Line(points=speed)],
        x_label="step",
        size=WIDE,
        from_zero=True,
        end_text=compact_text,
    )
    return Chart(title="Samples a second", svg=svg, is_wide=True)


def staleness_text(metrics: Metrics) -> str:
    """How old the pulled rows were, in a sentence; empty where nothing is known."""
    staleness = mapping(metrics.get("staleness"))
    mean, most = number(staleness.get("mean")), number(staleness.get("max"))
    if mean is None or most is None:
        return ""
    if most == 0:
        return "No pulled row was stale: each step read what the step before had written."
    return f"Pulled rows lagged {mean:.2f} steps on average, {plural(most, 'step')} at most."
