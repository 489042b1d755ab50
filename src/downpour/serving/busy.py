"""How much is being done, for who waits until nothing is."""

from __future__ import annotations

import threading
from typing import Self


class Busy:
    """A context manager for each thing that is done, on any thread."""

    def __init__(self) -> None:
        self._number = 0
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        with self._changed:
            self._number += 1
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._number -= 1
            self._changed.notify_all()

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing is being done; False where something still is after so long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._number, timeout_s)
