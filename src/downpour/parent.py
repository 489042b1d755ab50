"""The process that has started this one: what it says over stdin, and that it is still there."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import struct
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

ORPHANED = 3  # exit code of a process whose parent is gone
LENGTH = struct.Struct("<Q")  # before each message
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


class Parent:
    """Reads stdin, on a thread of its own, from the first moment of this process on.

    When stdin ends the parent is gone, however it ended, and so this process ends too: at once, or
    by `on_end` where it has been set. The imports of torch and numba can hold the interpreter for a
    second or more, and then no thread sees the end of stdin. Until `started` is called, Linux
    therefore kills this process itself when its parent dies.
    """

    def __init__(self) -> None:
        self.on_end: Callable[[], None] | None = None
        self._messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="downpour parent", daemon=True).start()
        said: dict[str, Any] = json.loads(self.message())
        self.token: str | None = said["token"]
        # The signal follows the thread that started this process, which must live on till then.
        self._has_death_signal = said["of_main_thread"] and _set_death_signal(signal.SIGKILL)

    def message(self) -> bytes:
        """The next message; waits for it."""
        return self._messages.get()

    def started(self) -> None:
        """Note that this process will see the end of stdin by itself from now on."""
        if self._has_death_signal:
            _set_death_signal(0)
            self._has_death_signal = False

    def _run(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                (size,) = LENGTH.unpack(_read(LENGTH.size))
                self._messages.put(_read(size))
        if self.on_end is not None:
            self.on_end()
            return
        with contextlib.suppress(OSError):
            os.write(2, b"event=orphaned reason=the process that started this one is gone\n")
        os._exit(ORPHANED)


_parent: Parent | None = None


def follow() -> Parent:
    """The parent of this process; read from the first call on."""
    global _parent  # there is one stdin
    if _parent is None:
        _parent = Parent()
    return _parent


def framed(message: bytes) -> bytes:
    """A message as a parent writes it to the stdin of a child."""
    return LENGTH.pack(len(message)) + message


def first_message(token: str | None) -> bytes:
    """What a parent says first; to be called on the thread that has started the child."""
    is_main = threading.current_thread() is threading.main_thread()
    return json.dumps({"token": token, "of_main_thread": is_main}).encode()


def _read(size: int) -> bytes:
    """So many bytes of stdin, past its buffer, which would be locked when this process ends."""
    parts = []
    while size:
        part = os.read(0, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _set_death_signal(number: int) -> bool:
    """Let Linux send this process a signal when its parent dies; whether it will."""
    if sys.platform != "linux":
        return False
    with contextlib.suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, int(number), 0, 0, 0) == 0)
    return False
