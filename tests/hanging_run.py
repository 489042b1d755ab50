"""A run whose workers hang while they are imported, as by a slow disk: they say where they are."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.append(str(Path(__file__).parents[1]))

from tests.federations import FOLDER, Signs

if TYPE_CHECKING:
    import downpour as dp

if "worker" in sys.argv:
    rank = sys.argv[sys.argv.index("--rank") + 1]
    Signs(Path(os.environ[FOLDER])).leave(f"worker {rank} hangs", str(os.getpid()))
    if rank == "0" and sys.platform == "linux":
        ctypes.PyDLL(None).sleep(3600)  # in C, and no thread of Python can run meanwhile
    threading.Event().wait()


def run() -> dp.Run:
    from tests.cluster_run import run as small

    return small()
