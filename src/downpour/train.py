"""The trainer: read, prefetch, step, measure, show; then evaluate, and keep what was learned."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping
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
from downpour.local_path import WRITE_ELSEWHERE, local_path
from downpour.metrics import require_binary
from downpour.model_tables import note_trained, tables_to_go_on_with
from downpour.plan.losses import named_losses
from downpour.progress import Progress
from downpour.report import write_report
from downpour.sketch import DistinctCount
from downpour.stopping import Stopping
from downpour.tables import TableStats, kernels
from downpour.warm import warm
from downpour.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Generator

    from rich.console import Console

    from downpour.client import Client
    from downpour.features import Batch
    from downpour.plan.plan import Plan
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
    results: dict[str, Any] | None = None  # of the last evaluation in it
    evaluated_at: int = 0  # the global step of that

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
        self.folder = None if folder is None else local_path(folder, "Trainer", WRITE_ELSEWHERE)
        if self.folder is not None:
            run_folder.require_free(self.folder)
        self.plan = make_plan(run)
        name = "run" if self.folder is None else self.folder.resolve().name
        self.history = History(name, run.settings(), str(self.plan))
        self.progress = Progress(epochs=run.epochs, quiet=quiet, console=console)
        self._programs = list(named_losses(run.losses))
        self._early = _EarlyStopper(run.early_stop)
        self._events: EventWriter | None = None
        self._epoch: _Epoch | None = None  # the one under way
        self._rows = 0
        self._noted: set[str] = set()  # what was said of results that are not defined
        self._stopped: str | None = None
        self._is_open = self._has_begun = False
        self.client = self._make_client()
        self.worker = Worker(self.plan, run.model, self.client, device=run.device)

    def _make_client(self) -> Client:
        """New tables in this process, or those that the model was trained with."""
        known = tables_to_go_on_with(self.plan, self.run.model)
        if known is None:
            return embedded(self.plan)
        stats = known.stats().values()
        rows = sum(it.rows for it in stats if isinstance(it, TableStats))
        self.history.settings["goes_on_with"] = f"{rows:,} rows of earlier training"
        self.progress.say(f"the model goes on with the {rows:,} rows that it was trained with")
        return known

    def train(self) -> dict[str, Any]:
        """Train to the end, to the early stop, or to Ctrl-C; gives what metrics.json holds.

        Raises what the data, the model or the tables raise; what was trained until then is kept,
        and `stopped` says so. A second Ctrl-C is a KeyboardInterrupt, and keeps no model. A trainer
        trains once; SettingError where it has trained already.
        """
        if self._has_begun:
            raise SettingError(
                "this trainer has trained already; make another one: Trainer(run, folder) of the "
                "same Run goes on with its model's parameters and rows"
            )
        self._has_begun = True
        return self._train()

    def _train(self) -> dict[str, Any]:
        self._open_folder()
        torch.manual_seed(self.run.seed)
        with self.progress, Stopping(self.progress.say) as stopping:
            try:
                self._warm()
                for number in range(1, self.run.epochs + 1):
                    self._train_epoch(number, stopping)
                    if self._stopped:
                        break
                self._stopped = self._stopped or "finished"
            except KeyboardInterrupt:
                self._stopped = "failed: KeyboardInterrupt: stopped at once, no model was kept"
                self._close(keep=False)
                raise
            except Exception as error:
                self._fail(error)
                raise
            self._close()
        return self.metrics()

    def metrics(self) -> dict[str, Any]:
        """What was measured so far."""
        return self.history.metrics(stopped=self._stopped, phases_s=self.worker.phases_s)

    def _train_epoch(self, number: int, stopping: Stopping) -> None:
        epoch = self._epoch = _Epoch(number)
        self.progress.start_epoch(number, num_steps=self.run.data.num_batches())
        self.run.model.train()
        with contextlib.closing(self._batches(number - 1)) as batches:
            for batch, following in batches:
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
        self.worker.flush()  # a window ends with its epoch, however often there is an evaluation
        self.worker.pull_dense()
        self._end_epoch(epoch)

    def _batches(self, epoch: int) -> Generator[tuple[Batch, Batch | None]]:
        """Each batch with the one after it; a thread reads them, and counts their keys."""

        def read() -> Generator[Batch]:
            for batch in self.run.data.batches(epoch):
                if batch.size:
                    check_labels(self.run, batch)
                    self.history.count_features(batch)
                    yield batch

        with contextlib.closing(read_ahead(read())) as batches:
            current = self._next(batches)
            while current is not None:
                following = self._next(batches)
                yield current, following
                current = following

    def _next(self, batches: Generator[Batch]) -> Batch | None:
        start = time.perf_counter()
        batch = next(batches, None)
        self.worker.phases_s["read"] += time.perf_counter() - start
        return batch

    def _step(self, epoch: _Epoch, batch: Batch, following: Batch | None) -> None:
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
        self._epoch = None
        self.history.add_epoch(summary | ({"eval": epoch.results} if epoch.results else {}))
        results = {
            name: value
            for name, value in (epoch.results or {}).items()
            if name not in ("auc_bucketed", "samples", "seconds")
        }
        self.progress.end_epoch(seconds=summary["seconds"], loss=summary["loss"], results=results)
        self._write_metrics()

    def _evaluate(self, epoch: _Epoch) -> bool:
        """Evaluate as the run says, once a step; whether it is time to stop early."""
        run, phases, start = self.run, self.worker.phases_s, time.perf_counter()
        if (run.eval_data is None and run.evaluate is None) or self._is_evaluated(epoch):
            return False
        self.progress.start_evaluation()
        pulled_s = phases["pull"]
        self.worker.pull_dense()
        evaluation = Evaluation(results={}, samples=0, seconds=0.0)
        if run.eval_data is not None:
            with contextlib.closing(read_ahead(run.eval_data.batches(0))) as batches:
                evaluation = evaluate(run.model, batches, run.predict, run.label, run.device)
            for note in evaluation.notes:
                if note not in self._noted:
                    self._noted.add(note)
                    self.progress.say(note)
        evaluation.results.update(self._own_results())
        seconds = time.perf_counter() - start
        epoch.evaluated_s += seconds
        phases["evaluate"] += seconds
        phases["pull"] = pulled_s  # what was pulled meanwhile is in the evaluation's time
        self.history.add_evaluation(evaluation)
        epoch.results, epoch.evaluated_at = self.history.final, self.history.step
        if self._events is not None:
            scalars = {f"eval/{name}": value for name, value in evaluation.results.items()}
            self._events.scalars(self.history.step, scalars)
        return self._early.is_time(evaluation.results)

    def _is_evaluated(self, epoch: _Epoch) -> bool:
        return epoch.evaluated_at == self.history.step

    def _own_results(self) -> dict[str, float | None]:
        if self.run.evaluate is None:
            return {}
        with inference(self.run.model):
            own: object = self.run.evaluate(self.run.model)
        if not isinstance(own, Mapping):
            raise SettingError(f"Run.evaluate must give a dict of numbers by name, got {own!r}")
        values = {str(name): float(value) for name, value in own.items()}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    def _open_folder(self) -> None:
        if self.folder is None or self._is_open:
            return
        self._is_open = True
        saved.pickled_model(self.run, self.plan)  # what cannot be saved is refused now
        run_folder.start_over(self.folder)
        write_whole(self.folder / run_folder.PLAN, f"{self.plan}\n")
        self._events = EventWriter(self.folder / run_folder.EVENTS)

    def _warm(self) -> None:
        """Compile or load the kernels of a step, so that no epoch's time has that in it."""
        start = time.perf_counter()
        warm(self.plan)
        DistinctCount().add(np.zeros(1, np.uint64))
        self.worker.phases_s["compile"] += time.perf_counter() - start

    def _fail(self, error: Exception) -> None:
        """Keep what was trained before an error, and say so."""
        self._stopped = f"failed: {type(error).__name__}: {error}"
        if self._epoch is not None and self._epoch.steps:
            summary, results = self._epoch.summary(), self._epoch.results
            self.history.add_epoch(summary | ({"eval": results} if results else {}))
        self._look_at_tables()
        self._close()
        if self.folder is not None and self.history.step:
            error.add_note(f"what was trained until then is kept in {self.folder}/")

    def _close(self, *, keep: bool = True) -> None:
        """End the threads and write what is left to write: the model as well, if `keep`."""
        self._end_worker(keep=keep)
        if self._events is not None:
            self._events.close()
        if self.folder is None:
            return
        try:
            if keep and self.history.step:
                saved.save(self.folder, self.run, self.plan, self.client)
        except BaseException as error:
            self._stopped = f"failed: no model was kept: {type(error).__name__}: {error}"
            raise
        finally:
            self._write_metrics()
        if keep:
            write_report(self.folder)

    def _end_worker(self, *, keep: bool) -> None:
        """Push what is left, and give the model the tables' values."""
        self.worker.close()
        if self.history.step:
            note_trained(self.run.model, self.client)

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


