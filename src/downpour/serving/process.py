"""A server process: `downpour server`, and what starts servers of a run."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import threading
from typing import TYPE_CHECKING, BinaryIO

from downpour.serving.flight_server import FlightServer, serve
from downpour.serving.service import Service

if TYPE_CHECKING:
    from pathlib import Path

    from downpour.deployment import Deployment
    from downpour.security import Security

LISTENING = "listening on"


def run_server(
    *,
    host: str,
    port: int,
    security: Security,
    max_message_mb: int,
    save_root: Path | None = None,
    of_parent: bool = False,
) -> None:
    """Serve until SIGTERM, Ctrl-C or the verb `stop`; the first line on stdout has the address.

    of_parent: started by a run, whose process writes two pickles to stdin, its import path and
    (Deployment, shard); the server ends when that process does.
    """
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    told = _told(sys.stdin.buffer) if of_parent else None
    service = Service() if told is None else Service(*told)
    server = FlightServer(
        service,
        host=host,
        port=port,
        security=security,
        max_message_bytes=max_message_mb << 20,
        save_root=save_root,
    )
    asked: list[int] = []  # server.stop takes a lock that the interrupted thread may hold
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: asked.append(number))
    if of_parent:
        threading.Thread(target=_follow, args=(server,), daemon=True).start()
    logging.getLogger("downpour.server").info(
        "event=listening address=%s incarnation=%d pid=%d",
        server.address,
        service.incarnation,
        os.getpid(),
    )
    print(f"{LISTENING} {server.address}", flush=True)  # noqa: T201 (for who started it)
    if not serve(server, lambda: bool(asked)):
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)  # the end of the interpreter would wait for streams of clients too


def _told(parent: BinaryIO) -> tuple[Deployment, int]:
    """The tables, whose rules may be of modules of the parent's."""
    for path in pickle.load(parent):
        if path not in sys.path:
            sys.path.append(path)
    told: tuple[Deployment, int] = pickle.load(parent)
    return told


def _follow(server: FlightServer) -> None:
    """End with the process that holds the other end of stdin, however it ends."""
    while os.read(sys.stdin.fileno(), 1):  # its buffer would be locked at this process's end
        pass
    server.stop()
