"""How long requests took: a histogram of a fixed size that merges, subtracts and travels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from downpour.errors import DataError, SettingError

SHORTEST_S, LONGEST_S = 1e-5, 1e3
PER_DECADE = 48
WIDTH = 10 ** (1 / PER_DECADE)  # of a bucket: its upper edge over its lower one, 1.049
_EDGES_S = SHORTEST_S * 10 ** (np.arange(8 * PER_DECADE + 1) / PER_DECADE)  # upper ones
_LONGER = _EDGES_S.size  # the bucket of all above LONGEST_S
_LARGEST = 2**53  # what every JSON reader holds exactly


class Latency:
    """A histogram of seconds in buckets of a logarithmic scale, each 4.9 % wide.

    It resolves 10 us to 1000 s: what is shorter counts as 10 us, what is longer as 1000 s. One
    thread at a time may add; others may read meanwhile.
    """

    __slots__ = ("_counts", "_total_ns")

    def __init__(self) -> None:
        self._counts = np.zeros(_LONGER + 1, np.int64)
        self._total_ns = 0  # whole, so that sums and differences are exact

    def __repr__(self) -> str:
        return f"Latency(count={self.count}, total_s={self.total_s:.6g})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Latency):
            return NotImplemented
        return self._total_ns == other._total_ns and np.array_equal(self._counts, other._counts)

    __hash__ = None  # type: ignore[assignment] # it changes

    def __add__(self, other: Latency) -> Latency:
        """The requests of both."""
        return _made(self._counts + other._counts, self._total_ns + other._total_ns)

    def __sub__(self, earlier: Latency) -> Latency:
        """The requests since `earlier`; all of them where its process has begun anew since."""
        counts, total_ns = self._counts - earlier._counts, self._total_ns - earlier._total_ns
        if total_ns < 0 or (counts < 0).any():
            return _made(self._counts.copy(), self._total_ns)
        return _made(counts, total_ns)

    def add(self, seconds: float) -> None:
        """Count a request that took `seconds`, 0 or more."""
        assert 0.0 <= seconds < math.inf
        if seconds <= SHORTEST_S:
            bucket = 0
        elif seconds > LONGEST_S:
            bucket = _LONGER
        else:
            bucket = math.ceil(PER_DECADE * math.log10(seconds / SHORTEST_S))
        self._counts[bucket] += 1
        self._total_ns += round(seconds * 1e9)

    @property
    def count(self) -> int:
        """The number of requests."""
        return int(self._counts.sum())

    @property
    def total_s(self) -> float:
        """The seconds of all requests together."""
        return self._total_ns / 1e9

    def percentile(self, q: float) -> float | None:
        """Seconds within which q percent of the requests were done; None while there is none.

        The upper edge of a bucket: too high by 4.9 % at most, and never too low.
        """
        if not 0 <= q <= 100:
            raise SettingError(f"percentile: q must be from 0 to 100, got {q}")
        up_to = np.cumsum(self._counts)
        if up_to[-1] == 0:
            return None
        rank = max(math.ceil(float(up_to[-1]) * (q / 100)), 1)
        bucket = int(np.searchsorted(up_to, rank))
        return float(_EDGES_S[min(bucket, _LONGER - 1)])

    def cumulative(self) -> list[tuple[float, int]]:
        """Pairs of seconds, three a decade, and how many requests took at most so long.

        The last pair is (infinity, count).
        """
        up_to = np.cumsum(self._counts)
        places = [*range(0, _LONGER, PER_DECADE // 3), _LONGER]
        edges = [float(f"{edge:.4g}") for edge in _EDGES_S[places[:-1]]]
        return list(zip([*edges, math.inf], up_to[places].tolist(), strict=True))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON: [bucket, count] pairs of the buckets that are not empty, and the sum."""
        counts = self._counts.copy()
        pairs = [[int(at), int(counts[at])] for at in np.flatnonzero(counts)]
        return {"buckets": pairs, "total_ns": self._total_ns}

    @classmethod
    def from_dict(cls, data: object) -> Latency:
        """What `as_dict` gave; a key that is missing is none. DataError for anything else."""
        if not isinstance(data, dict):
            raise DataError(f"a latency must be a dict, got {data!r:.80}")
        pairs, total_ns = data.get("buckets", []), data.get("total_ns", 0)
        if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
            raise DataError(
                f"a latency's buckets must be [bucket, count] pairs, buckets 0 to {_LONGER} and "
                f"counts below 2**53, got {pairs!r:.80}"
            )
        if type(total_ns) is not int or not 0 <= total_ns < 2**63:
            raise DataError(
                f"a latency's total_ns must be an int >= 0, below 2**63, got {total_ns!r:.80}"
            )
        counts = np.zeros(_LONGER + 1, np.int64)
        for bucket, count in pairs:
            counts[bucket] = count
        return _made(counts, total_ns)


def _made(counts: np.ndarray, total_ns: int) -> Latency:
    made = Latency()
    made._counts, made._total_ns = counts, total_ns
    return made


def _is_pair(pair: object) -> bool:
    """Whether this is a bucket and its count."""
    if not isinstance(pair, list) or [type(it) for it in pair] != [int, int]:
        return False
    bucket, count = pair
    return bool(0 <= bucket <= _LONGER and 0 <= count < _LARGEST)
