"""Updates that come late, twice or in part, or of who is gone: each counts once or not at all."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from downpour.errors import (
    RefusedError,
    RoundClosedError,
    ServerTimeoutError,
    TableError,
    WorkerLostError,
)
from downpour.limits import Limits
from tests.fault_runs import DEADLINE_S, until, within
from tests.geo_runs import served
from tests.proxy import BOTH, TO_CLIENT, TO_SERVER, Proxy
from tests.round_clients import (
    SHORT,
    Leader,
    a_client,
    add,
    add_dense,
    begin,
    clients,
    fall_silent,
    send,
    taken,
    when_done,
)
from tests.servers import at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from downpour.remote.rounds import RoundClient
    from downpour.serving.flight_server import FlightServer


@pytest.fixture
def both() -> Iterator[list[FlightServer]]:
    with served(2) as given:
        yield given


@pytest.fixture
def addresses(both: list[FlightServer]) -> list[str]:
    return [it.address for it in both]


@pytest.fixture
def proxies(addresses: list[str]) -> Iterator[list[Proxy]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Proxy(address)) for address in addresses]


@contextmanager
def two(addresses: list[str], **settings: Any) -> Iterator[tuple[Leader, list[RoundClient]]]:
    """A coordinator and two clients, who are all in round 1."""
    with Leader(addresses, **settings) as leader, clients(addresses, 2, **settings) as members:
        leader.open(0, 1)
        yield leader, members


# Late.


MOMENTS = ["before it stages", "while it stages", "before it reports"]
STAGES: list[Callable[[RoundClient], None]] = [
    lambda client: add(client, range(50), 100.0),
    lambda client: add_dense(client, 100.0),
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_late_update_counts_for_nothing_and_the_next_one_counts(
    moment: str, addresses: list[str]
) -> None:
    with two(addresses) as (leader, (late, other)):
        taken(other, [1], 1.0)
        begin(late)
        staged = MOMENTS.index(moment)
        for stage in STAGES[:staged]:
            stage(late)
        late.finish()
        leader.close()
        for stage in STAGES[staged:]:
            stage(late)
        with pytest.raises(RoundClosedError, match="round 1 has closed without"):
            late.end_step(1)
        leader.open(0, 1)
        assert [taken(it, [1], 1.0) for it in (late, other)] == [2, 2]
        assert leader.close()["dropped"] == {}
        assert (leader.rows(), leader.dense()) == ({1: 3.0}, {2.0})


def test_an_update_that_is_late_before_its_round_is_committed_counts_for_nothing(
    addresses: list[str],
) -> None:
    with two(addresses) as (leader, (late, other)):
        taken(other, [1], 1.0)
        begin(late)
        view = leader.coordination.close(1)
        with pytest.raises(RoundClosedError, match="late: no update within"):
            send(late, [1, 2], 100.0)
        leader.commit(view["reports"])
        assert (leader.rows(), leader.dense()) == ({1: 2.0}, {1.0})


def test_a_report_on_its_way_when_the_round_closes_counts_for_nothing(
    addresses: list[str], proxies: list[Proxy]
) -> None:
    with Leader(addresses) as leader, a_client(addresses, 1) as other:
        with a_client([it.address for it in proxies], 0) as late:
            leader.open(0, 1)
            begin(late)
            add(late, range(50), 100.0)
            late.finish()
            proxies[0].hold(TO_SERVER)

            def close() -> None:
                taken(other, [1], 1.0)
                leader.close()
                proxies[0].recover()

            with pytest.raises(ExceptionGroup) as caught:
                at_once([lambda: late.end_step(1), close])
            assert [type(it) for it in caught.value.exceptions] == [RoundClosedError]
            leader.open(0)
            assert taken(late, [1], 1.0) == 2
            leader.close()
        assert leader.rows() == {1: 3.0}


# Twice.


def test_connections_that_break_lose_and_double_nothing(
    both: list[FlightServer], proxies: list[Proxy]
) -> None:
    for verb in ("_ask", "_report"):
        when_done(both[0], verb, *[it.reset for it in proxies])
    with Leader([it.address for it in both], 1) as leader:
        with a_client([it.address for it in proxies], 0) as client:
            for number in range(1, 4):
                leader.open(0)
                begin(client)
                for proxy in proxies:
                    proxy.hold(TO_CLIENT)
                    add(client, range(number, number + 50), 1.0)
                    staged = threading.Thread(target=client.finish)
                    staged.start()
                    proxy.reset()
                    proxy.recover()
                    staged.join()
                add_dense(client, 1.0)
                client.end_step(1)
                assert list(leader.close()["reports"]) == ["0"]
                assert leader.dense() == {float(number)}
        grown = {1: 3.0, 2: 5.0, 51: 5.0, 52: 3.0} | dict.fromkeys(range(3, 51), 7.0)
        assert leader.rows() == grown


def test_a_round_is_begun_once(addresses: list[str]) -> None:
    with two(addresses) as (leader, (client, _)):
        given = begin(client)
        add(client, [1], 1.0)
        assert client.enrolment.ask().number == 1
        with pytest.raises(WorkerLostError, match="client 0 was given round 1 again"):
            client.begin_round(given)
        add_dense(client, 1.0)
        client.end_step(1)
        leader.close()
        assert leader.rows() == {1: 2.0}


def test_an_update_that_servers_do_not_take_is_no_late_one(
    both: list[FlightServer], addresses: list[str]
) -> None:
    both[1].service.held.limits = Limits(message_bytes=500)
    with two(addresses) as (leader, (large, other)):
        begin(large)
        with pytest.raises(TableError, match=r"do not take .* round 1: server 1 .*have 500 bytes"):
            send(large, range(100), 100.0)
        taken(other, [1], 1.0)
        leader.close()
        assert (leader.rows(), leader.dense()) == ({1: 2.0}, {1.0})


# Gone.


@pytest.mark.parametrize("has_reported", [True, False], ids=["reported", "staged"])
def test_the_update_of_a_client_that_died_counts_once_it_was_reported(
    has_reported: bool, addresses: list[str]
) -> None:
    with two(addresses, **SHORT) as (leader, (dead, other)):
        begin(dead)
        add(dead, [1], 3.0)
        add_dense(dead, 3.0)
        dead.finish()
        if has_reported:
            dead.end_step(1)
        taken(other, [1], 1.0)
        fall_silent(dead)
        leader.await_states("lost", "running")
        assert list(leader.close()["dropped"]) == ([] if has_reported else ["0"])
        growth = 2.0 if has_reported else 1.0
        assert (leader.rows(), leader.dense()) == ({1: 1.0 + growth}, {growth})


def test_a_client_that_died_amid_its_update_is_replaced_and_nothing_of_it_counts(
    addresses: list[str],
) -> None:
    with two(addresses, **SHORT) as (leader, (dead, other)):
        begin(dead)
        add(dead, [1, 2], 100.0)
        dead.finish()
        fall_silent(dead)
        leader.await_states("lost", "running")
        with a_client(addresses, 0, incarnation=9, **SHORT) as again:
            taken(other, [1], 1.0)
            with pytest.raises(RefusedError, match="another process has taken its place"):
                dead.end_step(1)  # it was not dead after all
            assert list(leader.close()["reports"]) == ["1"]
            leader.open(0)
            assert taken(again, [2], 1.0) == again.enrolment.next_round == 2
            leader.close()
        assert leader.rows() == {1: 2.0, 2: 2.0}


@pytest.mark.parametrize("comes", ["the same process", "another process"])
def test_what_was_staged_for_a_lost_coordinator_is_not_added_to_a_later_update(
    comes: str, both: list[FlightServer], addresses: list[str]
) -> None:
    leader = Leader(addresses, **SHORT)
    with ExitStack() as stack:
        old = stack.enter_context(a_client(addresses, 0))
        leader.open(0)
        begin(old)
        add(old, [1, 2], 100.0)
        old.finish()
        fall_silent(old)  # else it may hear of the loss itself, and end
        leader.fall_silent()
        until(lambda: both[0].rounds.rounds.is_over)
        leader = stack.enter_context(Leader(addresses, incarnation=8))
        assert leader.number == leader.coordination.next_round == 2
        add(old, [3], 100.0)
        with pytest.raises(RefusedError, match=r"client 0 .* is not enrolled"):
            old.end_step(1)
        new = old
        if comes == "another process":
            new = stack.enter_context(a_client(addresses, 0, incarnation=9))
            with pytest.raises(RefusedError, match="client 0 is taken"):
                old.enrolment.ask()
        open_when_running(leader, new)
        leader.close()
        assert (leader.rows(), leader.dense()) == ({1: 2.0}, {1.0})


def open_when_running(leader: Leader, client: RoundClient) -> None:
    """Let client 0 take part in a round, for which it enrolls anew where it has to."""

    def lead() -> None:
        leader.await_states("running")
        leader.open(0)

    at_once([lambda: taken(client, [1], 1.0), lead])


def test_who_leaves_with_an_error_is_named_and_its_update_is_none(addresses: list[str]) -> None:
    with two(addresses) as (leader, (broken, other)):
        begin(broken)
        add(broken, [1], 100.0)
        broken.abandon("DataError: no file")
        broken.abandon("again")
        taken(other, [1], 1.0)
        assert leader.close()["dropped"] == {"0": "failed: DataError: no file"}
        assert leader.rows() == {1: 2.0}


def test_a_server_that_hangs_amid_an_update_is_named_within_the_deadline(
    addresses: list[str], proxies: list[Proxy]
) -> None:
    with Leader(addresses, 1) as leader:
        through = [it.address for it in proxies]
        with a_client(through, 0, deadline_s=DEADLINE_S) as client:
            leader.open(0)
            begin(client)
            proxies[1].hold(*BOTH)
            with within(), pytest.raises(ServerTimeoutError, match=r"server 1 .*'stage"):
                send(client, range(50), 100.0)
            client.abandon("ServerTimeoutError: ...")
        assert leader.close()["dropped"] == {"0": "failed: ServerTimeoutError: ..."}
        assert leader.rows() == {}
