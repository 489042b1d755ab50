"""A worker process: `downpour worker`, and what starts workers of a run."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import TYPE_CHECKING

from downpour.engine.worker_loop import WorkerLoop
from downpour.errors import RefusedError, WorkerLostError
from downpour.train import make_plan
from downpour.warm import warm

if TYPE_CHECKING:
    from downpour.engine.cluster import Cluster
    from downpour.run import Run

LOG = logging.getLogger("downpour")
ORPHANED = 3  # exit code of a worker whose parent is gone


def run_worker(
    run: Run, cluster: Cluster, *, rank: int, name: str, with_chief: bool, of_parent: bool
) -> None:
    """Plan the run, join its servers, and train this worker's share of the batches.

    of_parent: end when stdin does, as then the process that started this one is gone.
    """
    if of_parent:
        threading.Thread(target=follow_parent, daemon=True).start()
    plan = make_plan(run)
    warm(plan)
    client = cluster.connect(
        plan,
        cluster.addresses,
        rank=rank,
        run=name,
        with_chief=with_chief,
        consistency=run.consistency,
    )
    try:
        WorkerLoop(run, plan, client).train()
        client.close()
    except (WorkerLostError, RefusedError):  # the others know, and do not want to hear of it again
        client.abandon(None)
        raise
    except BaseException as error:
        client.abandon(f"{type(error).__name__}: {error}")
        raise


def follow_parent() -> None:
    """End this process when its stdin ends."""
    while os.read(sys.stdin.fileno(), 1):  # its buffer would be locked at this process's end
        pass
    LOG.error("event=orphaned reason=the process that started this one is gone")
    os._exit(ORPHANED)
