"""Transpiled programs that run: trainers on threads, servers in this process, and plain torch."""

from __future__ import annotations

import copy
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

import downpour as dp
from downpour.remote.connect import connect
from tests.networks import Network, click, dense_parameters, plain, sparse_parameters
from tests.servers import LIMIT_S, Trained, at_once, held
from tests.torch_rules import RULES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from downpour.transpile.transpiler import Transpiled

    Shares = Sequence[Sequence[Any]]

NORMAL: dict[str, Any] = {"dtype": torch.float64, "init": dp.Normal(0.5)}
WHOLE: dict[str, Any] = {"slice_var_up": False}
SPLIT: dict[str, Any] = {"min_block_size": 8}
HASHED: dict[str, Any] = {"min_block_size": 8, "split_method": "HashName"}


class Layers(Network):
    """Seven rows of a weight, which two or three servers do not share evenly, and small ones."""

    def __init__(self, **settings: Any) -> None:
        settings = {**NORMAL, **settings}
        super().__init__(**settings)
        self.hidden = torch.nn.Linear(8, 7, dtype=settings["dtype"])
        self.out = torch.nn.Linear(7, 1, dtype=settings["dtype"])

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        return self.out(self.hidden(self.embedding(batch).flatten(1)).tanh()).squeeze(1)


def transpiled(
    program: Any,
    addresses: Sequence[str],
    *,
    rank: int = 0,
    trainers: int = 1,
    sync_mode: bool = True,
    startup: Any = None,
    plan: dp.Plan | None = None,
    **config: Any,
) -> Transpiled:
    """What the transpiler of a trainer decides, for servers of these addresses."""
    transpiler = dp.DistributeTranspiler(dp.DistributeTranspilerConfig(**config))
    names = ",".join(address.rpartition("/")[2] for address in addresses)
    return transpiler.transpile(rank, program, names, trainers, sync_mode, startup, plan=plan)


def run_steps(executor: dp.Executor, batches: Sequence[dp.Batch]) -> list[float]:
    """Run recv, local and send for each batch; the losses."""
    recv, local, send = executor.transpiled.trainer_programs
    losses = []
    for batch in batches:
        executor.run(recv)
        losses += [result.loss for result in executor.run(local, batch)]
        executor.run(send)
    return losses


def run_rounds(executor: dp.Executor, rounds: Sequence[Sequence[dp.Batch]]) -> list[float]:
    """Run recv, local on each batch, and send, for each round; the losses."""
    recv, local, send = executor.transpiled.trainer_programs
    losses = []
    for batches in rounds:
        executor.run(recv, batches)
        losses += [it.loss for batch in batches for it in executor.run(local, batch)]
        executor.run(send)
    return losses


def trained(
    addresses: Sequence[str],
    plan: dp.Plan,
    model: torch.nn.Module,
    shares: Shares,
    *,
    sync_mode: bool = True,
    given: dict[str, Any] | None = None,
    **config: Any,
) -> Trained:
    """Train a copy of a model for each share of batches, or of rounds with a federation.

    The models have what servers have at the end. given: settings of the executors.
    """
    models = [copy.deepcopy(model) for _ in shares]
    run = run_rounds if config.get("federation") else run_steps
    settings = {"trainers": len(shares), "sync_mode": sync_mode, **config}

    def work(rank: int) -> list[float]:
        made = transpiled(plan, addresses, rank=rank, **settings)
        with dp.Executor(made, models[rank], **(given or {})) as executor:
            executor.run(made.trainer_startup)
            return run(executor, shares[rank])

    losses = at_once([lambda rank=rank: work(rank) for rank in range(len(shares))])  # type: ignore[misc]
    with reading(transpiled(plan, addresses, **settings)) as ps:
        for own in models:
            dp.Worker(ps.plan, own, ps).pull_dense()
        return Trained(losses, models, held(ps))


@contextmanager
def reading(made: Transpiled) -> Iterator[dp.Client]:
    """A client of the servers that takes no part in the training."""
    with connect(made.plan, made.endpoints, sections=made.config.sections) as ps:
        yield ps


def torch_trained(
    model: Any,
    plan: dp.Plan,
    name: str,
    batches: Sequence[dp.Batch],
    losses: Sequence[Callable[..., torch.Tensor]] = (click,),
) -> Any:
    """A copy of the model, of plain torch, with one step a batch by the sum of the losses."""
    theirs = plain(model, dp.embedded(plan))
    optimizers = [
        make(of(theirs))
        for make, of in zip(RULES[name][1:], (sparse_parameters, dense_parameters), strict=True)
    ]
    for batch in batches:
        for optimizer in optimizers:
            optimizer.zero_grad()
        sum(loss(theirs, batch) for loss in losses).backward()  # type: ignore[union-attr]
        for optimizer in optimizers:
            optimizer.step()
    return theirs


def free_endpoints(number: int) -> list[str]:
    """Addresses for servers: for a minute the system gives their ports to nobody unasked.

    It does so with the port of a connection that has just ended, and lets a server have it.
    """
    ports = []
    for _ in range(number):
        with socket.socket() as own, socket.socket() as other:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            own.bind(("127.0.0.1", 0))
            own.listen()
            other.connect(own.getsockname())
            accepted, _ = own.accept()
            accepted.close()
            ports.append(own.getsockname()[1])
    return [f"127.0.0.1:{port}" for port in ports]


@contextmanager
def serving(*executors: dp.Executor) -> Iterator[None]:
    """Run the program of a server of each executor, that of its place, until the block ends."""
    threads = []
    for executor, endpoint in zip(executors, executors[0].transpiled.endpoints, strict=True):
        program = executor.transpiled.pserver_program(endpoint)
        threads.append(threading.Thread(target=executor.run, args=(program,), daemon=True))
        threads[-1].start()
    try:
        yield
    finally:
        for executor in executors:
            executor.stop()
        for thread in threads:
            thread.join(LIMIT_S)
    assert not any(thread.is_alive() for thread in threads), "a server hangs"