def check_labels(run: Run, batch: Batch) -> None:
    """The label that evaluation will read must be in training, too. Raises DataError."""
    if run.eval_data is not None:
        label_of(batch, run.label)


def is_compiled() -> bool:
    """Whether this machine has compiled the kernels before."""
    kernel: Any = kernels.pull  # of its file's kernels, the one that calls most of them
    code = kernel.py_func.__code__
    index = f"*.{code.co_name}-{code.co_firstlineno}.*.nbi"
    return any(Path(kernel.stats.cache_path).glob(index))


def make_plan(run: Run) -> Plan:
    """Plan a run's losses with its first batch. DataError where there is none."""
    return plan_with(run, first_batch(run))


def first_batch(run: Run) -> Batch:
    """The first batch of a run's data that has a sample. DataError where there is none."""
    for batch in run.data.batches(0):
        if batch.size:
            return batch
    raise DataError(f"trained on nothing: {run.data!r} gave no sample")


def plan_with(run: Run, example: Batch) -> Plan:
    """Plan a run's losses with an example batch, the model on the run's device from then on."""
    run.model.to(run.device)
    return run.optimizer.minimize(
        run.losses,
        model=run.model,
        example=example.to(run.device),
        startup=run.startup,
        parameter_list=run.parameter_list,
        no_grad_set=run.no_grad_set,
        strategy=run.strategy,
        seed=run.seed,
    )
