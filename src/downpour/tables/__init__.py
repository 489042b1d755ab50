"""Tables: where rows and parameters live, the one place that changes."""

from downpour.tables.batches import dedup, partition, segment_sum, shard_of
from downpour.tables.ctr import CtrTable
from downpour.tables.ctr_records import STATISTICS
from downpour.tables.dense import DenseTable, Section, sections_of
from downpour.tables.factory import sparse_table
from downpour.tables.pushes import add_shows, check_pushes, merge_pushes
from downpour.tables.sparse import SparseTable
from downpour.tables.stats import TableStats
from downpour.tables.undo import Transaction

__all__ = [
    "STATISTICS",
    "CtrTable",
    "DenseTable",
    "Section",
    "SparseTable",
    "TableStats",
    "Transaction",
    "add_shows",
    "check_pushes",
    "dedup",
    "merge_pushes",
    "partition",
    "sections_of",
    "segment_sum",
    "shard_of",
    "sparse_table",
]
