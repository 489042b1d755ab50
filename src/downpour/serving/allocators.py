"""Bounds for what the memory allocators of a server process take and keep by themselves.

Flight decodes a message before a server sees it, into memory of Arrow's own pool, and 32 KB that
are compressed become 1 GB there. And glibc keeps freed memory for later: up to 64 MB in each of its
arenas, of which there are eight for each core.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST_ARROW_BYTES = 64 << 20
ARROW_THREAD_BYTES = 192 << 10  # of Arrow's pool that a thread has for itself, measured: 138 KiB
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
KEPT_BYTES = 32 << 20  # of an arena that are kept; what is larger than this has pages of its own
ARENAS = 4
BUSY_BYTES = 32 << 20  # held for clients
GROWN_BYTES = 8 << 20  # by which the process has grown
TRIM_AT = (10, 20, 40, 80)  # quiet looks; several, as calls and connections end one after the other
MEMORY = Path("/proc/self/statm")


def bound_arrow(num_bytes: int, threads: int) -> bool:
    """Let Arrow's own pool take so many bytes at most, and what so many threads need besides.

    It reads its bound from the environment when Arrow is loaded, so this must come before: False
    where it comes too late. What Downpour asks Arrow for, as to write a save, comes from the
    system's allocator all the same.
    """
    if "pyarrow" in sys.modules:
        return False
    most = max(num_bytes, LEAST_ARROW_BYTES) + threads * ARROW_THREAD_BYTES
    os.environ |= {
        "ARROW_DEFAULT_MEMORY_POOL": "mimalloc",
        "MIMALLOC_RESERVE_OS_MEMORY": f"{most >> 20}MiB",
        "MIMALLOC_DISALLOW_OS_ALLOC": "1",
        "MIMALLOC_LIMIT_OS_ALLOC": "1",  # its name in older versions
    }
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
    return True


def bound_malloc() -> None:
    """Let glibc keep at most ARENAS * KEPT_BYTES at the ends of its arenas.

    Other systems have other allocators, which return memory by themselves.
    """
    if (mallopt := _of_glibc("mallopt")) is None:
        return
    mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(M_ARENA_MAX, ARENAS)


class HeapTrim:
    """Returns free memory between blocks in use to the system, when a busy time is over.

    A busy time is one in which much is held, or in which the process grows. Nothing is trimmed
    between the requests of a busy client.
    """

    def __init__(self) -> None:
        self._trim = _of_glibc("malloc_trim")
        self._quiet = 0  # looks since the last busy one
        self._seen = 0  # memory of the process at the last busy look or trim, bytes

    def look(self, held_bytes: int) -> None:
        """Trim if it is time; `held_bytes` are held for clients. To be called all the time."""
        if self._trim is None:
            return
        used = _used()
        if held_bytes > BUSY_BYTES or used > self._seen + GROWN_BYTES:
            self._quiet, self._seen = 0, used
            return
        self._quiet += 1
        if self._quiet in TRIM_AT:
            self._trim(0)
            self._seen = _used()


def _used() -> int:
    """The resident memory of this process, bytes."""
    return int(MEMORY.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of glibc; None on other systems."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
