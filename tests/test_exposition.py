"""Prometheus metrics over HTTP: names, labels and values, as a scraper reads them."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import prometheus_client
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as families

from downpour.cluster_report import ClusterReport, ServerReport, WorkerReport
from downpour.errors import SettingError
from downpour.exposition import MetricsServer
from downpour.metrics.latency import Latency

if TYPE_CHECKING:
    from collections.abc import Callable

OPEN = "application/openmetrics-text; version=1.0.0"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def latency(*seconds: float) -> Latency:
    made = Latency()
    for each in seconds:
        made.add(each)
    return made


REPORT = ClusterReport(
    (
        WorkerReport(
            rank=0, epoch=2, steps=10, samples=1000, pull=latency(0.001, 0.02, 0.02, 5000),
            bytes_sent=5, bytes_received=6, retries=3, staleness_sum=9, staleness_count=6,
            staleness_max=4, in_flight=2, phases_s={"read": 1.5},
        ),
        WorkerReport(rank=1, state="lost", steps=7, samples=700),
    ),
    (
        ServerReport(
            shard=0, push=latency(0.5), bytes_sent=50, bytes_received=60, duplicates=1, refused=8,
            in_progress=4, uptime_s=12.5, tables={
                'us"ers': {"kind": "sparse", "rows": 70, "bytes": 7000},
                "dense.click": {"kind": "dense", "rows": 1, "bytes": 36},
            },
        ),
    ),
)  # fmt: skip


def get(server: MetricsServer, path: str = "/metrics", accept: str = "*/*") -> str:
    url = f"http://127.0.0.1:{server.port}{path}"
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.read().decode())


def read(text: str, parse: Any = families) -> Samples:
    """Each sample by its name and labels; none may come twice."""
    samples = [sample for family in parse(text) for sample in family.samples]
    read = {(it.name, frozenset(it.labels.items())): it.value for it in samples}
    assert len(read) == len(samples)
    return read


def scraped(
    collect: Callable[[], ClusterReport] = lambda: REPORT, progress: Any = None
) -> Callable[..., float | None]:
    """Gives the value of a name without downpour_ and of labels, None where there is none."""
    with MetricsServer(0, collect, progress=progress) as server:
        samples = read(get(server))
    return lambda name, **labels: samples.get((f"downpour_{name}", frozenset(labels.items())))


VALUES: list[tuple[str, dict[str, str], float]] = [
    ("samples_total", {"worker": "0"}, 1000),
    ("samples_total", {"worker": "1"}, 700),
    ("steps_total", {"worker": "0"}, 10),
    ("retries_total", {"worker": "0"}, 3),
    ("bytes_sent_total", {"worker": "0"}, 5),
    ("bytes_sent_total", {"server": "0"}, 50),
    ("bytes_received_total", {"worker": "0"}, 6),
    ("bytes_received_total", {"server": "0"}, 60),
    ("phase_seconds_total", {"worker": "0", "phase": "read"}, 1.5),
    ("epoch", {"worker": "0"}, 2),
    ("worker_state", {"worker": "1", "state": "lost"}, 1),
    ("in_flight", {"worker": "0"}, 2),
    ("staleness_mean", {"worker": "0"}, 1.5),
    ("staleness_max", {"worker": "0"}, 4),
    ("duplicates_total", {"server": "0"}, 1),
    ("refused_total", {"server": "0"}, 8),
    ("in_progress", {"server": "0"}, 4),
    ("uptime_seconds", {"server": "0"}, 12.5),
    ("rows", {"server": "0", "table": 'us"ers'}, 70),
    ("bytes", {"server": "0", "table": 'us"ers'}, 7000),
    ("bytes", {"server": "0", "table": "dense.click"}, 36),
]


def test_everything_that_is_reported_is_served() -> None:
    value = scraped()
    assert [value(name, **labels) for name, labels, _ in VALUES] == [it for _, _, it in VALUES]


def test_what_is_not_defined_is_not_served() -> None:
    value = scraped()
    assert value("staleness_mean", worker="1") is None
    assert value("rows", server="0", table="dense.click") is None


def test_latencies_are_histograms() -> None:
    value = scraped()
    pulls = {it: value("pull_seconds_bucket", worker="0", le=it) for it in ("0.01", "0.1", "+Inf")}
    assert pulls == {"0.01": 1, "0.1": 3, "+Inf": 4}
    assert value("pull_seconds_bucket", worker="0", le="1000.0") == 3
    assert value("pull_seconds_count", worker="0") == 4
    assert value("pull_seconds_sum", worker="0") == pytest.approx(5000.041)
    assert value("push_seconds_count", server="0") == 1
    assert value("push_seconds_count", worker="1") == 0


def test_numbers_of_the_run_are_gauges() -> None:
    numbers = {"auc": 0.75, "loss": 0.5, "auc/buy": 0.25, "copc": None, "logloss": float("nan")}
    value = scraped(progress=lambda: numbers)
    assert (value("auc"), value("loss"), value("auc_buy")) == (0.75, 0.5, 0.25)
    assert (value("copc"), value("logloss")) == (None, None)


def test_a_number_of_the_run_takes_no_name_of_another() -> None:
    value = scraped(progress=lambda: {"rows": 3.0, "a/b": 1.0, "a.b": 2.0})
    assert (value("rows"), value("a_b")) == (None, 1.0)
    assert value("rows", server="0", table='us"ers') == 70


def test_the_format_of_openmetrics_is_served_too() -> None:
    with MetricsServer(0, lambda: REPORT, progress=lambda: {"auc": 0.75}) as server:
        assert read(get(server, accept=OPEN), open_families) == read(get(server))


def test_each_scrape_asks_anew() -> None:
    reports = iter([ClusterReport(), REPORT])
    with MetricsServer(0, lambda: next(reports)) as server:
        assert read(get(server)) == {}
        assert ("downpour_samples_total", frozenset({("worker", "0")})) in read(get(server))


def test_a_scrape_that_fails_does_not_end_the_server(capfd: Any) -> None:
    reports: Any = iter([None, REPORT])
    with MetricsServer(0, lambda: next(reports)) as server:
        with pytest.raises(urllib.error.HTTPError, match="500") as failed:
            get(server)
        failed.value.close()
        assert "downpour_steps_total" in get(server)
    assert "AttributeError" in capfd.readouterr().err


def test_other_metrics_of_the_process_are_left_alone() -> None:
    with MetricsServer(0, lambda: REPORT) as one, MetricsServer(0, lambda: REPORT) as other:
        assert one.port != other.port
        assert "python_info" not in get(one)
    assert b"downpour" not in prometheus_client.generate_latest()


def test_a_port_in_use_is_refused_by_its_number() -> None:
    with MetricsServer(0, lambda: REPORT) as server:
        message = rf"port {server.port} of 127\.0\.0\.1: Address already in use; give another port"
        with pytest.raises(SettingError, match=message):
            MetricsServer(server.port, lambda: REPORT)


def test_a_closed_server_gives_its_port_back() -> None:
    server = MetricsServer(0, lambda: REPORT)
    server.close()
    server.close()
    with pytest.raises(urllib.error.URLError, match="refused"):
        get(server)
    with MetricsServer(server.port, lambda: REPORT) as again:
        assert "downpour_steps_total" in get(again)


@pytest.mark.parametrize("port", [-1, 65536, 1.5, "9100", True])
def test_a_port_that_is_none_is_refused(port: Any) -> None:
    with pytest.raises(SettingError, match="port must be an int from 0 to 65535, got"):
        MetricsServer(port, lambda: REPORT)


def test_a_host_that_is_not_here_is_refused() -> None:
    with pytest.raises(SettingError, match=r"cannot listen on port 0 of 192\.0\.2\.1"):
        MetricsServer(0, lambda: REPORT, host="192.0.2.1")
