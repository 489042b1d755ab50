"""Signs of life that a process gives a server, on a thread of its own."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from downpour.errors import DownpourError, ServerError
from downpour.remote.endpoint import RETRY_S

if TYPE_CHECKING:
    from collections.abc import Callable


class Beats:
    """Calls `beat` with the seconds that it may take, several times in `timeout_s`, until `end`.

    timeout_s: after how long a silence the server takes this process for lost. deadline_s: how
    long the server may not be reached before that is a `failure`; any other error is one at once,
    and the last beat.
    """

    def __init__(
        self, beat: Callable[[float], object], *, timeout_s: float, deadline_s: float
    ) -> None:
        self.failure: DownpourError | None = None
        self._beat, self._deadline_s = beat, deadline_s
        every_s = min(timeout_s / 5, 0.5)
        # A beat that is lost on the way must not cost the time of those after it.
        self._limit_s = min(deadline_s / 2, max(timeout_s / 2, every_s))
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(every_s,), name="downpour beats", daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        """Beat no more; one that is on its way may come to its end later."""
        self._ended.set()
        self._thread.join(timeout=1.0)

    def check(self) -> None:
        """Raise what beats have learned."""
        if self.failure is not None:
            raise self.failure

    def _run(self, every_s: float) -> None:
        unheard_since: float | None = None
        while not self._ended.wait(RETRY_S if unheard_since else every_s):
            start = time.monotonic()
            try:
                self._beat(self._limit_s)
                self.failure = unheard_since = None
            except ServerError as error:
                unheard_since = unheard_since or start
                if time.monotonic() - unheard_since > self._deadline_s:
                    self.failure = error  # until it is heard again
            except DownpourError as error:
                self.failure = error
                return
