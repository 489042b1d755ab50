"""Reports: round trips, older and broken peers, intervals, and what metrics.json is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downpour.cluster_report import ClusterReport, Report, ServerReport, WorkerReport
from downpour.errors import DataError
from downpour.metrics.latency import Latency


def latency(*seconds: float) -> Latency:
    made = Latency()
    for each in seconds:
        made.add(each)
    return made


COUNTS = st.integers(0, 2**53)
NUMBERS = st.floats(-1e9, 1e9)
LATENCIES = st.lists(st.floats(0, 2000), max_size=5).map(lambda seconds: latency(*seconds))
BY_NAME = st.dictionaries(st.text(max_size=5), NUMBERS, max_size=3)
TABLES = st.dictionaries(
    st.text(max_size=5),
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["sparse", "dense"]), "rows": COUNTS, "bytes": COUNTS}
    ),
    max_size=3,
)
COMMON = {
    "pull": LATENCIES, "push": LATENCIES, "bytes_sent": COUNTS, "bytes_received": COUNTS,
}  # fmt: skip
WORKERS = st.builds(
    WorkerReport,
    rank=COUNTS, state=st.text(max_size=5), epoch=COUNTS, steps=COUNTS, samples=COUNTS,
    losses=BY_NAME, retries=COUNTS, staleness_sum=COUNTS, staleness_count=COUNTS,
    staleness_max=COUNTS, in_flight=COUNTS, phases_s=BY_NAME, **COMMON,
)  # fmt: skip
SERVERS = st.builds(
    ServerReport,
    shard=COUNTS, address=st.text(max_size=5), incarnation=COUNTS, tables=TABLES,
    duplicates=COUNTS, refused=COUNTS, in_progress=COUNTS, uptime_s=NUMBERS, **COMMON,
)  # fmt: skip


@given(report=WORKERS | SERVERS)
def test_a_round_trip_through_json_changes_nothing(report: Report) -> None:
    text = json.dumps(report.as_dict(), allow_nan=False)
    assert type(report).from_dict(json.loads(text)) == report


@given(report=WORKERS | SERVERS, data=st.data())
def test_what_an_older_peer_leaves_out_has_its_default(report: Report, data: Any) -> None:
    told = report.as_dict()
    left_out = data.draw(st.sets(st.sampled_from(sorted(told.keys() - {"rank", "shard"}))))
    kept = {name: value for name, value in told.items() if name not in left_out}
    read = type(report).from_dict(kept).as_dict()
    default = type(report).from_dict({type(report).IDENTITY[0]: 0}).as_dict()
    assert read == told | {name: default[name] for name in left_out}


def test_what_a_newer_peer_adds_is_passed_over() -> None:
    read = ServerReport.from_dict({"shard": 1, "colour": "blue"})
    assert read == ServerReport(shard=1)


REFUSED: list[tuple[type[Report], Any, str]] = [
    (WorkerReport, None, "a WorkerReport must be a dict, got None"),
    (WorkerReport, {}, "a WorkerReport must have a rank, got {}"),
    (ServerReport, {"rank": 1}, "a ServerReport must have a shard"),
    (WorkerReport, {"rank": -1}, r"WorkerReport's rank: must be an int >= 0.*got -1"),
    (WorkerReport, {"rank": True}, "rank: must be an int"),
    (WorkerReport, {"rank": 0, "steps": 1.5}, r"steps: must be an int.*got 1.5"),
    (WorkerReport, {"rank": 0, "steps": 2**63}, "steps: must be an int"),
    (WorkerReport, {"rank": 0, "state": 3}, "state: must be text, got 3"),
    (WorkerReport, {"rank": 0, "losses": [1]}, r"losses: must be a dict of numbers, got \[1\]"),
    (WorkerReport, {"rank": 0, "losses": {"a": float("nan")}}, "losses: must be a finite number"),
    (WorkerReport, {"rank": 0, "losses": {"a": 10**400}}, "losses: must be a finite number"),
    (WorkerReport, {"rank": 0, "phases_s": {"a": "1"}}, "phases_s: must be a finite number"),
    (WorkerReport, {"rank": 0, "pull": 3}, "pull: a latency must be a dict, got 3"),
    (ServerReport, {"shard": 0, "uptime_s": True}, "uptime_s: must be a finite number"),
    (ServerReport, {"shard": 0, "tables": []}, "tables: must be a dict of tables"),
    (
        ServerReport,
        {"shard": 0, "tables": {"a": 1}},
        "'a' must be a dict with a kind",
    ),
    (ServerReport, {"shard": 0, "tables": {"a": {"kind": []}}}, "'a' must be a dict with a kind"),
    (ServerReport, {"shard": 0, "tables": {"a": {"kind": "dense", "bytes": -1}}}, "an int >= 0"),
]


@pytest.mark.parametrize(("kind", "data", "message"), REFUSED)
def test_nonsense_is_refused(kind: type[Report], data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        kind.from_dict(data)


def test_a_report_is_not_changed_by_what_is_counted_after_it() -> None:
    losses = {"click": 1.0}
    told = WorkerReport(rank=0, losses=losses).as_dict()
    losses["click"] = 2.0
    assert told["losses"] == {"click": 1.0}


EARLIER = WorkerReport(
    rank=0, epoch=1, steps=10, samples=100, losses={"click": 60.0}, pull=latency(1.0), retries=1,
    staleness_sum=30, staleness_count=10, staleness_max=9, in_flight=4, phases_s={"read": 2.0},
)  # fmt: skip
NOW = WorkerReport(
    rank=0, epoch=2, steps=14, samples=150, losses={"click": 80.0, "buy": -5.0},
    pull=latency(1.0, 0.5), retries=1, staleness_sum=32, staleness_count=14, staleness_max=9,
    in_flight=2, phases_s={"read": 2.5},
)  # fmt: skip


def test_counters_are_those_of_the_interval_and_states_those_of_now() -> None:
    recent = NOW.since(EARLIER)
    assert (recent.steps, recent.samples, recent.retries) == (4, 50, 0)
    assert recent.losses == {"click": 20.0, "buy": -5.0}
    assert recent.loss == pytest.approx(0.3)
    assert recent.pull == latency(0.5)
    assert recent.phases_s == {"read": 0.5}
    assert (recent.epoch, recent.in_flight, recent.staleness_max) == (2, 2, 9)
    assert ClusterReport((recent,)).staleness() == {"mean": 0.5, "max": 9}


@given(report=WORKERS | SERVERS)
def test_nothing_came_since_the_same_report(report: Any) -> None:
    recent = report.since(report)
    assert not any(getattr(recent, "losses", {}).values())
    assert (recent.bytes_sent, recent.pull, recent.push) == (0, Latency(), Latency())


def test_all_of_a_process_that_began_anew_came_since() -> None:
    before = ServerReport(shard=0, incarnation=1, bytes_sent=5, pull=latency(1.0))
    after = ServerReport(shard=0, incarnation=2, bytes_sent=7, pull=latency(1.0, 2.0))
    assert after.since(before) == after
    assert EARLIER.since(NOW) == EARLIER


def test_an_interval_of_a_cluster_finds_each_process() -> None:
    one, other = ServerReport(shard=0, refused=3), ServerReport(shard=1, refused=5)
    earlier = ClusterReport((EARLIER,), (other, one))
    late = WorkerReport(rank=7, steps=2, samples=20)
    recent = ClusterReport((NOW, late), (one, other)).since(earlier)
    assert [worker.steps for worker in recent.workers] == [4, 2]
    assert [server.refused for server in recent.servers] == [0, 0]
    assert (recent.steps, recent.samples) == (6, 70)


def test_the_loss_of_a_cluster_is_by_sample() -> None:
    one = WorkerReport(rank=0, samples=10, losses={"click": 5.0, "buy": 1.0})
    other = WorkerReport(rank=1, samples=30, losses={"click": 10.0})
    assert ClusterReport((one, other, WorkerReport(rank=2))).loss == pytest.approx(0.4)
    assert ClusterReport((WorkerReport(rank=2),)).loss is None


def test_rows_are_those_of_sparse_tables_and_bytes_of_all() -> None:
    tables = {
        "users": {"kind": "sparse", "rows": 7, "bytes": 700},
        "dense.click": {"kind": "dense", "rows": 1, "bytes": 36},
    }
    server = ServerReport(shard=0, tables=tables)
    assert (server.rows, server.bytes) == (7, 736)
    assert ClusterReport((), (server, server)).rows == 14


def test_staleness_is_over_all_pulls() -> None:
    few = WorkerReport(rank=0, staleness_sum=10, staleness_count=1, staleness_max=10)
    many = WorkerReport(rank=1, staleness_sum=0, staleness_count=9, staleness_max=0)
    assert ClusterReport((few, many)).staleness() == {"mean": 1.0, "max": 10}
    assert ClusterReport((WorkerReport(rank=2),)).staleness() == {"mean": None, "max": None}


def test_the_summary_says_what_each_did() -> None:
    server = ServerReport(shard=3, address="ps:1", push=latency(0.1), duplicates=2, refused=1)
    summary = ClusterReport((NOW,), (server,)).summary()
    (worker,), (told,) = summary["workers"], summary["servers"]
    assert (worker["rank"], worker["steps"], worker["samples"]) == (0, 14, 150)
    assert worker["pull"]["count"] == 2
    assert worker["pull"]["p50_ms"] == pytest.approx(500, rel=0.05)
    assert worker["pull"]["p99_ms"] == pytest.approx(1000, rel=0.05)
    assert worker["push"] == {"count": 0, "p50_ms": None, "p99_ms": None}
    assert worker["staleness"] == {"mean": pytest.approx(32 / 14), "max": 9}
    assert (told["shard"], told["address"], told["rows"], told["bytes"]) == (3, "ps:1", 0, 0)
    assert (told["push"]["count"], told["duplicates"], told["refused"]) == (1, 2, 1)


@given(workers=st.lists(WORKERS, max_size=2), servers=st.lists(SERVERS, max_size=2))
def test_a_summary_is_json_without_nan(workers: list[Any], servers: list[Any]) -> None:
    summary = ClusterReport(tuple(workers), tuple(servers)).summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    json.dumps(ClusterReport().summary() | ClusterReport().staleness(), allow_nan=False)
