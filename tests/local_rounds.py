"""Rounds of a client beside plain torch, for tests of what a client trains."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import downpour as dp
from downpour.federated.local import LocalModel
from tests.networks import NUM_IDS, Network, a_batch, click, plain, planned, random_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from downpour.federated.update import Update

    Rounds = list[list[dp.Batch]]

RULES: dict[str, Any] = {"sparse": dp.SGD(1.0), "dense": dp.SGD(1.0)}  # servers take what they get
SGD = partial(torch.optim.SGD, lr=0.3)
ALL_IDS = np.arange(NUM_IDS)


def double(**settings: Any) -> Network:
    return Network(dtype=torch.float64, init=dp.Normal(0.5), **settings)


def rounds_of(num_rounds: int, steps: int = 4, *, with_all_ids: bool = False) -> Rounds:
    """Batches of other keys in each round; or also one of all ids, so that all rows are in each."""
    batches = random_batches(7, num_rounds * steps)
    rounds = [batches[at : at + steps] for at in range(0, len(batches), steps)]
    whole = a_batch(ALL_IDS, ALL_IDS[::-1].copy())
    return [[*own[:2], whole, *own[2:]] if with_all_ids else own for own in rounds]


def local_model(model: Any, plan: dp.Plan, ps: dp.Client, **settings: Any) -> LocalModel:
    return LocalModel(plan, model, ps, **{"optimizer": SGD, **settings})


def train_rounds(local: LocalModel, rounds: Rounds) -> list[float]:
    """Train in rounds, and leave the tables' values in the model; the loss of each step."""
    losses = []
    for batches in rounds:
        local.recv(batches)
        losses += [
            local.step(program, batch).loss for batch in batches for program in local.plan.programs
        ]
        local.send()
    local.recv([])
    return losses


def torch_rounds(
    model: Any,
    rounds: Rounds,
    make: Callable[..., torch.optim.Optimizer],
    losses: Sequence[Any] = (click,),
    *,
    is_kept: bool = True,
) -> list[float]:
    """The same in plain torch: one optimizer for all rounds, or one for each."""
    optimizer, values = make(model.parameters()), []
    for batches in rounds:
        if not is_kept:
            optimizer = make(model.parameters())
        for batch in batches:
            for loss in losses:
                optimizer.zero_grad()
                value = loss(model, batch)
                value.backward()
                optimizer.step()
                values.append(float(value.detach()))
    return values


def twins(model: Any, losses: Any = click, **settings: Any) -> tuple[dp.Plan, dp.Client, Any]:
    """A plan, its tables, and the model in plain torch."""
    plan = planned(model, losses, **RULES, **settings)
    ps = dp.embedded(plan, num_shards=2)
    return plan, ps, plain(model, ps)


def keys_held(ps: dp.Client, table: str = "embedding") -> int:
    """How many rows a table has made."""
    return len(ps.export(table).keys)


def noted(sent: list[Update]) -> Callable[[Update], Update]:
    """Of `outgoing`: note an update, and let it go."""

    def note(update: Update) -> Update:
        sent.append(update)
        return update

    return note
