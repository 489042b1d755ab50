"""Servers in this process, the workers of a run on threads, and what they leave in the tables."""

from __future__ import annotations

import copy
import random
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

import downpour as dp
from downpour.consistency import Sync
from downpour.remote.client import RemoteClient
from downpour.remote.connect import connect
from downpour.remote.endpoint import Endpoint
from downpour.serving.flight_server import FlightServer
from downpour.serving.service import Service
from downpour.wire import error_of
from tests.networks import everything, weights_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from downpour.consistency import Consistency

T = TypeVar("T")
LIMIT_S = 300.0  # after which a test counts as hanging, also on a busy machine


@contextmanager
def servers(number: int = 1, service: Callable[[], Service] = Service) -> Iterator[list[str]]:
    """The addresses of new servers, which end with the block."""
    started = [FlightServer(service()) for _ in range(number)]
    try:
        yield [server.address for server in started]
    finally:
        for server in started:
            server.end()  # also where a test has failed, and a client is still connected


class Jittery(Service):
    """Begins what it is asked for some milliseconds late."""

    def read(self, message: Any, client: str) -> Any:
        jitter()
        return super().read(message, client)

    def write(self, message: Any, session: Any, owner: object) -> Any:
        jitter()
        return super().write(message, session, owner)


class Slow(Service):
    """Applies a push some milliseconds after it came."""

    def write(self, message: Any, session: Any, owner: object) -> Any:
        if message.header["op"].startswith("push"):
            time.sleep(0.01)
        return super().write(message, session, owner)


def jitter() -> None:
    """Be late, by anything up to 4 ms."""
    time.sleep(random.random() * 0.004)


def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """What calls give, each on a thread of its own. Raises an ExceptionGroup of their errors."""
    given: dict[int, T] = {}
    errors: dict[int, Exception] = {}

    def run(place: int) -> None:
        try:
            given[place] = calls[place]()
        except Exception as error:  # noqa: BLE001 (raised again below)
            errors[place] = error

    threads = [
        threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(calls))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    if errors:
        raise ExceptionGroup("calls failed", [errors[place] for place in sorted(errors)])
    assert not any(thread.is_alive() for thread in threads), "a call hangs"
    return [given[place] for place in range(len(calls))]


@dataclass(frozen=True)
class Trained:
    """What a run leaves: the losses of each worker, its model, and all that the tables hold."""

    losses: list[list[float]]
    models: list[Any]
    tables: dict[str, Any]


def train_epoch(
    worker: dp.Worker,
    batches: Sequence[dp.Batch],
    *,
    prefetch: bool = False,
    pause: Callable[[], None] = lambda: None,
) -> list[float]:
    """Train all programs on each batch, and keep step with the others; the losses."""
    client, programs = worker.client, list(worker.plan.programs)
    steps = [(program, batch) for batch in batches for program in programs]
    losses = []
    if isinstance(client, RemoteClient):
        client.begin_epoch()
    for place, (program, batch) in enumerate(steps):
        if prefetch and place + 1 < len(steps):
            worker.prefetch(*steps[place + 1])
        pause()
        losses.append(worker.step(program, batch, goes_on=batch is not batches[-1]).loss)
    while isinstance(client, RemoteClient) and client.others_go_on:
        for program in programs:
            worker.idle(program)
    return losses


def train_embedded(
    plan: dp.Plan, model: torch.nn.Module, batches: Sequence[dp.Batch], **settings: Any
) -> Trained:
    """Train a copy of a model in this process."""
    own = copy.deepcopy(model)
    with dp.embedded(plan) as ps:
        with dp.Worker(plan, own, ps) as worker:
            losses = train_epoch(worker, batches, **settings)
        return Trained([losses], [own], held(ps))


def train_on(
    addresses: Sequence[str],
    plan: dp.Plan,
    model: torch.nn.Module,
    shares: Sequence[Sequence[dp.Batch]],
    *,
    consistency: Consistency | None = None,
    **settings: Any,
) -> Trained:
    """Train a copy of a model for each share of the batches, in sync unless told otherwise."""
    models = [copy.deepcopy(model) for _ in shares]
    run = {"consistency": consistency or Sync(), "num_workers": len(shares)}

    def work(rank: int) -> list[float]:
        with (
            connect(plan, addresses, rank=rank, **run) as ps,
            dp.Worker(plan, models[rank], ps) as worker,
        ):
            return train_epoch(worker, shares[rank], **settings)

    losses = at_once([lambda rank=rank: work(rank) for rank in range(len(shares))])  # type: ignore[misc]
    with connect(plan, addresses) as ps:
        return Trained(losses, models, held(ps))


def joined(shares: Sequence[Sequence[dp.Batch]]) -> list[dp.Batch]:
    """The workers' batches of each step as one, in the order of their ranks."""
    num_steps = max(len(share) for share in shares)
    return [
        dp.Batch.concat([share[step] for share in shares if step < len(share)])
        for step in range(num_steps)
    ]


def held(ps: dp.Client) -> dict[str, Any]:
    """All that the tables hold, and the counts of CTR rows, as values that compare."""
    own = everything(ps)
    for spec in ps.plan.sparse:
        counts = ps.export(spec.name).statistics
        if counts is not None:
            own[f"counts of {spec.name}"] = counts.tolist()
    return own


def assert_same_bits(ours: Trained, theirs: Trained) -> None:
    """Two runs had the same losses, and left the same tables and the same model."""
    assert ours.losses == theirs.losses
    assert ours.tables == theirs.tables
    for own, other in zip(ours.models, theirs.models, strict=True):
        values, others = weights_of(own), weights_of(other)
        assert values.keys() == others.keys()
        for name, value in values.items():
            assert np.array_equal(value, others[name]), name


def assert_close(ours: Any, theirs: Any, rtol: float) -> None:
    """Values that `held` gave are the same but for rounding."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert_close(ours[name], value, rtol)
    elif isinstance(theirs, tuple):
        for own, other in zip(ours, theirs, strict=True):
            assert_close(own, other, rtol)
    else:
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * 1e-2)


def ask(server: FlightServer, verb: str, request: Any) -> dict[str, Any]:
    """What a server answers to a verb. Raises the error that it answers with."""
    endpoint = Endpoint(server.address)
    with endpoint.connect(5.0) as connection:
        answer = endpoint.ask(connection, verb, request, 20.0)
    if "error" in answer:
        raise error_of(answer, str(endpoint))
    return answer
