"""The verbs of federated rounds: what a server answers, and that it refuses what makes no sense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from downpour.errors import RefusedError, RoundClosedError, WorkerLostError
from downpour.serving.service import Service
from tests.bad_messages import INF, NAN
from tests.fault_runs import until
from tests.one_shard import held, hosted, serving
from tests.servers import ask
from tests.staged import commit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from downpour.serving.flight_server import FlightServer

LEADER = {"incarnation": 7}
BEGIN = {**LEADER, "num_clients": 3, "settings": "FedAvg()", "timeout_s": 1000.0}
OPEN = {**LEADER, "round": 1, "sampled": [0, 1], "deadline_s": 500.0}
WATCH = {**LEADER, "wait_s": 0.0}
CLOSE = {**LEADER, "round": 1}
END = {**LEADER, "reason": "all 3 rounds are done"}
WHO = {"client": 0, "incarnation": 100}
OTHER = {"client": 1, "incarnation": 101}
ENROLL = {**WHO, "settings": "FedAvg()"}
ASK = {**WHO, "wait_s": 0.0}
SENT: dict[str, Any] = {
    "samples": 9, "steps": 3, "losses": {"click": 0.5}, "tables": ["plain"],
    "bytes_sent": 640, "bytes_received": 320,
}  # fmt: skip
REPORT = {**WHO, "round": 1, "report": SENT}


@pytest.fixture
def server() -> Iterator[FlightServer]:
    with hosted() as started:
        yield started


def begin(server: FlightServer, *clients: int, **changed: Any) -> None:
    """Begin a federation in which these clients are."""
    ask(server, "begin_federation", {**BEGIN, **changed})
    for client in clients:
        who = {"client": client, "incarnation": 100 + client}
        ask(server, "enroll", {**ENROLL, **who})


def told(server: FlightServer) -> list[Any]:
    """All that the coordinator hears, but for times."""
    clients = ask(server, "clients", LEADER)["clients"]
    view = ask(server, "watch_round", WATCH)
    return [[{**it, "seen_s_ago": 0.0} for it in clients], view]


# What they answer.


def test_a_federation_from_its_beginning_to_its_end(server: FlightServer) -> None:
    assert ask(server, "begin_federation", BEGIN) == {"round": 1}
    assert ask(server, "enroll", ENROLL) == {"round": 1}
    assert ask(server, "ask", ASK) == {"not_yet": True}
    assert ask(server, "client_beat", WHO) == {"round": 1}
    assert ask(server, "enroll", {**ENROLL, **OTHER}) == {"round": 1}
    assert ask(server, "open_round", OPEN) == {}
    task = ask(server, "ask", ASK)
    assert task.pop("left_s") == pytest.approx(500.0, abs=60.0)
    assert task == {"round": 1}
    assert ask(server, "report", REPORT) == {}
    why = "DataError: no file"
    assert ask(server, "client_leave", {**OTHER, "error": why}) == {}
    view: dict[str, Any] = {"round": 1, "sampled": [0, 1], "reports": {"0": SENT}}
    view |= {"dropped": {"1": f"failed: {why}"}, "is_closed": False}
    assert ask(server, "watch_round", {**WATCH, "wait_s": 50.0}) == view
    assert ask(server, "close_round", CLOSE) == {**view, "is_closed": True}
    assert ask(server, "client_beat", WHO) == {"round": 2}
    assert ask(server, "end_federation", END) == {}
    assert ask(server, "ask", ASK) == {"over": "all 3 rounds are done"}
    assert ask(server, "client_leave", WHO) == {}
    assert held_clients(server) == [(0, 100, "left", None, 1), (1, 101, "failed", why, 1)]


def held_clients(server: FlightServer) -> list[tuple[Any, ...]]:
    clients = ask(server, "clients", LEADER)["clients"]
    names = ("client", "incarnation", "state", "error", "since_round")
    assert all(it.keys() == {*names, "seen_s_ago"} for it in clients)
    return [tuple(it[name] for name in names) for it in clients]


def test_before_a_coordinator_a_client_is_told_to_ask_again(server: FlightServer) -> None:
    assert ask(server, "enroll", ENROLL) == {"not_yet": "no federation has begun"}
    with pytest.raises(RefusedError, match="'settings' must be a text"):
        ask(server, "enroll", WHO)


@pytest.mark.parametrize("ends", ["in an end", "in a loss"])
def test_after_a_federation_a_client_is_told_to_wait_for_another_one(
    ends: str, server: FlightServer
) -> None:
    end(server, ends)
    answer = ask(server, "enroll", ENROLL)
    assert ("all 3 rounds are done" if ends == "in an end" else "dropped") in answer["not_yet"]
    begin(server, incarnation=8)
    assert ask(server, "enroll", ENROLL) == {"round": 1}


def end(server: FlightServer, how: str) -> None:
    """Begin a federation, and let it be over."""
    begin(server, timeout_s=1000.0 if how == "in an end" else 0.3)
    if how == "in an end":
        ask(server, "end_federation", END)
    until(lambda: server.rounds.rounds.is_over)


BEFORE = {
    "ask": ASK, "report": REPORT, "client_beat": WHO, "client_leave": WHO, "clients": LEADER,
    "coordinator_beat": LEADER, "open_round": OPEN, "watch_round": WATCH, "close_round": CLOSE,
    "end_federation": END,
}  # fmt: skip


@pytest.mark.parametrize("verb", BEFORE)
def test_before_a_federation_has_begun_nobody_is_in_it(verb: str, server: FlightServer) -> None:
    with pytest.raises(RefusedError, match="no federation has begun on this server"):
        ask(server, verb, BEFORE[verb])


def test_a_server_without_tables_has_no_federation() -> None:
    with serving(Service()) as server:
        with pytest.raises(RefusedError, match="no tables yet: connect with a plan first"):
            ask(server, "begin_federation", BEGIN)
        assert ask(server, "enroll", ENROLL) == {"not_yet": "no federation has begun"}


def test_of_a_report_nothing_is_kept_but_what_belongs_to_it(server: FlightServer) -> None:
    begin(server, 0)
    ask(server, "open_round", {**OPEN, "sampled": [0]})
    for note in ("first", "second"):
        ask(server, "report", {**REPORT, "report": {**SENT, "note": note}})
    assert ask(server, "close_round", CLOSE)["reports"] == {"0": SENT}
    with pytest.raises(RoundClosedError, match="it has reported something else before"):
        ask(server, "report", {**REPORT, "report": {**SENT, "samples": 8}})


# One coordinator after the other.


def test_while_a_coordinator_lives_another_one_is_refused(server: FlightServer) -> None:
    begin(server, 0)
    before = held_clients(server)
    for verb in ("begin_federation", "clients", "coordinator_beat"):
        with pytest.raises(RefusedError, match="incarnation 8 does not coordinate this federation"):
            ask(server, verb, {**BEGIN, "incarnation": 8})
    assert held_clients(server) == before


@pytest.mark.parametrize("ends", ["in an end", "in a loss"])
def test_rounds_of_another_federation_go_on_from_what_the_tables_have(
    ends: str, server: FlightServer
) -> None:
    end(server, ends)
    for step in (1, 2):
        server.service.hosted.staging.commit(commit({}, step, rates={}))
    begin(server, 0, incarnation=8, num_clients=1)
    assert ask(server, "client_beat", WHO) == {"round": 3}
    assert ask(server, "clients", {"incarnation": 8})["clients"][0]["since_round"] == 3


def test_a_number_that_was_opened_is_not_opened_in_another_federation(server: FlightServer) -> None:
    begin(server, 0, 1)
    ask(server, "open_round", OPEN)
    with pytest.raises(RefusedError, match="round 3 cannot be opened: round 1 is under way"):
        ask(server, "open_round", {**OPEN, "round": 3})
    ask(server, "end_federation", END)
    assert ask(server, "begin_federation", {**BEGIN, "incarnation": 8}) == {"round": 2}
    ask(server, "end_federation", {**END, "incarnation": 8})
    assert ask(server, "begin_federation", {**BEGIN, "incarnation": 9}) == {"round": 2}


def test_a_beginning_that_is_sent_again_changes_nothing(server: FlightServer) -> None:
    begin(server, 0, 1)
    ask(server, "open_round", OPEN)
    before = told(server)
    assert ask(server, "begin_federation", BEGIN) == {"round": 1}
    assert told(server) == before


def test_what_comes_late_of_a_coordinator_begins_nothing(server: FlightServer) -> None:
    begin(server, 0)
    ask(server, "end_federation", END)
    ask(server, "begin_federation", BEGIN)
    ask(server, "coordinator_beat", LEADER)
    assert ask(server, "ask", ASK) == {"over": "all 3 rounds are done"}
    begin(server, incarnation=8)
    with pytest.raises(RefusedError, match="incarnation 7 does not coordinate"):
        ask(server, "coordinator_beat", LEADER)


def test_a_coordinator_that_was_lost_hears_so_and_begins_nothing(server: FlightServer) -> None:
    end(server, "in a loss")
    for verb in ("begin_federation", "clients", "coordinator_beat"):
        with pytest.raises(WorkerLostError, match="the coordinator was dropped before round 1"):
            ask(server, verb, BEGIN)


# What they refuse.

DEEP: Any = [[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]
VERBS: dict[str, tuple[str, Any, str]] = {
    "no clients": ("begin_federation", {**BEGIN, "num_clients": 0}, "'num_clients' must be a whol"),
    "too many": ("begin_federation", {**BEGIN, "num_clients": 2**17}, r"num_clients in \[1, 65536"),
    "no time": ("begin_federation", {**BEGIN, "timeout_s": 0}, "timeout_s > 0, got 3 and 0"),
    "all time": ("begin_federation", {**BEGIN, "timeout_s": INF}, "'timeout_s' must be a finite"),
    "a text": ("begin_federation", {**BEGIN, "incarnation": "7"}, "'incarnation' must be a whole"),
    "a long text": ("enroll", {**ENROLL, "settings": "x" * 10**5}, "'settings' must be a text of"),
    "other settings": ("enroll", {**ENROLL, "settings": "FedProx()"}, "has other settings than"),
    "a number too high": ("enroll", {**ENROLL, "client": 3}, "client 3 is none of this federation"),
    "a number too low": ("enroll", {**ENROLL, "client": -1}, "'client' must be a whole number >= "),
    "a true number": ("enroll", {**ENROLL, "client": True}, "'client' must be .* got True"),
    "a taken place": ("enroll", {**ENROLL, "incarnation": 9}, "client 0 is taken by another runni"),
    "a huge process": ("enroll", {**ENROLL, "incarnation": 2**53}, "'incarnation' must be a whole"),
    "a stranger": ("ask", {**ASK, "client": 2}, "client 2 .* is not enrolled"),
    "a wait below 0": ("ask", {**ASK, "wait_s": -1}, "'wait_s' must be a finite number >= 0"),
    "a wait of no number": ("ask", {**ASK, "wait_s": NAN}, "'wait_s' must be a finite number"),
    "a stranger's beat": ("client_beat", {**WHO, "incarnation": 1}, "client 0 .* not enrolled"),
    "an error of numbers": ("client_leave", {**WHO, "error": 3}, "'error' must be a text"),
    "a stranger leaves": ("client_leave", {**WHO, "client": 2}, "client 2 .* is not enrolled"),
    "no report": ("report", {**WHO, "round": 1}, "an update comes with a report, .* got None"),
    "a deep report": ("report", {**REPORT, "report": {"a": DEEP}}, "lists and objects 16 deep"),
    "no such round": ("report", {**REPORT, "round": 2}, "round 2, but round 1 is under way"),
    "round 0": ("report", {**REPORT, "round": 0}, "'round' must be a whole number >= 1"),
    "half a round": ("report", {**REPORT, "round": 1.0}, "'round' must be a whole number"),
    "nobody sampled": ("open_round", {**OPEN, "sampled": []}, "cannot be opened: round 1 is"),
    "all sampled": ("open_round", {**OPEN, "sampled": "all"}, "a list of numbers, got 'all'"),
    "truth sampled": ("open_round", {**OPEN, "sampled": [True]}, r"list of numbers, got \[True\]"),
    "nested samples": ("open_round", {**OPEN, "sampled": [[0]]}, r"list of numbers, got \[\[0\]\]"),
    "a long deadline": ("open_round", {**OPEN, "deadline_s": INF}, "'deadline_s' must be a finite"),
    "the round after": ("open_round", {**OPEN, "round": 2}, "round 2 cannot be opened: round 1 is"),
    "a watch of no number": ("watch_round", {**WATCH, "wait_s": NAN}, "'wait_s' must be a finite"),
    "another's round": ("close_round", {**CLOSE, "incarnation": 8}, "8 does not coordinate this"),
    "a round to come": ("close_round", {**CLOSE, "round": 2}, "round 2 cannot be closed: round 1"),
    "another's end": ("end_federation", {**END, "incarnation": 8}, "incarnation 8 does not coordi"),
    "no reason": ("end_federation", LEADER, "'reason' must be a text"),
}  # fmt: skip


@pytest.fixture(scope="module")
def busy() -> Iterator[FlightServer]:
    """A server in whose first round clients 0 and 1 are."""
    with hosted() as started:
        begin(started, 0, 1)
        ask(started, "open_round", OPEN)
        yield started


def refused(server: FlightServer, verb: str, request: Any, message: str) -> None:
    before = held(server), told(server)
    with pytest.raises(RefusedError, match=message) as caught:
        ask(server, verb, request)
    assert len(str(caught.value)) < 1000
    assert (held(server), told(server)) == before


@pytest.mark.parametrize("name", VERBS)
def test_a_bad_verb_is_refused_and_changes_nothing(name: str, busy: FlightServer) -> None:
    refused(busy, *VERBS[name])


REPORTS: dict[str, tuple[str, Any]] = {
    "no samples": ("samples", None), "samples below 0": ("samples", -1), "half": ("samples", 0.5),
    "huge samples": ("samples", 2**53), "samples of no number": ("samples", NAN),
    "true steps": ("steps", True), "many bytes": ("bytes_sent", 1e300),
    "bytes of text": ("bytes_received", "12"), "no losses": ("losses", None),
    "a list of losses": ("losses", [0.5]), "a loss of no number": ("losses", {"click": NAN}),
    "an endless loss": ("losses", {"click": -INF}), "a huge loss": ("losses", {"click": 10**400}),
    "a loss of text": ("losses", {"click": "0.5"}), "a deep loss": ("losses", {"click": {"a": 1}}),
    "no tables": ("tables", None), "a table": ("tables", "plain"), "numbers": ("tables", [1]),
    "tables twice": ("tables", ["plain", "plain"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REPORTS)
def test_a_bad_report_is_refused_and_changes_nothing(name: str, busy: FlightServer) -> None:
    field, value = REPORTS[name]
    refused(busy, "report", {**REPORT, "report": {**SENT, field: value}}, "must be|has the|finite")


@pytest.mark.parametrize(
    "sampled", [[0, 0], [0, 10**400], [-1], []], ids=["twice", "huge", "negative", "none"]
)
def test_clients_that_are_none_are_not_sampled(sampled: Any, server: FlightServer) -> None:
    begin(server, 0)
    with pytest.raises(RefusedError, match="one or more clients that have enrolled, each once"):
        ask(server, "open_round", {**OPEN, "sampled": sampled})
    with pytest.raises(RefusedError, match="a finite deadline_s above 0, got 0"):
        ask(server, "open_round", {**OPEN, "sampled": [0], "deadline_s": 0})
    assert ask(server, "ask", ASK) == {"not_yet": True}
