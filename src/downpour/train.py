"""The trainer: read, prefetch, step, measure, show; then evaluate, and keep what was learned."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from downpour import folder as run_folder
from downpour import saved
from downpour.checkpoint import write_whole
from downpour.client import embedded
from downpour.data.ahead import read_ahead
from downpour.errors import DataError, SettingError
from downpour.evaluate import Evaluation, evaluate, inference, label_of
from downpour.events import EventWriter
from downpour.history import History
from downpour.metrics import require_binary
from downpour.plan.minimize import named_losses
from downpour.progress import Progress
from downpour.report import write_report
from downpour.stopping import Stopping
from downpour.tables import TableStats
from downpour.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from downpour.features import Batch
    from downpour.plan.program import Plan
    from downpour.run import EarlyStop, Run

TABLES_EVERY = 10  # steps between two looks at the tables' sizes


@dataclass
class _Epoch:
    """Sums over the steps of one epoch."""

    number: int
    start: float = field(default_factory=time.perf_counter)
    steps: int = 0
    samples: int = 0
    losses: dict[str, float] = field(default_factory=dict)  # sums, weighted by samples
    evaluated_s: float = 0.0

    def summary(self) -> dict[str, Any]:
        """The epoch as metrics.json has it; `loss` is the mean over samples of the losses' sum."""
        seconds = time.perf_counter() - self.start - self.evaluated_s
        means = {name: total / max(self.samples, 1) for name, total in self.losses.items()}
        return {
            "epoch": self.number,
            "steps": self.steps,
            "samples": self.samples,
            "seconds": seconds,
            "samples_per_s": self.samples / seconds if seconds > 0 else None,
            "loss": sum(means.values()),
            "losses": means,
        }


