"""A worker of a run of two, in a process of its own: it pushes 2 to rows of its own in each step.

It stops or kills itself where it is told to, and prints how far it is and what it gets for it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from downpour.consistency import Sync
from downpour.errors import DownpourError
from downpour.remote.connect import connect
from downpour.remote.sync import SyncClient
from tests.fault_runs import KEYS, PLAN, push

WORKER_TIMEOUT_S = 1.0
NUM_STEPS = 6


def keys_of(rank: int) -> list[int]:
    """Those that a worker pushes to."""
    return [int(key) + 1000 * rank for key in KEYS]


def joined(addresses: list[str], rank: int, **settings: object) -> SyncClient:
    """A client of the run of two, in which the other may die."""
    given = {"worker_timeout_s": WORKER_TIMEOUT_S, "on_worker_loss": "continue", **settings}
    client = connect(PLAN, addresses, consistency=Sync(), rank=rank, num_workers=2, **given)  # type: ignore[arg-type]
    assert isinstance(client, SyncClient)
    return client


def stage(client: SyncClient, rank: int) -> None:
    """Push, and wait until the servers have it."""
    push(client, keys_of(rank), 2.0)
    client.finish()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("addresses")
    parser.add_argument("--signal", default="")  # to send to itself
    parser.add_argument("--when", default="")  # before it does this: "stage 4", "commit 4"
    parser.add_argument("--deadline", type=float, default=30.0)
    told = parser.parse_args()

    def reached(place: str) -> None:
        print(place, flush=True)  # noqa: T201 (for the test)
        if place == told.when:
            os.kill(os.getpid(), signal.Signals[told.signal])

    try:
        with joined(told.addresses.split(","), 1, deadline_s=told.deadline) as client:
            client.begin()
            for step in range(1, NUM_STEPS + 1):
                assert client.membership is not None
                client.membership.beat()
                reached(f"stage {step}")
                stage(client, 1)
                reached(f"commit {step}")
                client.end_step(1)
    except DownpourError as error:
        reached(f"{type(error).__name__}: {error}")
    else:
        reached("done")


if __name__ == "__main__":
    main()
