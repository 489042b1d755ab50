"""Coordinators and clients of federations over servers in this process, made call by call."""

from __future__ import annotations

from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from downpour.deployment import Deployment
from downpour.remote.connect import open_servers
from downpour.remote.enrolment import Coordination, Enrolment
from downpour.remote.rounds import RoundClient
from downpour.remote.staging import StagingClient
from downpour.serving.members import CHIEF
from tests.fault_runs import until
from tests.geo_runs import DENSE, DIM, NAMES, SIZE, START, TABLE, a_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from downpour.remote.enrolment import Round
    from downpour.remote.server import RemoteServer
    from downpour.serving.flight_server import FlightServer

PLAN = a_plan()  # rows of 1 from which a change is subtracted
SETTINGS = "FedAvg()"
LONG_S = 100.0
SHORT_S = 1.0  # a silence after which who is silent is lost
SHORT: dict[str, Any] = {"timeout_s": SHORT_S}
NOTHING: dict[str, Any] = {  # a report
    "samples": 1, "steps": 1, "losses": {}, "tables": [], "bytes_sent": 0, "bytes_received": 0,
}  # fmt: skip


def when_done(server: FlightServer, verb: str, *calls: Callable[[], object]) -> None:
    """Make calls, one each time that a verb was done, before its answer goes out."""
    do, left = getattr(server.rounds, verb), list(calls)

    def noted(request: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = do(request)
        if left:
            left.pop(0)()
        return answer

    setattr(server.rounds, verb, noted)


def opened(addresses: Sequence[str], name: str, deadline_s: float) -> list[RemoteServer]:
    deployment = Deployment(plan=PLAN, num_shards=len(addresses))
    return open_servers(deployment, addresses, name, deadline_s=deadline_s, start_s=30.0)


@contextmanager
def connected(addresses: Sequence[str], deadline_s: float = 30.0) -> Iterator[RemoteServer]:
    """A connection to one server, for who enrolls and trains nothing."""
    (remote,) = opened(addresses, "client", deadline_s)
    with closing(remote):
        yield remote


class Leader:
    """A coordinator, which commits a round with all that have reported when it closes it.

    Rounds that another one has opened and not committed it commits with nobody's update.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        num_clients: int = 2,
        *,
        incarnation: int = 7,
        timeout_s: float = LONG_S,
        deadline_s: float = 30.0,
        weighs_equally: bool = False,
        over_touched: bool = False,
    ) -> None:
        servers = opened(addresses, f"leader-{incarnation}", deadline_s)
        self.client = StagingClient(servers[0].deployment, servers, rank=CHIEF)
        self.client.weighs_equally, self.client.over_touched = weighs_equally, over_touched
        self.client.init_dense(DENSE, START)
        try:
            self.coordination = Coordination(
                servers[0], incarnation, num_clients, SETTINGS, timeout_s=timeout_s
            )
        except BaseException:
            self.client.close()
            raise
        while self.number < self.coordination.next_round:
            self.commit({})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.coordination.end("all rounds are done")
        self.client.close()

    def fall_silent(self) -> None:
        """Be gone as who is killed is, without a word."""
        self.coordination._beats.end()
        self.client.close()

    @property
    def number(self) -> int:
        """The number of the round under way, or of the next one."""
        return self.client.step + 1

    def open(self, *sampled: int, deadline_s: float = LONG_S) -> int:
        self.coordination.open(self.number, sampled, deadline_s)
        return self.number

    def close(self) -> dict[str, Any]:
        """End the round with who has reported; what was heard of it."""
        view = self.coordination.close(self.number)
        self.commit(view["reports"])
        return view

    def commit(self, reports: Mapping[str, Any]) -> None:
        samples = {int(client): report["samples"] for client, report in reports.items()}
        self.client.commit(samples, {name for it in reports.values() for name in it["tables"]})
        self.client.finish()

    def states(self) -> dict[int, str]:
        return {it["client"]: it["state"] for it in self.coordination.clients()}

    def await_states(self, *states: str) -> None:
        """Wait until clients 0, 1, ... are so."""
        until(lambda: self.states() == dict(enumerate(states)))

    def rows(self) -> dict[int, float]:
        """The first number of each row that the servers have, by key."""
        rows = self.client.export(TABLE)
        return dict(zip(rows.keys.tolist(), rows.weights[:, 0].tolist(), strict=True))

    def dense(self) -> set[float]:
        """By how much dense weights have grown."""
        return {*(self.client.pull_dense(DENSE) - START).tolist()}


def enrolled(
    servers: Sequence[RemoteServer],
    number: int,
    *,
    incarnation: int | None = None,
    timeout_s: float = LONG_S,
    start_s: float = 30.0,
    settings: str = SETTINGS,
) -> Enrolment:
    """Client `number` of a federation, as incarnation 100 + number unless told otherwise."""
    life = 100 + number if incarnation is None else incarnation
    return Enrolment(servers[0], number, life, settings, timeout_s=timeout_s, start_s=start_s)


@contextmanager
def a_client(
    addresses: Sequence[str], number: int, *, deadline_s: float = 30.0, **settings: Any
) -> Iterator[RoundClient]:
    """A client that has enrolled; it leaves with the block, unless it is closed already."""
    servers = opened(addresses, f"client-{number}-{settings.get('incarnation')}", deadline_s)
    try:
        enrolment = enrolled(servers, number, **settings)
    except BaseException:
        for server in servers:
            server.close()
        raise
    with closing(RoundClient(servers[0].deployment, servers, enrolment)) as client:
        yield client


@contextmanager
def clients(addresses: Sequence[str], number: int, **settings: Any) -> Iterator[list[RoundClient]]:
    """Clients 0, 1, ... of a federation."""
    with ExitStack() as stack:
        yield [stack.enter_context(a_client(addresses, each, **settings)) for each in range(number)]


def fall_silent(client: RoundClient) -> None:
    """Let no more be heard of this client, as of one that was stopped."""
    client.enrolment._beats.end()


# What a client does in a round.


def begin(client: RoundClient) -> Round:
    """Ask for a round, and begin it."""
    given = client.enrolment.ask()
    assert given is not None
    client.begin_round(given)
    return given


def add(client: RoundClient, keys: Collection[int], amount: Any) -> None:
    """Stage that rows grow by an amount, a number or [n, dim]."""
    located = client.locate(TABLE, np.array([*keys], np.uint64), create=True)
    client.update(located, np.broadcast_to(np.negative(amount), (len(keys), DIM)).astype(float))


def add_dense(client: RoundClient, amount: Any) -> None:
    """Stage that dense weights grow by an amount, a number or [size]."""
    client.push_dense(DENSE, np.broadcast_to(np.negative(amount), SIZE).astype(float), NAMES)


def send(client: RoundClient, keys: Collection[int], amount: Any, samples: int = 1) -> None:
    """Stage one amount for rows and dense weights, and report."""
    add(client, keys, amount)
    add_dense(client, amount)
    client.end_step(samples)


def taken(client: RoundClient, keys: Collection[int], amount: Any, samples: int = 1) -> int:
    """Go through a whole round; its number."""
    number = begin(client).number
    send(client, keys, amount, samples)
    return number
