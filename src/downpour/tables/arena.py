"""Where rows live: equal chunks of memory that are added and never moved."""

from __future__ import annotations

import numpy as np

from downpour.tables.pages import HUGE_PAGE, Pages

MIN_CHUNK_BYTES, MAX_CHUNK_BYTES = 4 << 20, 128 << 20


def _chunk_shift(row_bytes: int) -> int:
    """Log2 of the rows of a chunk: a chunk of whole huge pages, unless that is too large."""
    twos = (row_bytes & -row_bytes).bit_length() - 1
    shift = max(HUGE_PAGE.bit_length() - 1 - twos, 0)
    while row_bytes << shift < MIN_CHUNK_BYTES:
        shift += 1
    while shift > 0 and row_bytes << shift > MAX_CHUNK_BYTES:
        shift -= 1
    return shift


class Arena:
    """Rows of one width by number, in chunks of 2^shift rows, 4 to 128 MB each.

    Chunk addresses are in a table that kernels get the address of. When it is outgrown, a larger
    copy takes over and the old one is kept, so that who reads or updates rows on another thread
    meanwhile is not disturbed.
    """

    def __init__(self, row_bytes: int) -> None:
        self._row_bytes = row_bytes
        self.shift = _chunk_shift(row_bytes)
        self._chunks: list[Pages] = []
        self._tables = [np.zeros(16, np.uint64)]

    @property
    def address(self) -> int:
        """The address of the table of chunk addresses."""
        return int(self._tables[-1].ctypes.data)

    @property
    def capacity(self) -> int:
        """Rows that fit before the next growth."""
        return len(self._chunks) << self.shift

    def grow(self) -> None:
        """Add one chunk. MemoryError leaves it as it is."""
        table, count = self._tables[-1], len(self._chunks)
        if count == table.size:
            self._tables.append(np.concatenate([table, np.zeros_like(table)]))
        chunk = Pages(self._row_bytes << self.shift)
        self._tables[-1][count] = chunk.address
        self._chunks.append(chunk)

    def touched_bytes(self, num_rows: int) -> int:
        """Bytes of memory really in use by the first `num_rows` rows: whole huge pages."""
        per_chunk = self._row_bytes << self.shift
        full, rest = divmod(num_rows, 1 << self.shift)
        tail = -(-rest * self._row_bytes // HUGE_PAGE) * HUGE_PAGE
        return full * per_chunk + min(tail, per_chunk)
