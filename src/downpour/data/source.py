"""The seam between input data and training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from downpour.features import Batch


@runtime_checkable
class Source(Protocol):
    """What gives batches: `Files`, `Frame`, or a class of your own."""

    def batches(self, epoch: int = 0) -> Iterator[Batch]:
        """Give the batches of one epoch; the same ones whenever it is asked for the same epoch."""
        ...

    def num_batches(self) -> int | None:
        """Count the batches of an epoch; None where only reading them all would tell."""
        ...
