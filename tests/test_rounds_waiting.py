"""Rounds of federated training: who waits is woken up, and nobody waits for who is gone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from downpour.errors import RefusedError, RoundClosedError, WorkerLostError
from downpour.serving.one_round import Task
from tests.round_runs import (
    COORDINATOR,
    DEADLINE_S,
    FIRST,
    LONG_S,
    TIMEOUT_S,
    Federation,
    report,
    waiting,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from downpour.serving.one_round import RoundView


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


@pytest.fixture
def no_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits is woken up, or waits for long."""
    monkeypatch.setattr("downpour.serving.rounds.POLL_S", LONG_S)


def asks(
    pool: ThreadPoolExecutor, federation: Federation, client: int
) -> Future[Task | str | None]:
    return waiting(pool, federation, client, lambda: federation.ask(client, wait_s=LONG_S))


def watches(pool: ThreadPoolExecutor, federation: Federation) -> Future[RoundView]:
    return waiting(pool, federation, -1, lambda: federation.watch(wait_s=LONG_S))


# A client waits for a round.


@pytest.mark.usefixtures("no_polls")
def test_who_asks_is_told_when_a_round_is_opened_with_it(pool: ThreadPoolExecutor) -> None:
    federation = Federation(3)
    left_out, asking = asks(pool, federation, 0), asks(pool, federation, 1)
    federation.open(1, 2)
    assert asking.result() == Task(FIRST, DEADLINE_S)
    federation.close()
    federation.open(0, number=FIRST + 1)
    assert left_out.result() == Task(FIRST + 1, DEADLINE_S)


@pytest.mark.usefixtures("no_polls")
def test_who_asks_is_told_that_the_federation_has_ended(pool: ThreadPoolExecutor) -> None:
    federation = Federation(2)
    asking = asks(pool, federation, 1)
    federation.end("all 3 rounds are done")
    federation.end("of a second thought")
    assert asking.result() == federation.ask(0) == "all 3 rounds are done"


@pytest.mark.usefixtures("no_polls")
@pytest.mark.parametrize("gone", ["lost", "left"])
def test_who_asks_and_is_gone_waits_no_longer(gone: str, pool: ThreadPoolExecutor) -> None:
    federation = Federation(2)
    asking = asks(pool, federation, 1)
    if gone == "lost":  # waiting is no sign of life
        federation.lose(1)
    else:
        federation.leave(1)
    with pytest.raises(RefusedError, match=r"client 1 (was dropped before round 5|has left)"):
        asking.result()


def test_who_asks_is_answered_after_a_while() -> None:
    federation = Federation(1)
    assert [federation.ask(0), federation.ask(0, wait_s=0.01)] == [None, None]


# The coordinator waits for what comes of a round.


@pytest.mark.usefixtures("no_polls")
@pytest.mark.parametrize("last", ["reports", "leaves", "fails", "is lost"])
def test_who_watches_is_told_when_nobody_is_waited_for(last: str, pool: ThreadPoolExecutor) -> None:
    federation = Federation(3)
    federation.open(0, 1)
    federation.report(0)
    watching = watches(pool, federation)
    if last == "reports":
        federation.report(1)
    elif last == "is lost":
        federation.lose(1)
    else:
        federation.leave(1, "out of memory" if last == "fails" else None)
    view = watching.result()
    assert {*view.reports, *view.dropped} == {0, 1}
    assert not view.is_closed
    assert federation.watch(wait_s=LONG_S) == view


def test_who_watches_is_told_when_the_deadline_has_passed(pool: ThreadPoolExecutor) -> None:
    federation = Federation(2)
    federation.open(0, 1, deadline_s=5.0)
    watching = watches(pool, federation)
    federation.report(1)
    federation.clock.now += 4.0
    view = watching.result()
    assert (view.reports, view.dropped) == ({1: report(1, FIRST)}, {})
    assert federation.close().dropped == {0: "late: no update within 5 s"}


def test_who_watches_is_answered_after_a_while() -> None:
    federation = Federation(1)
    federation.open(0)
    for view in (federation.watch(), federation.watch(wait_s=0.01)):
        assert (view.reports, view.dropped) == ({}, {})


@pytest.mark.usefixtures("no_polls")
@pytest.mark.parametrize("call", ["close", "end"])
def test_who_watches_is_told_when_the_round_is_closed(call: str, pool: ThreadPoolExecutor) -> None:
    federation = Federation(1)
    federation.open(0)
    watching = watches(pool, federation)
    if call == "close":
        federation.close()
    else:
        federation.end()
    assert watching.result().dropped == {0: "late: no update within 1 s"}


# The federation is over.


def test_after_the_end_nobody_trains() -> None:
    federation = Federation(2)
    federation.open(0, 1)
    federation.report(1)
    federation.end()
    assert federation.rounds.is_over
    with pytest.raises(RoundClosedError, match="round 5 has closed without"):
        federation.report(0)
    federation.report(1)
    with pytest.raises(WorkerLostError, match=r"cannot enroll.* is over: all rounds are done"):
        federation.enroll(0)
    with pytest.raises(RefusedError, match=r"cannot be opened.* is over: all rounds are done"):
        federation.open(0, number=FIRST + 1)
    federation.leave(0)
    assert list(federation.watch().reports) == [1]


