"""Clients of running servers: `connect`."""

from __future__ import annotations

import secrets
import time
from functools import partial
from typing import TYPE_CHECKING

from downpour.consistency import Async, Geo, HalfAsync, Sync
from downpour.deployment import Deployment
from downpour.errors import ServerLostError, SettingError
from downpour.plan.sections import DEFAULT_SECTIONS
from downpour.remote.asynchronous import AsyncClient
from downpour.remote.client import RemoteClient
from downpour.remote.endpoint import Endpoint
from downpour.remote.geo import GeoClient, require_geo
from downpour.remote.half_async import HalfAsyncClient
from downpour.remote.membership import Membership, client_of
from downpour.remote.server import RemoteServer
from downpour.remote.sync import SyncClient
from downpour.security import Security

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from downpour.consistency import Consistency
    from downpour.plan.plan import Plan
    from downpour.plan.sections import Sections

FORMING_S = 5.0  # how long another client may take to give servers their cluster


def _nothing(number: int) -> None:
    """Nobody knows what has become of a server."""


def connect(
    plan: Plan,
    servers: Sequence[str],
    *,
    consistency: Consistency | None = None,
    rank: int | None = None,
    num_workers: int = 1,
    run: str = "run",
    with_chief: bool = False,
    on_worker_loss: str = "stop",
    deadline_s: float = 30.0,
    start_s: float = 60.0,
    worker_timeout_s: float = 10.0,
    security: Security | None = None,
    sections: Sections = DEFAULT_SECTIONS,
    watch: Callable[[int], None] = _nothing,
) -> RemoteClient:
    """A client of running servers, as `downpour server` starts them: use it as a context manager.

    Servers that have no tables yet get those of the plan. Without a `consistency` each call is
    acknowledged before it returns, and the client takes no part in a run.

    Args:
        servers: their addresses, "host:port" or "grpc+tls://host:port"; the same in the same
            order for all clients, as a server is a shard.
        consistency: that of the run whose worker this client is. Wait for the others with
            `Worker`, and push nothing outside its steps.
        rank, num_workers: which of how many workers of the run it is, from 0; the only one unless
            said otherwise. -1 is the chief, who trains nothing.
        run: the run's name, the same for all its members.
        with_chief: whether the run has a chief.
        on_worker_loss: "stop" the run where a worker dies or hangs, or "continue" without it.
        deadline_s: of each request: an answer, or an error that names the server.
        start_s: how long servers and other workers may take to be there.
        worker_timeout_s: after how long a silence a worker counts as lost.
        security: token and certificates.
        sections: how dense tables are split over the servers.
        watch: called with a server's number, on any thread, while that server is not reached: an
            error that it raises, as it knows what has become of it, is raised by the request.

    Raises SettingError, RefusedError for a server that does not take this client, ServerError for
    one that is not there or has come back without its tables.
    """
    _check(servers, rank, num_workers, on_worker_loss, deadline_s, worker_timeout_s)
    if not isinstance(consistency, Sync | Async | HalfAsync | Geo | None):
        raise SettingError(
            f"connect: consistency must be Sync(), Async(), HalfAsync() or Geo(), got "
            f"{consistency!r}"
        )
    if isinstance(consistency, Geo):
        require_geo(plan)  # before the run has this member
    deployment = Deployment(plan=plan, num_shards=len(servers), sections=sections)
    incarnation = secrets.randbits(52)
    client = f"client-{incarnation:x}" if rank is None else client_of(rank, incarnation)
    remote = open_servers(
        deployment,
        servers,
        client,
        deadline_s=deadline_s,
        start_s=start_s,
        security=security,
        watch=watch,
    )
    membership: Membership | None = None
    try:
        if consistency is None and rank is None:
            return RemoteClient(deployment, remote, start_s=start_s)
        membership = Membership(
            remote[0],
            run,
            rank or 0,
            incarnation,
            num_workers=num_workers,
            timeout_s=worker_timeout_s,
            on_loss=on_worker_loss,
            with_chief=with_chief,
        )
        return _client(consistency, deployment, remote, membership, start_s)
    except BaseException as error:
        if membership is not None:
            membership.leave(f"{type(error).__name__}: {error}")
        for server in remote:
            server.close()
        raise


