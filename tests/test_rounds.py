"""Rounds of federated training: who may take part in one, and whose update counts."""

from __future__ import annotations

from typing import Any

import pytest

from downpour.errors import RefusedError, RoundClosedError, SettingError
from downpour.serving.one_round import Task
from downpour.serving.rounds import Rounds
from tests.round_runs import COORDINATOR, DEADLINE_S, FIRST, SETTINGS, TIMEOUT_S, Federation, report

# Who has enrolled.


def test_a_client_can_be_sampled_from_the_next_round_on() -> None:
    federation = Federation(4, late=[2, 3])
    federation.open(0)
    assert federation.enroll(2) == FIRST + 1
    federation.close()
    assert federation.enroll(3) == FIRST + 1
    federation.clock.now += 3.0
    federation.beat(3)
    assert [it.since_round for it in federation.clients()] == [FIRST, FIRST, FIRST + 1, FIRST + 1]
    assert [it.seen_s_ago for it in federation.clients()] == [3.0, 3.0, 3.0, 0.0]


def test_enrolling_again_changes_nothing_and_is_a_sign_of_life() -> None:
    federation = Federation(1)
    federation.open(0)
    federation.clock.now += 3.0
    assert federation.enroll(0) == FIRST
    assert federation.ask(0) == Task(FIRST, DEADLINE_S - 3.0)
    assert [it.seen_s_ago for it in federation.clients()] == [0.0]


@pytest.mark.parametrize("client", [-1, 2])
def test_a_number_of_no_client_is_refused(client: int) -> None:
    with pytest.raises(RefusedError, match=rf"client {client} is none .* 2 clients .* 0 to 1"):
        Federation(2).enroll(client)


def test_other_settings_are_refused() -> None:
    federation = Federation(1, late=[0])
    with pytest.raises(RefusedError, match=r"other settings .* 'FedProx\(\)' and not 'FedAvg"):
        federation.rounds.enroll(0, 100, "FedProx()")
    assert federation.clients() == ()


def test_a_number_that_is_taken_is_refused_to_another_process() -> None:
    federation = Federation(2)
    with pytest.raises(RefusedError, match=r"client 1 is taken by another .* after 10 s"):
        federation.enroll(1, life=200)
    assert [it.incarnation for it in federation.clients()] == [100, 101]


@pytest.mark.parametrize("life", [100, 200], ids=["itself", "another"])
@pytest.mark.parametrize("gone", ["lost", "left", "failed"])
def test_who_is_gone_may_come_back_for_later_rounds(gone: str, life: int) -> None:
    federation = Federation(2)
    federation.open(0, 1)
    if gone == "lost":
        federation.lose(1)
    else:
        federation.leave(1, None if gone == "left" else "out of memory")
    assert federation.states()[1] == gone
    assert federation.enroll(1, life=life) == FIRST + 1
    assert federation.states()[1] == "running"
    assert federation.ask(1, life=life) is None
    with pytest.raises(RefusedError, match=rf"round 5 goes on without .* client 1: {gone}"):
        federation.report(1, life=life)
    federation.report(0)
    federation.close()
    federation.open(1, number=FIRST + 1)
    assert federation.ask(1, life=life) == Task(FIRST + 1, DEADLINE_S)


@pytest.mark.parametrize("client", [1, 5, -1])
def test_who_has_not_enrolled_can_do_nothing(client: int) -> None:
    federation = Federation(2, late=[1])
    federation.open(0)
    for call in (federation.ask, federation.report, federation.beat, federation.leave):
        with pytest.raises(RefusedError, match=rf"client {client} .* must enroll"):
            call(client)
    with pytest.raises(RefusedError, match=r"client 0 \(incarnation 200\) is not enrolled"):
        federation.beat(0, life=200)


def test_who_was_lost_is_told_to_enroll_anew() -> None:
    federation = Federation(2)
    federation.open(1)
    federation.clock.now += 8.0
    federation.clients()
    federation.clock.now += 4.0  # only its own call finds out
    for call in (federation.beat, federation.ask, federation.report, federation.leave):
        with pytest.raises(RefusedError, match=r"in round 5 after 12\.0 s .* 10 s .*enroll anew"):
            call(1)


