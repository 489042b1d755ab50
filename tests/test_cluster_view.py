"""A run with servers on the terminal and in logs: the facts are there, in any width."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from downpour.cluster_report import ClusterReport, ServerReport, WorkerReport
from downpour.cluster_view import cluster_lines, cluster_table
from downpour.metrics.latency import Latency
from downpour.progress import Progress
from tests.test_progress import Clock, console


def latency(**counts_by_ms: int) -> Latency:
    """latency(ms5=3) is three requests of 5 ms."""
    made = Latency()
    for name, count in counts_by_ms.items():
        for _ in range(count):
            made.add(int(name[2:]) / 1000)
    return made


def worker(steps: int, *, rank: int = 0, state: str = "running") -> WorkerReport:
    """A worker that trained 100 samples a step at a loss of 0.5."""
    return WorkerReport(
        rank=rank, state=state, epoch=2, steps=steps, samples=100 * steps,
        losses={"click": 50.0 * steps}, pull=latency(ms2=steps), push=latency(ms50=steps),
        bytes_sent=1_500_000 * steps, bytes_received=2_500_000 * steps, retries=1,
        staleness_sum=2 * steps, staleness_count=steps, staleness_max=7, in_flight=3,
    )  # fmt: skip


def server(requests: int, *, address: str = "10.0.0.12:50123") -> ServerReport:
    """A server of a table of 12,345 rows."""
    users = {"kind": "sparse", "rows": 12_345, "bytes": 3 * 2**20}
    return ServerReport(
        shard=1, address=address, tables={"users": users}, pull=latency(ms1=requests),
        push=latency(ms10=requests), bytes_sent=10**6 * requests, bytes_received=10**6 * requests,
        duplicates=4, refused=6, in_progress=8,
    )  # fmt: skip


def cluster(steps: int) -> ClusterReport:
    return ClusterReport((worker(steps),), (server(steps),))


def shown(
    report: ClusterReport,
    earlier: ClusterReport | None = None,
    seconds: float = 10.0,
    width: int = 120,
) -> list[list[str]]:
    """The lines of the tables, each as its cells."""
    out = Console(record=True, width=width, file=io.StringIO())
    out.print(cluster_table(report, earlier, seconds))
    lines = out.export_text().splitlines()
    assert all(len(line) <= width for line in lines)
    return [re.split(r"\s{2,}", line.strip()) for line in lines if line.strip()]


def test_a_worker_has_a_line() -> None:
    lines = shown(cluster(2000))
    cells = ["0", "running", "2", "2,000", "20,000", "0.5000", "2.00/7", "3"]
    assert lines[3][:8] == cells
    assert [text.split("/")[1] for text in lines[3][8:10]] == ["2.05", "51.1"]
    assert lines[3][10] == "300/500"


def test_a_server_has_a_line() -> None:
    cells = shown(cluster(2000))[-1]
    assert cells[:5] == ["1", "10.0.0.12:50123", "12,345", "3 MiB", "8"]
    assert cells[7:] == ["200/200", "4", "6"]


def test_speeds_are_of_the_interval_and_steps_of_the_run() -> None:
    line = shown(cluster(2010), cluster(2000), seconds=5.0)[3]
    assert (line[3], line[4], line[10]) == ("2,010", "200", "3.00/5.00")


def test_latencies_are_of_the_interval() -> None:
    slow, fast = WorkerReport(rank=0, pull=latency(ms900=99)), latency(ms900=99, ms1=99)
    now = ClusterReport((WorkerReport(rank=0, pull=fast),))
    (line,) = cluster_lines(now, ClusterReport((slow,)), 1.0)
    assert "pull_p50_ms=1.00 pull_p99_ms=1.00 push_p50_ms=- push_p99_ms=-" in line


def test_a_number_that_is_not_known_is_a_dash() -> None:
    line = shown(ClusterReport((WorkerReport(rank=5, state="lost"),)), seconds=0.0)[3]
    assert line == ["5", "lost", "0", "0", "-", "-", "-", "0", "-", "-", "-"]


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_columns_are_left_out_before_any_is_cut(width: int) -> None:
    report = ClusterReport((worker(2000), worker(2000, rank=1)), (server(2000, address="ps:1"),))
    lines = shown(report, width=width)
    assert not any("\N{HORIZONTAL ELLIPSIS}" in cell for line in lines for cell in line)
    assert {"worker", "samples/s", "server", "rows"} <= {cell for line in lines for cell in line}


def test_text_of_a_server_is_no_markup() -> None:
    report = ClusterReport((), (server(1, address="[::1]:5000"), server(1, address="[red]x[/]")))
    assert [line[1] for line in shown(report)[-2:]] == ["[::1]:5000", "[red]x[/]"]


def test_a_log_has_a_line_of_key_and_value_for_each() -> None:
    of_worker, of_server = cluster_lines(cluster(2010), cluster(2000), 5.0)
    pairs = dict(pair.split("=") for pair in of_worker.split(" "))
    assert of_worker.startswith("worker=0 state=running epoch=2 step=2010 samples_per_s=200 ")
    assert (pairs["loss"], pairs["staleness_mean"], pairs["staleness_max"]) == (
        "0.5000",
        "2.00",
        "7",
    )
    assert (pairs["in_flight"], pairs["retries"], pairs["sent_mb_per_s"]) == ("3", "1", "3.00")
    pairs = dict(pair.split("=") for pair in of_server.split(" "))
    assert of_server.startswith("server=1 address=10.0.0.12:50123 rows=12345 bytes=3145728 ")
    assert (pairs["duplicates"], pairs["refused"], pairs["in_progress"]) == ("4", "6", "8")


def train(progress: Progress, clock: Clock, *, reports: int = 40) -> None:
    """One epoch, of which every 0.5 s a report of one more step comes."""
    with progress:
        progress.start_epoch(1, num_steps=40)
        for step in range(1, reports + 1):
            clock.now += 0.5
            progress.show_cluster(cluster(step))
        progress.end_epoch(seconds=20.0, loss=0.5)


def test_lines_of_workers_and_servers_follow_that_of_the_run() -> None:
    clock = Clock()
    lines, out = console(is_terminal=False, width=20)
    train(Progress(epochs=3, console=lines, every_s=5, clock=clock), clock)
    told = out.getvalue().splitlines()
    assert told[0] == "epoch 1/3  step 10/40  200 samples/s  loss 0.5000  12,345 rows"
    assert told[1].startswith("worker=0 state=running epoch=2 step=10 samples_per_s=200 ")
    assert told[2].startswith("server=1 address=10.0.0.12:50123 ")
    assert [line.split(" ")[0] for line in told[3:6]] == ["epoch", "worker=0", "server=1"]
    assert told[-1] == "epoch 1/3  40 steps in 20.0 s  loss 0.5000  12,345 rows"
    assert len(told) == 4 * 3 + 1


def test_steps_of_an_epoch_are_those_since_it_began() -> None:
    clock = Clock()
    progress = Progress(epochs=2, quiet=True, clock=clock)
    train(progress, clock)
    progress.start_epoch(2, num_steps=40)
    clock.now += 2.0
    progress.show_cluster(cluster(45))
    assert progress.state.step == 5
    assert progress.state.samples_per_s == pytest.approx(250)
    assert progress.state.rows == 12_345


def test_speed_is_of_the_last_seconds_only() -> None:
    clock = Clock()
    progress = Progress(epochs=1, quiet=True, clock=clock)
    steps = 0
    for each in [1000] * 30 + [100] * 30:
        clock.now += 1.0
        steps += each
        progress.show_cluster(ClusterReport((WorkerReport(rank=0, samples=steps),)))
    assert progress.state.samples_per_s == pytest.approx(100)


def test_a_terminal_has_the_tables_under_the_bar_while_it_goes_on() -> None:
    clock = Clock()
    terminal, out = console(is_terminal=True)
    train(Progress(epochs=3, console=terminal, clock=clock), clock)
    text = out.getvalue()
    said = "epoch 1/3  40 steps in 20.0 s  loss 0.5000  12,345 rows\n"
    frame = text[text.rindex("40/40 200 samples/s") :]
    places = [frame.index(it) for it in ("worker  state", "10.0.0.12:50123", "\x1b[?25h")]
    assert said in text
    assert places == sorted(places)
    last_lines = frame[places[-1] :].count("\x1b[1A\x1b[2K")
    assert last_lines == 1 + 4 + 1 + 4  # the bar, two tables and what is between are gone


def interrupt(progress: Progress, clock: Clock) -> None:
    with progress:
        clock.now += 1.0
        progress.show_cluster(cluster(1))
        raise KeyboardInterrupt


def test_an_interrupt_clears_the_tables_too() -> None:
    clock = Clock()
    terminal, out = console(is_terminal=True)
    with pytest.raises(KeyboardInterrupt):
        interrupt(Progress(epochs=1, console=terminal, clock=clock), clock)
    assert "10.0.0.12:50123" in out.getvalue()
    assert out.getvalue().endswith("\x1b[1A\x1b[2K")
