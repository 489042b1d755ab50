"""How well the model learned: loss, evaluation and calibration."""

from __future__ import annotations

import math

from downpour.metrics import CalibrationBin, calibration_error
from downpour.report.charts import (
    SPREAD_FROM,
    WIDE,
    Line,
    Rate,
    curve_chart,
    gaps_chart,
    rates_chart,
)
from downpour.report.lines import lines_chart, named_points
from downpour.report.parts import (
    Chart,
    Grid,
    Metrics,
    epochs_of,
    evaluation_names,
    kept_model,
    metric_label,
    why_not_evaluated,
)
from downpour.report.rounds import span_name
from downpour.report.values import (
    Point,
    compact_text,
    count_text,
    mapping,
    number,
    percent_text,
    plural,
    points,
    score_text,
    seconds_text,
    sequence,
)

OTHER_CURVES = ("loss", "rows", "bytes", "samples_per_s")


def learning_charts(metrics: Metrics) -> list[Chart]:
    """The loss over the run, and what evaluation said of it."""
    curves = mapping(metrics.get("curves"))
    names = [name for name in curves if name not in OTHER_CURVES and points(curves[name])]
    return [
        _loss_chart(points(curves.get("loss")), _epoch_ends(metrics), span_name(metrics)),
        *(
            _evaluation_chart(name, points(curves.get(name)), why_not_evaluated(metrics))
            for name in names or ("auc", "logloss")
        ),
        *_training_charts(curves),
    ]


def _training_charts(curves: Metrics) -> list[Chart]:
    """Learning rates and gradient norms; none where metrics.json is of before they were noted."""
    charts = []
    for name, title, note in (
        ("learning_rate", "Learning rate", ""),
        ("gradient_norm", "Gradient norm", "Of dense tables, before clipping."),
    ):
        if name in curves:
            absent = f"No {title.lower()} was recorded."
            lines = named_points(curves.get(name))
            charts.append(
                lines_chart(title, lines, compact_text, compact_text, absent=absent, note=note)
            )
    return charts


def epoch_grid(metrics: Metrics) -> Grid | None:
    """One row per epoch; that of the best evaluation is set apart."""
    epochs = epochs_of(metrics)
    if not epochs:
        return None
    evaluations = [mapping(epoch.get("eval")) for epoch in epochs]
    names = [
        name
        for name in evaluation_names(*evaluations)
        if name == "auc" or any(number(each.get(name)) is not None for each in evaluations)
    ]
    losses = list(dict.fromkeys(name for epoch in epochs for name in mapping(epoch.get("losses"))))
    losses = losses if len(losses) > 1 else []
    rows = tuple(
        (
            count_text(number(epoch.get("epoch")) or place),
            *(count_text(number(epoch.get(name))) for name in ("steps", "samples")),
            seconds_text(number(epoch.get("seconds"))),
            count_text(number(epoch.get("samples_per_s"))),
            score_text(number(epoch.get("loss"))),
            *(score_text(number(mapping(epoch.get("losses")).get(name))) for name in losses),
            *(score_text(number(evaluation.get(name))) for name in names),
        )
        for place, (epoch, evaluation) in enumerate(zip(epochs, evaluations, strict=True), start=1)
    )
    best, note = _best_epoch(metrics)
    columns = ("Epoch", "Steps", "Samples", "Time", "Samples / s", "Loss")
    return Grid(
        columns=(*columns, *(f"Loss: {name}" for name in losses), *map(metric_label, names)),
        rows=rows,
        best=best,
        note=note,
    )


