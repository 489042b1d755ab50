"""Batches of one size from pieces of any size, in order or shuffled in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from downpour.features import Batch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np


def shuffled(pieces: Iterable[Batch], window: int, random: np.random.Generator) -> Iterator[Batch]:
    """Shuffle samples in a window that slides by halves; at most about two windows in memory.

    The window is filled with `window` samples and permuted; its first half leaves, and it is
    filled again. Where all samples fit in it the shuffle is uniform; otherwise a sample may leave
    up to window - 1 places early, or any number late. What comes out depends on the samples and on
    `random`, not on how the samples are cut into pieces.
    """
    waiting: list[Batch] = []
    room, half = window, window // 2
    for piece in pieces:
        start = 0
        while len(piece) - start >= room:
            full = Batch.concat([*waiting, piece.slice(start, start + room)])
            mixed = full.select(random.permutation(window))
            yield mixed.slice(0, half)
            waiting = [mixed.slice(half, window)]
            start += room
            room = half
        if start < len(piece):
            waiting.append(piece.slice(start, len(piece)))
            room -= len(piece) - start
    if waiting:
        held = Batch.concat(waiting)
        yield held.select(random.permutation(len(held)))


def rebatched(pieces: Iterable[Batch], batch_size: int, *, drop_last: bool) -> Iterator[Batch]:
    """Cut pieces into batches of `batch_size`, in order; the last may be smaller, or is dropped."""
    waiting: list[Batch] = []
    missing = batch_size
    for piece in pieces:
        start = 0
        while len(piece) - start >= missing:
            waiting.append(piece.slice(start, start + missing))
            start += missing
            yield Batch.concat(waiting)
            waiting, missing = [], batch_size
        if start < len(piece):
            waiting.append(piece.slice(start, len(piece)))
            missing -= len(piece) - start
    if waiting and not drop_last:
        yield Batch.concat(waiting)


def count_batches(rows: int, batch_size: int, *, drop_last: bool) -> int:
    """Count the batches that rows make."""
    return rows // batch_size if drop_last else -(-rows // batch_size)
