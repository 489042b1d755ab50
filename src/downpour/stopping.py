"""Ctrl-C: the first asks a run to stop after its step, the second stops it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


class Stopping:
    """While entered, `requested` becomes true at the first SIGINT; the second is as ever.

    say: told once, so that it can be shown. Outside the main thread signals cannot be caught, and
    nothing changes.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.requested = False
        self._say = say
        self._before: signal._HANDLER = None
        self._is_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self._is_main:
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _restore(self) -> None:
        if self._is_main and self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()
        with contextlib.suppress(RuntimeError):  # the signal came amidst another line
            self._say(
                "stopping after this step; what was trained is kept (Ctrl-C again: stop at once, "
                "and keep nothing)"
            )
