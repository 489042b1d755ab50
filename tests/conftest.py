"""What holds for every test: one thread a process, and no deadline on a machine that is shared."""

import os

# pytest-xdist runs a worker a core, and a torch that takes all cores in each of them makes every
# test wait for the others. Set before torch is imported; processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
