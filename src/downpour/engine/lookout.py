"""Who says that a run cannot go on, while its process waits or computes something else."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

from downpour.errors import DownpourError

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_S = 0.2  # between two looks
PATIENCE_S = 1.0  # for the run itself to find out, and to end with the error


class Lookout:
    """While entered, calls `look` several times a second, on a thread of its own.

    What it raises is told to `say`, once and for good, unless the run knows: `noticed`. So a dead
    process is told of at once also while a function of the user's own evaluates for minutes.
    """

    def __init__(self, look: Callable[[], None], say: Callable[[str], None]) -> None:
        self._look, self._say = look, say
        self._is_over = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._run, name="downpour lookout", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()

    def noticed(self) -> None:
        """Note that the run knows what has happened, and ends."""
        self._is_over.set()

    def _run(self) -> None:
        while not self._is_over.wait(LOOK_S):
            try:
                self._look()
            except DownpourError as error:
                if not self._is_over.wait(PATIENCE_S):
                    self._say(f"{error}; the run ends once it has done what it is at")
                return
