"""The connections of a Flight server, as the operating system sees them.

Flight calls a handler when a first message has arrived whole. It has no limit for what arrives
before that, and cannot close a connection. So this looks at the sockets of the process: how much
each has received that no handler has seen yet, and whether anything moves. One that exceeds a limit
is shut down; gRPC then ends its calls as if the client had gone.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from downpour.serving.allocators import HeapTrim
from downpour.serving.refusals import LOG
from downpour.sizes import bytes_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from downpour.serving.held import Held, Peer

FDS = next((it for it in (Path("/proc/self/fd"), Path("/dev/fd")) if it.is_dir()), None)
FAMILIES = (socket.AF_INET, socket.AF_INET6)
TCP_INFO = getattr(socket, "TCP_INFO", None)  # Linux
BYTES_IN_INFO = struct.Struct("=120xQQ")  # tcpi_bytes_acked and tcpi_bytes_received
MESSAGES = 2  # that may arrive at once: a client has a stream of reads and one of writes
ARRIVING_COPIES = 3  # of a message in memory before a handler sees it, measured
SPARE_BYTES = 16 << 20  # of the next message, which may arrive while one is handled
SOON_S = 0.01
RESET = struct.pack("ii", 1, 0)  # linger 0: the client is told at once, also while it sends
MOVES_BYTES = 1 << 20  # fewer in `idle_s` are keep-alives, or a client that sends drop by drop


@dataclass(slots=True)
class _Connection:
    """A socket. known: received bytes that handlers have seen; heard: what `Peer.heard` was then.

    moved: bytes received and sent up to `moved_at`.
    """

    known: int
    heard: int
    moved: int
    moved_at: float


class Connections:
    """Watches the connections to `port`; `look` must be called many times a second."""

    def __init__(
        self, held: Held, port: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.closed = 0  # how many were shut down
        self._held, self._port, self._clock = held, port, clock
        self._known: dict[str, _Connection] = {}
        self._heap = HeapTrim()

    def look(self) -> float | None:
        """Shut down connections that exceed a limit; the seconds until the next look.

        Few where much is arriving, None where it makes no difference.
        """
        limits, peers, now = self._held.limits, self._held.peers(), self._clock()
        arriving: dict[str, tuple[int, int]] = {}
        open_: dict[str, _Connection] = {}
        # Those that were there before come first: the new ones are one too many.
        for name, fd in sorted(_sockets(self._port), key=lambda it: it[0] not in self._known):
            own = self._known.get(name)
            acked, received = _bytes_of(fd)
            if own is None:
                own = _Connection(0, 0, 0, now)
                if len(open_) >= limits.streams:
                    self._close(name, fd, f"{len(open_)} others are open, the limit is streams")
                    continue
            open_[name] = own
            peer = peers.get(name)
            num_bytes = _arriving(own, peer, received)
            if num_bytes > MESSAGES * limits.message_bytes * 17 // 16 + SPARE_BYTES:
                self._close(name, fd, f"{bytes_text(num_bytes)} came without the end of a message")
            elif self._is_idle(own, peer, acked + received, now):
                self._close(name, fd, f"nothing has moved for {limits.idle_s:g} s")
            else:
                arriving[name] = num_bytes, fd
        for name in self._known.keys() - open_.keys():
            self._held.forget(name)
        self._known = open_
        self._bound(arriving)
        return SOON_S if sum(it for it, _ in arriving.values()) > SPARE_BYTES else None

    def _bound(self, arriving: dict[str, tuple[int, int]]) -> None:
        """Shut down those that send most, while all together exceed what may be held."""
        total = self._held.bytes + ARRIVING_COPIES * sum(it for it, _ in arriving.values())
        self._heap.look(total)
        for name, (num_bytes, fd) in sorted(arriving.items(), key=lambda it: -it[1][0]):
            if total <= self._held.limits.held_bytes or not num_bytes:
                return
            total -= ARRIVING_COPIES * num_bytes
            self._close(name, fd, f"{bytes_text(num_bytes)} on their way, beyond held_bytes")

    def _is_idle(self, own: _Connection, peer: Peer | None, moved: int, now: float) -> bool:
        if moved - own.moved >= MOVES_BYTES or (peer is not None and peer.working):
            own.moved, own.moved_at = moved, now
        last = own.moved_at if peer is None else max(own.moved_at, peer.moved_at)
        return now - last > self._held.limits.idle_s

    def _close(self, name: str, fd: int, why: str) -> None:
        """Shut a connection down, if the descriptor still belongs to it."""
        with contextlib.suppress(OSError), _borrowed(fd) as its:
            if name_of(its.getpeername()) == name:
                its.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                its.shutdown(socket.SHUT_RDWR)
                self.closed += 1
                LOG.warning("event=closed peer=%s reason=%r", name, why)


def _arriving(own: _Connection, peer: Peer | None, received: int) -> int:
    """Bytes that were received and that no handler has seen."""
    heard = 0 if peer is None else peer.heard
    own.known = min(own.known + max(heard - own.heard, 0), received)
    own.heard = heard
    return received - own.known


def _sockets(port: int) -> Iterator[tuple[str, int]]:
    """The connections that others have made to a port of this process, and their descriptors."""
    for path in [] if FDS is None else FDS.iterdir():
        name = None
        with contextlib.suppress(OSError, ValueError):
            if stat.S_ISSOCK(os.fstat(fd := int(path.name)).st_mode):
                with _borrowed(fd) as its:
                    if its.family in FAMILIES and its.getsockname()[1] == port:
                        name = name_of(its.getpeername())  # the one that listens has none
        if name is not None:
            yield name, fd


@contextlib.contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    """The socket of a descriptor that gRPC owns: it is not copied, which `epoll` would notice."""
    its = socket.socket(fileno=fd)
    try:
        yield its
    finally:
        its.detach()


def _bytes_of(fd: int) -> tuple[int, int]:
    """Bytes that were sent and acknowledged, and received; 0 where the system does not say so."""
    if TCP_INFO is None:
        return 0, 0
    try:
        with _borrowed(fd) as its:
            info = its.getsockopt(socket.IPPROTO_TCP, TCP_INFO, BYTES_IN_INFO.size)
        acked, received = BYTES_IN_INFO.unpack(info)
    except (OSError, struct.error):
        return 0, 0
    return acked, received


def name_of(address: Any) -> str:
    """The name of the other end of a socket, as `peer_name` has it."""
    ip = ipaddress.ip_address(address[0].partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return f"ipv4:{ip}:{address[1]}" if ip.version == 4 else f"ipv6:[{ip}]:{address[1]}"


def peer_name(peer: str) -> str:
    """The name of a connection that gRPC calls ipv4:127.0.0.1:80 or ipv6:%5B::1%5D:80."""
    host, _, port = unquote(peer).partition(":")[2].rpartition(":")
    try:
        return name_of((host.strip("[]"), port))
    except ValueError:
        return peer
