"""Consistency: when the workers of a run see each other's pushes. docs/consistency.md compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from downpour.errors import SettingError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sync:
    """All workers step together: what each pushes is averaged by samples and applied at once.

    Equals one process that trains on the workers' batches joined into one, for losses that are
    means over samples.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Async:
    """Workers push without waiting, and read rows and dense values ahead of their step.

    max_in_flight: steps whose pushes may be unacknowledged; the next push waits.
    max_staleness: of its own steps before it, how many a worker's read may not have seen. 0 reads
    after every push is acknowledged, so nothing is read ahead. What other workers do is seen as it
    comes.
    """

    max_in_flight: int = 4
    max_staleness: int = 2

    def __post_init__(self) -> None:
        _check("Async.max_in_flight", self.max_in_flight, 1)
        _check("Async.max_staleness", self.max_staleness, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class HalfAsync:
    """Each worker trains on `threads` batches at a time, and sends their merged gradients.

    Its threads meet after each batch; what they merged, averaged by samples, is one push, that the
    next batches of this worker see. Between workers it is as `Async`.
    """

    threads: int = 2

    def __post_init__(self) -> None:
        _check("HalfAsync.threads", self.threads, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Geo:
    """Each worker trains on a copy of its own, and exchanges what has changed every `k_steps`.

    It sends by how much its rows and dense values moved, divided by the number of workers, and
    takes what others have changed. The rules' state stays with each worker.
    """

    k_steps: int = 100

    def __post_init__(self) -> None:
        _check("Geo.k_steps", self.k_steps, 1)


Consistency: TypeAlias = Sync | Async | HalfAsync | Geo
BY_NAME = {"sync": Sync, "async": Async, "half-async": HalfAsync, "geo": Geo}


def _check(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise SettingError(f"{name} must be an int >= {least}, got {value!r}")
