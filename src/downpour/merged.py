"""What several shards say of one table, as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from downpour.tables import TableStats
from downpour.transport import Shrunk

if TYPE_CHECKING:
    from collections.abc import Sequence


def merged_shrunk(parts: Sequence[Shrunk]) -> Shrunk:
    """All shards together."""
    return Shrunk(sum(it.kept for it in parts), sum(it.deleted for it in parts))


def merged_stats(stats: Sequence[TableStats]) -> TableStats:
    """All shards together."""
    rows = sum(it.rows for it in stats)
    index_bytes = sum(it.index_bytes for it in stats)
    in_use = sum(it.load * it.index_bytes for it in stats)  # an entry is as wide everywhere
    return TableStats(
        rows=rows,
        row_bytes=stats[0].row_bytes,
        arena_bytes=sum(it.arena_bytes for it in stats),
        index_bytes=index_bytes,
        load=in_use / index_bytes,
        growths=sum(it.growths for it in stats),
        embedx_rows=sum(it.embedx_rows for it in stats),
        embedx_bytes=stats[0].embedx_bytes,
    )
