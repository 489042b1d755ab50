"""Sync training where a worker dies or hangs, and where the server of its members does."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from downpour.errors import WorkerLostError
from tests import fault_worker
from tests.fault_runs import DEADLINE_S, MARGIN_S, rows, until, within
from tests.fault_worker import NUM_STEPS, WORKER_TIMEOUT_S, joined, keys_of, stage
from tests.processes import Process, started
from tests.servers import at_once, servers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from downpour.remote.sync import SyncClient


@contextmanager
def two_workers(
    *,
    worker_timeout_s: float = WORKER_TIMEOUT_S,
    on_worker_loss: str = "continue",
    **options: object,
) -> Iterator[tuple[SyncClient, Process]]:
    """Worker 0, and worker 1 in a process that has these options; the run has begun."""
    told = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    run = {"worker_timeout_s": worker_timeout_s, "on_worker_loss": on_worker_loss}
    with ExitStack() as stack:
        addresses = stack.enter_context(servers(2))
        client = stack.enter_context(joined(addresses, 0, **run))
        process = Process([fault_worker.__file__, ",".join(addresses), *told])
        stack.enter_context(closing(process))
        client.begin()
        yield client, process


def last_line(process: Process) -> str:
    return list(process.out)[-1].strip()


def train(client: SyncClient, num_steps: int) -> None:
    """Train worker 0; no step takes longer than finding out that the other is lost."""
    for _ in range(num_steps):
        with within(WORKER_TIMEOUT_S):
            stage(client, 0)
            client.end_step(1)


def assert_left_out(client: SyncClient) -> None:
    """Worker 1 has taken part in 3 steps of 6: each worker's push counted half in those."""
    assert rows(client, keys_of(0)) == [1.0 - 3 * 1.0 - 3 * 2.0] * len(keys_of(0))
    assert rows(client, keys_of(1)) == [1.0 - 3 * 1.0] * len(keys_of(1))


def states(client: SyncClient) -> list[str]:
    assert client.membership is not None
    return [member["state"] for member in client.membership.members()]


def test_the_others_go_on_without_a_worker_that_died() -> None:
    with two_workers(signal="SIGKILL", when="commit 4") as (client, _):
        train(client, NUM_STEPS)
        assert_left_out(client)
        assert states(client) == ["running", "lost"]


@pytest.mark.parametrize("when", ["stage 4", "commit 4"])
def test_a_worker_that_comes_back_learns_that_it_was_dropped(when: str) -> None:
    with two_workers(signal="SIGSTOP", when=when) as (client, other):
        train(client, NUM_STEPS)
        other.go_on()
        dropped = (
            r"WorkerLostError: server 0 .*: worker 1 was dropped at step 3 after .* of silence"
        )
        assert re.match(dropped, last_line(other))
        assert_left_out(client)
        assert states(client) == ["running", "lost"]


def test_a_worker_that_died_stops_the_run_where_it_is_told_to() -> None:
    killed = {"signal": "SIGKILL", "when": "commit 4"}
    with two_workers(on_worker_loss="stop", **killed) as (client, _):
        train(client, 3)
        stage(client, 0)
        dropped = r"worker 1 was dropped at step 3 after .* s of silence.*The run stops"
        with within(WORKER_TIMEOUT_S), pytest.raises(WorkerLostError, match=dropped):
            client.end_step(1)
        assert rows(client, keys_of(0)) == [1.0 - 3 * 1.0] * len(keys_of(0))


def test_a_worker_that_was_stopped_itself_blames_no_server() -> None:
    with two_workers(worker_timeout_s=30.0, deadline=DEADLINE_S) as (client, other):
        until(lambda: other.line() == "commit 1")
        other.stop()
        time.sleep(2 * DEADLINE_S)
        other.go_on()
        for _ in range(NUM_STEPS):
            stage(client, 0)
            client.end_step(1)
        assert last_line(other) == "done"


@pytest.mark.parametrize("deadline_s", [0.5, 5.0], ids=["seen", "unseen"])
def test_a_server_that_was_stopped_itself_drops_no_member(deadline_s: float) -> None:
    with started(2) as processes, ExitStack() as stack:
        addresses = [process.address for process in processes]
        clients = [
            stack.enter_context(joined(addresses, rank, deadline_s=deadline_s)) for rank in range(2)
        ]
        at_once([lambda client=client: client.begin() for client in clients])  # type: ignore[misc]
        processes[0].stop()
        time.sleep(2 * WORKER_TIMEOUT_S)
        processes[0].go_on()
        until(lambda: not any(client.membership.beats.failure for client in clients))
        with within(MARGIN_S):
            at_once([lambda client=client: client.end_step(0) for client in clients])  # type: ignore[misc]
        assert states(clients[0]) == ["running", "running"]
