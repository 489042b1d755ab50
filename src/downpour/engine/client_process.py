"""A client process of a federation: `downpour client`."""

from __future__ import annotations

import logging
import secrets
import time
from itertools import count, islice
from typing import TYPE_CHECKING

import torch

from downpour.deployment import Deployment
from downpour.errors import DataError, RefusedError, RoundClosedError, WorkerLostError
from downpour.federated.local import LocalModel
from downpour.plan.losses import named_losses
from downpour.remote.connect import open_servers
from downpour.remote.enrolment import Enrolment
from downpour.remote.rounds import RoundClient
from downpour.run_plan import check_labels, make_plan
from downpour.stopping import Stopping
from downpour.warm import warm

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from downpour.data import Source
    from downpour.engine.cluster import Cluster
    from downpour.features import Batch
    from downpour.federated.federation import Federation
    from downpour.federated.methods import FedAvg
    from downpour.parent import Parent
    from downpour.plan.plan import Plan
    from downpour.remote.enrolment import Round
    from downpour.remote.server import RemoteServer
    from downpour.run import Run

LOG = logging.getLogger("downpour.client")
LOOK_S = 1.0  # between two looks whether a round goes on, or a place is free


def run_client(
    federation: Federation, cluster: Cluster, *, client: int, parent: Parent | None = None
) -> int | None:
    """Plan the federation with this client's data, enroll, and train in the rounds it is asked to.

    parent: the process that has started this one, if one has. Gives the number of the signal that
    has asked this client to stop, None where none has. Before it is enrolled a signal raises.
    """
    run = federation.run_of(client)
    plan = make_plan(run)
    warm(plan)
    connected = connect_client(federation, plan, cluster, client)
    if parent is not None:
        parent.started()
    try:
        with Stopping(LOG.warning) as stopping:
            ClientLoop(federation, run, plan, connected, stopping).train()
            connected.close()
    except KeyboardInterrupt as error:
        connected.abandon(f"it was {error}" if str(error) else "it was stopped by Ctrl-C")
        raise
    except BaseException as error:
        connected.abandon(f"{type(error).__name__}: {error}")
        raise
    return stopping.number


def connect_client(
    federation: Federation, plan: Plan, cluster: Cluster, client: int
) -> RoundClient:
    """Connect to all servers, and enroll at the first; raises as `connect` and `Enrolment` do."""
    deployment = Deployment(plan=plan, num_shards=len(cluster.addresses), sections=cluster.sections)
    incarnation = secrets.randbits(52)
    servers = open_servers(
        deployment,
        cluster.addresses,
        f"client-{client}-{incarnation:x}",
        deadline_s=cluster.deadline_s,
        start_s=cluster.start_s,
        security=cluster.security,
    )
    try:
        settings = federation.fingerprint(plan)
        enrolment = _enrolled(servers[0], client, incarnation, settings, cluster)
    except BaseException:
        for server in servers:
            server.close()
        raise
    LOG.info("event=enrolled client=%d next_round=%d", client, enrolment.next_round)
    return RoundClient(deployment, servers, enrolment, start_s=cluster.start_s)


def _enrolled(
    server: RemoteServer, client: int, incarnation: int, settings: str, cluster: Cluster
) -> Enrolment:
    """Enroll, also in place of a process that has died, once it is taken for lost."""
    until = time.monotonic() + cluster.worker_timeout_s + LOOK_S
    while True:
        try:
            return Enrolment(
                server,
                client,
                incarnation,
                settings,
                timeout_s=cluster.worker_timeout_s,
                start_s=cluster.start_s,
            )
        except RefusedError as error:
            if time.monotonic() > until:
                raise
            LOG.warning("event=not_enrolled client=%d reason=%s", client, error)
            time.sleep(LOOK_S)


class ClientLoop:
    """Trains in each round that the client is sampled in, on the data of its `run`.

    Once `stopping` is requested it leaves after the step under way, and the round goes on without
    its update.
    """

    def __init__(
        self,
        federation: Federation,
        run: Run,
        plan: Plan,
        client: RoundClient,
        stopping: Stopping,
    ) -> None:
        self.federation, self.run, self.client = federation, run, client
        self._stopping = stopping
        self.local = LocalModel(
            plan,
            federation.model,
            client,
            optimizer=federation.optimizer,
            method=federation.method,
            outgoing=federation.outgoing,
            device=federation.device,
        )
        self._batches = RoundBatches(run.data, federation.method)
        self._programs = list(named_losses(federation.losses))
        self._looked_at = 0.0

    def train(self) -> None:
        """Train until all rounds are over. Raises what the data, the model or the servers raise.

        WorkerLostError where the coordinator is lost, or has failed.
        """
        enrolment = self.client.enrolment
        torch.manual_seed(self.federation.seed + enrolment.client)
        refused: tuple[int, RefusedError] | None = None
        while (given := enrolment.ask(lambda: self._stopping.requested)) is not None:
            if refused is not None and refused[0] == given.number:  # it would be once more
                raise refused[1]
            try:
                self.train_round(given)
            except RefusedError as error:  # late, or taken for lost: the next round may have it
                LOG.warning("event=refused round=%d reason=%s", given.number, error)
                refused = given.number, error
            if self._stopping.requested:
                break
        LOG.info("event=over reason=%s", enrolment.why_over)
        if enrolment.why_over is not None and enrolment.why_over.startswith("failed"):
            raise WorkerLostError(f"the coordinator has ended the federation: {enrolment.why_over}")

    def train_round(self, given: Round) -> None:
        """Train in one round and send the update. RoundClosedError where that is late."""
        self.client.begin_round(given)
        self._looked_at = time.monotonic()
        batches = self._batches.of_round(given.number)
        for batch in batches:
            check_labels(self.run, batch)
        self.federation.model.train()
        self.local.recv(batches)
        for batch in batches:
            if self._stopping.requested:
                LOG.warning("event=stopped round=%d reason=a signal", given.number)
                return
            self._look(given.number)
            for program in self._programs:
                self.local.step(program, batch)
        self.client.losses = dict(self.local.losses)
        self.client.counted["steps"] = len(batches)
        samples = self.local.samples
        self.local.send()
        LOG.info(
            "event=sent round=%d steps=%d samples=%d loss=%.6g",
            *(given.number, len(batches), samples, sum(self.client.losses.values()) / samples),
        )

    def _look(self, number: int) -> None:
        """Raise RoundClosedError for a round that has closed: training on would be in vain."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        if not self.client.enrolment.is_under_way(number):
            raise RoundClosedError(f"round {number} has closed before this client was done")


class RoundBatches:
    """The batches of a client's rounds, as the method says."""

    def __init__(self, source: Source, method: FedAvg) -> None:
        self._source, self._method = source, method
        self._going_on = self._forever()

    def of_round(self, number: int) -> Sequence[Batch]:
        """Those of a round, all in memory. DataError where there is none.

        A round of epochs has those of its number, whichever rounds the client was in before.
        """
        epochs = self._method.local_epochs
        if epochs is None:
            return [*islice(self._going_on, self._method.local_steps)]
        first = (number - 1) * epochs
        return [batch for epoch in range(first, first + epochs) for batch in self._epoch(epoch)]

    def _forever(self) -> Iterator[Batch]:
        for epoch in count():
            yield from self._epoch(epoch)

    def _epoch(self, epoch: int) -> Iterator[Batch]:
        is_empty = True
        for batch in self._source.batches(epoch):
            if batch.size:
                is_empty = False
                yield batch
        if is_empty:
            raise DataError(f"a client trains on nothing: {self._source!r} gave no sample")
