"""The chief of a run with servers: it starts, watches, shows, evaluates, saves; workers train."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import signal
import time
from typing import TYPE_CHECKING, Any

from safetensors.torch import load as tensors_of

from downpour.cluster_report import ClusterReport, ServerReport, WorkerReport
from downpour.engine.children import Children
from downpour.engine.lookout import Lookout
from downpour.engine.processes import STOP_S, cluster_options
from downpour.engine.worker_loop import INTERRUPTED
from downpour.epoch import Epoch
from downpour.errors import DataError, DownpourError, ServerError, WorkerLostError
from downpour.local_path import WRITE_ELSEWHERE, local_path
from downpour.model_tables import refuse_trained
from downpour.plan.specs import plan_name
from downpour.remote.membership import client_of
from downpour.serving.members import CHIEF
from downpour.train import Trainer
from downpour.warm import warm

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from downpour.engine.cluster import Cluster
    from downpour.remote.client import RemoteClient
    from downpour.remote.membership import Membership
    from downpour.run import Run
    from downpour.stopping import Stopping

LOOK_S = 0.5  # between two looks at workers and servers
SETTLE_S = 0.05  # between two looks whether workers have stopped


class Chief(Trainer):
    """Trains a `Run` on servers and workers, as `cluster` says, and writes the same folder.

    target: where worker processes find the run, FILE or FILE:FUNCTION. `worker_options` are those
    of the command line that change it. metrics_port: where Prometheus finds its metrics.
    """

    def __init__(
        self,
        target: str,
        run: Run,
        folder: str | Path | None = None,
        *,
        cluster: Cluster,
        worker_options: Sequence[str] = (),
        metrics_port: int | None = None,
        quiet: bool = False,
        console: Console | None = None,
    ) -> None:
        self.cluster = cluster.secured()
        self._target, self._worker_options = target, tuple(worker_options)
        self._metrics_port = metrics_port
        may_go = cluster.on_worker_loss == "continue"
        folder = None if folder is None else local_path(folder, "the run's folder", WRITE_ELSEWHERE)
        self._children = Children(folder, may_go=may_go)
        self._seen = ClusterReport()
        self._seen_at = time.monotonic()
        self._evaluated_at = 0
        self._exits = contextlib.ExitStack()
        try:
            super().__init__(run, folder, quiet=quiet, console=console)
        except BaseException as error:
            self._exits.close()
            if hasattr(self, "client"):
                self.client.abandon(f"{type(error).__name__}: {error}")
            self._children.end_at_once()
            raise

    client: RemoteClient

    def _train(self) -> dict[str, Any]:
        """See Trainer.train. Raises also ServerError and WorkerLostError: what the servers still
        have is kept.
        """
        try:
            with Lookout(self._look_around, self.progress.say) as self._lookout:
                metrics = super()._train()
            self.client.close()
            self._children.end(STOP_S)
            return metrics
        except BaseException as error:
            self.client.abandon(f"{type(error).__name__}: {error}")
            if isinstance(error, KeyboardInterrupt):
                self._children.end_at_once()
            raise
        finally:
            self._exits.close()
            self._children.end()

    def metrics(self) -> dict[str, Any]:
        """What was measured so far."""
        phases: dict[str, float] = dict(self.worker.phases_s)
        for worker in self._seen.workers:
            for name, seconds in worker.phases_s.items():
                phases[name] = phases.get(name, 0.0) + seconds / len(self._seen.workers)
        measured = self.history.metrics(stopped=self._stopped, phases_s=phases, cluster=self._seen)
        return {**measured, **self._facts()}

    # Starting.

    def _make_client(self) -> RemoteClient:
        """Start what the cluster says is to be started, and join it as its chief."""
        refuse_trained(self.run.model, "a run with servers")
        self._exits.callback(self.files.close)
        self.files.open(self.run, self.plan)
        start = time.perf_counter()
        warm(self.plan, served=True)  # here once, so that the others find the kernels compiled
        self._compile_s = time.perf_counter() - start
        cluster, name = self.cluster, secrets.token_hex(4)
        addresses = cluster.addresses or self._children.start_servers(self.plan, cluster)
        if cluster.starts_workers:
            self._start_workers(addresses, name)
        else:
            name = "run"
        client = cluster.connect(
            self.plan,
            addresses,
            rank=CHIEF,
            run=name,
            with_chief=True,
            watch=self._children.require_server,
        )
        assert client.membership is not None
        client.membership.watch = self._look_around
        client.membership.poll_s = LOOK_S
        self._member: Membership = client.membership
        return client

    def _start_workers(self, addresses: Sequence[str], name: str) -> None:
        cluster = self.cluster
        shared = [
            *("--servers", ",".join(addresses), "--workers", str(cluster.workers), "--run", name),
            *("--chief", "--of-parent", "--on-worker-loss", cluster.on_worker_loss),
            *("--worker-timeout", str(cluster.worker_timeout_s)),
            *cluster_options(cluster),
            *self._worker_options,
        ]
        threads = max(1, (os.cpu_count() or 1) // cluster.workers)  # of torch, in each
        for rank in range(cluster.workers):
            arguments = ["worker", self._target, "--rank", str(rank), *shared]
            self._children.start_trainer(
                f"worker {rank}", arguments, threads, cluster.security.token
            )

    def _warm(self) -> None:
        self.worker.phases_s["compile"] += self._compile_s
        if self._metrics_port is not None:
            from downpour.exposition import MetricsServer

            server = MetricsServer(
                self._metrics_port, lambda: self._seen, progress=self._progress_numbers
            )
            self._exits.enter_context(server)
            self.progress.say(f"metrics for Prometheus: http://127.0.0.1:{server.port}/metrics")

    # Watching.

    def _train_epoch(self, number: int, stopping: Stopping) -> None:
        epoch = self._epoch = Epoch(number)
        self.progress.start_epoch(number, num_steps=self.run.data.num_batches())
        met = None
        while met is None:
            met = self._member.come(f"epoch {number} trained", with_chief=True, wait_s=LOOK_S)
            self._look_around()
            self._look()
            self._hear(stopping)
            if self._is_time() and self._stopped is None and self._evaluate(epoch):
                self._halt("early_stop")
        parts = {rank: json.loads(text) for rank, text in met.items() if rank >= 0}
        self._gather(epoch, parts)
        if self._stopped is None and (not parts or any(it["stop"] for it in parts.values())):
            stopping.request(signal.SIGTERM)  # it has asked all workers to leave, or one to stop
            self._stopped = INTERRUPTED
        elif epoch.samples == 0:
            raise DataError(
                f"trained on nothing: epoch {number} of {self.run.data!r} gave no sample"
            )
        self.worker.pull_dense()
        if parts:
            self._take_buffers(parts[min(parts)]["buffers"])
        self._end_epoch(epoch)
        self._hear(stopping)
        told = json.dumps({"stop": self._stopped})
        self._member.meet(f"epoch {number} over", told, with_chief=True)

    def _hear(self, stopping: Stopping) -> None:
        """Stop all workers where this process, or another of the run, was sent a signal."""
        asked_by = self._children.asked_by
        if asked_by is None and self._member.stop_reason == INTERRUPTED:
            asked_by = signal.SIGTERM
        if asked_by is not None:
            stopping.request(asked_by)
        if stopping.requested and self._stopped is None:
            self._halt(INTERRUPTED)

    def _look_around(self) -> None:
        """Raise what ends the run: a process of it has ended, or a worker was lost."""
        self._member.check()
        try:
            self._children.look()
        except WorkerLostError:
            with contextlib.suppress(ServerError):
                self._member.beat(LOOK_S)  # one that failed has told why
            raise
        for end in self._children.ends():  # of workers without whom the others may go on
            self.progress.say(end)

    def _halt(self, why: str) -> None:
        self._stopped = why
        self._member.halt(why)

    def _is_time(self) -> bool:
        """Whether steps have come to the next multiple of `eval_every`."""
        every = self.run.eval_every
        if not every or self.history.step // every <= self._evaluated_at // every:
            return False
        self._evaluated_at = self.history.step
        return True

    def _look(self, reports: Mapping[int, dict[str, Any]] | None = None) -> None:
        """See what workers and servers report, show it, and count what is new.

        reports: of workers, newer than their beats.
        """
        now = time.monotonic()
        workers = [
            WorkerReport.from_dict(
                {
                    "rank": member["rank"],
                    **member["report"],
                    **(reports or {}).get(member["rank"], {}),
                    "state": member["state"],
                }
            )
            for member in self._member.members()
            if member["rank"] >= 0
        ]
        servers = [ServerReport.from_dict(server.report()) for server in self.client.remote]
        seen = ClusterReport(workers=tuple(workers), servers=tuple(servers))
        new, seconds = seen.since(self._seen), now - self._seen_at
        self._seen, self._seen_at, self._rows = seen, now, seen.rows
        if new.steps:
            self.history.add_steps(new.steps, new.loss or 0.0, new.samples, seconds)
            self.history.add_tables(self.client.stats())
            self.client.look_at_steps()
            self._add_training(seen.gradient_norms())
            self._write_scalars(new, seconds)
        self.progress.show_cluster(seen)

    def _write_scalars(self, new: ClusterReport, seconds: float) -> None:
        staleness = new.staleness()
        scalars: dict[str, float | None] = {
            "train/loss": new.loss,
            "cluster/samples_per_s": new.samples / seconds,
            "cluster/staleness_mean": staleness["mean"],
            "cluster/staleness_max": staleness["max"],
        }
        for worker in new.workers:
            for name, latency in (("pull", worker.pull), ("push", worker.push)):
                for percent in (50, 99):
                    value = latency.percentile(percent)
                    tag = f"worker {worker.rank}/{name}_p{percent}_ms"
                    scalars[tag] = None if value is None else value * 1000
        self.files.scalars(self.history.step, scalars)

    def _gather(self, epoch: Epoch, parts: Mapping[int, dict[str, Any]]) -> None:
        """Sum up what the workers have brought to the end of the epoch."""
        self._look({rank: part["report"] for rank, part in parts.items()})
        for part in parts.values():
            epoch.steps += part["steps"]
            epoch.samples += part["samples"]
            for program, loss in part["losses"].items():
                epoch.losses[program] = epoch.losses.get(program, 0.0) + loss
            self.history.merge_features(part["features"])

    def _take_buffers(self, text: str) -> None:
        """Those of the first worker: others have seen other batches."""
        if text:
            own = {plan_name(name): value for name, value in self.run.model.named_buffers()}
            for name, value in tensors_of(base64.b64decode(text)).items():
                own[plan_name(name)].copy_(value)

    def _progress_numbers(self) -> dict[str, float]:
        results = self.history.final
        return {
            name: float(results[name])
            for name in ("auc", "logloss")
            if isinstance(results.get(name), float)
        }

    # Ending.

    def _fail(self, error: Exception) -> None:
        """Stop the workers, and then keep what the servers still have."""
        self._lookout.noticed()
        self.progress.say(f"the run stops: {error}")
        try:
            self._stop_workers(error)
            self._look()
            super()._fail(error)
        except DownpourError as lost:
            self._lose(error, lost)

    def _restore_tables(self) -> None:
        if self.cluster.addresses:  # those that were started here end now
            self._best.restore_servers(self.client)

    def _stop_workers(self, error: Exception) -> None:
        """Let the workers stop, and see to it that no server takes a push after that.

        They end a step that all have agreed on, and hear that the run has stopped. Who does not,
        as it hangs, might go on while the tables are saved.
        """
        self._children.look_at_servers()
        self._member.leave(f"{type(error).__name__}: {error}")
        until = time.monotonic() + min(STOP_S, self.cluster.worker_timeout_s)
        while (going := self._going()) and time.monotonic() < until:
            if not any(self._children.is_going(f"worker {rank}") for rank in going):
                break
            time.sleep(SETTLE_S)
        members = self._member.members()
        clients = [client_of(it["rank"], it["incarnation"]) for it in members if it["rank"] >= 0]
        for server in self.client.remote:
            server.ask("dismiss", {"clients": clients})
        self._children.end_trainers(0.0)
        committed = {server.greet()["committed"] for server in self.client.remote}
        if len(committed) > 1:
            error.add_note(
                f"a worker was lost amid a commit: the servers are at steps {sorted(committed)}"
            )

    def _going(self) -> list[int]:
        """The workers that take part still."""
        members = self._member.members()
        return [it["rank"] for it in members if it["rank"] >= 0 and it["state"] == "running"]
