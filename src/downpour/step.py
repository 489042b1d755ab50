"""One step under way: the rows that it has looked up, and what it is about to push."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from downpour.errors import PlanError
from downpour.plan.program import PullSparse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    from downpour.client import Located
    from downpour.features import Batch
    from downpour.lookup import TableKeys
    from downpour.plan.program import Program, PushSparse
    from downpour.transfer import Fetched, Sent, Transfer
    from downpour.transport import Floats


@dataclass(slots=True)
class Lookup:
    """The keys that one op reads for a batch, their places, and once pulled their rows.

    `sent`: the rows, where they went to the device before their step. `fetched`: their gradient on
    its way back.
    """

    op: PullSparse
    keys: TableKeys
    located: Located
    rows: torch.Tensor | None = None
    sent: Sent | None = None
    fetched: Fetched | None = None

    @property
    def is_reached(self) -> bool:
        """Whether the rows have a gradient."""
        return self.rows is not None and self.rows.grad is not None

    @property
    def grad(self) -> Any:
        """The gradient of pulled rows, numpy [num_unique, pull_dim]; zeros if it did not come."""
        assert self.rows is not None
        if self.rows.grad is None:
            return torch.zeros(self.rows.shape, dtype=self.rows.dtype).numpy()
        return self.rows.grad.numpy() if self.fetched is None else self.fetched.array()

    def fetch(self, transfer: Transfer) -> None:
        """Begin to bring the gradient to the host, if it came."""
        if self.rows is not None and self.rows.grad is not None:
            self.fetched = transfer.fetch(self.rows.grad)

    def features_of(self, bad_rows: np.ndarray) -> list[str]:
        """The features with an id whose row is among those of the mask [num_unique]."""
        inverse = self.keys.inverse
        return [
            name
            for name, bag in self.keys.bags.items()
            if bad_rows[inverse[bag.start : bag.stop]].any()
        ]


@dataclass(slots=True)
class Step:
    """What one step has pulled and what it is about to push."""

    program: Program
    batch: Batch
    lookups: list[Lookup]  # of `batch`, by prefetch
    others: list[tuple[Batch, Lookup]] = field(default_factory=list)  # batches made on the way
    loss: float = 0.0
    pushes: dict[PushSparse, tuple[Located, Floats]] = field(default_factory=dict)
    reached: dict[str, list[str]] = field(default_factory=dict)  # parameters, by dense table
    pushed_dense: list[str] = field(default_factory=list)  # dense tables

    def all_lookups(self) -> list[Lookup]:
        """Those of the step's batch, and those of the batches made on the way."""
        return [*self.lookups, *(lookup for _, lookup in self.others)]

    def lookups_of(
        self,
        table: str,
        features: tuple[str, ...],
        batch: Batch,
        look_up: Callable[[PullSparse], Lookup],
    ) -> Iterator[Lookup]:
        """The step's lookups that together hold these features of a batch.

        look_up: finds the rows of a batch that the loss made of its own, by an op of the features
        that it has. Raises PlanError for features that the program does not have.
        """
        planned = self.program.ops_of(PullSparse)
        ops = [op for op in planned if op.table == table and {*op.features} & {*features}]
        unplanned = {*features} - {name for op in ops for name in op.features}
        if unplanned:
            raise PlanError(
                f"program {self.program.name!r} reads {sorted(unplanned)} of table {table!r}, "
                "which it did not read on the example batch that it was planned with"
            )
        for op in ops:
            if batch is self.batch:
                yield next(lookup for lookup in self.lookups if lookup.op == op)
            else:
                yield self._other(op, features, batch, look_up)

    def _other(
        self,
        op: PullSparse,
        features: tuple[str, ...],
        batch: Batch,
        look_up: Callable[[PullSparse], Lookup],
    ) -> Lookup:
        """The lookup of a batch that the loss made of its own, as sampled negatives.

        It may lack features of the op, but none of `features`.
        """
        there = tuple(name for name in op.features if name in batch.features or name in features)
        for other, lookup in self.others:
            if other is batch and lookup.op == op and lookup.keys.bags.keys() >= {*there}:
                return lookup
        lookup = look_up(PullSparse(op.table, there))
        lookup.op = op
        self.others.append((batch, lookup))
        return lookup

    def pushed(self, op: PushSparse) -> list[Lookup]:
        """The lookups of an op that the loss has reached, and the batch's own if it is counted."""
        return [
            lookup
            for lookup in self.all_lookups()
            if (lookup.op.table, lookup.op.features) == (op.table, op.features)
            and (lookup.is_reached or (op.counts and self.is_own(lookup)))
        ]

    def is_own(self, lookup: Lookup) -> bool:
        """Whether a lookup is of the step's batch; others, as sampled negatives, are not shown."""
        return any(lookup is planned for planned in self.lookups)
