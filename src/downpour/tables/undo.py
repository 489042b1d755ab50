"""Changes of tables that are kept whole or undone whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from downpour.tables.update_kernels import FIRST
from downpour.team import LEAST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from downpour.tables.read_write_lock import ReadWriteLock

MOST_KEPT_BYTES = 64 << 20  # by a table, whose pushes may be of any size


class Transaction:
    """Changes that are kept when its block ends, and undone in reverse order if it raises.

    Until then it holds the locks of the tables that it changes, so no other thread reads or changes
    them. For one thread.
    """

    def __init__(self) -> None:
        self._locks: list[ReadWriteLock] = []
        self._undoings: list[Callable[[], None]] = []
        self._endings: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is not None:
                for undo in reversed(self._undoings):
                    undo()
            for end in self._endings:
                end()
        finally:
            for lock in self._locks:
                lock.release()

    def lock(self, lock: ReadWriteLock) -> bool:
        """Hold a table's lock alone until the end; False if this thread holds it already."""
        is_new = lock.acquire()
        if is_new:
            self._locks.append(lock)
        return is_new

    def on_undo(self, undo: Callable[[], None]) -> None:
        """Call this to undo a change; it must not raise, so it must not need much memory."""
        self._undoings.append(undo)

    def at_end(self, end: Callable[[], None]) -> None:
        """Call this at the end, whether the changes are kept or undone."""
        self._endings.append(end)


class SpareMemory:
    """Keeps the memory of one undo log for the next one: new memory costs a page fault per page.

    It keeps at most MOST_KEPT_BYTES.
    """

    def __init__(self) -> None:
        self._spare: list[np.ndarray] = []

    def take(self, num_bytes: int) -> np.ndarray:
        """At least this many bytes, with any content, as uint64."""
        try:
            memory = self._spare.pop()
        except IndexError:
            memory = np.empty(0, np.uint64)
        if memory.nbytes >= num_bytes:
            return memory
        num_words = -(-num_bytes // 8)
        if num_bytes <= MOST_KEPT_BYTES:  # room to spare: batches differ a little in size
            num_words = 1 << (num_words - 1).bit_length() if num_words else 0
        return np.empty(num_words, np.uint64)

    def give_back(self, memory: np.ndarray) -> None:
        """Keep it for the next log, unless it is too large or one is kept already."""
        if not self._spare and memory.nbytes <= MOST_KEPT_BYTES:
            self._spare.append(memory)


class UndoLog:
    """What rows held before an update: one record of `record_bytes` for each changed row.

    Several threads may each do a part of an update: a range of `rows` that begins at least LEAST
    rows after the one before it. A kernel writes the records of rows before it changes them, and
    notes in its part's mark how far it has come.
    """

    def __init__(self, rows: np.ndarray, record_bytes: int, spare: SpareMemory) -> None:
        self.rows = rows
        self._record_bytes, self._spare = record_bytes, spare
        self._marks = np.zeros((rows.size // LEAST + 1, 3), np.int64)
        self._memory = spare.take(rows.size * record_bytes)
        self._address: int = self._memory.ctypes.data

    def address(self, row: int = 0) -> np.uint64:
        """The address of the record of rows[row]."""
        return np.uint64(self._address + row * self._record_bytes)

    def mark(self, start: int = 0) -> np.ndarray:
        """The mark of the part that begins at `start`, int64 [3]."""
        mark: np.ndarray = self._marks[start // LEAST]
        mark[FIRST] = start
        return mark

    def parts(self) -> Iterator[tuple[np.ndarray, np.uint64]]:
        """The changed rows of each part, and the address of their records."""
        for first, count, _ in self._marks.tolist():
            yield self.rows[first : first + count], self.address(first)

    def bad(self) -> int | None:
        """The place in `rows` of one that is not finite; None if all are."""
        for first, _, bad in self._marks.tolist():
            if bad:
                return int(first + bad - 1)
        return None

    def end(self) -> None:
        """Give its memory back."""
        self._spare.give_back(self._memory)
