"""A lock that many readers share, and that one writer has alone."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


class ReadWriteLock:
    """Readers share it; a writer waits for them to finish, and has it alone.

    It is fair by phases: readers that arrive while a writer has it or waits for it go in when that
    writer is done, before the next one. So neither side can starve the other. The thread that has
    it alone may also read and write; a thread that reads must neither write nor read again.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._writing = threading.Lock()  # one writer at a time, from the moment it waits
        self._writer: int | None = None  # the thread that has it alone
        self._is_wanted = False  # a writer has it, or waits for readers to finish
        self._phase = 0  # writers that are done
        self._readers = 0
        self._waiting = 0  # readers that go in when the writer is done
        self._due = 0  # readers whose writer is done, and that are not in yet
        self._reading = _Reading(self)

    def read(self) -> AbstractContextManager[None]:
        """Share the lock for the block."""
        return self._reading

    @contextmanager
    def write(self) -> Iterator[None]:
        """Have the lock alone for the block."""
        is_new = self.acquire()
        try:
            yield
        finally:
            if is_new:
                self.release()

    def acquire(self) -> bool:
        """Have the lock alone until `release`; False if this thread has it already."""
        if self._writer == threading.get_ident():
            return False
        self._writing.acquire()
        try:
            with self._mutex:
                self._is_wanted = True
                while self._readers or self._due:
                    self._changed.wait()
                self._writer = threading.get_ident()
        except BaseException:  # Ctrl-C while it waits
            self.release()
            raise
        return True

    def release(self) -> None:
        """Let the readers in that wait, or else the next writer."""
        with self._mutex:
            self._writer, self._is_wanted = None, False
            self._phase += 1
            if self._waiting:
                self._due += self._waiting
                self._waiting = 0
                self._changed.notify_all()
        self._writing.release()

    def begin_read(self) -> None:
        """Share the lock until `end_read`."""
        with self._mutex:
            if self._is_wanted and self._writer != threading.get_ident():
                self._wait_for_writer()
            self._readers += 1

    def end_read(self) -> None:
        """Let a writer have it, if nobody else reads."""
        with self._mutex:
            self._readers -= 1
            if self._is_wanted and not self._readers:
                self._changed.notify_all()

    def _wait_for_writer(self) -> None:
        phase = self._phase
        self._waiting += 1
        try:
            while self._phase == phase:
                self._changed.wait()
        finally:  # also at Ctrl-C, or the next writer would wait for ever
            if self._phase == phase:
                self._waiting -= 1
            else:
                self._due -= 1
                self._changed.notify_all()


class _Reading:
    """A block that reads; not a generator, as one costs a microsecond, and each pull is a block."""

    def __init__(self, lock: ReadWriteLock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.begin_read()

    def __exit__(self, *error: object) -> None:
        self._lock.end_read()
