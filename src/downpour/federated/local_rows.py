"""The rows that a client trains in a round: one parameter a table.

A parameter of rows is what `nn.Embedding.weight` would be: it has dense gradients, and any torch
optimizer may step it. It has the rows of the round's keys alone. Bounds of a table's weights are
its servers': a client trains without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from downpour.client import Located
from downpour.transfer import placed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from downpour.plan.specs import SparseTableSpec
    from downpour.step import Lookup
    from downpour.transfer import Transfer
    from downpour.transport import Floats, Keys


class LocalRows:
    """The rows of one table in a round, `weight` [num_keys, dim]; between rounds it has none.

    `keys` uint64 [num_keys] are rising. A step reads rows as a tensor of their own, whose gradient
    `collect` adds up: so a row has one gradient a step, in whichever modules it was read.
    """

    def __init__(self, spec: SparseTableSpec, transfer: Transfer) -> None:
        self.spec, self._transfer = spec, transfer
        self.end()

    def zeros(self, num_rows: int) -> torch.Tensor:
        """Rows of zeros, in the table's width and dtype."""
        shape, dtype = (num_rows, self.spec.accessor.dim), self.spec.accessor.numpy_dtype
        return placed(np.zeros(shape, dtype), self._transfer.device)

    def begin(self, keys: Keys, rows: Floats) -> None:
        """Take what a round begins with: rows [num_keys, dim] of rising keys."""
        self.keys = keys
        self._first = self._transfer.to_device(rows)
        self.weight = torch.nn.Parameter(self._first.clone())
        self._was_read = np.zeros(len(keys), bool)

    def end(self) -> None:
        """Forget the round's rows."""
        accessor = self.spec.accessor
        self.begin(np.empty(0, np.uint64), np.empty((0, accessor.dim), accessor.numpy_dtype))

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """The place of each key among the round's, int64 [n]; -1 where it has none."""
        return places_of(self.keys, keys)

    def located(self, keys: Keys) -> Located:
        """Different keys and their places."""
        return Located(self.spec.name, keys, (self.find(keys),))

    def read(self, located: Located, *, requires_grad: bool) -> torch.Tensor:
        """A tensor [n, dim] of the rows as they are now, which has a gradient of its own."""
        rows = self.weight.detach().index_select(0, self._on_device(located.rows[0]))
        return rows.requires_grad_(requires_grad)

    def mark(self, located: Located) -> None:
        """Note that a step that trains the rows has read them."""
        self._was_read[located.rows[0]] = True

    def collect(self, lookups: Sequence[Lookup]) -> None:
        """Set the weight's gradient to the sum of those of what was read; None without any."""
        self.weight.grad = None
        reached = [lookup for lookup in lookups if lookup.is_reached]
        if not reached:
            return
        total = torch.zeros_like(self.weight)
        for lookup in reached:
            assert lookup.rows is not None
            assert lookup.rows.grad is not None
            total.index_add_(0, self._on_device(lookup.located.rows[0]), lookup.rows.grad)
        self.weight.grad = total

    def pull_back(self, weight: float) -> None:
        """Add to the gradient, if there is one, that of weight / 2 * |w - w0|^2."""
        if self.weight.grad is not None:
            self.weight.grad += weight * (self.weight.detach() - self._first)

    def change(self) -> tuple[Keys, Floats]:
        """The keys that were read, and by how much their rows have changed."""
        places = self._on_device(np.flatnonzero(self._was_read))
        change = self.weight.detach().index_select(0, places) - self._first.index_select(0, places)
        return self.keys[self._was_read], self._transfer.to_host(change)

    def put_over(self, keys: Keys, rows: torch.Tensor) -> torch.Tensor:
        """Rows [n, dim] of keys, those that the round has as it has them now."""
        places = self.find(keys)
        known = np.flatnonzero(places >= 0)
        own = self.weight.detach().index_select(0, self._on_device(places[known]))
        return rows.index_copy(0, self._on_device(known), own)

    def _on_device(self, places: NDArray[np.int64]) -> torch.Tensor:
        return placed(places, self._transfer.device)


def places_of(among: Keys, keys: Keys) -> NDArray[np.int64]:
    """The place of each key among rising ones, int64 [n]; -1 where it has none."""
    if not len(among):
        return np.full(len(keys), -1, np.int64)
    places = np.searchsorted(among, keys)
    places[places == len(among)] = 0
    return np.where(among[places] == keys, places, -1)
