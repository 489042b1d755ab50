"""A server process: `downpour server`, and what starts servers of a run."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
from typing import TYPE_CHECKING

from downpour.limits import Limits
from downpour.serving.allocators import bound_arrow, bound_malloc

if TYPE_CHECKING:
    from pathlib import Path

    from downpour.deployment import Deployment
    from downpour.parent import Parent
    from downpour.security import Security

LISTENING = "listening on"
ASKED = "asked to stop by signal"  # and its number


def run_server(
    *,
    host: str,
    port: int,
    security: Security,
    limits: Limits | None = None,
    save_root: Path | None = None,
    parent: Parent | None = None,
) -> None:
    """Serve until SIGTERM, Ctrl-C or the verb `stop`; the first line on stdout has the address.

    parent: a run that has started this server, whose process says two pickles, its import path and
    (Deployment, shard). The server ends when that process does, and only then: a scheduler sends
    SIGTERM to all processes of a job, and the run has to save what the server holds before it ends.
    So the run is told of the signal, and stops.
    """
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    bound_malloc()
    limits = limits or Limits()
    is_bounded = bound_arrow(limits.message_bytes, limits.streams)
    from downpour.serving.flight_server import FlightServer, serve
    from downpour.serving.service import Service

    told = (None, None) if parent is None else _told(parent)
    service = Service(*told, limits=limits)
    server = FlightServer(
        service,
        host=host,
        port=port,
        security=security,
        save_root=save_root,
    )
    asked: list[int] = []  # server.stop takes a lock that the interrupted thread may hold
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: asked.append(number))
    if parent is not None:
        parent.on_end = server.stop
        parent.started()
    logging.getLogger("downpour.server").info(
        "event=listening address=%s incarnation=%d pid=%d",
        server.address,
        service.incarnation,
        os.getpid(),
    )
    if not is_bounded:
        logging.getLogger("downpour.server").warning("event=unbounded memory=arrow")
    print(f"{LISTENING} {server.address}", flush=True)  # noqa: T201 (for who started it)

    def is_asked() -> bool:
        if parent is None:
            return bool(asked)
        if asked:
            print(f"{ASKED} {int(asked.pop())}", flush=True)  # noqa: T201 (for who started it)
        return False

    if not serve(server, is_asked):
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)  # the end of the interpreter would wait for streams of clients too


def _told(parent: Parent) -> tuple[Deployment, int]:
    """The tables, whose rules may be of modules of the parent's."""
    for path in pickle.loads(parent.message()):
        if path not in sys.path:
            sys.path.append(path)
    told: tuple[Deployment, int] = pickle.loads(parent.message())
    return told
