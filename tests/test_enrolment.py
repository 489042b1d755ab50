"""Clients and coordinators of a federation over servers: who waits for whom, and who is heard."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from downpour.errors import RefusedError, WorkerLostError
from tests.geo_runs import served
from tests.proxy import TO_SERVER, Proxy
from tests.round_clients import (
    LONG_S,
    SHORT,
    Leader,
    a_client,
    add,
    begin,
    clients,
    connected,
    enrolled,
    fall_silent,
    send,
    taken,
    when_done,
)
from tests.servers import at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from downpour.remote.server import RemoteServer
    from downpour.serving.flight_server import FlightServer


@pytest.fixture
def server() -> Iterator[FlightServer]:
    with served(1) as (given,):
        yield given


@pytest.fixture
def addresses(server: FlightServer) -> list[str]:
    return [server.address]


@pytest.fixture
def proxy(server: FlightServer) -> Iterator[Proxy]:
    with Proxy(server.address) as given:
        yield given


@pytest.fixture
def remote(addresses: list[str]) -> Iterator[RemoteServer]:
    with connected(addresses) as given:
        yield given


# Coming.


def test_a_client_waits_for_its_coordinator(server: FlightServer, remote: RemoteServer) -> None:
    asked = threading.Event()
    when_done(server, "_enroll", asked.set)

    def lead() -> None:
        asked.wait()
        with Leader([server.address]) as leader:
            leader.await_states("left")

    at_once([lambda: enrolled([remote], 0).leave(), lead])


def test_a_client_waits_no_longer_than_told(remote: RemoteServer) -> None:
    with pytest.raises(WorkerLostError, match=r"no federation has begun; waited 0\.2 s for a coor"):
        enrolled([remote], 0, start_s=0.2)


def test_where_a_federation_has_ended_a_client_waits_for_another_one(
    addresses: list[str], remote: RemoteServer
) -> None:
    with Leader(addresses):
        pass
    with pytest.raises(WorkerLostError, match=r"is over: all rounds are done; waited 0\.1 s for"):
        enrolled([remote], 0, start_s=0.1)
    with Leader(addresses, incarnation=8) as leader:
        client = enrolled([remote], 0)
        assert leader.states() == {0: "running"}
        client.leave()


def test_a_client_with_other_settings_or_in_a_taken_place_is_refused(
    addresses: list[str], remote: RemoteServer
) -> None:
    with Leader(addresses):
        first = enrolled([remote], 0)
        with pytest.raises(RefusedError, match="client 0 is taken by another running process"):
            enrolled([remote], 0, incarnation=9)
        with pytest.raises(RefusedError, match="client 1 has other settings than this federation"):
            enrolled([remote], 1, settings="FedProx()")
        first.leave()
        enrolled([remote], 0, incarnation=9).leave()


def test_a_client_that_comes_late_joins_the_next_round(addresses: list[str]) -> None:
    with Leader(addresses) as leader, a_client(addresses, 0) as first:
        leader.open(0)
        with a_client(addresses, 1) as late:
            assert late.enrolment.next_round == 2
            assert taken(first, [1], 1.0) == 1
            leader.close()
            leader.open(0, 1)
            assert [taken(it, [1], 1.0) for it in (late, first)] == [2, 2]
            assert leader.close()["dropped"] == {}


def test_a_coordinator_comes_after_another_one_has_ended(addresses: list[str]) -> None:
    with Leader(addresses, 1) as leader, a_client(addresses, 0) as client:
        leader.open(0)
        taken(client, [1], 1.0)
        leader.close()
        with pytest.raises(RefusedError, match="another process does: end that one, or begin once"):
            Leader(addresses, incarnation=8)
        assert leader.states() == {0: "running"}
    with Leader(addresses, incarnation=8) as leader:
        assert (leader.coordination.next_round, leader.states()) == (2, {})


# Letting hear, and falling silent.


def test_beats_keep_who_waits_and_who_trains_alive(addresses: list[str]) -> None:
    with Leader(addresses, 3, **SHORT) as leader, clients(addresses, 3, **SHORT) as members:
        leader.open(1)
        begin(members[1])
        fall_silent(members[2])
        leader.await_states("running", "running", "lost")  # so more than this time has passed
        send(members[1], [1], 1.0)
        assert leader.close()["dropped"] == {}


def test_a_question_without_an_answer_is_asked_again(
    server: FlightServer, remote: RemoteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("downpour.remote.enrolment.POLL_S", 0.05)
    asked = threading.Semaphore(0)
    when_done(server, "_ask", *[asked.release] * 3)
    with Leader([server.address], 1) as leader:
        enrolment = enrolled([remote], 0)

        def open_late() -> None:
            for _ in range(3):
                asked.acquire()
            leader.open(0)

        given = at_once([lambda: enrolment.ask(), open_late])[0]
        assert (given.number, 0.0 < given.left_s <= LONG_S) == (1, True)
        enrolment.leave()


def test_who_was_silent_too_long_enrolls_once_more_and_goes_on(addresses: list[str]) -> None:
    with Leader(addresses, **SHORT) as leader, clients(addresses, 2, **SHORT) as (silent, other):
        leader.open(0, 1)
        begin(silent)
        add(silent, [1], 1.0)
        fall_silent(silent)
        leader.await_states("lost", "running")
        with pytest.raises(RefusedError, match="client 0 was dropped in round 1 after"):
            silent.end_step(1)
        taken(other, [2], 1.0)
        assert "lost: client 0 was dropped" in leader.close()["dropped"]["0"]
        open_once_running(leader, lambda: taken(silent, [3], 1.0), "running", "running")
        assert silent.enrolment.next_round == 2
        assert list(leader.close()["reports"]) == ["0"]
        assert leader.rows() == {2: 2.0, 3: 2.0}


def open_once_running(leader: Leader, call: Callable[[], object], *states: str) -> None:
    """Open a round with client 0 when clients are so, while it makes a call."""

    def open_next() -> None:
        leader.await_states(*states)
        leader.open(0)

    at_once([call, open_next])


def test_who_could_not_be_heard_for_a_while_goes_on(proxy: Proxy, addresses: list[str]) -> None:
    with Leader(addresses, 1, **SHORT) as leader, a_client([proxy.address], 0, **SHORT) as client:
        leader.open(0)
        taken(client, [1], 1.0)
        leader.close()
        proxy.hold(TO_SERVER)
        leader.await_states("lost")
        proxy.recover()
        open_once_running(leader, lambda: taken(client, [1], 1.0), "running")
        assert list(leader.close()["reports"]) == ["0"]
        assert leader.rows() == {1: 3.0}


def test_who_was_silent_and_has_lost_its_place_is_refused(addresses: list[str]) -> None:
    with Leader(addresses, 1, **SHORT) as leader, a_client(addresses, 0, **SHORT) as silent:
        fall_silent(silent)
        leader.await_states("lost")
        with a_client(addresses, 0, incarnation=9, **SHORT):
            with pytest.raises(RefusedError, match="client 0 is taken by another running process"):
                silent.enrolment.ask()
            assert leader.states() == {0: "running"}
