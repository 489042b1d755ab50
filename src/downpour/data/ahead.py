"""Reading on a thread of its own, a little ahead of who uses it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")
POLL_S = 0.1


def read_ahead(items: Iterable[T], depth: int = 2) -> Generator[T]:
    """Give `items` in their order; a thread reads up to `depth` of them ahead.

    An error of the reader is raised here, after the items before it. Who stops early, by closing
    this or by an error of his own, ends the thread.
    """
    ready: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(kind: str, item: T | BaseException | None = None) -> bool:
        while not stopped.is_set():
            try:
                ready.put((kind, item), timeout=POLL_S)
            except queue.Full:
                continue
            return True
        return False

    def read() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end")
        except BaseException as error:  # noqa: BLE001 (raised again on the other side)
            put("error", error)
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=read, name="downpour-read", daemon=True)
    thread.start()
    try:
        while True:
            kind, item = ready.get()
            if kind == "error":
                raise item  # type: ignore[misc]
            if kind == "end":
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
