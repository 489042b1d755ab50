"""The limits of a server: their values, and what each part of it keeps within them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from downpour.errors import DownpourError, RefusedError, SettingError, TableError
from downpour.limits import Limits, memory_bytes
from downpour.serving.changes import Changes
from downpour.serving.growth import Growth
from downpour.serving.held import Account, Held, json_bytes
from downpour.serving.sessions import FORGOTTEN, MAX_TEXTS, Session, Sessions
from downpour.wire import MAX_ERROR
from tests.one_shard import OWN, fill, new_server
from tests.staged import server as whole_server

if TYPE_CHECKING:
    from downpour.server import Server

MB = 1 << 20


# Values.


def test_the_defaults_follow_the_machine_and_the_largest_message() -> None:
    limits = Limits()
    assert limits.message_bytes == 256 * MB
    assert limits.connection_bytes == 2048 * MB
    assert limits.held_bytes == max(memory_bytes() // 4, 2048 * MB)
    assert limits.table_bytes == memory_bytes() // 10 * 9
    assert Limits(message_bytes=MB).connection_bytes == 64 * MB


def test_texts_say_the_same_as_values() -> None:
    said = Limits.of_texts(["held_bytes=1.5GiB", "new_rows= 1000", "idle_s=0.5"], message_bytes=MB)
    assert said == Limits(message_bytes=MB, held_bytes=1536 * MB, new_rows=1000, idle_s=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows=3", r"no setting 'rows'.*It has: message_bytes, "),
        ("new_rows", r"limit new_rows must be a number, .* got ''"),
        ("new_rows=many", r"limit new_rows must be a number, .* got 'many'"),
        ("new_rows=1.5", r"limit new_rows must be a whole number, got '1.5'"),
        ("new_rows=0", r"Limits.new_rows must be an int >= 1, got 0"),
        ("streams=-1", r"limit streams must be a number, .* got '-1'"),
        ("held_bytes=3XB", r"with KiB, MiB, GiB, TiB after it, got '3XB'"),
        ("held_bytes=1MiB", r"have room for 8 messages of message_bytes, 2 GiB, got 1 MiB"),
        ("idle_s=0", r"Limits.idle_s must be a number >= 0.1, got 0"),
    ],
)
def test_what_is_no_limit_is_refused(text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Limits.of_texts([text])


# What is held.


def test_what_is_held_is_bounded_for_each_connection_and_in_all() -> None:
    held = Held(Limits(message_bytes=MB, connection_bytes=6 * MB, held_bytes=8 * MB))
    with held.call_of("a") as one, held.call_of("b") as other:
        held.take("this request", 5 * MB, one)
        with pytest.raises(RefusedError, match=r"5 MiB .* of the 6 MiB .*--limit connection_bytes"):
            held.take("this request", 2 * MB, one)
        with pytest.raises(RefusedError, match=r"5 MiB .* of the 8 MiB .*--limit held_bytes=N"):
            held.take("this request", 4 * MB, other)
        held.give(5 * MB, one)
        held.take("this request", 4 * MB, other)
    kept = Account(held, "reports")
    with pytest.raises(RefusedError, match=r"reports needs 5 MiB"):
        kept.add(5 * MB)
    kept.add(4 * MB)
    kept.clear()
    assert held.bytes == 4 * MB


@pytest.mark.parametrize(
    "text", [b"[]", b"{}", b'{"a":[1,2],"b":"' + b"x" * 5000 + b'"}', b"[,]" * 900]
)
def test_a_json_text_is_taken_for_no_less_than_it_needs(text: bytes) -> None:
    items = sum(map(text.count, (b",", b"[", b"{")))
    assert json_bytes(text) >= len(text) + 100 * items


# What grows.


def growing(**limits: int) -> tuple[Server, Growth]:
    server = new_server()
    fill(server)
    return server, Growth(server, Limits(**limits), {})


def test_rows_that_are_there_or_repeat_count_once() -> None:
    server, growth = growing(new_rows=100)
    table = server.sparse["plain"]
    new = np.arange(1000, 1100, dtype=np.uint64)
    growth.check(table, np.concatenate([np.repeat(OWN, 500), np.repeat(new, 50)]))
    with pytest.raises(TableError, match=r"1,011 keys would make more than 100 rows"):
        growth.check(table, np.arange(1000, 2011, dtype=np.uint64))


def test_all_tables_together_have_one_bound() -> None:
    server, _ = growing()
    used = sum(table.bytes for table in server.stats().values())
    growth = Growth(server, Limits(table_bytes=used + MB), {})
    with pytest.raises(TableError, match=r"would need .* nothing was changed.*table_bytes=N"):
        growth.check(server.sparse["plain"], np.arange(10**5, 2 * 10**5, dtype=np.uint64))
    for _ in range(10**4):  # rows that are there need nothing, however often they are asked for
        growth.check(server.sparse["plain"], OWN)


# What is remembered of clients.


def test_the_oldest_clients_without_a_stream_are_forgotten_first() -> None:
    sessions = Sessions(most=3)
    for name in ("open", "gone", "last"):
        session = sessions.of(name)
        session.take_over(name, 1)
        session.last = 7
    sessions.of("gone").end("gone")
    sessions.of("new")
    assert sessions.of("open").last == sessions.of("last").last == 7
    sessions.of("open").end("open")
    assert sessions.of("gone").last == 0


def test_of_many_refusals_the_last_texts_are_kept_and_cut() -> None:
    session, owner = Session("one"), object()
    session.take_over(owner, 1)

    def refuse() -> Any:
        raise TableError("x" * 10**6)

    def push(number: int) -> str:
        with pytest.raises(DownpourError) as refused:
            session.once(owner, number, number, refuse)
        assert type(refused.value) is TableError
        return str(refused.value)

    for number in range(1, 2 * MAX_TEXTS + 1):
        push(number)
    assert push(MAX_TEXTS - 1) == FORGOTTEN
    assert len(push(2 * MAX_TEXTS)) == MAX_ERROR


def test_of_geo_workers_the_one_furthest_behind_is_dropped_where_there_is_no_room() -> None:
    noted = Changes(whole_server(), most_bytes=1600 * 8)
    noted.join("slow", 0)
    noted.join("quick", 1)
    for start in range(0, 4000, 100):
        noted.note("plain", np.arange(start, start + 100, dtype=np.uint64))
        noted.fetch("quick", "plain", start // 100 + 1)
    assert noted.clients == ("quick",)
    with pytest.raises(RefusedError, match="it had too many changes of others to fetch"):
        noted.fetch("slow", "plain", 1)
