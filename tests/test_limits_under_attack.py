"""What attacks make a server hold: a bound, by the memory of its process, and others are served."""

from __future__ import annotations

import contextlib
import random
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import pytest

from downpour.errors import DownpourError, RefusedError, ServerLostError, TableError
from tests import attacks
from tests.attacks import (
    LIMIT_S,
    MB,
    Target,
    at_once,
    own_keys,
    put,
    target,
)
from tests.staged import PLAIN_DIM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="reads the memory of a process from /proc, as Linux has it"
)


@pytest.fixture(scope="module")
def it() -> Iterator[Target]:
    with target() as made:
        yield made


@pytest.fixture(scope="module")
def empty() -> Iterator[Target]:
    """A server whose tables are cleared before each test."""
    with target() as made:
        yield made


# A request.


def test_a_body_that_is_small_until_it_is_decompressed_is_refused(it: Target) -> None:
    with it.bounded():
        assert "cannot be decoded" in str(attacks.compressed(it, 300 * MB))
        at_once(4, lambda _: attacks.compressed(it, 150 * MB))


def test_compressed_bodies_are_refused_also_where_they_fit(it: Target) -> None:
    error = attacks.compressed(it, 1000)
    assert type(error) is RefusedError
    assert "must not be compressed" in str(error)


def test_a_verb_whose_body_has_no_end_is_hung_up_on(it: Target) -> None:
    with it.bounded():
        attacks.large_action(it, 500 * MB)


def test_large_bodies_that_come_at_once_share_one_bound(it: Target) -> None:
    with it.bounded():
        at_once(8, lambda _: attacks.large_action(it, 60 * MB))


def test_a_pull_makes_no_more_rows_than_it_may(it: Target) -> None:
    before = it.own.stats()["plain"].rows
    with it.bounded():
        pull = it.own.begin_pull("plain", own_keys(300_000), create=True, after=0)
        with pytest.raises(TableError, match=r"more than 100,000 rows.*--limit new_rows=N"):
            pull.result()
    assert it.own.stats()["plain"].rows == before


@pytest.mark.parametrize("op", ["push", "set", "stage"])
def test_nothing_that_makes_rows_makes_more_than_it_may(it: Target, op: str) -> None:
    before = it.own.stats()["plain"].rows
    keys = own_keys(120_000)
    fields = {"table": "plain", "lr": [0.1], "rank": 0, "at": 1}
    with pytest.raises(TableError, match=r"more than 100,000 rows"):
        it.own.begin_write(op, fields, keys, np.ones((len(keys), PLAIN_DIM))).result()
    assert it.own.stats()["plain"].rows == before
    it.work()


def test_all_rows_that_a_client_asks_for_have_room_in_the_tables(empty: Target) -> None:
    with empty.bounded():
        for start in range(1, 40_000_000, 400_000):
            keys = own_keys(100_000, start)
            pull = empty.own.begin_pull("plain", keys, create=True, after=0)
            try:
                pull.result()
            except TableError as error:
                assert "--limit table_bytes=N" in str(error)  # noqa: PT017 (an answer before is none)
                break
        else:
            pytest.fail("a server takes rows without end")
    assert sum(table.bytes for table in empty.own.stats().values()) <= 96 * MB


# Whole tables.


def test_rows_that_are_put_without_an_end_are_refused_midway(empty: Target) -> None:
    with empty.bounded():
        empty.clear()
        error = put(empty, 30_000, 300)
        assert empty.own.stats()["plain"].rows == 0
    # Or it was hung up on, as it had more on its way than all may have together.
    assert isinstance(error, ServerLostError) or "--limit table_bytes=N" in str(error)


def test_a_chunk_that_is_too_large_or_repeats_keys_is_refused_and_nothing_stays(
    empty: Target,
) -> None:
    with empty.bounded():
        empty.clear()
        assert "must differ in key" in str(put(empty, 1000, 500, repeats=True))
        assert "may have 16 MiB" in str(put(empty, 240_000, 1))
        assert empty.own.stats()["plain"].rows == 0
        assert put(empty, 1000, 5) is None
        assert empty.own.stats()["plain"].rows == 5000
        assert "restore needs an empty table" in str(put(empty, 30_000, 100))


