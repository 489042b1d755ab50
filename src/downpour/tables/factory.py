"""The table of an accessor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from downpour.accessor import CtrAccessor
from downpour.tables.ctr import CtrTable
from downpour.tables.sparse import SparseTable

if TYPE_CHECKING:
    from downpour.accessor import Accessor


def sparse_table(name: str, accessor: Accessor, *, seed: int = 0) -> SparseTable | CtrTable:
    """An empty table whose rows hold what `accessor` says."""
    if isinstance(accessor, CtrAccessor):
        return CtrTable(name, accessor, seed=seed)
    return SparseTable(name, accessor, seed=seed)
