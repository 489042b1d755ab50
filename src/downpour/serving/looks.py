"""What a server looks for from time to time, on a thread of its own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from downpour.serving.refusals import LOG

if TYPE_CHECKING:
    from collections.abc import Callable


def keep_looking(
    call: Callable[[], float | None], about: str, *, every_s: float, until: threading.Event
) -> None:
    """Call again and again, also after a call that has failed.

    A call may say in how many seconds it is to be called next.
    """

    def run() -> None:
        wait_s = every_s
        while not until.wait(wait_s):
            wait_s = every_s
            try:
                wait_s = call() or every_s
            except Exception:  # noqa: BLE001 (who is lost must be found whatever it was)
                LOG.exception("event=failed at=%s", about)

    threading.Thread(target=run, name=f"downpour {about}", daemon=True).start()
