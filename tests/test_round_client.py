"""What rounds leave in the tables: the mean of the updates that count, whoever came first."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from downpour.errors import NonFiniteError, RoundClosedError
from tests.fault_runs import until
from tests.geo_runs import DENSE, DIM, SIZE, START, TABLE, served
from tests.round_clients import (
    LONG_S,
    Leader,
    a_client,
    add,
    add_dense,
    begin,
    clients,
    send,
    taken,
)
from tests.servers import Jittery, at_once, held, servers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from downpour.remote.rounds import RoundClient

NUM_ROUNDS = 6


@contextmanager
def federation(
    num_clients: int, num_servers: int = 2, **settings: Any
) -> Iterator[tuple[Leader, list[RoundClient]]]:
    """A coordinator and its clients."""
    with (
        servers(num_servers) as addresses,
        Leader(addresses, num_clients, **settings) as leader,
        clients(addresses, num_clients) as members,
    ):
        yield leader, members


def read(client: RoundClient, *keys: int) -> list[float]:
    """The first number of each row, as the client sees it."""
    located = client.locate(TABLE, np.array(keys, np.uint64), create=False)
    numbers: list[float] = client.read(located)[:, 0].tolist()
    return numbers


# Means.


@pytest.mark.parametrize("num_servers", [1, 2, 3])
def test_a_round_adds_the_mean_of_updates_by_their_samples(num_servers: int) -> None:
    with federation(2, num_servers) as (leader, (first, second)):
        leader.open(0, 1)
        taken(first, [1, 2], 4.0, samples=10)
        taken(second, [2, 3], 8.0, samples=30)
        assert leader.close()["dropped"] == {}
        assert leader.rows() == {1: 2.0, 2: 8.0, 3: 7.0}
        assert leader.dense() == {7.0}


@pytest.mark.parametrize("num_servers", [1, 2, 3])
def test_a_mean_of_rows_may_be_over_those_that_have_them(num_servers: int) -> None:
    with federation(2, num_servers, over_touched=True) as (leader, (first, second)):
        for number, growth in enumerate([7.0, 4.0], 1):
            leader.open(*[0, 1][: 3 - number])
            taken(first, [1, 2], 4.0, samples=10)
            if number == 1:
                taken(second, [2, 3], 8.0, samples=30)
            before = leader.rows()
            leader.close()
            assert leader.rows()[2] == before.get(2, 1.0) + growth
        assert leader.rows() == {1: 9.0, 2: 12.0, 3: 9.0}
        assert leader.dense() == {11.0}


def test_clients_may_count_alike() -> None:
    with federation(3, weighs_equally=True) as (leader, (first, second, idle)):
        leader.open(0, 1, 2)
        taken(first, [1, 2], 4.0, samples=10)
        taken(second, [2, 3], 8.0, samples=30)
        taken(idle, [4], 100.0, samples=0)
        assert sorted(leader.close()["reports"]) == ["0", "1", "2"]
        assert leader.rows() == {1: 3.0, 2: 7.0, 3: 5.0}
        assert leader.dense() == {6.0}


def test_an_update_without_rows_or_without_anything_is_one_all_the_same() -> None:
    with federation(2) as (leader, (first, second)):
        leader.open(0, 1)
        begin(first)
        add_dense(first, 4.0)
        first.end_step(10)
        begin(second)
        second.end_step(30)
        assert [it["tables"] for it in leader.close()["reports"].values()] == [[DENSE], []]
        assert (leader.rows(), leader.dense()) == ({}, {1.0})
        leader.open(0)
        begin(first)
        first.end_step(10)
        assert leader.close()["reports"]["0"]["tables"] == []


def test_what_was_staged_and_not_reported_is_thrown_away() -> None:
    with federation(3) as (leader, (first, second, slow)):
        leader.open(0, 1, 2)
        begin(slow)
        add(slow, [1, 4], 100.0)
        add_dense(slow, 100.0)
        slow.finish()
        for client in (first, second):
            taken(client, [1], 2.0)
        assert leader.close()["dropped"]["2"].startswith("late")
        leader.open(2)
        taken(slow, [1], 3.0)
        leader.close()
        assert leader.rows() == {1: 6.0}
        assert leader.dense() == {5.0}


def test_a_round_without_a_quorum_changes_nothing_and_the_next_one_goes_on() -> None:
    with federation(2) as (leader, (first, second)):
        leader.open(0)
        taken(first, [1], 1.0)
        leader.close()
        before = held(leader.client)
        leader.open(0, 1)
        taken(first, [1, 2], 100.0)
        leader.coordination.close(2)
        leader.commit({})
        assert held(leader.client) == before
        assert leader.open(0, 1) == 3
        assert [taken(it, [1], 3.0) for it in (second, first)] == [3, 3]
        leader.close()
        assert leader.rows() == {1: 5.0}


def test_a_round_reads_what_the_one_before_has_left() -> None:
    with federation(2, 3) as (leader, (first, second)):
        for number in range(1, 4):
            leader.open(0, 1)
            for client in (first, second):
                begin(client)
                assert read(client, 1, 2, 3) == [float(number)] * 3
                assert np.array_equal(client.pull_dense(DENSE), START + number - 1)
                send(client, [1, 2, 3], 1.0)
            leader.close()


def test_a_client_gives_dense_tables_no_first_weights() -> None:
    with federation(1) as (leader, (client,)):
        assert not client.init_dense(DENSE, np.full(SIZE, 9.0))
        assert leader.dense() == {0.0}


def test_an_update_that_is_not_finite_is_none() -> None:
    with federation(2) as (leader, (first, second)):
        leader.open(0, 1)
        begin(first)
        add(first, [1], np.nan)
        with pytest.raises(NonFiniteError, match=r"server \d .*NaN"):
            first.end_step(1)
        first.abandon("NonFiniteError: ...")
        taken(second, [1], 2.0)
        assert leader.close()["dropped"] == {"0": "failed: NonFiniteError: ..."}
        assert leader.rows() == {1: 3.0}


# The order in which clients come.


def update_of(number: int, client: int) -> tuple[range, np.ndarray, np.ndarray, int]:
    """Keys, changes of rows and of dense weights, and samples."""
    random = np.random.default_rng((number, client))
    keys = range(client, 4 + 3 * client)
    return keys, random.normal(size=(len(keys), DIM)), random.normal(size=SIZE), 7 + 2 * client


def train(client: RoundClient) -> None:
    """Take part in a round."""
    given = begin(client)
    keys, rows, dense, samples = update_of(given.number, client.rank)
    add(client, keys, rows)
    add_dense(client, dense)
    client.end_step(samples)


def left_by(num_servers: int, orders: Any) -> dict[str, Any]:
    """What rounds leave in which clients stage in one order, and report in the opposite one."""
    with federation(3, num_servers) as (leader, members):
        for order in orders:
            leader.open(0, 1, 2)
            updates = [update_of(begin(members[it]).number, it) for it in order]
            for place, (keys, rows, _, _) in zip(order, updates, strict=True):
                add(members[place], keys, rows)
            for place, (_, _, dense, _) in zip(order, updates, strict=True):
                add_dense(members[place], dense)
            for place, (_, _, _, samples) in [*zip(order, updates, strict=True)][::-1]:
                members[place].end_step(samples)
            leader.close()
        return held(leader.client)


@pytest.mark.parametrize("num_servers", [1, 2, 3])
def test_no_order_and_no_number_of_servers_changes_a_bit(num_servers: int) -> None:
    assert left_by(num_servers, permutations(range(3))) == left_by(1, [(0, 1, 2)] * NUM_ROUNDS)


@pytest.mark.parametrize("num_servers", [1, 3])
def test_clients_that_train_at_once_leave_the_same_bits(num_servers: int) -> None:
    with (
        servers(num_servers, Jittery) as addresses,
        Leader(addresses, 3) as leader,
        clients(addresses, 3) as members,
    ):

        def lead() -> None:
            for _ in range(NUM_ROUNDS):
                leader.open(0, 1, 2)
                until(lambda: len(leader.coordination.watch(LONG_S)["reports"]) == 3)
                leader.close()

        def follow(client: RoundClient) -> None:
            for _ in range(NUM_ROUNDS):
                train(client)

        at_once([lead, *(lambda it=it: follow(it) for it in members)])  # type: ignore[misc]
        assert held(leader.client) == left_by(1, [(0, 1, 2)] * NUM_ROUNDS)


# What travels.


def test_bytes_of_reports_add_up_to_what_has_travelled() -> None:
    with served(2) as both, Leader([it.address for it in both], 1) as leader:
        before = [sum(getattr(it, name) for it in both) for name in TRAFFIC]
        with a_client([it.address for it in both], 0) as client:
            reports = []
            for is_late in (False, True, False):
                leader.open(0)
                begin(client)
                read(client, *range(10))
                client.pull_dense(DENSE)
                if is_late:
                    leader.close()
                    with pytest.raises(RoundClosedError):
                        send(client, range(5), 1.0)
                else:
                    send(client, range(5), 1.0)
                    reports += leader.close()["reports"].values()
            after = [sum(getattr(it, name) for it in both) for name in TRAFFIC]
    sent, received = (sum(it[name] for it in reports) for name in ("bytes_sent", "bytes_received"))
    assert [received, sent] == [now - then for then, now in zip(before, after, strict=True)]
    per_round = 5 * (8 + 8 * DIM) + 8 * SIZE
    assert reports[0]["bytes_sent"] == 10 * 8 + per_round
    assert reports[0]["bytes_received"] == 10 * 8 * DIM + 8 * SIZE


TRAFFIC = ("bytes_sent", "bytes_received")  # of servers
