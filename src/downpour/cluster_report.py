"""What workers and servers tell of themselves while a run goes on, and what it adds up to.

Each process counts from its start and hands over all it has counted, so that a report that is lost
loses nothing. What came in an interval is the difference of two reports.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

from downpour.errors import DataError
from downpour.metrics.latency import Latency
from downpour.settings import default_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

KINDS = ("sparse", "dense")
LARGEST = 1e300  # sums of such are finite still
TableUse: TypeAlias = dict[str, Any]  # {"kind": "sparse" or "dense", "rows": int, "bytes": int}


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Counters and states of one process.

    `IDENTITY` names the fields that say whose report it is, of `COUNTERS` only the growth since an
    earlier report is of interest, and the others are states.
    """

    IDENTITY: ClassVar[tuple[str, ...]]
    COUNTERS: ClassVar[tuple[str, ...]]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {it.name: _plain(getattr(self, it.name)) for it in fields(self)}

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """What `as_dict` gave. A key that is missing has its default, one unknown is passed over.

        Raises DataError for values of a wrong type, and where the report does not say whose it is.
        """
        if not isinstance(data, dict):
            raise DataError(f"a {cls.__name__} must be a dict, got {data!r:.80}")
        known: dict[str, Any] = {}
        for it in fields(cls):
            if it.name in data:
                try:
                    known[it.name] = READERS[str(it.type)](data[it.name])
                except DataError as error:
                    raise DataError(f"a {cls.__name__}'s {it.name}: {error}") from error
            elif default_of(it) is MISSING:
                raise DataError(f"a {cls.__name__} must have a {it.name}, got {data!r:.80}")
        return cls(**known)

    def since(self, earlier: Self) -> Self:
        """This report with the growth of its counters; all of it where the process is another."""
        pairs = {name: (getattr(self, name), getattr(earlier, name)) for name in self.COUNTERS}
        if any(getattr(self, name) != getattr(earlier, name) for name in self.IDENTITY) or any(
            isinstance(now, int) and now < before for now, before in pairs.values()
        ):
            return self
        return replace(self, **{name: _growth(*pair) for name, pair in pairs.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerReport(Report):
    """What a worker has done.

    `losses` are sums over samples by program, `staleness_sum` and `staleness_max` steps over the
    `staleness_count` pulls, `in_flight` the pushes that are not acknowledged now, `gradient_norms`
    those of dense tables in a step not long ago.
    """

    IDENTITY: ClassVar[tuple[str, ...]] = ("rank",)
    COUNTERS: ClassVar[tuple[str, ...]] = (
        "steps", "samples", "losses", "pull", "push", "bytes_sent", "bytes_received", "retries",
        "staleness_sum", "staleness_count", "phases_s",
    )  # fmt: skip

    rank: int
    state: str = "running"
    epoch: int = 0
    steps: int = 0
    samples: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    pull: Latency = field(default_factory=Latency)
    push: Latency = field(default_factory=Latency)
    bytes_sent: int = 0
    bytes_received: int = 0
    retries: int = 0
    staleness_sum: float = 0
    staleness_count: int = 0
    staleness_max: float = 0
    in_flight: int = 0
    phases_s: dict[str, float] = field(default_factory=dict)
    gradient_norms: dict[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float | None:
        """The mean over samples of the losses of all programs; None without a sample."""
        return sum(self.losses.values()) / self.samples if self.samples and self.losses else None

    def summary(self) -> dict[str, Any]:
        """What metrics.json has of a worker."""
        return {
            **_values(self, "rank", "state", "epoch", "steps", "samples", "loss"),
            **{"pull": _milliseconds(self.pull), "push": _milliseconds(self.push)},
            **_values(self, "bytes_sent", "bytes_received", "retries"),
            "staleness": staleness([self]),
            "phases_s": self.phases_s,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerReport(Report):
    """What a server holds and has done.

    `pull` and `push` are the times of service, without the network's. `duplicates` are pushes that
    came twice and were applied once, `in_progress` the requests that are being served now.
    """

    IDENTITY: ClassVar[tuple[str, ...]] = ("shard", "incarnation")
    COUNTERS: ClassVar[tuple[str, ...]] = (
        "pull", "push", "bytes_sent", "bytes_received", "duplicates", "refused",
    )  # fmt: skip

    shard: int
    address: str = ""
    incarnation: int = 0
    tables: dict[str, TableUse] = field(default_factory=dict)
    pull: Latency = field(default_factory=Latency)
    push: Latency = field(default_factory=Latency)
    bytes_sent: int = 0
    bytes_received: int = 0
    duplicates: int = 0
    refused: int = 0
    in_progress: int = 0
    uptime_s: float = 0

    @property
    def rows(self) -> int:
        """The rows of its sparse tables."""
        return sum(table["rows"] for table in self.tables.values() if table["kind"] == "sparse")

    @property
    def bytes(self) -> int:
        """The memory of all its tables."""
        return sum(table["bytes"] for table in self.tables.values())

    def summary(self) -> dict[str, Any]:
        """What metrics.json has of a server."""
        return {
            **_values(self, "shard", "address", "rows", "bytes", "tables"),
            **{"pull": _milliseconds(self.pull), "push": _milliseconds(self.push)},
            **_values(self, "bytes_sent", "bytes_received", "duplicates", "refused", "uptime_s"),
        }


@dataclass(frozen=True, slots=True)
class ClusterReport:
    """The last report of each worker and each server."""

    workers: tuple[WorkerReport, ...] = ()
    servers: tuple[ServerReport, ...] = ()

    @property
    def samples(self) -> int:
        """The samples that all workers have trained on."""
        return sum(worker.samples for worker in self.workers)

    @property
    def steps(self) -> int:
        """The steps of all workers: a step that they take together counts once for each."""
        return sum(worker.steps for worker in self.workers)

    @property
    def rows(self) -> int:
        """The rows of the sparse tables of all servers."""
        return sum(server.rows for server in self.servers)

    @property
    def loss(self) -> float | None:
        """The mean over the samples of all workers; None without a sample."""
        known = [worker for worker in self.workers if worker.loss is not None]
        total = sum(sum(worker.losses.values()) for worker in known)
        return total / sum(worker.samples for worker in known) if known else None

    def gradient_norms(self) -> dict[str, float]:
        """By dense table, the mean of what the workers have measured last."""
        by_table: dict[str, list[float]] = {}
        for worker in self.workers:
            for table, norm in worker.gradient_norms.items():
                by_table.setdefault(table, []).append(norm)
        return {table: sum(norms) / len(norms) for table, norms in by_table.items()}

    def since(self, earlier: ClusterReport) -> ClusterReport:
        """What came since an earlier report; all of a process that was not in it, or is another."""
        workers = {worker.rank: worker for worker in earlier.workers}
        servers = {server.shard: server for server in earlier.servers}
        return ClusterReport(
            tuple(it.since(workers[it.rank]) if it.rank in workers else it for it in self.workers),
            tuple(
                it.since(servers[it.shard]) if it.shard in servers else it for it in self.servers
            ),
        )

    def staleness(self) -> dict[str, float | None]:
        """{"mean", "max"} in steps over the pulls of all workers; None where there was none."""
        return staleness(self.workers)

    def summary(self) -> dict[str, list[dict[str, Any]]]:
        """What metrics.json has under "workers" and "servers"; None for what is not defined."""
        return {
            "workers": [worker.summary() for worker in self.workers],
            "servers": [server.summary() for server in self.servers],
        }


def staleness(workers: Iterable[WorkerReport]) -> dict[str, float | None]:
    """{"mean", "max"} in steps over the pulls of these workers; None where there was none."""
    known = [worker for worker in workers if worker.staleness_count]
    if not known:
        return {"mean": None, "max": None}
    count = sum(worker.staleness_count for worker in known)
    mean = sum(worker.staleness_sum for worker in known) / count
    return {"mean": mean, "max": max(worker.staleness_max for worker in known)}


def _milliseconds(latency: Latency) -> dict[str, float | None]:
    p50, p99 = latency.percentile(50), latency.percentile(99)
    return {
        "count": latency.count,
        "p50_ms": None if p50 is None else 1000 * p50,
        "p99_ms": None if p99 is None else 1000 * p99,
    }


def _values(report: Report, *names: str) -> dict[str, Any]:
    return {name: getattr(report, name) for name in names}


def _growth(now: Any, earlier: Any) -> Any:
    """How much a counter, or each of a dict, has grown."""
    if isinstance(now, dict):
        return {name: value - earlier.get(name, 0) for name, value in now.items()}
    return now - earlier


def _plain(value: Any) -> Any:
    """A field as JSON; of a dict a copy, since its owner may go on to count in it."""
    if isinstance(value, Latency):
        return value.as_dict()
    return dict(value) if isinstance(value, dict) else value


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise DataError(f"must be an int >= 0, below 2**63, got {value!r:.80}")
    return value


def _number(value: object) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not abs(value) < LARGEST  # NaN is not
    ):
        raise DataError(f"must be a finite number, got {value!r:.80}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise DataError(f"must be text, got {value!r:.80}")
    return value


def _numbers(value: object) -> dict[str, float]:
    """Numbers by name."""
    if not isinstance(value, dict):
        raise DataError(f"must be a dict of numbers, got {value!r:.80}")
    return {_text(name): _number(number) for name, number in value.items()}


def _tables(value: object) -> dict[str, TableUse]:
    """What each table holds, by name."""
    if not isinstance(value, dict):
        raise DataError(f"must be a dict of tables, got {value!r:.80}")
    read = {}
    for name, table in value.items():
        if not isinstance(table, dict) or table.get("kind") not in KINDS:
            raise DataError(
                f"{name!r} must be a dict with a kind, sparse or dense, got {table!r:.80}"
            )
        sizes = {it: _whole(table.get(it, 0)) for it in ("rows", "bytes")}
        read[_text(name)] = {"kind": table["kind"], **sizes}
    return read


READERS: dict[str, Callable[[Any], Any]] = {  # by the type of a field, as it is written
    "int": _whole,
    "float": _number,
    "str": _text,
    "Latency": Latency.from_dict,
    "dict[str, float]": _numbers,
    "dict[str, TableUse]": _tables,
}
