"""Federations that end, and whose coordinator, server or connections are lost."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from downpour.errors import RefusedError, ServerError, WorkerLostError
from tests.fault_runs import DEADLINE_S, until, within
from tests.geo_runs import served
from tests.proxy import BOTH, TO_SERVER, Proxy
from tests.round_clients import (
    LONG_S,
    NOTHING,
    SHORT,
    SHORT_S,
    Leader,
    a_client,
    connected,
    enrolled,
    taken,
    when_done,
)
from tests.servers import at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from downpour.remote.enrolment import Coordination, Enrolment
    from downpour.remote.server import RemoteServer
    from downpour.serving.flight_server import FlightServer


@pytest.fixture
def server() -> Iterator[FlightServer]:
    with served(1) as (given,):
        yield given


@pytest.fixture
def remote(server: FlightServer) -> Iterator[RemoteServer]:
    with connected([server.address]) as given:
        yield given


@pytest.fixture
def proxy(server: FlightServer) -> Iterator[Proxy]:
    with Proxy(server.address) as given:
        yield given


# The end, and the coordinator.


def test_the_end_of_a_federation_is_the_end_of_asking(
    server: FlightServer, remote: RemoteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("downpour.remote.enrolment.POLL_S", 0.05)
    asked = threading.Event()
    when_done(server, "_ask", asked.set)
    leader = Leader([server.address], 1)
    enrolment = enrolled([remote], 0)

    def end() -> None:
        with leader:
            asked.wait()

    assert at_once([enrolment.ask, end]) == [None, None]
    assert enrolment.ask() is None
    assert enrolment.why_over == "all rounds are done"
    enrolment.leave()


def test_a_coordinator_that_is_lost_ends_all_that_waits(
    server: FlightServer, remote: RemoteServer
) -> None:
    leader = Leader([server.address], 1, **SHORT)
    enrolment = enrolled([remote], 0)
    leader.open(0)
    assert enrolment.ask() is not None
    leader.fall_silent()
    until(lambda: server.rounds.rounds.is_over)
    for call in (
        enrolment.ask,
        lambda: enrolment.is_under_way(1),
        lambda: enrolment.report(1, NOTHING),
    ):
        with pytest.raises(WorkerLostError, match="the coordinator was dropped in round 1 after"):
            call()
    enrolment.leave("an error\n" * 10_000)


def test_who_asks_hears_of_a_lost_coordinator_within_its_time(
    server: FlightServer, remote: RemoteServer
) -> None:
    leader = Leader([server.address], 1, **SHORT)
    enrolment = enrolled([remote], 0)
    leader.fall_silent()
    with within(SHORT_S), pytest.raises(WorkerLostError, match="the coordinator was dropped befor"):
        enrolment.ask()


def test_a_coordinator_that_could_not_be_heard_is_told_so_and_ends_no_other(
    server: FlightServer, proxy: Proxy
) -> None:
    with Leader([proxy.address], **SHORT) as leader:
        proxy.hold(TO_SERVER)
        until(lambda: server.rounds.rounds.is_over)
        with Leader([server.address], incarnation=8) as other:
            proxy.recover()
            with pytest.raises((WorkerLostError, RefusedError), match=r"lost|not coordinate"):
                leader.coordination.watch(LONG_S)
            leader.coordination.end("x" * 100_000)
            assert other.states() == {}


# The server.


def calls(client: Enrolment, leader: Coordination) -> list[Callable[[], object]]:
    """One of each that waits for an answer."""
    return [
        client.ask,
        lambda: client.report(1, NOTHING),
        lambda: client.is_under_way(1),
        lambda: leader.watch(LONG_S),
        leader.clients,
        lambda: leader.open(1, [0], LONG_S),
        lambda: leader.close(1),
    ]


@pytest.mark.parametrize("fault", ["hangs", "is gone"])
def test_a_server_that_hangs_or_is_gone_is_named_within_the_deadline(
    fault: str, server: FlightServer
) -> None:
    proxy, deadline_s = Proxy(server.address), DEADLINE_S / 2
    with Leader([proxy.address], 1, deadline_s=deadline_s) as leader:
        with connected([proxy.address], deadline_s) as remote:
            enrolment = enrolled([remote], 0)
            if fault == "hangs":
                proxy.hold(*BOTH)
            else:
                proxy.__exit__()
            for call in calls(enrolment, leader.coordination):
                with within(), pytest.raises(ServerError, match=r"server 0 .*(did not|cannot be)"):
                    call()
            with within():
                enrolment.leave()
        with within():
            leader.coordination.end("all rounds are done")
    if fault == "hangs":
        proxy.__exit__()


# Connections.


def test_what_a_client_says_counts_once_where_connections_break(
    server: FlightServer, proxy: Proxy
) -> None:
    for verb in ("_enroll", "_ask", "_report", "_client_leave"):
        when_done(server, verb, proxy.reset)
    with Leader([server.address], 1) as leader, connected([proxy.address]) as remote:
        enrolment = enrolled([remote], 0)
        leader.open(0)
        given = enrolment.ask()
        assert given is not None
        enrolment.report(given.number, NOTHING)
        enrolment.leave()
        assert leader.states() == {0: "left"}
        assert leader.close()["reports"] == {"0": NOTHING}


def test_what_a_coordinator_says_counts_once_where_connections_break(
    server: FlightServer, proxy: Proxy
) -> None:
    for verb in ("_begin", "_clients", "_open", "_watch", "_close", "_end"):
        when_done(server, verb, proxy.reset)
    leader = Leader([proxy.address], 1)
    with a_client([server.address], 0) as client:
        with leader:
            assert (leader.states(), leader.open(0)) == ({0: "running"}, 1)
            taken(client, [1], 1.0)
            assert list(leader.coordination.watch(LONG_S)["reports"]) == ["0"]
            assert list(leader.close()["reports"]) == ["0"]
            assert leader.rows() == {1: 2.0}
        assert client.enrolment.ask() is None
