"""The metrics of a run with servers for Prometheus, over HTTP."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Self, TypeAlias

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from downpour.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from downpour.cluster_report import ClusterReport, ServerReport, WorkerReport
    from downpour.metrics.latency import Latency

    Labels: TypeAlias = dict[str, str]
    Member: TypeAlias = tuple[Labels, WorkerReport | ServerReport]
    Progress: TypeAlias = Callable[[], Mapping[str, float | None]]

PREFIX = "downpour_"
OF_WORKERS = (
    ("counter", "samples", "Samples trained on"),
    ("counter", "steps", "Steps trained"),
    ("counter", "retries", "Requests sent again"),
    ("gauge", "epoch", "The epoch that a worker is in"),
    ("gauge", "in_flight", "Pushes that are not acknowledged now"),
)
OF_SERVERS = (
    ("counter", "duplicates", "Pushes that came twice and were applied once"),
    ("counter", "refused", "Requests that were refused"),
    ("gauge", "in_progress", "Requests that are being served now"),
)
OF_BOTH = (
    ("counter", "bytes_sent", "Bytes sent, by workers and by servers"),
    ("counter", "bytes_received", "Bytes received, by workers and by servers"),
)


class MetricsServer:
    """Serves /metrics from threads of its own until it is closed. Use as a context manager.

    port: where to listen, 0 for any free one. collect: gives the reports of now, and progress the
    numbers of the whole run by name, such as auc and loss; both are called at each scrape, from
    other threads. host: the address to listen on; "0.0.0.0" lets other machines scrape.
    """

    def __init__(
        self,
        port: int,
        collect: Callable[[], ClusterReport],
        *,
        host: str = "127.0.0.1",
        progress: Progress | None = None,
    ) -> None:
        if type(port) is not int or not 0 <= port < 65536:
            raise SettingError(f"MetricsServer: port must be an int from 0 to 65535, got {port!r}")
        registry = CollectorRegistry(auto_describe=False)
        registry.register(ReportCollector(collect, progress or dict))
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise SettingError(
                f"MetricsServer: cannot listen on port {port} of {host}: {error.strerror}; give "
                "another port, or 0 for any free one"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop listening and free the port; closing twice is fine."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class ReportCollector(Collector):
    """Makes metrics of what is reported at the moment that they are asked for."""

    def __init__(self, collect: Callable[[], ClusterReport], progress: Progress) -> None:
        self._collect = collect
        self._progress = progress

    def collect(self) -> Iterator[Metric]:
        """All metrics of now."""
        metrics = list(self._of_members())
        return iter([*metrics, *self._of_run({metric.name for metric in metrics})])

    def _of_members(self) -> Iterator[Metric]:
        """What workers and servers report, told apart by their label."""
        report = self._collect()
        workers: list[Member] = [({"worker": str(it.rank)}, it) for it in report.workers]
        servers: list[Member] = [({"server": str(it.shard)}, it) for it in report.servers]
        members = [(OF_WORKERS, workers), (OF_SERVERS, servers), (OF_BOTH, workers + servers)]
        for columns, whose in members:
            for kind, name, about in columns:
                yield _metric(kind, name, about, [(at, getattr(it, name)) for at, it in whose])
        for name, about in (("pull", "How long pulls took"), ("push", "How long pushes took")):
            latencies = [(at, getattr(it, name)) for at, it in workers + servers]
            yield _histogram(f"{name}_seconds", about, latencies)
        yield from _of_workers(report.workers)
        yield from _of_servers(report.servers)

    def _of_run(self, taken: set[str]) -> Iterator[Metric]:
        """The numbers of the whole run, but those of a name that is taken."""
        for name, value in self._progress().items():
            plain = re.sub(r"[^a-zA-Z0-9_]", "_", name)
            if PREFIX + plain not in taken and value is not None and math.isfinite(value):
                taken.add(PREFIX + plain)
                yield _metric("gauge", plain, f"{name} of the run", [({}, value)])


def _of_workers(workers: Iterable[WorkerReport]) -> Iterator[Metric]:
    """States, phases and staleness."""
    states, phases, means, most = [], [], [], []
    for it in workers:
        at = {"worker": str(it.rank)}
        states.append(({**at, "state": it.state}, 1))
        phases += [({**at, "phase": name}, value) for name, value in it.phases_s.items()]
        if it.staleness_count:
            means.append((at, it.staleness_sum / it.staleness_count))
            most.append((at, it.staleness_max))
    yield _metric("gauge", "worker_state", "1 for the state that a worker is in", states)
    yield _metric("counter", "phase_seconds", "Seconds spent in each part of a step", phases)
    yield _metric("gauge", "staleness_mean", "Steps that pulled rows lagged on average", means)
    yield _metric("gauge", "staleness_max", "Steps that pulled rows lagged at most", most)


def _of_servers(servers: Iterable[ServerReport]) -> Iterator[Metric]:
    """Tables and ages."""
    rows, sizes, ages = [], [], []
    for it in servers:
        at = {"server": str(it.shard)}
        ages.append((at, it.uptime_s))
        for name, table in it.tables.items():
            sizes.append(({**at, "table": name}, table["bytes"]))
            if table["kind"] == "sparse":
                rows.append(({**at, "table": name}, table["rows"]))
    yield _metric("gauge", "rows", "Rows of a sparse table", rows)
    yield _metric("gauge", "bytes", "Memory of a table", sizes)
    yield _metric("gauge", "uptime_seconds", "Seconds since a server started", ages)


def _metric(kind: str, name: str, about: str, values: Iterable[tuple[Labels, float]]) -> Metric:
    """A counter or a gauge, with a value for each set of labels."""
    metric = Metric(PREFIX + name, about, kind)
    full = metric.name + ("_total" if kind == "counter" else "")
    metric.samples += [Sample(full, labels, value) for labels, value in values]
    return metric


def _histogram(name: str, about: str, latencies: Iterable[tuple[Labels, Latency]]) -> Metric:
    """Buckets of seconds, three a decade, for each set of labels."""
    metric = Metric(PREFIX + name, about, "histogram")
    for labels, latency in latencies:
        buckets = latency.cumulative()
        for edge, count in buckets:
            under = {**labels, "le": "+Inf" if edge == math.inf else str(edge)}
            metric.samples.append(Sample(f"{metric.name}_bucket", under, count))
        # The count is that of the last bucket: requests may be counted meanwhile.
        metric.samples.append(Sample(f"{metric.name}_count", labels, buckets[-1][1]))
        metric.samples.append(Sample(f"{metric.name}_sum", labels, latency.total_s))
    return metric