class Trainer:
    """Trains a `Run` on tables in this process.

    folder: where the run is written (metrics.json, plan.txt, report.html, events/, model/);
    None keeps nothing on disk. quiet: show nothing. `client` has the tables, `metrics()` what was
    measured.
    """

    def __init__(
        self,
        run: Run,
        folder: str | Path | None = None,
        *,
        quiet: bool = False,
        console: Console | None = None,
    ) -> None:
        self.run = run
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            run_folder.require_free(self.folder)
        self.plan = make_plan(run)
        self.client = embedded(self.plan)
        self.worker = Worker(self.plan, run.model, self.client)
        name = "run" if self.folder is None else self.folder.resolve().name
        self.history = History(name, run.settings(), str(self.plan))
        self.progress = Progress(epochs=run.epochs, quiet=quiet, console=console)
        self._programs = list(named_losses(run.losses))
        self._early = _EarlyStopper(run.early_stop)
        self._events: EventWriter | None = None
        self._stopped: str | None = None

    def train(self) -> dict[str, Any]:
        """Train to the end, to the early stop, or to Ctrl-C; gives what metrics.json holds.

        Raises what the data, the model or the tables raise; what was trained until then is kept,
        and `stopped` says so.
        """
        self._open_folder()
        torch.manual_seed(self.run.seed)
        with self.progress, Stopping(self.progress.say) as stopping:
            try:
                for number in range(1, self.run.epochs + 1):
                    self._train_epoch(number, stopping)
                    if self._stopped:
                        break
                self._stopped = self._stopped or "finished"
            except BaseException as error:
                self._stopped = f"failed: {type(error).__name__}: {error}"
                raise
            finally:
                self._close()
        return self.metrics()

    def metrics(self) -> dict[str, Any]:
        """What was measured so far."""
        return self.history.metrics(stopped=self._stopped, phases_s=self.worker.phases_s)

    def _train_epoch(self, number: int, stopping: Stopping) -> None:
        epoch = _Epoch(number)
        self.progress.start_epoch(number, num_steps=self.run.data.num_batches())
        self.run.model.train()
        for batch, following in self._batches(number - 1):
            self._step(epoch, batch, following)
            if stopping.requested:
                self._stopped = "interrupted"
                break
            every = self.run.eval_every
            if every and self.history.step % every == 0 and self._evaluate(epoch):
                self._stopped = "early_stop"
                break
        if epoch.samples == 0:
            raise DataError(
                f"trained on nothing: epoch {number} of {self.run.data!r} gave no sample"
            )
        self.worker.flush()
        self.worker.pull_dense()
        self._end_epoch(epoch)

    def _batches(self, epoch: int) -> Iterator[tuple[Batch, Batch | None]]:
        """Each batch with the one after it; a thread reads them, and counts their keys."""

        def read() -> Iterator[Batch]:
            for batch in self.run.data.batches(epoch):
                self._check(batch)
                self.history.count_features(batch)
                yield batch

        batches = read_ahead(read())
        try:
            current = self._next(batches)
            while current is not None:
                following = self._next(batches)
                yield current, following
                current = following
        finally:
            batches.close()  # type: ignore[attr-defined]

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        start = time.perf_counter()
        batch = next(batches, None)
        self.worker.phases_s["read"] += time.perf_counter() - start
        return batch

    def _check(self, batch: Batch) -> None:
        """Labels that evaluation will read must be 0 or 1 in training, too."""
        if self.run.eval_data is not None:
            require_binary(label_of(batch, self.run.label).numpy(), "training data")

    def _step(self, epoch: _Epoch, batch: Batch, following: Batch | None) -> None:
        if batch.size == 0:
            return
        start = time.perf_counter()
        total = 0.0
        for place, program in enumerate(self._programs):
            if place + 1 < len(self._programs):
                self.worker.prefetch(self._programs[place + 1], batch)
            elif following is not None:
                self.worker.prefetch(self._programs[0], following)
            loss = self.worker.step(program, batch).loss
            epoch.losses[program] = epoch.losses.get(program, 0.0) + loss * batch.size
            total += loss
        epoch.steps += 1
        epoch.samples += batch.size
        self.history.add_step(total, batch.size, time.perf_counter() - start)
        if self.history.step % TABLES_EVERY == 1:
            self._look_at_tables()
        self.progress.step(samples=batch.size, loss=total, rows=self._rows)
        if self._events is not None:
            self._events.scalars(self.history.step, {"train/loss": total})

    def _look_at_tables(self) -> None:
        stats = self.client.stats()
        self.history.add_tables(stats)
        self._rows = sum(it.rows for it in stats.values() if isinstance(it, TableStats))

    def _end_epoch(self, epoch: _Epoch) -> None:
        self._look_at_tables()
        summary = epoch.summary()
        if self._stopped is None and self._evaluate(epoch):
            self._stopped = "early_stop"
        if self.history.final:
            summary["eval"] = self.history.final
        self.history.add_epoch(summary)
        results = {
            name: value
            for name, value in self.history.final.items()
            if name not in ("auc_bucketed", "samples", "seconds")
        }
        self.progress.end_epoch(seconds=summary["seconds"], loss=summary["loss"], results=results)
        self._write_metrics()

    def _evaluate(self, epoch: _Epoch) -> bool:
        """Evaluate as the run says; whether it is time to stop early."""
        run, start = self.run, time.perf_counter()
        if run.eval_data is None and run.evaluate is None:
            return False
        self.progress.start_evaluation()
        self.worker.flush()
        self.worker.pull_dense()
        evaluation = Evaluation(results={}, samples=0, seconds=0.0)
        if run.eval_data is not None:
            batches = read_ahead(run.eval_data.batches(0))
            evaluation = evaluate(run.model, batches, run.predict, run.label)
        if run.evaluate is not None:
            with inference(run.model):
                own = run.evaluate(run.model)
            evaluation.results.update({name: float(value) for name, value in own.items()})
        epoch.evaluated_s += time.perf_counter() - start
        self.worker.phases_s["evaluate"] += time.perf_counter() - start
        self.history.add_evaluation(evaluation)
        if self._events is not None:
            scalars = {f"eval/{name}": value for name, value in evaluation.results.items()}
            self._events.scalars(self.history.step, scalars)
        return self._early.is_time(evaluation.results)

    def _open_folder(self) -> None:
        if self.folder is None:
            return
        saved.pickled_model(self.run, self.plan)  # what cannot be saved is refused now
        run_folder.start_over(self.folder)
        write_whole(self.folder / run_folder.PLAN, f"{self.plan}\n")
        self._events = EventWriter(self.folder / run_folder.EVENTS)

    def _close(self) -> None:
        """Keep what was trained, also after an error."""
        self.worker.close()
        self.worker.pull_dense()
        if self._events is not None:
            self._events.close()
        if self.folder is not None and self.history.step:
            saved.save(self.folder, self.run, self.plan, self.client)
            self._write_metrics()
            write_report(self.folder)

    def _write_metrics(self) -> None:
        if self.folder is not None:
            text = json.dumps(self.metrics(), indent=1, allow_nan=False)
            write_whole(self.folder / run_folder.METRICS, text)


class _EarlyStopper:
    """Counts evaluations without a better result."""

    def __init__(self, rule: EarlyStop | None) -> None:
        self._rule = rule
        self._best = -np.inf
        self._worse = 0

    def is_time(self, results: dict[str, float | None]) -> bool:
        """Whether the rule says to stop after these results."""
        if self._rule is None:
            return False
        if self._rule.metric not in results:
            raise SettingError(
                f"EarlyStop.metric {self._rule.metric!r} is not evaluated; there are: "
                f"{', '.join(results)}"
            )
        value = results[self._rule.metric]
        score = -np.inf if value is None else value if self._rule.mode == "max" else -value
        self._worse = 0 if score > self._best else self._worse + 1
        self._best = max(self._best, score)
        return self._worse >= self._rule.patience


def make_plan(run: Run) -> Plan:
    """Plan a run's losses with its first batch. DataError where there is none."""
    for batch in run.data.batches(0):
        if batch.size:
            return run.optimizer.minimize(run.losses, model=run.model, example=batch, seed=run.seed)
    raise DataError(f"trained on nothing: {run.data!r} gave no sample")