def test_who_has_left_may_say_so_again_and_no_more() -> None:
    federation = Federation(1)
    federation.leave(0, "out of memory")
    federation.leave(0)
    assert [(it.state, it.error) for it in federation.clients()] == [("failed", "out of memory")]
    for call in (federation.beat, federation.ask, federation.report):
        with pytest.raises(RefusedError, match="client 0 has left the federation"):
            call(0)


# Rounds.


def test_a_sampled_client_trains_once_and_the_others_wait() -> None:
    federation = Federation(3)
    federation.open(2, 0)
    federation.clock.now += 4.0
    tasks = [federation.ask(client) for client in (0, 1, 2, 0)]
    task = Task(FIRST, DEADLINE_S - 4.0)
    assert tasks == [task, None, task, task]
    federation.report(0)
    assert [federation.ask(client) for client in range(3)] == [None, None, task]


def test_a_view_has_each_sampled_client_with_its_report_or_why_not() -> None:
    federation = Federation(6)
    federation.open(5, 4, 2, 1, 0)
    federation.report(4)
    federation.lose(2)
    federation.leave(1)
    federation.leave(5, "out of memory")
    federation.pass_time(DEADLINE_S)
    view = federation.close()
    assert (view.number, view.sampled, view.is_closed) == (FIRST, (0, 1, 2, 4, 5), True)
    assert view.reports == {4: report(4, FIRST)}
    assert view.dropped == {
        0: "late: no update within 30 s",
        1: "left",
        2: "lost: client 2 was dropped in round 5 after 12.0 s of silence: who is silent for "
        "longer than 10 s is lost",
        5: "failed: out of memory",
    }


def test_a_round_can_be_closed_early() -> None:
    federation = Federation(1)
    federation.open(0)
    federation.clock.now += 7.26
    assert federation.close().dropped == {0: "late: no update within 7.3 s"}


def test_who_is_gone_when_a_round_is_opened_is_dropped_at_once() -> None:
    federation = Federation(3)
    federation.leave(0)
    federation.lose(1)
    federation.open(0, 1, 2)
    view = federation.watch()
    assert view.dropped[0] == "left"
    assert view.dropped[1].startswith("lost: client 1 was dropped before round 5 after 12.0 s")
    assert federation.ask(2) == Task(FIRST, DEADLINE_S)


@pytest.mark.parametrize("gone", ["lost", "left"])
def test_what_was_reported_counts_whatever_comes_of_the_client(gone: str) -> None:
    federation = Federation(2)
    federation.open(0, 1)
    federation.report(1)
    federation.lose(1) if gone == "lost" else federation.leave(1)
    assert (list(federation.close().reports), federation.states()[1]) == ([1], gone)


@pytest.mark.parametrize("wait", ["open", "closed", "next"])
def test_a_report_may_be_tried_again(wait: str) -> None:
    federation = Federation(2)
    federation.open(0, 1)
    federation.report(1)
    if wait != "open":
        federation.close()
    if wait == "next":
        federation.open(0, 1, number=FIRST + 1)
    federation.report(1)
    assert federation.close().reports == {1: report(1, FIRST)}
    with pytest.raises(RefusedError, match="client 1: it has reported something else before"):
        federation.report(1, loss=0.5)


def test_a_report_after_its_round_has_closed_is_late() -> None:
    federation = Federation(2)
    federation.open(0, 1, deadline_s=5.0)
    federation.clock.now += 5.0
    closed = federation.close()
    for number in range(FIRST + 1, FIRST + 4):
        with pytest.raises(RoundClosedError, match=r"round 5"):
            federation.report(0)
        federation.open(0, 1, number=number)
        assert federation.close(number).reports == {}
    assert closed.reports == {}


