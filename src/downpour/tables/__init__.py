"""Tables: where rows and parameters live, the one place that changes."""

from downpour.tables.batches import dedup, partition, segment_sum, shard_of
from downpour.tables.dense import DenseTable, Section, sections_of
from downpour.tables.sparse import SparseTable
from downpour.tables.stats import TableStats

__all__ = [
    "DenseTable",
    "Section",
    "SparseTable",
    "TableStats",
    "dedup",
    "partition",
    "sections_of",
    "segment_sum",
    "shard_of",
]
