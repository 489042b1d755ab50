"""What a server refuses of verbs, and that it then changes nothing."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pyarrow.flight as fl
import pytest

from downpour.errors import RefusedError
from downpour.serving import flight_server
from downpour.serving.service import Service
from tests.one_shard import DEPLOYMENT, held, hosted, serving
from tests.servers import ask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from downpour.serving.flight_server import FlightServer

INF = float("inf")
WHO = {"rank": 0, "incarnation": 7}
JOIN = {**WHO, "run": "run", "num_workers": 1, "timeout_s": 100.0, "on_loss": "stop"}
MEET = {**WHO, "name": "epoch", "payload": "", "with_chief": False, "wait_s": 0.0}
HELLO = {"version": 1, "fingerprint": DEPLOYMENT.fingerprint, "shard": 0}


@pytest.fixture(scope="module")
def server() -> Iterator[FlightServer]:
    """A filled server in whose run worker 0 of 1 is."""
    with hosted() as started:
        ask(started, "join", JOIN)
        yield started


VERBS: dict[str, tuple[str, Any, str]] = {
    "no verb": ("", {}, "no action ''; there are: hello"),
    "an unknown verb": ("drop", {}, "no action 'drop'; there are: hello"),
    "a long verb": ("x" * 10_000, {}, "no action 'xxxx.{0,100}; there are: hello"),
    "a list": ("stats", [1], "must be a JSON object, got a list"),
    "another version": ("hello", {**HELLO, "version": 9}, "the client 9; use one release"),
    "no version": ("hello", {}, "speaks version 1 of the protocol, the client None"),
    "no fingerprint": ("hello", {"version": 1}, "'fingerprint' must be a text"),
    "another plan": ("hello", {**HELLO, "fingerprint": "0" * 64}, "plan with the same model"),
    "another shard": ("hello", {**HELLO, "shard": 1}, "this server is shard 0, the client .* 1"),
    "no whole shard": ("hello", {**HELLO, "shard": 0.0}, "'shard' must be a whole number"),
    "no cluster": ("form", {}, "'cluster' must be a text"),
    "a cluster of numbers": ("form", {"cluster": [1]}, "'cluster' must be a text"),
    "no workers": ("join", {**JOIN, "num_workers": 0}, r"num_workers in \[1, 65536\]"),
    "too many": ("join", {**JOIN, "num_workers": 2**52}, r"num_workers in \[1, 65536\]"),
    "workers by name": ("join", {**JOIN, "num_workers": "1"}, "'num_workers' must be a whole"),
    "no time": ("join", {**JOIN, "timeout_s": 0}, "timeout_s > 0"),
    "all time": ("join", {**JOIN, "timeout_s": INF}, "'timeout_s' must be a finite number"),
    "time that is none": ("join", {**JOIN, "timeout_s": -INF}, "'timeout_s' must be a finite"),
    "another loss": ("join", {**JOIN, "on_loss": "wait"}, "on_loss 'continue' or 'stop', got"),
    "another run": ("join", {**JOIN, "run": "mine"}, "are in run 'run' of 1 workers, got run"),
    "a long run": ("join", {**JOIN, "run": "x" * 10**5}, "'run' must be a text of 1 to 65536"),
    "a rank too high": ("join", {**JOIN, "rank": 1}, "rank 1 is none of this run"),
    "a rank too low": ("join", {**JOIN, "rank": -2}, "'rank' must be a whole number >= -1"),
    "a rank that is taken": ("join", {**JOIN, "incarnation": 8}, "rank 0 is taken by another"),
    "a true rank": ("join", {**JOIN, "rank": True}, "'rank' must be .* got True"),
    "a report of text": ("beat", {**WHO, "report": "fine"}, "a beat brings a report"),
    "a stranger's beat": ("beat", {"rank": 3, "incarnation": 1, "report": {}}, "no member of"),
    "an error of numbers": ("leave", {**WHO, "error": 3}, "'error' must be a text"),
    "a meeting of no name": ("meet", {**MEET, "name": 1}, "'name' must be a text"),
    "brought objects": ("meet", {**MEET, "payload": {}}, "brought to a meeting must be a text"),
    "a chief perhaps": ("meet", {**MEET, "with_chief": "no"}, "'with_chief' must be true or"),
    "a wait below 0": ("meet", {**MEET, "wait_s": -1}, "'wait_s' must be a finite number >= 0"),
    "a stranger": ("meet", {**MEET, "rank": 3}, "no member of this run: it must join"),
    "no reason": ("halt", {}, "'reason' must be a text"),
}  # fmt: skip


@pytest.mark.parametrize("name", VERBS)
def test_a_bad_verb_is_refused_and_changes_nothing(name: str, server: FlightServer) -> None:
    verb, request, message = VERBS[name]
    before = held(server), server.service.greeting(), members(server)
    with pytest.raises(RefusedError, match=message) as caught:
        ask(server, verb, request)
    assert len(str(caught.value)) < 1000
    assert (held(server), server.service.greeting(), members(server)) == before


def members(server: FlightServer) -> list[Any]:
    return [(it.rank, it.state, it.report) for it in server.runs.members.snapshot()]


BODIES = {
    "no JSON": b"\x00",
    "half": b'{"run": "',
    "deep": b'{"a":' + b"[" * 10**5,
    "a number": b"1",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("verb", ["hello", "beat", "stop"])
def test_a_body_that_is_no_object_is_refused(verb: str, body: bytes, server: FlightServer) -> None:
    with fl.FlightClient(server.address) as client:
        (answer,) = client.do_action(fl.Action(verb, body))
    told = json.loads(answer.body.to_pybytes())
    assert told["error"] == "RefusedError"
    assert "a header must be a JSON object" in told["message"]
    assert not server.stopped.is_set()


def test_a_report_too_deep_to_be_passed_on_is_refused(server: FlightServer) -> None:
    report: dict[str, Any] = {}
    for _ in range(500):
        report = {"a": report}
    with pytest.raises(RefusedError, match="may have lists and objects 16 deep"):
        ask(server, "beat", {**WHO, "report": report})
    assert ask(server, "members", {})["members"][0]["report"] == {}


def test_a_body_that_is_too_large_is_refused(
    server: FlightServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight_server, "MAX_SMALL_BYTES", 1000)
    monkeypatch.setattr(flight_server, "MAX_ACTION_BYTES", 2000)
    with pytest.raises(RefusedError, match="an action may have 1000 bytes"):
        ask(server, "form", {"cluster": "x" * 1000})
    assert ask(server, "meet", {**MEET, "name": "large", "payload": "x" * 1000})
    with pytest.raises(RefusedError, match="an action may have 2000 bytes"):
        ask(server, "meet", {**MEET, "name": "larger", "payload": "x" * 2000})


def test_texts_that_are_no_utf8_are_brought_to_meetings_all_the_same(server: FlightServer) -> None:
    met = ask(server, "meet", {**MEET, "name": "odd", "payload": "\ud800"})
    assert met == {"payloads": {"0": "\ud800"}}


@pytest.mark.parametrize("verb", ["beat", "leave", "meet", "members", "halt"])
def test_before_a_run_has_begun_nobody_is_in_it(verb: str) -> None:
    request = {**MEET, "report": {}, "reason": "enough"}
    with serving(Service()) as server, pytest.raises(RefusedError, match="no run has begun"):
        ask(server, verb, request)


MESSAGE = {**DEPLOYMENT.message(), **HELLO}
TABLES: dict[str, tuple[dict[str, Any], str]] = {
    "no text": ({"tables": 3}, "no tables can be made of this"),
    "no description": ({"tables": "drop table students"}, "no tables can be made of this"),
    "half": ({"tables": MESSAGE["tables"][:500]}, "no tables can be made of this"),
    "no servers": ({"num_shards": 0}, r"num_shards must be an int in \[1, 65536\], got 0"),
    "servers beyond number": ({"num_shards": 2**60}, "num_shards must be an int in"),
    "servers by name": ({"num_shards": "2"}, "num_shards must be an int in"),
    "no such shard": ({"shard": 2}, r"shard must be in \[0, 2\), got 2"),
    "no sections": ({"sections": None}, "no tables can be made of this"),
    "other sections": ({"sections": {"size": 1}}, "no tables can be made of this"),
    "empty sections": ({"sections": {"min_size": 0}}, "min_size must be an int >= 1, got 0"),
    "another placement": ({"sections": {"placement": []}}, "placement must be one of"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_make_no_sense_are_refused_and_others_taken(name: str) -> None:
    changed, message = TABLES[name]
    service = Service()
    with pytest.raises(RefusedError, match=message):
        service.configure({**MESSAGE, **changed})
    assert not service.greeting()["has_plan"]
    assert service.configure(MESSAGE)["has_plan"]


def test_tables_that_do_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise MemoryError("cannot allocate 8 PiB")

    service = Service()
    with monkeypatch.context() as patched:
        patched.setattr("downpour.serving.service.Hosted", full)
        with pytest.raises(RefusedError, match="do not fit into memory here: cannot allocate 8"):
            service.configure(MESSAGE)
    assert service.configure(MESSAGE)["has_plan"]


def test_a_look_for_lost_members_that_fails_is_not_the_last(
    caplog: pytest.LogCaptureFixture,
) -> None:
    looked = iter([RuntimeError("broken"), None])
    again = threading.Event()

    def check() -> None:
        error = next(looked, None)
        if error is not None:
            raise error
        again.set()

    with serving(Service()) as server:
        server.runs.check = check  # type: ignore[method-assign]
        assert again.wait(300.0)
    assert "event=failed at=members" in caplog.text


def test_calls_that_a_server_does_not_have_end_with_an_error(server: FlightServer) -> None:
    descriptor = fl.FlightDescriptor.for_path("plain")
    with fl.FlightClient(server.address) as client:
        for call in (
            lambda: list(client.list_flights()),
            lambda: client.get_flight_info(descriptor),
            lambda: client.get_schema(descriptor),
        ):
            with pytest.raises(NotImplementedError):
                call()
        assert "stop" in {action.type for action in client.list_actions()}
