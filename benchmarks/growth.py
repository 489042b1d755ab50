"""What a batch costs while a table grows from empty to 50 million keys.

Each batch of 100 k keys is new, the worst case. `main` prints a JSON object.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.results import print_answer
from benchmarks.tables import BATCH, SPREAD, make_table
from downpour.tables.pages import Pages

if TYPE_CHECKING:
    from collections.abc import Mapping


def touch_memory(num_bytes: int) -> None:
    """Write to fresh memory and give it back: a virtual machine gets it from its host only now."""
    pages = Pages(num_bytes)
    np.frombuffer(pages.memory, np.uint8)[::4096] = 1


def resident_bytes() -> int:
    """Memory of this process now, or where the system does not say its peak."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run(*, quick: bool = False) -> Mapping[str, object]:
    """Fill a table batch by batch."""
    num_keys = 1_000_000 if quick else 50_000_000
    make_table().pull(np.arange(2, dtype=np.uint64))  # compiles
    touch_memory(num_keys * 110)
    table, before = make_table(), resident_bytes()
    wall, own, bytes_per_key = [], [], []
    for start in range(0, num_keys, BATCH):
        keys = np.arange(start, start + BATCH, dtype=np.uint64) * SPREAD
        starts = time.perf_counter(), time.thread_time()
        table.pull(keys)
        wall.append(1e3 * (time.perf_counter() - starts[0]))
        own.append(1e3 * (time.thread_time() - starts[1]))
        bytes_per_key.append(table.stats().index_bytes_per_key)
    stats, grown = table.stats(), resident_bytes() - before
    worst = max(own) / float(np.median(own))
    mean_bytes, worst_bytes = float(np.mean(bytes_per_key)), max(bytes_per_key)
    return {
        "figures": {
            "a batch, the thread's own time": summary(own),
            "a batch, by the clock": summary(wall),
            "index, bytes a key": {"mean": round(mean_bytes, 1), "worst": round(worst_bytes, 1)},
            "memory": {
                "table says, MB": stats.bytes >> 20,
                "process grew by, MB": grown >> 20,
                "row, bytes": stats.row_bytes,
                "growths": stats.growths,
            },
        },
        "ratios": {
            "worst batch to median, own time": round(worst, 2),
            "worst batch to median, by the clock": round(max(wall) / float(np.median(wall)), 2),
        },
        "checks": {
            "no batch slower than 10x the median": worst <= 10,
            "index at most 18 bytes a key on average": mean_bytes <= 18,
            "index at most 27 bytes a key at worst": worst_bytes <= 27,
        },
        "settings": {"batch": BATCH, "keys": num_keys},
    }


def summary(milliseconds: list[float]) -> dict[str, float]:
    """Median, 99th percentile, worst and their sum."""
    return {
        "median, ms": round(float(np.median(milliseconds)), 2),
        "99 %, ms": round(float(np.quantile(milliseconds, 0.99)), 2),
        "worst, ms": round(max(milliseconds), 2),
        "all, s": round(sum(milliseconds) / 1e3, 2),
    }


if __name__ == "__main__":
    print_answer(run, __doc__)
