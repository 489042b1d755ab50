"""The top of the report: how the run ended, and its key figures."""

from __future__ import annotations

from downpour.report.parts import (
    KeyFigure,
    Metrics,
    epoch_total,
    epochs_of,
    evaluation_names,
    kept_model,
    metric_label,
    row_bytes,
    tables_of,
)
from downpour.report.rounds import rounds_of, span_name
from downpour.report.values import (
    bytes_text,
    compact_text,
    count_text,
    mapping,
    number,
    plural,
    ratio,
    score_text,
    seconds_text,
    total,
)

STOPPED = {
    "finished": ("Finished", "Trained to its end in {time}"),
    "early_stop": ("Early stop", "Stopped after {time}, as evaluation no longer improved"),
    "interrupted": ("Interrupted", "Interrupted after {time}"),
}
FAILED = "failed: "


def status(metrics: Metrics) -> tuple[str, str]:
    """How the run ended, in a word and in a sentence with its size."""
    stopped = str(metrics.get("stopped"))
    word, how = STOPPED.get(stopped, ("Unknown end", "Trained for {time}"))
    why = ""
    if stopped.startswith(FAILED):
        word, how, why = "Failed", "Failed after {time}", f" {stopped.removeprefix(FAILED)}"
    name, spans = span_name(metrics), rounds_of(metrics) or epochs_of(metrics)
    if not spans:
        return word, " ".join(filter(None, [f"Not one {name} was finished.{why}", _kept(metrics)]))
    kept = _kept(metrics)
    if stopped == "interrupted" and not kept:
        how += "; what was trained is kept"
    steps, samples, seconds = (
        epoch_total(metrics, name) for name in ("steps", "samples", "seconds")
    )
    sizes = f"{plural(len(spans), name)}, {plural(steps, 'step')}, {plural(samples, 'sample')}"
    told = f"{how.format(time=seconds_text(seconds))}: {sizes}.{why}"
    return word, " ".join(filter(None, [told, kept]))


def _kept(metrics: Metrics) -> str:
    """Which model the folder has, where it is not that of the run's end."""
    model, best = kept_model(metrics), mapping(metrics.get("best"))
    if "model" in metrics and not model:
        earlier = "; model/ is that of an earlier run" if metrics.get("has_earlier_model") else ""
        return f"No model of this run was saved{earlier}."
    if not model.get("is_best"):
        return ""
    step, epoch = (count_text(number(model.get(name))) for name in ("step", "epoch"))
    value = f"{metric_label(str(best.get('metric')))} {score_text(number(best.get('value')))}"
    return f"Its model is that of the best evaluation: {value} after step {step}, epoch {epoch}."


def key_figures(metrics: Metrics) -> list[KeyFigure]:
    """What one looks for first: how good, how fast, how large."""
    tables = tables_of(metrics)
    sparse = [table for table in tables.values() if number(table.get("rows")) is not None]
    rows = total([number(table.get("rows")) for table in sparse])
    known = [(number(table.get("rows")), row_bytes(table)) for table in sparse]
    each = ratio(total([size * num for num, size in known if num and size]), rows)
    memory = total([number(table.get("bytes")) for table in tables.values()])
    step_seconds = ratio(epoch_total(metrics, "seconds"), epoch_total(metrics, "steps"))
    return [
        *evaluation_figures(mapping(metrics.get("final"))),
        KeyFigure(
            label="Samples a second",
            value=count_text(number(metrics.get("samples_per_s"))),
            note=f"{seconds_text(step_seconds)} a step" if step_seconds else "",
        ),
        KeyFigure(
            label="Rows",
            value=count_text(rows) if rows is None or rows < 1e7 else compact_text(rows),
            note=f"{bytes_text(each)} each" if each else "",
        ),
        KeyFigure(
            label="Table memory",
            value=bytes_text(memory),
            note=f"in {plural(len(tables), 'table')}" if tables else "",
        ),
    ]


def evaluation_figures(final: Metrics) -> list[KeyFigure]:
    """The first three metrics of the final evaluation; a click model's where there was none."""
    notes = {"auc": _auc_note, "logloss": _logloss_note, "copc": _copc_note}
    names = evaluation_names(final)
    if "rmse" in names:  # labels other than 0 and 1, for which some are not defined
        names = [name for name in names if number(final.get(name)) is not None] or names
    names = names[:3] or list(notes)
    return [
        KeyFigure(
            label=metric_label(name),
            value=score_text(number(final.get(name))),
            note=notes[name](final) if name in notes and final else "",
        )
        for name in names
    ]


def _auc_note(final: Metrics) -> str:
    num_samples = number(final.get("samples"))
    if not num_samples:
        return ""
    held_back = f"on {plural(num_samples, 'held-back sample')}"
    return f"none: {held_back} of one class" if number(final.get("auc")) is None else held_back


def _logloss_note(final: Metrics) -> str:
    bucketed = number(final.get("auc_bucketed"))
    return "" if bucketed is None else f"bucketed AUC {score_text(bucketed)}"


def _copc_note(final: Metrics) -> str:
    copc = number(final.get("copc"))
    if not copc:
        return "clicks over predicted clicks"
    gap = 100 * (1 / copc - 1)
    if abs(gap) < 0.05:
        return "predicts as many clicks as came"
    return f"predicts {abs(gap):.1f} % too {'many' if gap > 0 else 'few'} clicks"
