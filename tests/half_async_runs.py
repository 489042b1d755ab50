"""Runs of threaded workers on servers in this process, for the tests of half-async training."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

import downpour as dp
from downpour.consistency import HalfAsync
from downpour.remote.connect import connect
from downpour.threaded_worker import ThreadedWorker
from tests.servers import assert_close, held, servers, train_embedded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from downpour.remote.half_async import HalfAsyncClient

RTOL = 1e-11  # in float64


@dataclass(frozen=True)
class Joint:
    """What a run leaves: the losses of its steps over all samples, its model, and all tables."""

    losses: list[float]
    model: Any
    tables: dict[str, Any]


@contextmanager
def client_of(
    plan: dp.Plan, threads: int, *, num_servers: int = 1, **settings: Any
) -> Iterator[HalfAsyncClient]:
    """A client of new servers."""
    with servers(num_servers) as addresses:
        consistency = HalfAsync(threads=threads)
        with connect(plan, addresses, consistency=consistency, **settings) as client:
            yield cast("HalfAsyncClient", client)


def groups_of(data: Sequence[dp.Batch], threads: int) -> list[Sequence[dp.Batch]]:
    """The batches of each step; the last has what is left."""
    return [data[place : place + threads] for place in range(0, len(data), threads)]


def step_all(
    plan: dp.Plan, worker: ThreadedWorker, groups: Sequence[Sequence[dp.Batch | None]]
) -> list[float]:
    """Train all programs on each group of batches; the losses over all of their samples."""
    losses = []
    for number, group in enumerate(groups, 1):
        for program in plan.programs:
            results = worker.step_many(program, group, goes_on=number < len(groups))
            total = sum(it.samples for it in results)
            losses.append(sum(it.loss * it.samples for it in results) / total)
    return losses


def trained(
    plan: dp.Plan,
    model: torch.nn.Module,
    groups: Sequence[Sequence[dp.Batch | None]],
    *,
    threads: int,
    num_servers: int = 1,
) -> Joint:
    """Train a copy of a model on groups of batches, one a thread."""
    own = copy.deepcopy(model)
    with client_of(plan, threads, num_servers=num_servers) as client:
        with ThreadedWorker(plan, own, client) as worker:
            losses = step_all(plan, worker, groups)
        return Joint(losses, own, held(client))


def assert_as_one(
    ours: Joint,
    plan: dp.Plan,
    model: torch.nn.Module,
    groups: Sequence[Sequence[dp.Batch | None]],
    rtol: float = RTOL,
) -> None:
    """A plain worker in this process learns the same from each group joined into one batch."""
    joint = [dp.Batch.concat([it for it in group if it is not None]) for group in groups]
    theirs = train_embedded(plan, model, joint)
    np.testing.assert_allclose(ours.losses, theirs.losses[0], rtol=rtol)
    assert_close(ours.tables, theirs.tables, rtol)
    for own, other in zip(ours.model.parameters(), theirs.models[0].parameters(), strict=True):
        np.testing.assert_allclose(own.detach(), other.detach(), rtol=rtol, atol=rtol)
