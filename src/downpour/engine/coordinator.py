"""The coordinator of a federation: it samples, opens and closes rounds, evaluates and saves."""

from __future__ import annotations

import contextlib
import secrets
import time
from typing import TYPE_CHECKING, Any

from downpour.deployment import Deployment
from downpour.engine.children import Children
from downpour.engine.clients import Clients
from downpour.engine.lookout import Lookout
from downpour.engine.processes import STOP_S
from downpour.epoch import Epoch
from downpour.errors import DownpourError, RefusedError, WorkerLostError
from downpour.federated.local_checks import refuse_plan
from downpour.local_path import WRITE_ELSEWHERE, local_path
from downpour.model_tables import refuse_trained
from downpour.remote.connect import open_servers
from downpour.remote.enrolment import Coordination
from downpour.remote.staging import StagingClient
from downpour.serving.members import CHIEF
from downpour.train import Trainer
from downpour.warm import warm

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from downpour.engine.cluster import Cluster
    from downpour.federated.federation import Federation
    from downpour.stopping import Stopping

SETTLE_S = 0.002  # between two looks whether servers have committed
LOOK_S = 0.5  # between two looks at clients and servers


class Coordinator(Trainer):
    """Runs a `Federation` on servers and clients, and writes the folder of a run.

    target: where client processes find the federation, FILE or FILE:FUNCTION. cluster: its servers;
    `starts_workers` says whether clients are started here, each a process, or come from elsewhere
    by `downpour client`. Its `worker_timeout_s` is the silence after which a client is lost.
    `changes` are options of the command line that change the federation, for clients.

    Raises SettingError for what clients cannot train, RefusedError where servers have another
    federation under way.
    """

    client: StagingClient
    stops_after = "round"

    def __init__(
        self,
        target: str,
        federation: Federation,
        folder: str | Path | None = None,
        *,
        cluster: Cluster,
        changes: Sequence[str] = (),
        quiet: bool = False,
        console: Console | None = None,
    ) -> None:
        self.federation, self.cluster = federation, cluster.secured()
        self.rounds: list[dict[str, Any]] = []
        self._target, self._changes = target, tuple(changes)
        folder = None if folder is None else local_path(folder, "the run's folder", WRITE_ELSEWHERE)
        self._children = Children(folder, may_go=True)
        self._failed_rounds = 0
        self._is_committed = True  # the last round
        self._incarnation = secrets.randbits(52)
        self._exits = contextlib.ExitStack()
        self._exits.callback(self._children.end)
        try:
            super().__init__(federation.run, folder, quiet=quiet, console=console)
            self.history.settings = {
                **federation.run_settings(),
                "federation": federation.settings(),
            }
            self.progress.state.unit = "round"
            self._begin()
        except BaseException:
            self._children.end_at_once()
            self._exits.close()
            raise

    def _train(self) -> dict[str, Any]:
        """Run all rounds; see Trainer.train. Raises also ServerError, and WorkerLostError where too
        few clients are heard from.
        """
        try:
            with Lookout(self._children.look, self.progress.say) as self._lookout:
                metrics = super()._train()
            self._coordination.end(metrics["stopped"])
            self.client.close()
            self._children.end(STOP_S)
            return metrics
        except BaseException as error:
            self._coordination.end(f"failed: {type(error).__name__}: {error}")
            if isinstance(error, KeyboardInterrupt):
                self._children.end_at_once()
            raise
        finally:
            self._exits.close()

    def present(self) -> list[int]:
        """The clients that are here, by number."""
        return self._clients.present(self._coordination)

    def metrics(self) -> dict[str, Any]:
        """What was measured so far; `rounds` has each round."""
        return {**super().metrics(), "rounds": self.rounds}

    # Starting.

    def _make_client(self) -> StagingClient:
        """Start what is to be started, and connect to the servers."""
        refuse_plan(self.plan)
        refuse_trained(self.run.model, "a federation")
        self._clients = Clients(
            self.federation.clients, self._children, self.cluster, self.progress.say
        )
        self._exits.callback(self.files.close)
        self.files.open(self.run, self.plan)
        start = time.perf_counter()
        warm(self.plan, served=True)  # here once, so that the others find the kernels compiled
        self._compile_s = time.perf_counter() - start
        cluster = self.cluster
        addresses = cluster.addresses or self._children.start_servers(self.plan, cluster)
        if cluster.starts_workers:
            self._clients.start(self._target, addresses, self._changes)
        deployment = Deployment(
            plan=self.plan, num_shards=len(addresses), sections=cluster.sections
        )
        servers = open_servers(
            deployment,
            addresses,
            f"coordinator-{self._incarnation:x}",
            deadline_s=cluster.deadline_s,
            start_s=cluster.start_s,
            security=cluster.security,
            watch=self._children.require_server,
        )
        client = StagingClient(deployment, servers, rank=CHIEF, start_s=cluster.start_s)
        self._exits.callback(client.abandon, None)
        client.average_by(self.federation.method)
        return client

    def _begin(self) -> None:
        """Let clients in, now that dense tables have their first weights."""
        committed = {server.greeting["committed"] for server in self.client.remote}
        if len(committed) > 1:
            raise RefusedError(
                f"the servers have different rounds, {sorted(committed)}: a coordinator was lost "
                "amid a commit. Start new servers"
            )
        self._coordination = Coordination(
            self.client.remote[0],
            self._incarnation,
            self.federation.clients,
            self.federation.fingerprint(self.plan),
            timeout_s=self.cluster.worker_timeout_s,
        )
        while self.client.step + 1 < self._coordination.next_round:  # of a coordinator that is gone
            self.client.commit({}, ())
            self.client.finish()

    def _warm(self) -> None:
        self.worker.phases_s["compile"] += self._compile_s

    # Rounds.

    def _train_epoch(self, number: int, stopping: Stopping) -> None:
        present = self._clients.wait(self._coordination, stopping, for_all=number == 1)
        if not present:
            self._stopped = "interrupted"
            return
        epoch = self._epoch = Epoch(number)
        self.progress.start_epoch(number)
        self._dropped: set[str] = set()
        view = self._run_round(present, stopping)
        if stopping.requested:
            self._stopped = "interrupted"
        self._commit(view)
        seconds = time.perf_counter() - epoch.start
        self._count(epoch, view, seconds)
        self.worker.pull_dense()
        self._end_epoch(epoch)
        self._note(view, seconds)
        if self._failed_rounds >= self.federation.max_failed_rounds and self._stopped is None:
            raise WorkerLostError(self._too_few(view))

    def _run_round(self, present: Sequence[int], stopping: Stopping) -> dict[str, Any]:
        """Sample clients, let them train, and close the round."""
        number = self.client.step + 1
        sampled = self.federation.sample(present, number)
        deadline_s = self.federation.deadline_s
        self._coordination.open(number, sampled, deadline_s)
        until = time.monotonic() + deadline_s
        while True:
            view = self._coordination.watch(min(LOOK_S, max(until - time.monotonic(), 0.0)))
            self._look_around()
            self._clients.hear(stopping)
            self._tell_dropped(view)
            waits_for = len(view["sampled"]) - len(view["reports"]) - len(view["dropped"])
            if not waits_for or stopping.requested or time.monotonic() >= until:
                return self._coordination.close(number)

    def _look_around(self) -> None:
        """Raise what ends the federation: a server of it has ended, or it is taken for lost."""
        self._clients.look()
        self._coordination.check()

    def _tell_dropped(self, view: Mapping[str, Any]) -> None:
        """Name the clients that a round has lost, as soon as that is known."""
        for client, why in view["dropped"].items():
            if client not in self._dropped:
                self._dropped.add(client)
                self.progress.say(f"round {view['round']}: client {client} was dropped: {why}")

    def _commit(self, view: Mapping[str, Any]) -> None:
        """Let all servers take the mean of what was heard, if it is enough."""
        reports = view["reports"]
        is_enough = len(reports) >= self.federation.num_needed(len(view["sampled"]))
        counted = reports if is_enough else {}
        samples = {int(client): report["samples"] for client, report in counted.items()}
        tables = {table for report in counted.values() for table in report["tables"]}
        self.client.commit(samples, tables & self.client.steps.keys())  # a report may say anything
        since = time.monotonic()
        while not self.client.is_settled:
            time.sleep(SETTLE_S)
            if time.monotonic() - since > LOOK_S:
                self._children.look()
        self.client.finish()
        self._is_committed = is_enough
        self._failed_rounds = 0 if is_enough else self._failed_rounds + 1

    def _too_few(self, view: Mapping[str, Any]) -> str:
        why = "; ".join(f"client {client}: {text}" for client, text in view["dropped"].items())
        return (
            f"no quorum in {self._failed_rounds} rounds in a row; round {view['round']} needed "
            f"{self.federation.num_needed(len(view['sampled']))} of {len(view['sampled'])} clients "
            f"and heard from {len(view['reports'])}. {why}. Give a longer deadline_s or a smaller "
            "quorum"
        )

    def _count(self, epoch: Epoch, view: Mapping[str, Any], seconds: float) -> None:
        """Sum up what clients have reported."""
        for report in view["reports"].values():
            epoch.samples += report["samples"]
            epoch.steps += report["steps"]
            for program, loss in report["losses"].items():
                epoch.losses[program] = epoch.losses.get(program, 0.0) + loss
        if epoch.samples:
            loss = sum(epoch.losses.values()) / epoch.samples
            self.history.add_steps(epoch.steps, loss, epoch.samples, seconds)
            self._look_at_tables()
            self.progress.step(samples=epoch.samples, loss=loss, rows=self._rows, steps=epoch.steps)
            self.files.scalars(self.history.step, {"train/loss": loss})

    def _evaluate(self, epoch: Epoch) -> bool:
        """See Trainer; after a round that was not committed the model is what it was."""
        return self._is_committed and super()._evaluate(epoch)

    def _note(self, view: Mapping[str, Any], seconds: float) -> None:
        """Keep what is told of a round."""
        summary, reports = self.history.epochs[-1], view["reports"]
        results = summary.get("eval", {})
        self.rounds.append(
            {
                "round": view["round"],
                "sampled": view["sampled"],
                "heard_from": sorted(map(int, reports)),
                "dropped": {int(client): why for client, why in view["dropped"].items()},
                "is_committed": self._is_committed,
                "samples": summary["samples"],
                "loss": summary["loss"] if reports else None,
                "auc": results.get("auc"),
                "logloss": results.get("logloss"),
                "bytes_sent": sum(report["bytes_sent"] for report in reports.values()),
                "bytes_received": sum(report["bytes_received"] for report in reports.values()),
                "seconds": seconds,
            }
        )
        self._tell_dropped(view)
        if not self._is_committed:
            self.progress.say(f"round {view['round']}: no quorum, so nothing was applied")
        self._write_metrics()

    # Ending.

    def _fail(self, error: Exception) -> None:
        """Keep what the servers still have."""
        self._lookout.noticed()
        self.progress.say(f"the federation stops: {error}")
        try:
            self._children.look()
            super()._fail(error)
        except DownpourError as lost:
            self._lose(error, lost)

    def _restore_tables(self) -> None:
        if self.cluster.addresses:  # those that were started here end now
            self._best.restore_servers(self.client)
