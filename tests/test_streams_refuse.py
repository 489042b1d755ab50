"""What a server refuses of streams: who speaks, which server is meant, what is no message."""

from __future__ import annotations

import logging
import threading
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from downpour.errors import RefusedError, TableError
from downpour.limits import Limits
from downpour.remote.endpoint import Endpoint
from downpour.remote.server import RemoteServer
from downpour.serving.sessions import Session
from downpour.wire import MAX_HEADER_BYTES, SCHEMA, header_bytes, pack, unpack
from tests.one_shard import (
    DEPLOYMENT,
    FOREIGN,
    OWN,
    PEER,
    READS,
    WRITES,
    Stream,
    held,
    hosted,
    rows,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from downpour.serving.flight_server import FlightServer

PULL, PUSH = READS["pull"], WRITES["push"]
MOST = 10_000


@pytest.fixture(scope="module")
def server() -> Iterator[FlightServer]:
    with hosted(Limits(message_bytes=MOST)) as started:
        yield started


HELLOS: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "'client' must be a text of 1 to 256 characters, got None"),
    "a request": ({**PUSH.header, "n": 1}, "'client' must be a text"),
    "no name": ({"client": ""}, "'client' must be a text of 1 to 256 characters, got ''"),
    "a number": ({"client": 3}, "'client' must be a text of 1 to 256 characters, got 3"),
    "a long name": ({"client": "x" * 257}, "'client' must be a text of 1 to 256"),
    "no number of connections": ({"client": "x", "connection": "1"}, "'connection' must be"),
    "no JSON": (b"hello", "must be a JSON object"),
}


@pytest.mark.parametrize("name", HELLOS)
def test_a_stream_that_does_not_say_whose_it_is_ends(name: str, server: FlightServer) -> None:
    hello, message = HELLOS[name]
    stream = Stream(server, is_write=True, hello=hello)
    assert stream.greeting["error"] == "RefusedError"
    assert message in stream.greeting["message"]
    assert stream.is_over


@pytest.mark.parametrize("incarnation", [None, 0, 1, -1, "1", [1], {}, True, 1e300], ids=repr)
def test_a_request_to_another_incarnation_is_refused(
    incarnation: object, server: FlightServer
) -> None:
    before = held(server)
    stream = Stream(server, is_write=True, client=f"of {incarnation!r}")
    answer = stream.ask(PUSH, incarnation=incarnation)
    assert answer["error"] == "ServerLostError"
    assert "it has come back without its tables" in answer["message"]
    assert held(server) == before


@pytest.mark.parametrize("number", [0, -1, "1", [1], {}, True, 1.5, 2**53, 1e999], ids=repr)
def test_a_push_has_a_whole_number(number: object, server: FlightServer) -> None:
    before = held(server)
    stream = Stream(server, is_write=True, client=f"at {number!r}")
    answer = stream.ask(PUSH, n=number)
    assert answer["error"] == "RefusedError"
    assert "'n' must be a whole number >= 1" in answer["message"]
    assert not stream.is_over
    assert held(server) == before


def test_a_push_without_a_number_ends_its_stream(server: FlightServer) -> None:
    stream = Stream(server, is_write=True, client="unnumbered")
    assert stream.ask(PUSH, n=None)["error"] == "RefusedError"
    assert stream.is_over


def test_of_two_streams_of_a_client_the_newer_one_applies_pushes() -> None:
    with hosted() as server:
        first, second = (Stream(server, is_write=True) for _ in range(2))
        before = held(server)
        answer = first.ask(PUSH)
        assert answer["error"] == "RefusedError"
        assert "client one has a newer connection; nothing was applied" in answer["message"]
        assert held(server) == before
        assert second.ask(PUSH) == {"step": 1, "n": 1}
        assert "error" in first.ask(PUSH)


