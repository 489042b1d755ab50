"""From the features of a batch to the distinct keys of a table, and where each id's row is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from downpour.errors import DataError
from downpour.hashing import mix, space_salt
from downpour.tables.batches import dedup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from downpour.features import Batch, Jagged
    from downpour.plan.specs import SparseTableSpec


@dataclass(frozen=True, slots=True)
class Bag:
    """Where one feature's ids are among those of its table.

    `offsets` [batch + 1] counts from `start`; it is None where each sample has exactly one id.
    """

    start: int
    stop: int
    offsets: NDArray[np.int64] | None
    weights: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class TableKeys:
    """The stored keys that a batch reads from one table.

    `unique` [num_unique] in the order first seen; `inverse` [num_ids] says which of them each id
    is, the features one after the other.
    """

    batch_size: int
    unique: NDArray[np.uint64]
    inverse: NDArray[np.integer]
    bags: dict[str, Bag]


def stored_keys(keys: NDArray[np.uint64], space: str | None) -> NDArray[np.uint64]:
    """Mix an id space into raw ids (the inverse of itself); None: they are globally unique."""
    return keys if space is None else mix(keys, space_salt(space))


def table_keys(table: SparseTableSpec, features: Sequence[str], batch: Batch) -> TableKeys:
    """Collect and deduplicate the keys of `features`, in that order.

    Raises:
        DataError: the batch lacks a feature.
    """
    parts, bags, start = [], {}, 0
    by_name = {spec.name: spec for spec in table.features}
    for feature in features:
        spec = by_name.get(feature) or table.feature(feature)
        jagged = _without_padding(_feature(batch, feature, table), table.padding_key)
        values = jagged.values
        bags[feature] = Bag(
            start,
            start + len(values),
            None if jagged.is_single else jagged.offsets,
            jagged.weights,
        )
        parts.append(stored_keys(values, spec.space))
        start += len(values)
    ids = parts[0] if len(parts) == 1 else np.concatenate(parts)
    unique, inverse = dedup(ids)
    return TableKeys(batch.size, unique, inverse, bags)


def joined_keys(parts: Sequence[TableKeys]) -> TableKeys:
    """Lookups of different features of one batch as one, their rows one after the other."""
    if len(parts) == 1:
        return parts[0]
    bags: dict[str, Bag] = {}
    inverses, start, num_rows = [], 0, 0
    for part in parts:
        for feature, bag in part.bags.items():
            bags[feature] = replace(bag, start=start + bag.start, stop=start + bag.stop)
        inverses.append(part.inverse + part.inverse.dtype.type(num_rows))
        start, num_rows = start + len(part.inverse), num_rows + len(part.unique)
    unique = np.concatenate([part.unique for part in parts])
    return TableKeys(parts[0].batch_size, unique, np.concatenate(inverses), bags)


def _feature(batch: Batch, name: str, table: SparseTableSpec) -> Jagged:
    if name not in batch.features:
        known = ", ".join(batch.features) or "none"
        raise DataError(
            f"the batch lacks feature {name!r}, which reads table {table.name!r}; it has: {known}"
        )
    return batch.features[name]


def _without_padding(jagged: Jagged, padding_key: int | None) -> Jagged:
    """Drop the ids that only fill space; their samples keep what is left."""
    if padding_key is None:
        return jagged
    return jagged.keep(jagged.values != np.uint64(padding_key))
