"""Small federations, for tests and for processes that import this file."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1]))

import downpour as dp
from downpour.engine.client_process import connect_client, run_client
from downpour.engine.cluster import Cluster
from downpour.engine.coordinator import Coordinator
from downpour.remote.connect import connect
from downpour.run_plan import make_plan
from tests.fault_runs import until
from tests.networks import Network, click, random_batches, rows_of
from tests.servers import at_once, servers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from downpour.remote.rounds import RoundClient

TARGET = "nowhere.py"  # of a coordinator that starts no process
SGD = partial(torch.optim.SGD, lr=0.3)
MOMENTUM = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
FOLDER = "FEDERATION_FOLDER"  # the environment variable that has where clients leave signs


@dataclass
class Turning:
    """Batches that begin with another one in each epoch."""

    given: Sequence[dp.Batch]

    def batches(self, epoch: int = 0) -> Iterator[dp.Batch]:
        first = epoch % len(self.given)
        yield from (*self.given[first:], *self.given[:first])

    def num_batches(self) -> int | None:
        return len(self.given)


def data_of(client: int, clients: int) -> Turning:
    """Client c has c + 2 batches, of other sizes than any other."""
    return Turning(random_batches(client, client + 2))


def federation(**settings: Any) -> dp.Federation:
    """Three clients, in float64; the same one each time."""
    defaults: dict[str, Any] = {
        "model": Network(dtype=torch.float64, init=dp.Normal(0.5)),
        "losses": click,
        "data": data_of,
        "optimizer": SGD,
        "clients": 3,
        "rounds": 3,
    }
    return dp.Federation(**defaults | settings)


# Federations in this process, on servers that are as ever.

COORDINATOR = -1


@dataclass(frozen=True)
class Federated:
    """What a federation leaves: what it measured, and the values of all ids and parameters.

    rows: how many the tables have made. errors: of its clients, and of the coordinator.
    """

    metrics: dict[str, Any]
    values: list[np.ndarray]
    rows: int
    errors: dict[int, BaseException]

    @property
    def rounds(self) -> list[dict[str, Any]]:
        rounds: list[dict[str, Any]] = self.metrics["rounds"]
        return rounds

    @property
    def heard_from(self) -> list[list[int]]:
        return [it["heard_from"] for it in self.rounds]


def coordinator_of(
    made: dp.Federation, addresses: Sequence[str], folder: Path | None = None, **cluster: Any
) -> Coordinator:
    """One whose clients come from elsewhere."""
    own = Cluster(addresses=tuple(addresses), starts_workers=False, **{"start_s": 300.0, **cluster})
    return Coordinator(TARGET, made, folder, cluster=own, quiet=True)


def take_part(made: dp.Federation, addresses: Sequence[str], client: int, **cluster: Any) -> None:
    """Be a client until all is over."""
    own = Cluster(addresses=tuple(addresses), **{"start_s": 300.0, **cluster})
    run_client(made, own, client=client)


def enrolled(addresses: Sequence[str], client: int, **settings: Any) -> RoundClient:
    """A client that has enrolled, and does nothing."""
    made = federation(**settings)
    cluster = Cluster(addresses=tuple(addresses), worker_timeout_s=1.0)
    return connect_client(made, make_plan(made.run_of(client)), cluster, client)


class Progress:
    """What clients' functions see of a federation in this process: how many rounds it has told."""

    coordinator: Coordinator | None = None

    @property
    def closed(self) -> int:
        return 0 if self.coordinator is None else len(self.coordinator.rounds)

    @property
    def present(self) -> list[int]:
        assert self.coordinator is not None
        return self.coordinator.present()

    def wait_for(self, closed: int) -> None:
        until(lambda: self.closed >= closed)

    def wait_for_the_end(self) -> None:
        made = self.coordinator
        until(lambda: made is not None and made.metrics()["stopped"] is not None)


def federate(make: Callable[[], dp.Federation], *, num_servers: int = 1, **more: Any) -> Federated:
    """Run a federation on new servers, with all of its clients on threads; see `federate_on`."""
    with servers(num_servers) as addresses:
        return federate_on(addresses, make, **more)