def test_a_report_that_comes_before_the_round_is_closed_counts_though_its_deadline_passed() -> None:
    federation = Federation(1)
    federation.open(0, deadline_s=5.0)
    federation.clock.now += 5.0
    assert federation.ask(0) is None  # nobody begins now
    federation.report(0)
    assert list(federation.close().reports) == [0]


@pytest.mark.parametrize(
    ("client", "number", "message"),
    [
        (1, FIRST, "round 5 goes on without this update of client 1: it was not sampled"),
        (0, FIRST + 1, "client 0 reports round 6, but round 5 is under way"),
    ],
    ids=["not-sampled", "not-begun"],
)
def test_a_report_of_a_round_that_is_not_its_own_is_refused(
    client: int, number: int, message: str
) -> None:
    federation = Federation(2)
    federation.open(0)
    with pytest.raises(RefusedError, match=message):
        federation.report(client, number)
    assert federation.close().reports == {}


def test_a_round_may_be_opened_and_closed_again() -> None:
    federation = Federation(2)
    federation.open(0, 1)
    federation.report(0)
    federation.clock.now += 1.0
    federation.open(1, 0)
    assert federation.ask(1) == Task(FIRST, DEADLINE_S - 1.0)
    closed = federation.close()
    federation.open(1, 0)
    federation.clock.now += 1.0
    assert federation.close() == closed == federation.watch()
    federation.open(0, number=FIRST + 1)
    assert federation.close() == closed
    assert not federation.watch().is_closed


@pytest.mark.parametrize(
    ("number", "sampled", "deadline_s", "message"),
    [
        (FIRST, [0], 1.0, "round 5 cannot be opened: round 6 is the next to be opened"),
        (FIRST + 2, [0], 1.0, "round 7 cannot be opened: round 6 is the next to be opened"),
        (FIRST + 1, [], 1.0, r"one or more clients that have enrolled, each once, got \[\]"),
        (FIRST + 1, [0, 2], 1.0, r"clients that have enrolled, each once, got \[0, 2\]"),
        (FIRST + 1, [1, 1], 1.0, r"clients that have enrolled, each once, got \[1, 1\]"),
        (FIRST + 1, [0], 0.0, r"a finite deadline_s above 0, got 0\.0"),
        (FIRST + 1, [0], float("nan"), "a finite deadline_s above 0, got nan"),
    ],
    ids=["old", "skips", "nobody", "unknown", "twice", "no-time", "nan"],
)
def test_a_round_that_cannot_be_is_not_opened(
    number: int, sampled: list[int], deadline_s: float, message: str
) -> None:
    federation = Federation(3, late=[2])
    federation.open(0, 1)
    federation.close()
    with pytest.raises(RefusedError, match=message):
        federation.open(*sampled, number=number, deadline_s=deadline_s)
    assert federation.watch().number == FIRST


def test_rounds_come_one_after_the_other() -> None:
    federation = Federation(1)
    with pytest.raises(RefusedError, match="no round has been opened: open round 5 first"):
        federation.watch()
    with pytest.raises(RefusedError, match="round 5 cannot be closed: round 5 is the next"):
        federation.close()
    assert federation.beat(0) == FIRST
    federation.open(0)
    assert federation.beat(0) == FIRST
    with pytest.raises(RefusedError, match="round 6 cannot be opened: round 5 is under way"):
        federation.open(0, number=FIRST + 1)
    federation.close()
    assert federation.beat(0) == FIRST + 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_clients": 0}, "num_clients must be 1 or more, got 0"),
        ({"first_round": 0}, "first_round must be 1 or more, got 0"),
        ({"timeout_s": 0.0}, r"timeout_s must be a finite .* above 0, got 0\.0"),
        ({"timeout_s": float("inf")}, "timeout_s must be .* got inf"),
    ],
    ids=["no-clients", "round-0", "no-time", "forever"],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    fitting = {"num_clients": 1, "timeout_s": TIMEOUT_S, "first_round": 1}
    with pytest.raises(SettingError, match=message):
        Rounds(**{**fitting, **settings}, settings=SETTINGS, coordinator=COORDINATOR)
