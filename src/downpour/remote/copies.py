"""The tables of a geo worker beside what servers are known to have of them: what has moved?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from downpour.errors import NonFiniteError
from downpour.rules import Summary
from downpour.tables.batches import is_finite

if TYPE_CHECKING:
    from downpour.tables import DenseTable, SparseTable
    from downpour.transport import Floats, Keys, Rows

FIRST_ROWS = 1024


class RowsCopy:
    """A worker's own sparse table, of which all rows are made by `make` and filled by `put`.

    `take` and `put` keep weights within the table's bounds; the rule's state stays the worker's.
    """

    def __init__(self, table: SparseTable) -> None:
        self._table = table
        self._keys = np.empty(0, np.uint64)  # by row number, as the next two
        self._base = np.empty((0, table.dim), table.accessor.numpy_dtype)
        self._is_touched = np.zeros(0, np.bool_)
        self._sent: Rows = np.empty(0, np.int64)

    def find(self, keys: Keys) -> Rows:
        """The row number of each key, -1 where there is none."""
        rows: Rows = self._table.locate(keys, create=False)
        return rows

    def make(self, keys: Keys) -> Rows:
        """New rows of keys that have none, to be filled by `put`."""
        rows: Rows = self._table.locate(keys, create=True)
        if len(self._table) > len(self._keys):
            self._grow(max(FIRST_ROWS, 2 * len(self._table)))
        self._keys[rows] = keys
        return rows

    def put(self, rows: Rows, values: Floats) -> None:
        """Fill rows with what servers have."""
        self._table.replace(rows, values)
        self._base[rows] = values

    def touch(self, rows: Rows) -> None:
        """Note that rows were updated."""
        self._is_touched[rows] = True

    def moved(self, num_workers: int) -> tuple[Keys, Floats]:
        """The keys of rows that were updated, and by how much servers are to change them.

        Raises NonFiniteError where a change would be NaN or infinite.
        """
        self._sent = rows = np.flatnonzero(self._is_touched)
        keys = self._keys[rows]
        with np.errstate(invalid="ignore", over="ignore"):
            deltas = _divided(self._table.read(keys, rows) - self._base[rows], num_workers)
        _check(f"table {self._table.name!r}", deltas)
        return keys, deltas

    def mark_sent(self, deltas: Floats) -> None:
        """What `moved` gave is on its way."""
        self._base[self._sent] += deltas
        self._is_touched[self._sent] = False

    def take(self, keys: Keys, values: Floats) -> None:
        """Move rows by what servers have beyond the base; keys that have none are passed over."""
        rows = self.find(keys)
        here = rows >= 0
        keys, rows, values = keys[here], rows[here], values[here]
        with np.errstate(invalid="ignore", over="ignore"):  # the table refuses what they lead to
            weights = self._table.read(keys, rows) + (values - self._base[rows])
        bounds = self._table.accessor.bounds
        self._table.replace(rows, weights if bounds is None else weights.clip(*bounds))
        self._base[rows] = values

    def _grow(self, num_rows: int) -> None:
        for name in ("_keys", "_base", "_is_touched"):
            old: Any = getattr(self, name)
            new = np.zeros((num_rows, *old.shape[1:]), old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)


class BlockCopy:
    """A worker's own dense table.

    One of statistics is a decayed sum over all workers' steps: p <- decay * p + g. What s steps
    have made of the base is then decay^s * base and what they have added to it. Servers do
    the same with their own sum, whatever others have done to it meanwhile, so nothing is divided.
    """

    def __init__(self, table: DenseTable) -> None:
        self._table = table
        self._base = table.pull()
        self._updates = dict(table.steps)  # of each section, when it was last sent

    def put(self, values: Floats) -> None:
        """Begin with what servers have."""
        self._table.set(values)
        self._base = values

    def moved(self, num_workers: int) -> tuple[Floats, Floats | None] | None:
        """By how much servers are to change, and of statistics how much is kept before, [size].

        None where there was no update. Raises NonFiniteError.
        """
        if self._table.steps == self._updates:
            return None
        weights, rule = self._table.pull(), self._table.rule
        keep: Any = None
        if isinstance(rule, Summary):
            keep = np.empty_like(weights)
            for name, section in self._table.sections.items():
                num_steps = self._table.steps[name] - self._updates[name]
                keep[section.span] = rule.decay**num_steps
            deltas = weights - keep * self._base
        else:
            deltas = _divided(weights - self._base, num_workers)
        _check(f"dense table {self._table.name!r}", deltas)
        return deltas, keep

    def mark_sent(self, deltas: Floats, keep: Floats | None) -> None:
        """What `moved` gave is on its way."""
        self._base = (self._base if keep is None else keep * self._base) + deltas
        self._updates = dict(self._table.steps)

    def take(self, values: Floats) -> None:
        """Move by what servers have beyond the base."""
        self._table.set(self._table.pull() + (values - self._base))
        self._base = values


def _divided(moved: Floats, num_workers: int) -> Floats:
    return moved / moved.dtype.type(num_workers)


def _check(what: str, deltas: Floats) -> None:
    if not is_finite(deltas):
        raise NonFiniteError(
            f"{what}: this worker's training has led to NaN or infinity; nothing was sent. A "
            "smaller learning rate may help"
        )
