"""What a sparse table holds and what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TableStats:
    """What a sparse table holds and what it costs.

    `row_bytes` is of one row, its key included; `arena_bytes` of the memory for all, in pages of
    2 MB; `index_bytes` of the index, an old and a new part while it grows; `load` the share of the
    index's entries in use; `growths` how often the index has doubled. Of a CTR table `row_bytes` is
    a row's without embedx, which takes `embedx_bytes`, and `embedx_rows` have one.
    """

    rows: int
    row_bytes: int
    arena_bytes: int
    index_bytes: int
    load: float
    growths: int
    embedx_rows: int = 0
    embedx_bytes: int = 0

    @property
    def bytes(self) -> int:
        """All memory of the table."""
        return self.arena_bytes + self.index_bytes

    @property
    def index_bytes_per_key(self) -> float:
        """Bytes of index a row; infinite for an empty table."""
        return self.index_bytes / self.rows if self.rows else math.inf
