"""A TCP proxy in front of a server, which treats connections as a bad network does."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Collection

TO_SERVER, TO_CLIENT = "to server", "to client"
BOTH = (TO_SERVER, TO_CLIENT)
CHUNK = 1 << 16
ABORT = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends a reset


class _End:
    """One socket of a connection; what it reads is written to `other`."""

    def __init__(self, connection: socket.socket, direction: str) -> None:
        connection.setblocking(False)
        self.socket, self.direction = connection, direction
        self.other: _End = self
        self.unwritten = b""
        self.is_silent = False
        self.events = 0


class Proxy:
    """Passes bytes between clients and `address`, HOST:PORT or a Flight location.

    `hold` keeps bytes back, so that senders' buffers fill; `silence` loses those of the connections
    that there are; `slow_down` bounds the bytes a second of each direction.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition("/")[2].rpartition(":")
        self._target = host, int(port)
        self._lock = threading.Lock()
        self._held: frozenset[str] = frozenset()
        self._rate: float | None = None
        self._allowed = dict.fromkeys(BOTH, 0.0)
        self._allowed_at = time.monotonic()
        self._ends: list[_End] = []
        self._is_closed = False
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._woken, self._wake = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._is_closed = True
        self._wake.send(b"1")
        self._thread.join()
        self.reset()
        for each in (self._listener, self._woken, self._wake, self._selector):
            each.close()

    # What it does to connections.

    def reset(self) -> None:
        """Cut all connections at both ends, with what is on its way."""
        with self._lock:
            while self._ends:
                self._cut(self._ends[0])

    def silence(self) -> None:
        """Lose all that comes on the connections of now, as where a router has forgotten them."""
        with self._lock:
            for end in self._ends:
                end.is_silent, end.unwritten = True, b""

    def hold(self, *directions: str) -> None:
        """Keep back what comes from now on in these directions."""
        self._change(directions, self._rate)

    def slow_down(self, rate: float) -> None:
        """Let so many bytes a second pass."""
        self._change(self._held, rate)

    def recover(self) -> None:
        """Let all pass, but for connections that are silent."""
        self._change((), None)

    # Its thread.

    def _change(self, held: Collection[str], rate: float | None) -> None:
        with self._lock:
            self._held, self._rate = frozenset(held), rate
        self._wake.send(b"1")

    def _run(self) -> None:
        while not self._is_closed:
            with self._lock:
                self._allow()
                for end in self._ends:
                    self._listen(end)
            for key, events in self._selector.select(0.5 if self._rate is None else 0.02):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._woken:
                    self._woken.recv(CHUNK)
                else:
                    self._pass(key.data, events)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(self._target, timeout=5.0)
        except OSError:  # nobody is there
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
            client.close()
            return
        ends = _End(client, TO_SERVER), _End(server, TO_CLIENT)
        ends[0].other, ends[1].other = ends[1], ends[0]
        with self._lock:
            self._ends += ends

    def _pass(self, end: _End, events: int) -> None:
        with self._lock:
            if end not in self._ends:  # it was cut since
                return
            try:
                if events & selectors.EVENT_WRITE:
                    end.unwritten = end.unwritten[end.socket.send(end.unwritten) :]
                # It may be held since the selector was told what to wait for.
                if events & selectors.EVENT_READ and end.direction not in self._held:
                    self._read(end)
            except BlockingIOError:
                pass
            except OSError:
                self._cut(end)

    def _read(self, end: _End) -> None:
        data = end.socket.recv(self._most(end.direction))
        if not data:
            raise ConnectionResetError
        if self._rate is not None:
            self._allowed[end.direction] -= len(data)
        if not end.is_silent:
            end.other.unwritten += data

    def _listen(self, end: _End) -> None:
        """Wait for what this end is to do next."""
        is_free = end.direction not in self._held and not end.other.unwritten
        events = selectors.EVENT_READ if is_free and self._most(end.direction) > 0 else 0
        events |= selectors.EVENT_WRITE if end.unwritten else 0
        if events == end.events:
            return
        if not events:
            self._selector.unregister(end.socket)
        elif not end.events:
            self._selector.register(end.socket, events, end)
        else:
            self._selector.modify(end.socket, events, end)
        end.events = events

    def _allow(self) -> None:
        now = time.monotonic()
        for direction in BOTH:
            more = (self._rate or 0.0) * (now - self._allowed_at)
            self._allowed[direction] = min(self._allowed[direction] + more, CHUNK)
        self._allowed_at = now

    def _most(self, direction: str) -> int:
        return CHUNK if self._rate is None else int(self._allowed[direction])

    def _cut(self, end: _End) -> None:
        for each in (end, end.other):
            self._ends.remove(each)
            if each.events:
                self._selector.unregister(each.socket)
            with contextlib.suppress(OSError):
                each.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
            each.socket.close()