def test_a_push_that_comes_twice_is_applied_once() -> None:
    with hosted() as server:
        stream = Stream(server, is_write=True)
        assert stream.ask(PUSH, n=5) == {"step": 1, "n": 5}
        before = held(server)
        assert [stream.ask(PUSH, n=n) for n in (5, 4, 1)] == [{"n": 5}, {"n": 4}, {"n": 1}]
        assert held(server) == before


def test_a_push_that_is_refused_twice_is_refused_alike(server: FlightServer) -> None:
    stream = Stream(server, is_write=True, client="twice")
    first, again = (stream.ask(PUSH.but(keys=FOREIGN), n=1) for _ in range(2))
    assert first == again
    assert first["error"] == "TableError"


def test_nothing_of_a_push_is_kept_when_it_is_refused() -> None:
    session, array = Session("one"), np.zeros(8)
    session.take_over("stream", 0)
    kept = weakref.ref(array)

    def refuse(pushed: np.ndarray) -> dict[str, Any]:
        raise TableError(f"no {pushed.size} rows")

    with pytest.raises(TableError):
        session.once("stream", 1, 1, lambda pushed=array: refuse(pushed))  # type: ignore[misc]
    del array
    assert kept() is None
    with pytest.raises(TableError, match="no 8 rows"):
        session.once("stream", 1, 1, dict)


def test_a_kind_of_refusal_is_logged_once_and_then_as_they_double(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with hosted() as server, caplog.at_level(logging.WARNING, "downpour.server"):
        stream = Stream(server, is_write=True)
        for _ in range(9):
            stream.ask(PUSH.but(keys=FOREIGN))
        stream.ask(PUSH.but(table="x\nevent=stopped", lr=["\x1b[2J"]))
        stream.ask(PUSH.but("lr"))
        lines = [record.getMessage() for record in caplog.records]
        refused = server.service.num_refused
    kinds = [line.split(" message=")[0] for line in lines]
    assert kinds == [
        *(f"event=refused peer={PEER} error=TableError count={n}" for n in (1, 2, 4, 8)),
        f"event=refused peer={PEER} error=RefusedError count=1",
    ]
    assert all(line.isprintable() for line in lines)
    assert refused == 11


def test_what_is_logged_of_a_request_is_a_short_line(caplog: pytest.LogCaptureFixture) -> None:
    with hosted() as server, caplog.at_level(logging.WARNING, "downpour.server"):
        stream = Stream(server, is_write=True)
        stream.ask(PUSH.but(op="\n\x1b[2J event=stopped\r" + "x" * 10_000))
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.isprintable()
    assert len(line) < 500


BROKEN = {
    "push": ("plain", "push"), "set": ("server", "set"), "push_dense": ("server", "push_dense"),
    "init_dense": ("server", "init_dense"), "restore_dense": ("server", "restore_dense"),
    "commit": ("staging", "commit"), "clear": ("server", "clear"), "shrink": ("server", "shrink"),
    "geo_add": ("changes", "add"), "geo_add_dense": ("changes", "add_dense"),
}  # fmt: skip


@pytest.mark.parametrize("op", BROKEN)
def test_what_fails_unexpectedly_lets_go_of_all_locks(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **settings: object) -> None:
        raise RuntimeError("broken")

    owner, call = BROKEN[op]
    with hosted() as server:
        own = server.service.hosted
        broken = own.server.sparse["plain"] if owner == "plain" else getattr(own, owner)
        stream = Stream(server, is_write=True)
        stream.ask(WRITES["geo_join"])
        answers: list[dict[str, Any]] = []
        with monkeypatch.context() as patched:
            patched.setattr(broken, call, fail)
            # On a thread of its own, as a lock that it kept would be its own for ever.
            thread = threading.Thread(target=lambda: answers.append(stream.ask(WRITES[op])))
            thread.start()
            thread.join()
        assert answers == [{"error": "ServerError", "message": "RuntimeError: broken", "n": 2}]
        locks: list[Any] = [*own.locks.values(), own.committed]
        for lock in locks:
            assert lock.acquire(blocking=False)
            lock.release()
        assert "error" not in stream.ask(WRITES[op])
        assert server.service.report()["in_progress"] == 0


# Over the network.


@contextmanager
def exchange(server: FlightServer, kind: bytes, schema: pa.Schema = SCHEMA) -> Iterator[Any]:
    """A writer and a reader of a stream."""
    with fl.FlightClient(server.address) as client:
        writer, reader = client.do_exchange(fl.FlightDescriptor.for_command(kind))
        try:
            writer.begin(schema)
            yield writer, reader
        finally:
            reader.cancel()
            with suppress(pa.ArrowException, OSError):
                writer.close()


@pytest.mark.parametrize("kind", [b"", b"reads", b"\xff\xfe", b"x" * 10_000], ids=len)
def test_a_stream_is_of_reads_or_of_writes(kind: bytes, server: FlightServer) -> None:
    with pytest.raises(fl.FlightServerError) as caught, exchange(server, kind) as (_, reader):
        reader.read_chunk()
    error = Endpoint(server.address).typed(caught.value, "stream", 1.0)
    assert type(error) is RefusedError
    assert "a stream is of reads or of writes" in str(error)


BYTES = pa.large_binary()
STRANGE: dict[str, pa.RecordBatch] = {
    "no columns": pa.RecordBatch.from_struct_array(pa.array([{}], pa.struct([]))),
    "a dictionary": pa.record_batch(
        {"keys": pa.array([b"8 bytes."], BYTES).dictionary_encode(), "values": [b""]}
    ),
    "nested": pa.record_batch({"keys": [[[[[1]]]]], "values": [{"a": {"b": [2]}}]}),
    "unions": pa.record_batch(
        {"keys": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])}
    ),
    "runs": pa.record_batch({"keys": pa.RunEndEncodedArray.from_arrays([1], [2])}),
    "nothing": pa.record_batch({"keys": pa.nulls(1), "values": pa.nulls(1)}),
    "a thousand columns": pa.record_batch({str(number): [0] for number in range(1000)}),
    "names that are no words": pa.record_batch({"\x00\x1b": [1], "\U0001f4a5": [2]}),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_stream_of_other_batches_is_answered_with_an_error(
    name: str, server: FlightServer
) -> None:
    batch = STRANGE[name]
    with exchange(server, b"read", batch.schema) as (writer, reader):
        writer.write_with_metadata(batch, header_bytes({"client": "one"}))
        answer = unpack(reader.read_chunk(), MOST).header
    assert answer["error"] == "RefusedError"
    assert "must be one row of binary keys and values, got 1 rows of" in answer["message"]


