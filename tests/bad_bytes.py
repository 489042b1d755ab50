"""What a client says to a server, byte for byte, to be said again with anything wrong in it."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

PREFACE = 24  # bytes with which HTTP/2 begins
HEAD = 9  # of each of its frames: length, kind, flags, stream
DATA = 0  # the kind of frame that has messages
QUIET_S = 0.05  # after which a server has said what it has to say
LIMIT_S = 5.0
# What bounds, lengths and offsets may be taken for.
NUMBERS = [
    bytes.fromhex(it)
    for it in (
        "00000000", "ffffffff", "ffffff7f", "00000080", "0000000000000000", "ffffffffffffffff",
        "ffffffffffffff7f", "0000000000000080", "0000000001000000", "4000000000000000",
    )
]  # fmt: skip


class Recorder:
    """Stands between clients and a server on this machine, and keeps what clients say.

    A context manager: its end ends the connections.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.said: list[bytearray] = []  # of each connection
        self._sockets = [self._listener]
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *error: object) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LIMIT_S)
        for each in self._sockets:
            each.close()

    def _start(self, call: Any, *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=call, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [client, server]
            self.said.append(bytearray())
            self._start(self._pass, client, server, self.said[-1])
            self._start(self._pass, server, client, bytearray())

    def _pass(self, source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                kept += data
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def payloads(said: bytes) -> list[range]:
    """Where in a client's bytes its messages are: flips elsewhere end a connection at once."""
    places, at = [], PREFACE
    while at + HEAD <= len(said):
        size = int.from_bytes(said[at : at + 3], "big")
        if said[at + 3] == DATA and size:
            places.append(range(at + HEAD, min(at + HEAD + size, len(said))))
        at += HEAD + size
    return places


def changed(random: Random, said: Sequence[bytes]) -> bytes:
    """One of some conversations, with anything wrong in it."""
    data = bytearray(random.choice(said))
    spans = payloads(data)
    place = random.choice(random.choice(spans))
    match random.choice(["bits", "bits", "numbers", "numbers", "anywhere", "cut", "again", "both",
                         "noise", "nothing"]):  # fmt: skip
        case "bits":
            for _ in range(random.randint(1, 4)):
                data[random.choice(random.choice(spans))] ^= 1 << random.randrange(8)
        case "anywhere":
            for _ in range(random.randint(1, 4)):
                data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        case "numbers":
            number = random.choice(NUMBERS)
            data[place : place + len(number)] = number
        case "cut":
            del data[random.randrange(len(data)) :]
        case "again":
            part = data[place : place + random.randrange(1, 500)]
            data[place:place] = part * random.randint(1, 3)
        case "both":
            other = random.choice(said)
            data = data[:place] + other[random.randrange(len(other)) :]
        case "noise":
            data[place : place + 40] = random.randbytes(random.randrange(60))
        case "nothing":
            start = random.choice([0, PREFACE, PREFACE + HEAD])
            data = data[:start] + random.randbytes(random.randrange(1, 300))
    return bytes(data)


def play(port: int, conversations: Sequence[bytes]) -> None:
    """Say all of them at once, each on a connection of its own, and hang up on what is answered."""
    with selectors.DefaultSelector() as selector:
        for said in conversations:
            connection = socket.create_connection(("127.0.0.1", port), LIMIT_S)
            connection.setblocking(False)
            events = selectors.EVENT_READ | selectors.EVENT_WRITE
            selector.register(connection, events, bytearray(said))
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until and (ready := selector.select(QUIET_S)):
            for key, events in ready:
                with suppress(BlockingIOError):
                    _serve(selector, key, events)
        for key in list(selector.get_map().values()):
            _hang_up(selector, key)


def _serve(selector: selectors.BaseSelector, key: selectors.SelectorKey, events: int) -> None:
    """Send what is left of a conversation, and pass over what is answered."""
    connection: Any = key.fileobj
    try:
        if events & selectors.EVENT_WRITE:
            del key.data[: connection.send(key.data)]
            if not key.data:
                selector.modify(connection, selectors.EVENT_READ, key.data)
        if events & selectors.EVENT_READ and not connection.recv(1 << 20):
            _hang_up(selector, key)
    except BlockingIOError:
        pass
    except OSError:
        _hang_up(selector, key)


def _hang_up(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    selector.unregister(key.fileobj)
    key.fileobj.close()  # type: ignore[union-attr]