def open_servers(
    deployment: Deployment,
    addresses: Sequence[str],
    client: str,
    *,
    deadline_s: float,
    start_s: float,
    security: Security | None = None,
    watch: Callable[[int], None] = _nothing,
) -> list[RemoteServer]:
    """Connections to all servers of a deployment, for a client of this name. Raises as `connect`.

    Servers that have no tables yet get those of the plan.
    """
    own = security or Security()
    endpoints = [Endpoint(address, i, own) for i, address in enumerate(addresses)]
    remote: list[RemoteServer] = []
    try:
        for it in endpoints:  # one by one: those before one that fails are closed
            server = RemoteServer(
                it,
                deployment,
                client,
                deadline_s=deadline_s,
                start_s=start_s,
                watch=partial(watch, it.number),
            )
            remote.append(server)
        _form(remote)
    except BaseException:
        for server in remote:
            server.close()
        raise
    return remote


def _client(
    consistency: Consistency | None,
    deployment: Deployment,
    servers: list[RemoteServer],
    membership: Membership,
    start_s: float,
) -> RemoteClient:
    match consistency:
        case None:
            return RemoteClient(deployment, servers, membership, start_s=start_s)
        case Geo() if membership.rank < 0:  # the chief reads what servers have
            return RemoteClient(deployment, servers, membership, start_s=start_s)
        case Geo(k_steps=k_steps):
            return GeoClient(deployment, servers, membership, k_steps=k_steps, start_s=start_s)
        case Sync():
            return SyncClient(deployment, servers, membership, start_s=start_s)
        case Async(max_in_flight=most, max_staleness=staleness):
            return AsyncClient(
                deployment,
                servers,
                membership,
                max_in_flight=most,
                max_staleness=staleness,
                start_s=start_s,
            )
        case HalfAsync(threads=threads):
            return HalfAsyncClient(
                deployment, servers, membership, threads=threads, start_s=start_s
            )
    raise AssertionError(f"{consistency!r} is refused before")


def _form(servers: Sequence[RemoteServer]) -> None:
    """Make servers one cluster, or see that they are; one that is not has lost its tables."""
    clusters = {server.greeting["cluster"] for server in servers}
    if clusters != {None}:
        until = time.monotonic() + FORMING_S
        while None in clusters and time.monotonic() < until:  # another client may be at it
            time.sleep(0.1)
            clusters = {_cluster(server) for server in servers}
        for server in servers:
            if None in clusters and _cluster(server) is None:
                raise ServerLostError(
                    f"{server.endpoint} has come back without its tables, while others of the "
                    "cluster have theirs; start all servers anew and load a saved run"
                )
    else:
        first = servers[0].ask("form", {"cluster": secrets.token_hex(8)})["cluster"]
        clusters = {server.ask("form", {"cluster": first})["cluster"] for server in servers}
    if len(clusters) > 1:
        raise ServerLostError(
            f"the servers are of {len(clusters)} clusters; give those of one, all of them"
        )


def _cluster(server: RemoteServer) -> str | None:
    cluster: str | None = server.greet()["cluster"]
    return cluster


def _check(
    servers: Sequence[str],
    rank: int | None,
    num_workers: int,
    on_worker_loss: str,
    deadline_s: float,
    worker_timeout_s: float,
) -> None:
    if isinstance(servers, str) or not servers or len({*servers}) < len(servers):
        raise SettingError(
            f"connect: servers must be a list of different addresses, got {servers!r}"
        )
    if type(num_workers) is not int or num_workers < 1:
        raise SettingError(f"connect: num_workers must be an int >= 1, got {num_workers!r}")
    if rank is not None and (type(rank) is not int or not -1 <= rank < num_workers):
        raise SettingError(
            f"connect: rank must be an int in [0, {num_workers}), or -1 for the chief, got {rank!r}"
        )
    if on_worker_loss not in ("stop", "continue"):
        raise SettingError(
            f"connect: on_worker_loss must be 'stop' or 'continue', got {on_worker_loss!r}"
        )
    for name, value in (("deadline_s", deadline_s), ("worker_timeout_s", worker_timeout_s)):
        if not 0.0 < value < 1e6:
            raise SettingError(f"connect: {name} must be a number of seconds > 0, got {value!r}")
