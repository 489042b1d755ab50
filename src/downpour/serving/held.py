"""What a server holds for its clients at the moment: bytes and calls, per connection and in all.

Handlers take the bytes that they will need before they work, and give them back afterwards. They
are refused where that would exceed a limit.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from downpour.errors import RefusedError
from downpour.limits import Limits
from downpour.sizes import bytes_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

JSON_ITEM_BYTES = 200  # of memory, at most, for one item of a JSON text
SMALL_JSON = 1000  # bytes
HEAD_BYTES = 4096  # on the wire, at most, for one message or call beside its content


class Peer:
    """One connection, as the handlers of its calls see it; `Held` counts.

    bytes: held for it now. streams: its calls in progress; working: those of them that a handler
    works on, for which nothing need move. heard: bytes of the messages that handlers have seen, as
    they were on the wire, at most. moved_at: when a message last came or went, by `Held`'s clock.
    """

    __slots__ = ("bytes", "heard", "moved_at", "name", "streams", "working")

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.bytes = self.streams = self.working = self.heard = 0
        self.moved_at = now


class Held:
    """Counts bytes and calls against `limits`. Safe to call from many threads."""

    def __init__(
        self, limits: Limits | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits = limits or Limits()
        self.bytes = self.calls = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._peers: dict[str, Peer] = {}

    # Calls.

    def begin_call(self) -> None:
        """Count one more call, until `end_call`. RefusedError where there are too many."""
        with self._lock:
            if self.calls >= self.limits.streams:
                raise RefusedError(
                    f"{self.calls} streams and other calls are in progress here, and the limit is "
                    f"{self.limits.streams} (--limit streams=N): close some, or use more servers"
                )
            self.calls += 1

    def end_call(self) -> None:
        """Count a call no longer."""
        with self._lock:
            self.calls -= 1

    @contextmanager
    def call_of(self, name: str) -> Iterator[Peer]:
        """The connection of a call, while it is handled. RefusedError if that has too many."""
        with self._lock:
            peer = self._peers.get(name)
            if peer is None:
                peer = self._peers[name] = Peer(name, self._clock())
            if peer.streams >= self.limits.connection_streams:
                raise RefusedError(
                    f"this connection has {peer.streams} streams and other calls in progress, and "
                    f"the limit is {self.limits.connection_streams} "
                    "(--limit connection_streams=N): open another connection"
                )
            peer.streams += 1
            peer.moved_at = self._clock()
        try:
            yield peer
        finally:
            with self._lock:
                peer.streams -= 1
                peer.moved_at = self._clock()

    @contextmanager
    def working(self, peer: Peer) -> Iterator[None]:
        """Count a connection as busy, while one of its calls is worked on."""
        with self._lock:
            peer.working += 1
        try:
            yield
        finally:
            with self._lock:
                peer.working -= 1
                peer.moved_at = self._clock()

    def moved(self, peer: Peer, *, heard: int = 0, sent: int = 0) -> None:
        """Note bytes that a handler has seen or sent."""
        with self._lock:
            # On the wire there are frames and TLS too, and acknowledgements of what was sent.
            peer.heard += heard + heard // 16 + sent // 512 + HEAD_BYTES
            peer.moved_at = self._clock()

    def peers(self) -> dict[str, Peer]:
        """The connections that have called, by name."""
        with self._lock:
            return dict(self._peers)

    def forget(self, name: str) -> None:
        """Forget a connection that was closed."""
        with self._lock:
            peer = self._peers.get(name)
            if peer is not None and not peer.streams:
                del self._peers[name]

    # Bytes.

    def take(self, what: str, num_bytes: int, peer: Peer | None = None) -> None:
        """Hold bytes, for a connection if any. RefusedError where there is no room."""
        own, most = self.limits.connection_bytes, self.limits.held_bytes
        with self._lock:
            if peer is not None and peer.bytes + num_bytes > own:
                raise RefusedError(
                    f"{what} needs {bytes_text(num_bytes)}, and this connection has "
                    f"{bytes_text(peer.bytes)} under way of the {bytes_text(own)} that it may "
                    "have; send fewer keys at once, or start servers with a larger --limit "
                    "connection_bytes=N"
                )
            if self.bytes + num_bytes > most:
                raise RefusedError(
                    f"{what} needs {bytes_text(num_bytes)}, and this server holds "
                    f"{bytes_text(self.bytes)} for its clients of the {bytes_text(most)} that it "
                    "may hold; try again later, send fewer keys at once, or start servers with a "
                    "larger --limit held_bytes=N"
                )
            self.bytes += num_bytes
            if peer is not None:
                peer.bytes += num_bytes

    def give(self, num_bytes: int, peer: Peer | None = None) -> None:
        """Hold bytes that were taken no longer."""
        with self._lock:
            self.bytes -= num_bytes
            if peer is not None:
                peer.bytes -= num_bytes

    @contextmanager
    def holding(self, what: str, num_bytes: int, peer: Peer | None = None) -> Iterator[None]:
        """Hold bytes meanwhile."""
        self.take(what, num_bytes, peer)
        try:
            yield
        finally:
            self.give(num_bytes, peer)


class Account:
    """Bytes of one kind that are kept between requests, as a part of all that is held.

    Not safe to call from several threads: whoever keeps them has a lock of its own.
    """

    def __init__(self, held: Held | None = None, what: str = "") -> None:
        self.bytes = 0
        self._held, self._what = held, what

    def add(self, num_bytes: int) -> None:
        """Keep more. RefusedError where there is no room."""
        if self._held is not None:
            self._held.take(self._what, num_bytes)
        self.bytes += num_bytes

    def drop(self, num_bytes: int) -> None:
        """Keep less."""
        if self._held is not None:
            self._held.give(num_bytes)
        self.bytes -= num_bytes

    def clear(self) -> None:
        """Keep nothing."""
        self.drop(self.bytes)


def json_bytes(data: bytes) -> int:
    """What a JSON text takes in memory, at most, once it is parsed."""
    num_items = len(data) // 2  # where that is little, they need not be counted
    if len(data) > SMALL_JSON:
        num_items = sum(map(data.count, (b",", b"[", b"{")))
    return 4 * len(data) + JSON_ITEM_BYTES * num_items
