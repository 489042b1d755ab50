"""A worker process: `downpour worker`, and what starts workers of a run."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from downpour.engine.worker_loop import WorkerLoop
from downpour.errors import DownpourError, RefusedError, WorkerLostError
from downpour.run_plan import make_plan
from downpour.stopping import Stopping
from downpour.warm import warm

if TYPE_CHECKING:
    from downpour.engine.cluster import Cluster
    from downpour.parent import Parent
    from downpour.run import Run

LOG = logging.getLogger("downpour")


def run_worker(
    run: Run, cluster: Cluster, *, rank: int, name: str, with_chief: bool, parent: Parent | None
) -> int | None:
    """Plan the run, join its servers, and train this worker's share of the batches.

    parent: the process that has started this one, if one has. Gives the number of the signal that
    has asked this worker to stop, None where none has. Before it trains a signal raises.
    """
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
    if parent is not None:
        parent.started()
    try:
        loop = WorkerLoop(run, plan, client, leaves_alone=cluster.on_worker_loss == "continue")
        with Stopping(LOG.warning) as stopping:
            loop.train(stopping)
            client.close()
    except (WorkerLostError, RefusedError):  # the others know, and do not want to hear of it again
        with contextlib.suppress(DownpourError):
            client.finish()  # a step that was pushed is applied whole: the chief will save it
        client.abandon(None)
        raise
    except KeyboardInterrupt as error:
        client.abandon(f"it was {error}" if str(error) else "it was stopped by Ctrl-C")
        raise
    except BaseException as error:
        client.abandon(f"{type(error).__name__}: {error}")
        raise
    return stopping.number
