"""How much the tables of a shard may grow: rows of one request, and bytes of all tables."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from downpour.errors import TableError
from downpour.sizes import bytes_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from downpour.limits import Limits
    from downpour.server import Server
    from downpour.tables import CtrTable, SparseTable
    from downpour.transport import Keys

INDEX_BYTES = 20  # of a row, at most (see `tables.index`)
KEYS_AT_ONCE = 1 << 18  # that are looked for, at least


class Growth:
    """Looks before rows are made whether they may be. Safe to call from many threads.

    Rows are looked for only where there could be too many new ones, so that it mostly costs
    nothing. `beside` are tables that are filled to take the place of others.
    """

    def __init__(
        self, server: Server, limits: Limits, beside: Mapping[str, SparseTable | CtrTable]
    ) -> None:
        self._server, self._limits, self._beside = server, limits, beside
        self._lock = threading.Lock()
        self._num_bytes = 0  # of all tables, at most

    def check(self, table: SparseTable | CtrTable, keys: Keys) -> None:
        """Refuse a request that would make too many rows of keys. Raises TableError."""
        most = self._limits.new_rows
        row_bytes = table.row_bytes + INDEX_BYTES
        if keys.size <= most and self._fits(keys.size * row_bytes):
            return
        num_new = _num_new(table, keys, most)
        if num_new > most:
            raise TableError(
                f"table {table.name!r}: this request for {keys.size:,} keys would make more than "
                f"{most:,} rows, which is what one may make; nothing was changed. Send fewer keys "
                "at once, or start servers with a larger --limit new_rows=N"
            )
        self.check_bytes(f"table {table.name!r}", num_new * row_bytes)

    def check_bytes(self, what: str, num_bytes: int) -> None:
        """Refuse what would make all tables too large. Raises TableError."""
        if not num_bytes or self._fits(num_bytes):
            return
        used = self._count()
        raise TableError(
            f"{what} would need {bytes_text(num_bytes)} more, and the tables of this server have "
            f"{bytes_text(used)} of the {bytes_text(self._limits.table_bytes)} that they may have; "
            "nothing was changed. Use more servers, or start them with a larger --limit "
            "table_bytes=N"
        )

    def _fits(self, num_bytes: int) -> bool:
        """Whether there is room for more, which is then counted as used."""
        with self._lock:
            if self._num_bytes + num_bytes > self._limits.table_bytes:
                # Much of what was counted were rows that there were, so count anew.
                self._num_bytes = self._count()
            if self._num_bytes + num_bytes > self._limits.table_bytes:
                return False
            self._num_bytes += num_bytes
            return True

    def _count(self) -> int:
        beside = sum(table.stats().bytes for table in list(self._beside.values()))
        return beside + sum(it.bytes for it in self._server.stats().values())


def _num_new(table: SparseTable | CtrTable, keys: Keys, most: int) -> int:
    """How many rows a request for these keys would make; beyond `most` not all are counted.

    Up to `most` a key that comes twice may count twice.
    """
    new: list[Keys] = []
    num_new, at_once = 0, max(KEYS_AT_ONCE, most // 2)
    for start in range(0, keys.size, at_once):
        part = keys[start : start + at_once]
        new.append(part[table.locate(part, create=False) < 0])
        num_new += new[-1].size
        if num_new > most:  # unless they repeat
            new = [_distinct(np.concatenate(new))]
            num_new = new[0].size
            if num_new > most:
                break
    return num_new


def _distinct(keys: Keys) -> Keys:
    """Different keys, rising. It takes less memory than np.unique."""
    keys.sort()
    is_first = np.ones(keys.size, np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
    return keys[is_first]
