"""Where the rows of a round's batches are among those of the round."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from downpour.federated.local_checks import refuse_unknown
from downpour.lookup import table_keys
from downpour.plan.program import PullSparse
from downpour.step import Lookup

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from downpour.features import Batch
    from downpour.federated.local_rows import LocalRows
    from downpour.lookup import TableKeys
    from downpour.plan.plan import Plan
    from downpour.plan.program import Program
    from downpour.step import Step
    from downpour.transport import Keys


class RoundLookups:
    """The keys of a round's batches, deduplicated once for all of its steps.

    Their places are found in a step, once `rows` has the keys of the round.
    """

    def __init__(self, plan: Plan, rows: Mapping[str, LocalRows], batches: Sequence[Batch]) -> None:
        self._plan, self._rows = plan, rows
        self._batches = {id(batch): batch for batch in batches}  # held: no other one gets an id
        pulls = {
            op: None for program in plan.programs.values() for op in program.ops_of(PullSparse)
        }
        self._keys = {
            (number, op): self._table_keys(op, batch)
            for number, batch in self._batches.items()
            for op in pulls
            if batch.features.keys() >= {*op.features}
        }
        self._known: dict[tuple[int, PullSparse], Lookup] = {}

    def keys(self) -> dict[str, Keys]:
        """All keys of the batches by table, rising."""
        parts: dict[str, list[Keys]] = {table: [np.empty(0, np.uint64)] for table in self._rows}
        for (_, op), keys in self._keys.items():
            parts[op.table].append(keys.unique)
        return {table: np.unique(np.concatenate(keys)) for table, keys in parts.items()}

    def of_batch(self, program: Program, batch: Batch) -> list[Lookup]:
        """The lookups of a program's step on a batch."""
        return [self._lookup(program, op, batch) for op in program.ops_of(PullSparse)]

    def of_step(
        self, work: Step, table: str, features: tuple[str, ...], batch: Batch
    ) -> Iterator[Lookup]:
        """The step's lookups that together hold these features of a batch.

        Raises PlanError for features that the program does not have, and unknown ids.
        """
        return work.lookups_of(
            table, features, batch, lambda op: self._lookup(work.program, op, batch)
        )

    def _lookup(self, program: Program, op: PullSparse, batch: Batch) -> Lookup:
        """Of one step, whose rows are its own; the places of the round's batches are kept."""
        place = id(batch), op
        known = self._known.get(place)
        if known is None:
            keys = self._keys.get(place) or self._table_keys(op, batch)
            known = Lookup(op, keys, self._rows[op.table].located(keys.unique))
            refuse_unknown(program, known)
            if place in self._keys:
                self._known[place] = known
        return Lookup(op, known.keys, known.located)

    def _table_keys(self, op: PullSparse, batch: Batch) -> TableKeys:
        return table_keys(self._plan.sparse_table(op.table), op.features, batch)
