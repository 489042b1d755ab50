"""Pushes of a client that count together, or not at all."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from downpour.tables import Transaction

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


class Atomic:
    """The transaction of a client's pushes to tables in this process.

    counts: numbers by table that are restored when the transaction is undone.
    """

    def __init__(self, *counts: dict[str, int]) -> None:
        self._counts = counts
        self._changes: Transaction | None = None

    @contextmanager
    def block(self) -> Iterator[None]:
        """Make all pushes of the block one transaction: if it raises, none of them counts."""
        before = [dict(counts) for counts in self._counts]
        try:
            with Transaction() as self._changes:
                yield
        except BaseException:
            for counts, were in zip(self._counts, before, strict=True):
                counts.clear()
                counts.update(were)
            raise
        finally:
            self._changes = None

    def push(self) -> AbstractContextManager[Transaction]:
        """The transaction of one push."""
        return Transaction() if self._changes is None else nullcontext(self._changes)
