"""The rounds of a federation: who was sampled and heard from, and what came of it."""

from __future__ import annotations

from downpour.report.charts import Line, curve_chart
from downpour.report.parts import (
    Chart,
    Grid,
    Metrics,
    kept_model,
    metric_label,
    why_not_evaluated,
)
from downpour.report.values import (
    NOTHING,
    Point,
    bytes_text,
    count_text,
    mapping,
    number,
    percent_text,
    plural,
    score_text,
    seconds_text,
    sequence,
)
from downpour.sizes import bytes_unit

MAX_DROPPED = 20
NOT_COUNTED = "Not counted: too few clients were heard from for a quorum, so nothing was applied."
BYTES_NOTE = "Sent and received: by the clients heard from."


def rounds_of(metrics: Metrics) -> list[Metrics]:
    """What is known of each round; none where the run was no federation."""
    return [each for each in map(mapping, sequence(metrics.get("rounds"))) if each]


def span_name(metrics: Metrics) -> str:
    """What a run's epochs are called: "round" of a federation, else "epoch"."""
    return "round" if rounds_of(metrics) or _federation(metrics) else "epoch"


def lead(metrics: Metrics) -> str:
    """How the federation was set up, as far as is known."""
    federation = _federation(metrics)
    clients, method = number(federation.get("clients")), federation.get("method")
    fraction, quorum = (number(federation.get(name)) for name in ("fraction", "quorum"))
    deadline_s = number(federation.get("deadline_s"))
    of_whom = "" if clients is None else f" of {plural(clients, 'client')}"
    # Without the method's own settings, which stand under Setup.
    by_what = f" by {method.partition('(')[0]}" if isinstance(method, str) and method else ""
    sentences = [
        f"A federation{of_whom}{by_what}." if of_whom or by_what else "",
        "" if fraction is None else f"Sampled: {percent_text(fraction)} of those present.",
        "" if quorum is None else f"Quorum: {percent_text(quorum)} of those sampled.",
        "" if deadline_s is None else f"Deadline: {seconds_text(deadline_s)}.",
    ]
    return " ".join(filter(None, sentences)) or "No setting of the federation was recorded."


def round_grid(metrics: Metrics) -> Grid | None:
    """One row per round; the best one is set apart, and those not counted are marked."""
    rounds = rounds_of(metrics)
    if not rounds:
        return None
    best, said = _set_apart(metrics, rounds)
    has_uncounted = not all(map(_is_counted, rounds))
    notes = [
        said,
        NOT_COUNTED if has_uncounted else "",
        BYTES_NOTE,
    ]
    return Grid(
        columns=(
            *("Round", "Sampled", "Heard from", "Dropped", "Samples", "Loss"),
            *(metric_label(name) for name in ("auc", "logloss")),
            *("Sent", "Received", "Time"),
        ),
        rows=tuple(_row(each, place) for place, each in enumerate(rounds, start=1)),
        best=best,
        note=" ".join(filter(None, notes)),
    )


def round_charts(metrics: Metrics) -> list[Chart]:
    """AUC and bytes sent, by round."""
    rounds = rounds_of(metrics)
    return [_auc_chart(rounds, why_not_evaluated(metrics)), _sent_chart(rounds)]


def dropped_clients(metrics: Metrics) -> list[str]:
    """A sentence for each dropped client of each round; at most MAX_DROPPED, then how many more."""
    sentences = [
        f"Round {_name(each, place)}: client {client} was dropped" + (f": {why}" if why else "")
        for place, each in enumerate(rounds_of(metrics), start=1)
        for client, why in mapping(each.get("dropped")).items()
    ]
    num_more = len(sentences) - MAX_DROPPED
    more = [f"And {count_text(num_more)} more."] if num_more > 0 else []
    return [*sentences[:MAX_DROPPED], *more]


def _row(each: Metrics, place: int) -> tuple[str, ...]:
    """The texts of one round, by `round_grid`'s columns."""
    return (
        _name(each, place) + ("" if _is_counted(each) else " (not counted)"),
        *(_size_text(each.get(name)) for name in ("sampled", "heard_from", "dropped")),
        count_text(number(each.get("samples"))),
        *(score_text(number(each.get(name))) for name in ("loss", "auc", "logloss")),
        *(bytes_text(number(each.get(name))) for name in ("bytes_sent", "bytes_received")),
        seconds_text(number(each.get("seconds"))),
    )


def _auc_chart(rounds: list[Metrics], why_not: str) -> Chart:
    title = "AUC by round"
    curve = _points(rounds, "auc")
    if not curve:
        return Chart(title=title, absent=f"No {title} was recorded: {why_not}.")
    note, best = "Held-back data.", _best_round(rounds)
    if best is not None:
        auc = score_text(number(rounds[best].get("auc")))
        note += f" Best: {auc} in round {_name(rounds[best], best + 1)}."
    svg = curve_chart("AUC over rounds", [Line(points=curve)], x_label="round", end_text=score_text)
    return Chart(title=title, note=note, svg=svg)


def _sent_chart(rounds: list[Metrics]) -> Chart:
    curve = _points(rounds, "bytes_sent")
    if not curve:
        return Chart(title="Sent by round", absent="No bytes sent were recorded.")
    size, unit = bytes_unit(max(y for _, y in curve))
    svg = curve_chart(
        f"{unit} sent over rounds",
        [Line(points=[(x, y / size) for x, y in curve])],
        x_label="round",
        from_zero=True,
        end_text=lambda value: f"{value:.3g}",
    )
    note = "By all clients heard from, together."
    return Chart(title=f"Sent by round, {unit}", note=note, svg=svg)


def _set_apart(metrics: Metrics, rounds: list[Metrics]) -> tuple[int | None, str]:
    """The place of the best round, and what is said of it: by the early stop, or else by AUC."""
    best, kept = mapping(metrics.get("best")), kept_model(metrics).get("is_best")
    epoch = number(best.get("epoch"))  # a round is an epoch of its run
    if epoch is not None and 1 <= epoch <= len(rounds):
        what = f"Set apart: the round of the best {metric_label(str(best.get('metric')))}"
        return int(epoch) - 1, f"{what}{', whose model is kept' if kept else ''}."
    place = _best_round(rounds)
    return place, "" if place is None else "Set apart: the round of the best AUC."


def _best_round(rounds: list[Metrics]) -> int | None:
    """The place of the best AUC among at least two rounds that count; of equals the first."""
    aucs = [number(each.get("auc")) if _is_counted(each) else None for each in rounds]
    known = [auc for auc in aucs if auc is not None]
    return aucs.index(max(known)) if len(known) > 1 else None


def _points(rounds: list[Metrics], name: str) -> list[Point]:
    """One number of each round that has it over the round's number, by rising number."""
    read = [
        (number(each.get("round")) or place, number(each.get(name)))
        for place, each in enumerate(rounds, start=1)
    ]
    return sorted((x, y) for x, y in read if y is not None)


def _name(each: Metrics, place: int) -> str:
    return count_text(number(each.get("round")) or place)


def _is_counted(each: Metrics) -> bool:
    """Whether a quorum was heard from; so where it is not known."""
    return each.get("is_committed") is not False


def _size_text(clients: object) -> str:
    return count_text(len(clients)) if isinstance(clients, list | dict) else NOTHING


def _federation(metrics: Metrics) -> Metrics:
    return mapping(mapping(metrics.get("settings")).get("federation"))