def _best_epoch(metrics: Metrics) -> tuple[int | None, str]:
    """The place of the epoch with the best evaluation, and what is said of it.

    The best is by the run's early stop, or by AUC where it has none.
    """
    epochs, best = epochs_of(metrics), mapping(metrics.get("best"))
    numbers = [number(epoch.get("epoch")) for epoch in epochs]
    if number(best.get("epoch")) in numbers and number(best.get("epoch")) is not None:
        place, metric = numbers.index(number(best.get("epoch"))), str(best.get("metric"))
    else:
        aucs = [number(mapping(epoch.get("eval")).get("auc")) for epoch in epochs]
        known = [auc for auc in aucs if auc is not None]
        if len(known) < 2:
            return None, ""
        place, metric = aucs.index(max(known)), "auc"
    note = f"Set apart: the epoch of the best {metric_label(metric)}"
    model = kept_model(metrics)
    if not model:
        return place, f"{note}."
    if model.get("is_best"):
        return place, f"{note}, whose model is kept."
    last = "" if place == len(epochs) - 1 else "; the model kept is that of the last step"
    return place, f"{note}{last}."


def calibration_charts(metrics: Metrics) -> tuple[str, list[Chart]]:
    """A sentence on how far scores are from rates, and the two drawings of it."""
    read = map(_bin, sequence(metrics.get("calibration")))
    bins = [each for each in read if each is not None]
    if not bins:
        return "No calibration was recorded: it needs evaluation data with 0/1 labels.", []
    rates = [
        Rate(
            predicted=b.predicted,
            actual=b.actual,
            error=math.sqrt(max(b.actual * (1 - b.actual), 0) / b.count),
        )
        for b in bins
    ]
    error = calibration_error(bins)
    lead = (
        f"Held-back samples in {plural(len(bins), 'bin')} by rising score. On average over "
        f"samples, a bin's mean score is {percent_text(error).removesuffix(' %')} percentage "
        "points from its actual rate."
    )
    return lead, [
        Chart(
            title="Actual rate by predicted rate",
            note="Bars: two standard errors. Dashed: perfect calibration.",
            svg=rates_chart("Actual rate by predicted rate", rates),
        ),
        Chart(
            title="Actual minus predicted",
            note="Percentage points in each bin, from the lowest scores to the highest.",
            svg=gaps_chart("Actual minus predicted rate in each bin", rates),
        ),
    ]


def _loss_chart(loss: list[Point], epoch_ends: list[float], span: str) -> Chart:
    if not loss:
        return Chart(title="Training loss", absent="No loss was recorded.", is_wide=True)
    boundaries = epoch_ends[:-1] if len(epoch_ends) <= 20 else []
    svg = curve_chart(
        "Training loss over steps",
        [Line(points=loss, is_noisy=True)],
        x_label="step",
        size=WIDE,
        boundaries=boundaries,
        end_text=score_text,
    )
    notes = [
        "Mean over a moving window; the band holds the middle 80 % of the values."
        if len(loss) >= SPREAD_FROM
        else "",
        f"Dotted: ends of {span}s." if boundaries else "",
    ]
    return Chart(title="Training loss", note=" ".join(filter(None, notes)), svg=svg, is_wide=True)


def _evaluation_chart(name: str, curve: list[Point], why_not: str) -> Chart:
    title = metric_label(name)
    if not curve:
        return Chart(title=title, absent=f"No {title} was recorded: {why_not}.")
    note = "Held-back data."
    if name != "copc":  # which is best at 1
        best = (min if "loss" in name or name in ("rmse", "mae") else max)(y for _, y in curve)
        step = next(x for x, y in curve if y == best)
        note += f" Best: {score_text(best)} at step {count_text(step)}."
    svg = curve_chart(
        f"{title} over steps", [Line(points=curve)], x_label="step", end_text=score_text
    )
    return Chart(title=title, note=note, svg=svg)


def _epoch_ends(metrics: Metrics) -> list[float]:
    ends, step = [], 0.0
    for epoch in epochs_of(metrics):
        step += number(epoch.get("steps")) or 0.0
        ends.append(step)
    return ends


def _bin(value: object) -> CalibrationBin | None:
    read = [number(mapping(value).get(name)) for name in ("predicted", "actual", "count")]
    predicted, actual, count = read
    if predicted is None or actual is None or not count or count < 0:
        return None
    return CalibrationBin(predicted=predicted, actual=actual, count=count)
