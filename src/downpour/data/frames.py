"""Batches of a frame in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from downpour.data.files import require_sizes
from downpour.data.shuffle import count_batches
from downpour.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from downpour.data.schema import Schema
    from downpour.features import Batch


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Frame:
    """A table in memory: Arrow, pandas, polars or a dict of columns, read once when made.

    batch_size: samples a batch; the last of an epoch may be smaller, or goes with `drop_last`.
    shuffle_seed: None keeps the order of rows; a number shuffles all of them by (shuffle_seed,
    epoch). samples: the whole table as one `Batch`.

    Raises DataError for whatever is wrong with the table, and for one without rows.

    >>> from downpour.data import Schema
    >>> Frame({"user": [5, 7], "click": [1, 0]}, Schema(features=["user"], labels=["click"]),
    ...       batch_size=1).num_batches()
    2
    """

    samples: Batch
    schema: Schema
    batch_size: int
    shuffle_seed: int | None
    drop_last: bool

    def __init__(
        self,
        frame: Any,
        schema: Schema,
        *,
        batch_size: int,
        shuffle_seed: int | None = None,
        drop_last: bool = False,
    ) -> None:
        require_sizes(batch_size, shuffle_seed)
        samples = schema.batch(frame)
        if samples.size < (batch_size if drop_last else 1):
            whole = f" that fills a batch of {batch_size} (drop_last=True)" if drop_last else ""
            raise DataError(f"there is no sample{whole} in a frame of {samples.size} rows")
        object.__setattr__(self, "samples", samples)
        object.__setattr__(self, "schema", schema)
        object.__setattr__(self, "batch_size", batch_size)
        object.__setattr__(self, "shuffle_seed", shuffle_seed)
        object.__setattr__(self, "drop_last", drop_last)

    def __repr__(self) -> str:
        return (
            f"Frame({self.samples.size} rows, {self.schema}, batch_size={self.batch_size}, "
            f"shuffle_seed={self.shuffle_seed}, drop_last={self.drop_last})"
        )

    def batches(self, epoch: int = 0) -> Iterator[Batch]:
        """Give the batches of one epoch."""
        size = self.samples.size
        stop = size - size % self.batch_size if self.drop_last else size
        if self.shuffle_seed is None:
            for start in range(0, stop, self.batch_size):
                yield self.samples.slice(start, min(start + self.batch_size, stop))
            return
        order = np.random.default_rng([self.shuffle_seed, epoch]).permutation(size)[:stop]
        for start in range(0, stop, self.batch_size):
            yield self.samples.select(order[start : start + self.batch_size])

    def num_batches(self) -> int:
        """Count the batches of an epoch."""
        return count_batches(self.samples.size, self.batch_size, drop_last=self.drop_last)