def test_exports_that_nobody_reads_hold_a_part_of_the_table_each(empty: Target) -> None:
    empty.clear()
    for start in range(1, 10_000_000, 400_000):
        pull = empty.own.begin_pull("plain", own_keys(100_000, start), create=True, after=0)
        with contextlib.suppress(TableError):
            pull.result()
    table_mb = empty.own.stats()["plain"].bytes / MB
    assert table_mb > 60
    with empty.bounded(), attacks.unread(empty, 12):
        time.sleep(1.0)  # what is sent before anybody reads
    assert len(empty.own.export("plain").keys) == empty.own.stats()["plain"].rows


# What is kept between requests.


def test_refused_requests_that_name_long_parameters_leave_nothing(it: Target) -> None:
    with it.bounded():
        attacks.long_name(it, 900_000, 300)
    it.comes_back(120)


def test_meetings_that_are_never_decided_have_a_bound(it: Target) -> None:
    with it.bounded():
        errors = attacks.meetings(it, MB, 120)
    assert {type(error) for error in errors} == {RefusedError}
    assert "a run's meetings and reports needs" in str(errors[0])
    assert "256 other meetings wait" in str(attacks.meetings(it, 10, 257)[0])


def test_pushes_that_are_staged_for_a_step_that_nobody_commits_have_a_bound(it: Target) -> None:
    with it.bounded():
        errors = attacks.staged(it, 100_000, 60)
    assert len(errors) > 30
    assert {type(error) for error in errors} == {RefusedError}
    assert all("may hold; try again later" in str(error) for error in errors)
    it.discard()
    assert not attacks.staged(it, 100_000, 10)  # there is room again
    it.discard()


# Streams and connections.


def test_streams_beyond_their_number_are_refused_and_threads_with_them(it: Target) -> None:
    until, taken = time.monotonic() + LIMIT_S, 0
    with it.bounded():
        while taken <= 30:  # connections of tests before may not have ended yet
            assert time.monotonic() < until
            with attacks.open_streams(it, 90) as taken:
                assert taken <= 60  # some were taken before others had quite ended
                assert it.threads() < 48 + 25
    it.work()


def test_streams_of_one_connection_have_a_bound_of_their_own(it: Target) -> None:
    with ExitStack() as held:
        client = held.enter_context(it.connect())
        errors = []
        for i in range(30):
            try:
                held.enter_context(it.stream(client=client, name=f"{i}"))
            except DownpourError as error:
                errors.append(str(error))
    assert len(errors) == 6
    assert all("this connection has 24 streams" in error for error in errors)
    it.work()


def test_connections_beyond_their_number_are_closed(it: Target) -> None:
    with it.bounded(), attacks.silent_connections(it, 400) as sockets:
        for each in sockets[-300:]:
            each.settimeout(LIMIT_S)
            with contextlib.suppress(ConnectionError):
                while each.recv(1 << 16):
                    pass
    it.work()


def test_idle_connections_are_closed_and_their_clients_go_on() -> None:
    with target(idle_s=1.0) as server, attacks.silent_connections(server, 10) as sockets:
        for each in sockets:
            each.settimeout(LIMIT_S)
            with contextlib.suppress(ConnectionError):
                while each.recv(1 << 16):
                    pass
        until = time.monotonic() + LIMIT_S
        while server.process.log().count("nothing has moved") < len(sockets) + 2:
            assert time.monotonic() < until  # those of the honest client too
            time.sleep(0.1)
        for _ in range(3):
            server.work()


# All of it.


@pytest.mark.parametrize("seed", range(2))
def test_a_mix_of_attacks_is_bounded_too(seed: int, it: Target) -> None:
    chance = random.Random(seed)
    ways: list[Callable[[], object]] = [
        lambda: attacks.compressed(it, chance.choice([1, 40, 200]) * MB),
        lambda: attacks.large_action(it, chance.choice([2, 20, 100]) * MB),
        lambda: attacks.long_name(it, 200_000, 20),
        lambda: attacks.staged(it, 50_000, 5),
        lambda: put(it, 10_000, 20),
        lambda: _hold(attacks.unread(it, 3)),
        lambda: _hold(attacks.open_streams(it, 5)),
        lambda: _hold(attacks.silent_connections(it, 20)),
    ]
    chosen = [chance.choice(ways) for _ in range(24)]

    def attack(place: int) -> None:
        for way in chosen[place::6]:
            with contextlib.suppress(DownpourError, AssertionError):
                way()

    with it.bounded():
        at_once(6, attack)
        it.discard()


def _hold(opened: contextlib.AbstractContextManager[object]) -> None:
    with opened:
        time.sleep(0.2)