def federate_on(
    addresses: Sequence[str],
    make: Callable[[], dp.Federation],
    *,
    others: dict[int, dict[str, Any]] | None = None,
    before: dict[int, Callable[[], object]] | None = None,
    fails: Collection[int] = (),
    progress: Progress | None = None,
    folder: Path | None = None,
    **cluster: Any,
) -> Federated:
    """Run a federation on these servers.

    others: what clients set otherwise. before: what comes first, before they take part. fails:
    those that an error ends.
    """
    coordinator = coordinator_of(make(), addresses, folder, **cluster)
    if progress is not None:
        progress.coordinator = coordinator
    parties: dict[int, Callable[[], Any]] = {COORDINATOR: coordinator.train}
    for client in range(coordinator.federation.clients):  # one by one: models are of one seed
        own = replace(make(), **(others or {}).get(client, {}))
        call = partial(take_part, own, addresses, client, **cluster)
        parties[client] = partial(one_after_the_other, (before or {}).get(client), call)
    ended = at_once([partial(error_of, call) for call in parties.values()])
    errors = {party: error for party, error in zip(parties, ended, strict=True) if error}
    assert errors.keys() == {*fails}, errors
    return left_on(addresses, coordinator, errors)


def one_after_the_other(*calls: Callable[[], object] | None) -> None:
    for call in calls:
        if call is not None:
            call()


def error_of(call: Callable[[], object]) -> Exception | None:
    """What it raises."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 (tests look at it)
        return error
    return None


def left_on(
    addresses: Sequence[str], coordinator: Coordinator, errors: dict[int, Any]
) -> Federated:
    """What servers have after a federation."""
    plan, sections = coordinator.plan, coordinator.cluster.sections
    with connect(plan, addresses, sections=sections) as ps:
        num_rows = sum(len(ps.export(spec.name).keys) for spec in plan.sparse)
        return Federated(coordinator.metrics(), values_of(ps), num_rows, errors)


def values_of(ps: dp.Client) -> list[np.ndarray]:
    """The rows of all ids by table, and then all that is dense, by the parameters' names."""
    readers = {
        it.name: {feature.space: feature.name for feature in it.features} for it in ps.plan.sparse
    }
    dense = {
        section.name: ps.pull_dense(block.name)[section.span]
        for block in ps.plan.dense
        for section in block.sections
    }
    rows = [rows_of(ps, table, spaces.values()) for table, spaces in readers.items()]
    return [*rows, np.concatenate([dense[name] for name in sorted(dense)])]


def assert_equal(ours: Federated, theirs: Sequence[np.ndarray], rtol: float = 1e-12) -> None:
    """A federation has left the values that plain torch has."""
    for own, other in zip(ours.values, theirs, strict=True):
        np.testing.assert_allclose(own, other, rtol=rtol, atol=rtol / 10)


# For processes: clients that say in files what they do, and wait where they are told so.


@dataclass
class Watched(Turning):
    """Batches of a client that leaves a file as it begins an epoch, and waits while another is."""

    client: int = 0

    def batches(self, epoch: int = 0) -> Iterator[dp.Batch]:
        if epoch:  # else it plans
            signs = Signs(Path(os.environ[FOLDER]))
            signs.leave(f"client {self.client} begins {epoch}", str(os.getpid()))
            while signs.has(f"client {self.client} waits in {epoch}"):
                time.sleep(0.01)
        yield from super().batches(epoch)


@dataclass(frozen=True)
class Signs:
    """Files of a folder by which a test and its processes know of each other."""

    folder: Path

    def leave(self, sign: str, content: str = "") -> None:
        beside = self.folder / f".{sign}"
        beside.write_text(content)
        beside.replace(self.folder / sign)

    def has(self, sign: str) -> bool:
        return (self.folder / sign).exists()

    def take(self, sign: str) -> None:
        (self.folder / sign).unlink()

    def wait(self, sign: str) -> str:
        """What it says, once it is there; the test's own time limit ends a wait for nothing."""
        while not self.has(sign):
            time.sleep(0.01)
        return (self.folder / sign).read_text()


def is_running(pid: int) -> bool:
    """Whether a process has not ended, whoever is to note it."""
    told = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, check=False)
    return told.stdout.strip()[:1] not in (b"", b"Z")


def watched_data(client: int, clients: int) -> Watched:
    return Watched(data_of(client, clients).given, client)


def watched() -> dp.Federation:
    return federation(data=watched_data, clients=4)


def evaluated() -> dp.Federation:
    """Three clients, evaluated after each round."""
    return federation(eval_data=Turning(random_batches(9, 5)))


def broken() -> dp.Federation:
    """No client has data."""
    return federation(data=no_data, eval_data=Turning(random_batches(9, 5)))


def no_data(client: int, clients: int) -> Turning:
    raise dp.DataError(f"client {client} has no disk")