def test_a_header_that_is_too_large_is_answered_with_an_error(server: FlightServer) -> None:
    with exchange(server, b"read") as (writer, reader):
        writer.write_with_metadata(pack(None, None), b" " * (MAX_HEADER_BYTES + 1))
        answer = unpack(reader.read_chunk(), MOST).header
    assert answer["error"] == "RefusedError"
    assert "may have a header of 1048576 bytes, got 1048577" in answer["message"]


def test_a_push_that_is_too_large_is_refused_and_the_next_one_is_not(server: FlightServer) -> None:
    remote = RemoteServer(
        Endpoint(server.address), DEPLOYMENT, "large", deadline_s=20.0, start_s=20.0
    )
    try:
        large = remote.begin_write("set", {"table": "plain"}, OWN[:1], np.zeros((500, 4)))
        with pytest.raises(RefusedError, match=r"may have 10000 bytes, got .* --max-message-mb"):
            large.result()
        before = held(server)
        remote.begin_write("set", {"table": "plain"}, OWN, remote.export("plain").weights).result()
        assert held(server).keys() == before.keys()
    finally:
        remote.close()


def test_a_client_that_hangs_up_leaves_a_server_that_goes_on(server: FlightServer) -> None:
    for _ in range(20):
        with exchange(server, b"write") as (writer, _):
            writer.write_with_metadata(pack(OWN, rows()), header_bytes({"client": PEER}))
    assert "error" not in Stream(server, is_write=False).ask(PULL)
