"""Pushes of CTR rows: slot, show, click, places and gradients, [n, push_dim].

Show and click are what a push adds to its row: 0 where another program counts. Places is how often
the key stands in the batch, whoever counts.
"""

from __future__ import annotations

import numpy as np

from downpour.errors import TableError
from downpour.jit import kernel
from downpour.tables.batches import segment_sum

NUM_SLOTS = 2**24  # float32 holds all whole numbers up to there
PUSH_SLOT, PUSH_SHOW, PUSH_CLICK, PUSH_PLACES, PUSH_HEAD = range(5)  # columns; gradients follow
NO_SLOT = -1


@kernel
def _add_shows(
    pushes: np.ndarray,
    rows: np.ndarray,
    offsets: np.ndarray,
    clicks: np.ndarray,
    slot: int,
    counts: bool,
) -> None:
    """Empty offsets: id i is sample i's."""
    for sample in range(offsets.size - 1 if offsets.size > 0 else rows.size):
        start, stop = sample, sample + 1
        if offsets.size > 0:
            start, stop = offsets[sample], offsets[sample + 1]
        for i in range(start, stop):
            row = rows[i]
            pushes[row, PUSH_SLOT] = slot
            pushes[row, PUSH_PLACES] += 1
            if counts:
                pushes[row, PUSH_SHOW] += 1
                pushes[row, PUSH_CLICK] += clicks[sample]


def add_shows(
    pushes: np.ndarray,
    rows: np.ndarray,
    offsets: np.ndarray | None,
    clicks: np.ndarray | None,
    slot: int,
    *,
    counts: bool,
) -> None:
    """Add the ids of one feature to pushes [n, push_dim], in place.

    Every id writes the slot of its row and adds 1 to its places; with `counts` also 1 to its show,
    and its sample's click to its click.

    rows: int32 or int64 [num_ids], the row of each id. offsets: int64 [batch + 1], where the ids of
    each sample begin, or None where each has one. clicks: [batch]; None only without `counts`.
    """
    assert pushes.flags.c_contiguous
    assert offsets is None or offsets[-1] == rows.size
    assert clicks is not None or not counts
    bags = np.empty(0, np.int64) if offsets is None else offsets
    labels = np.empty(0, pushes.dtype) if clicks is None else clicks
    rows, labels = np.ascontiguousarray(rows), np.ascontiguousarray(labels)
    _add_shows(pushes, rows, bags, labels, slot, counts)


def merge_pushes(pushes: np.ndarray, inverse: np.ndarray, num_unique: int) -> np.ndarray:
    """Sum the pushes [n, push_dim] of each key, in order: [num_unique, push_dim].

    All but the slot, which is that of the last. `inverse` as `dedup` gives it.
    """
    merged = segment_sum(pushes, inverse, num_unique)
    merged[inverse, PUSH_SLOT] = pushes[:, PUSH_SLOT]
    return merged


def check_pushes(table: str, pushes: np.ndarray) -> None:
    """Raise TableError for pushes [n, push_dim] whose counts or slots cannot be."""
    counts, slots = pushes[:, PUSH_SHOW:PUSH_HEAD], pushes[:, PUSH_SLOT]
    if np.any(counts < 0.0):
        row, column = np.argwhere(counts < 0.0)[0].tolist()
        name = ("show", "click", "places")[column]
        raise TableError(
            f"table {table!r}: pushes must have show, click and places >= 0, got {name} "
            f"{counts[row, column]} in row {row}; nothing was applied"
        )
    if np.any(slots >= NUM_SLOTS):
        row = int(np.argmax(slots))
        raise TableError(
            f"table {table!r}: slots must be below {NUM_SLOTS}, got {slots[row]} in row {row}; "
            "nothing was applied"
        )
