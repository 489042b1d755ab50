"""A run with servers as people see it: a table for the terminal, a line each for logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from downpour.cluster_report import staleness
from downpour.sizes import bytes_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, ConsoleOptions

    from downpour.cluster_report import ClusterReport, ServerReport, WorkerReport
    from downpour.metrics.latency import Latency

    Fact: TypeAlias = str | int | float | None

NOTHING = "-"
ENDLESS = 10_000
STYLES = {"running": "green", "left": "dim", "lost": "red", "failed": "red"}
AT_LEFT = ("state", "address")
WORKER_COLUMNS = (
    "worker", "state", "epoch", "step", "samples/s", "loss", "stale\nmean/max", "in\nflight",
    "pull ms\np50/p99", "push ms\np50/p99", "MB/s\nout/in",
)  # fmt: skip
WORKER_EXTRAS = ("epoch", "MB/s\nout/in", "in\nflight", "loss", "step")
SERVER_COLUMNS = (
    "server", "address", "rows", "memory", "in\nprogress", "pull ms\np50/p99", "push ms\np50/p99",
    "MB/s\nout/in", "dupli-\ncates", "refused",
)  # fmt: skip
SERVER_EXTRAS = ("refused", "dupli-\ncates", "in\nprogress", "MB/s\nout/in", "memory")


class FittingTable:
    """A table that leaves columns out where the console is too narrow for all.

    extras: the columns that may be left out, the first ones first.
    """

    def __init__(self, columns: tuple[str, ...], extras: tuple[str, ...]) -> None:
        self.columns = columns
        self.extras = extras
        self.rows: list[tuple[Text, ...]] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        endless = options.update(width=ENDLESS)  # a measure never exceeds what there is
        for left_out in range(len(self.extras) + 1):
            table = self._without(self.extras[:left_out])
            if Measurement.get(console, endless, table).maximum <= options.max_width:
                break
        yield table

    def _without(self, extras: tuple[str, ...]) -> Table:
        """Numbers to the right, and no cell broken over lines."""
        table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        shown = [place for place, name in enumerate(self.columns) if name not in extras]
        for name in (self.columns[place] for place in shown):
            table.add_column(name, justify="left" if name in AT_LEFT else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*(row[place] for place in shown))
        return table


def cluster_table(report: ClusterReport, earlier: ClusterReport | None, seconds: float) -> Group:
    """A table of the workers over one of the servers.

    Rates and latencies are of the `seconds` since the earlier report, or since the start of the run
    without one; so is the mean of the staleness, while its maximum is of the whole run.
    """
    workers = FittingTable(WORKER_COLUMNS, WORKER_EXTRAS)
    servers = FittingTable(SERVER_COLUMNS, SERVER_EXTRAS)
    of_workers, of_servers = _facts(report, earlier, seconds)
    workers.rows = [tuple(_worker_cells(facts)) for facts in of_workers]
    servers.rows = [tuple(_server_cells(facts)) for facts in of_servers]
    return Group(workers, Text(), servers)


def cluster_lines(
    report: ClusterReport, earlier: ClusterReport | None, seconds: float
) -> list[str]:
    """The same as key=value, in a line for each worker and each server; "-" for what is none."""
    of_workers, of_servers = _facts(report, earlier, seconds)
    return [
        " ".join(f"{name}={_text(name, value)}" for name, value in facts.items())
        for facts in (*of_workers, *of_servers)
    ]


def worker_facts(now: WorkerReport, recent: WorkerReport, seconds: float) -> dict[str, Fact]:
    """What is shown of a worker, by name."""
    stale = staleness([recent])
    return {
        "worker": now.rank,
        "state": now.state,
        "epoch": now.epoch,
        "step": now.steps,
        "samples_per_s": _rate(recent.samples, seconds),
        "loss": recent.loss,
        "staleness_mean": stale["mean"],
        "staleness_max": stale["max"],
        "in_flight": now.in_flight,
        **_milliseconds("pull", recent.pull),
        **_milliseconds("push", recent.push),
        "sent_mb_per_s": _rate(recent.bytes_sent / 1e6, seconds),
        "received_mb_per_s": _rate(recent.bytes_received / 1e6, seconds),
        "retries": now.retries,
    }


def server_facts(now: ServerReport, recent: ServerReport, seconds: float) -> dict[str, Fact]:
    """What is shown of a server, by name."""
    return {
        "server": now.shard,
        "address": now.address or None,
        "rows": now.rows,
        "bytes": now.bytes,
        "in_progress": now.in_progress,
        **_milliseconds("pull", recent.pull),
        **_milliseconds("push", recent.push),
        "sent_mb_per_s": _rate(recent.bytes_sent / 1e6, seconds),
        "received_mb_per_s": _rate(recent.bytes_received / 1e6, seconds),
        "duplicates": now.duplicates,
        "refused": now.refused,
    }


def _facts(
    report: ClusterReport, earlier: ClusterReport | None, seconds: float
) -> tuple[list[dict[str, Fact]], list[dict[str, Fact]]]:
    """Of each worker and of each server."""
    recent = report if earlier is None else report.since(earlier)
    workers = zip(report.workers, recent.workers, strict=True)
    servers = zip(report.servers, recent.servers, strict=True)
    return (
        [worker_facts(now, of_late, seconds) for now, of_late in workers],
        [server_facts(now, of_late, seconds) for now, of_late in servers],
    )


def _worker_cells(facts: dict[str, Fact]) -> Iterator[Text]:
    """A row of the table of workers."""
    for name in ("worker", "state", "epoch", "step", "samples_per_s", "loss"):
        style = STYLES.get(str(facts[name]), "yellow") if name == "state" else ""
        yield Text(_text(name, facts[name], thousands=","), style)
    yield _pair(facts, "staleness_mean", "staleness_max")
    yield Text(_text("in_flight", facts["in_flight"], thousands=","))
    yield from _speeds(facts)


def _server_cells(facts: dict[str, Fact]) -> Iterator[Text]:
    """A row of the table of servers."""
    for name in ("server", "address", "rows"):
        yield Text(_text(name, facts[name], thousands=","))
    yield Text(bytes_text(float(facts["bytes"] or 0)))
    yield Text(_text("in_progress", facts["in_progress"], thousands=","))
    yield from _speeds(facts)
    for name in ("duplicates", "refused"):
        yield Text(_text(name, facts[name], thousands=","), "yellow" if facts[name] else "")


def _speeds(facts: dict[str, Fact]) -> Iterator[Text]:
    """What workers and servers have in common."""
    yield _pair(facts, "pull_p50_ms", "pull_p99_ms")
    yield _pair(facts, "push_p50_ms", "push_p99_ms")
    yield _pair(facts, "sent_mb_per_s", "received_mb_per_s")


def _pair(facts: dict[str, Fact], one: str, other: str) -> Text:
    """Two numbers in a cell; one sign where there is none."""
    if facts[one] is None and facts[other] is None:
        return Text(NOTHING)
    return Text(f"{_text(one, facts[one])}/{_text(other, facts[other])}")


def _text(name: str, value: Fact, *, thousands: str = "") -> str:
    """A fact as it is written, rounded to what tells."""
    if value is None:
        return NOTHING
    if isinstance(value, str):
        return value
    if name == "loss":
        return f"{value:.4f}"
    if isinstance(value, int) or value >= 99.95:
        return format(round(value), thousands)
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}"


def _milliseconds(verb: str, latency: Latency) -> dict[str, Fact]:
    """The 50th and 99th percentile in milliseconds."""
    values = {q: latency.percentile(q) for q in (50, 99)}
    return {
        f"{verb}_p{q}_ms": None if value is None else 1000 * value for q, value in values.items()
    }


def _rate(amount: float, seconds: float) -> float | None:
    """A second; None where no time has passed."""
    return amount / seconds if seconds > 0 else None
