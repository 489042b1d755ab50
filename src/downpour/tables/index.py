"""The index of a sparse table: key to row number, growing a little with every new row.

`tables.kernels` has the layout and the loops. This side owns the memory and says when it grows.
A growth doubles the capacity: it begins at a load of BEGIN_LOAD and moves the segments one by one
while rows are added, ending at END_LOAD of the old capacity. The part of the old memory that has
been left goes back to the system on the way, so an index is never much more than its share of
both: 8 / load bytes a key before, 16 / END_LOAD at the growth's end.
"""

from __future__ import annotations

import numpy as np

from downpour.tables import kernels
from downpour.tables.kernels import SEGMENTS
from downpour.tables.pages import Pages

FIRST_CAPACITY = 16
BEGIN_LOAD = 0.60
END_LOAD = 0.80
MAX_ROWS = 2**32 - 2


class Index:
    """Key to row number; see the module."""

    def __init__(self) -> None:
        self.growths = 0
        self._old: Pages | None = None
        self._new = Pages(FIRST_CAPACITY * SEGMENTS * 8)
        state = np.zeros(kernels.COUNTS + SEGMENTS, np.uint64)
        state[kernels.CURSOR] = SEGMENTS
        state[kernels.NEW_BASE] = self._new.address
        state[kernels.NEW_CAPACITY] = FIRST_CAPACITY
        state[kernels.GROW_AT] = int(BEGIN_LOAD * FIRST_CAPACITY * SEGMENTS)
        self.state = state

    @property
    def num_rows(self) -> int:
        """Rows indexed."""
        return int(self.state[kernels.ROWS])

    @property
    def num_slots(self) -> int:
        """Entries that memory is held for: the new capacity so far reached, the old one left."""
        state = self.state
        moved, new = int(state[kernels.CURSOR]), int(state[kernels.NEW_CAPACITY])
        return moved * new + (SEGMENTS - moved) * int(state[kernels.OLD_CAPACITY])

    @property
    def num_bytes(self) -> int:
        """Bytes of the index."""
        return self.num_slots * 8

    @property
    def row_limit(self) -> int:
        """How many rows there is room for in the arena."""
        return int(self.state[kernels.ROW_LIMIT])

    def set_row_limit(self, limit: int) -> None:
        """Let it have so many rows."""
        self.state[kernels.ROW_LIMIT] = limit

    def grow(self) -> None:
        """Begin the next growth, or end at once the one under way.

        Raises MemoryError, and then the index is as it was.
        """
        state = self.state
        if state[kernels.CURSOR] < SEGMENTS:
            kernels.move_segments(state, np.uint64(SEGMENTS))
            self.release_old()
            return
        old_capacity = int(state[kernels.NEW_CAPACITY])
        capacity = 2 * old_capacity
        rows = self.num_rows
        self._old, self._new = self._new, Pages(capacity * SEGMENTS * 8)
        end = int(END_LOAD * old_capacity * SEGMENTS)
        state[kernels.OLD_BASE] = state[kernels.NEW_BASE]
        state[kernels.OLD_CAPACITY] = old_capacity
        state[kernels.NEW_BASE] = self._new.address
        state[kernels.NEW_CAPACITY] = capacity
        state[kernels.GROWTH_START] = rows
        state[kernels.GROWTH_SPAN] = max(end - rows, 1)
        state[kernels.GROW_AT] = kernels.NEVER
        state[kernels.NEXT_GROW_AT] = int(BEGIN_LOAD * capacity * SEGMENTS)
        state[kernels.CURSOR] = 0
        self.growths += 1

    def release_old(self) -> None:
        """Give back the memory of segments that have moved."""
        state = self.state
        if self._old is None:
            return
        moved = int(state[kernels.CURSOR])
        if moved == SEGMENTS:
            self._old = None
        else:
            self._old.release(moved * int(state[kernels.OLD_CAPACITY]) * 8)