def test_after_the_end_nobody_is_lost_and_everyone_is_told_of_it() -> None:
    federation = Federation(2)
    federation.lose(1)
    federation.end()
    federation.lose_coordinator()  # which is right to go
    assert [federation.ask(client) for client in (0, 1)] == ["all rounds are done"] * 2
    assert federation.states() == {0: "running", 1: "lost"}


@pytest.mark.usefixtures("no_polls")
def test_the_loss_of_the_coordinator_ends_all_that_waits(pool: ThreadPoolExecutor) -> None:
    federation = Federation(3)
    federation.open(0)
    watching = watches(pool, federation)
    asking = asks(pool, federation, 1)
    federation.lose_coordinator()
    assert federation.rounds.is_over
    message = r"the coordinator was dropped in round 5 after 13\.0 s .* 10 s is lost.* begin a new"
    calls = [
        *(watching.result, asking.result, federation.watch, federation.clients, federation.close),
        *(lambda call=call: call(0) for call in (federation.ask, federation.beat)),
        *(lambda call=call: call(0) for call in (federation.report, federation.enroll)),
        lambda: federation.open(0, number=FIRST + 1),
    ]
    for call in calls:
        with pytest.raises(WorkerLostError, match=message):
            call()
    federation.leave(0)


def test_who_waits_sees_by_itself_that_the_coordinator_is_lost(pool: ThreadPoolExecutor) -> None:
    federation = Federation(1)
    asking = asks(pool, federation, 0)
    federation.clock.now += TIMEOUT_S
    with pytest.raises(WorkerLostError, match=r"dropped before round 5 after 11\.0 s"):
        asking.result()


def test_another_process_does_not_coordinate() -> None:
    federation = Federation(1)
    rounds, other = federation.rounds, COORDINATOR + 1
    federation.open(0)
    federation.clock.now += TIMEOUT_S
    for call in (
        lambda: rounds.coordinate(other),
        lambda: rounds.open(other, FIRST + 1, [0], DEADLINE_S),
        lambda: rounds.watch(other, wait_s=LONG_S),
        lambda: rounds.close(other, FIRST),
        lambda: rounds.end(other, "no reason"),
    ):
        with pytest.raises(RefusedError, match="incarnation 8 does not coordinate"):
            call()
    federation.clock.now += 1.0  # and none was a sign of life
    assert rounds.is_over


# Silence, and pauses of the server itself.


def test_each_call_of_the_coordinator_is_a_sign_of_life() -> None:
    federation = Federation(1)
    for call in (
        federation.clients,
        lambda: federation.open(0, deadline_s=LONG_S),
        federation.watch,
        federation.close,
        federation.clients,
    ):
        federation.clock.now += TIMEOUT_S
        federation.beat(0)
        call()
    assert not federation.rounds.is_over


def test_each_call_of_a_client_is_a_sign_of_life() -> None:
    federation = Federation(1)
    federation.open(0, deadline_s=LONG_S)
    for call in (federation.enroll, federation.ask, federation.report, federation.beat):
        federation.clock.now += TIMEOUT_S
        federation.clients()
        call(0)
    federation.clock.now += TIMEOUT_S
    assert federation.states() == {0: "running"}
    federation.clock.now += 0.1
    assert federation.states() == {0: "lost"}


def test_who_was_silent_before_and_who_came_later_are_lost_in_their_time() -> None:
    federation = Federation(3, late=[2])
    federation.pass_time(6.0, 0)
    federation.enroll(2)
    for silent, states in [
        (5.0, ["lost", "running", "running"]),
        (6.0, ["lost", "running", "lost"]),
    ]:
        federation.pass_time(silent, 0, 2)
        assert list(federation.states().values()) == states


def test_a_pause_of_the_server_is_nobodys_silence_and_moves_the_deadline() -> None:
    federation = Federation(2)
    federation.open(0, 1)
    federation.pass_time(4.0, 1)
    federation.clock.now += 1000.0
    federation.rounds.check()
    assert [it.seen_s_ago for it in federation.clients()] == [0.0, 4.0]
    assert federation.ask(0) == Task(FIRST, DEADLINE_S - 4.0)
    federation.pass_time(6.0, 1)
    assert federation.states() == {0: "running", 1: "running"}
    federation.pass_time(0.1, 1)
    assert federation.states() == {0: "running", 1: "lost"}


@pytest.mark.parametrize("first", ["client", "coordinator"])
def test_a_pause_is_found_by_whoever_calls_first(first: str) -> None:
    federation = Federation(1)
    federation.rounds.check()
    federation.clock.now += 1000.0
    if first == "client":
        federation.beat(0)
    else:
        federation.clients()
    assert federation.states() == {0: "running"}


def test_gaps_of_a_server_that_looks_in_time_are_no_pauses() -> None:
    federation = Federation(1)
    federation.open(0, deadline_s=6.0)
    for _ in range(3):
        federation.clock.now += 0.5 * TIMEOUT_S
        federation.rounds.check()
    assert federation.rounds.is_over
