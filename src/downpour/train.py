"""The trainer: read, prefetch, step, measure, show; then evaluate, and keep what was learned."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from downpour import folder as run_folder
from downpour.best import BestModel
from downpour.client import embedded
from downpour.data.ahead import read_ahead
from downpour.early_stop import EarlyStopper
from downpour.epoch import Epoch
from downpour.errors import DataError, PlanError, SettingError
from downpour.evaluate import Evaluation, evaluate, label_of, own_results
from downpour.history import History
from downpour.local_path import WRITE_ELSEWHERE, local_path
from downpour.model_tables import note_trained, tables_to_go_on_with
from downpour.plan.losses import named_losses
from downpour.progress import Progress
from downpour.run_files import RunFiles
from downpour.sketch import DistinctCount
from downpour.stopping import Stopping
from downpour.tables import TableStats, kernels
from downpour.trial import try_evaluation
from downpour.warm import warm
from downpour.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from rich.console import Console

    from downpour.client import Client
    from downpour.features import Batch
    from downpour.plan.plan import Plan
    from downpour.run import Run

TABLES_EVERY = 10  # steps between two looks at the tables' sizes


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
        self.files = RunFiles(self.folder)
        self._early = EarlyStopper(run.early_stop, self.progress.say)
        self._best = BestModel(self.files, self.progress.say)
        self._epoch: Epoch | None = None  # the one under way
        self._rows = 0
        self._noted: set[str] = set()  # what was said of results that are not defined
        self._stopped: str | None = None
        self._has_begun = False
        self._early.require_known(try_evaluation(run, self.plan))
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
        with contextlib.closing(self.files):
            self.files.open(self.run, self.plan)
            return self._train_epochs()

    def _train_epochs(self) -> dict[str, Any]:
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
                kept = self.files.best_text() or "no model"
                self._stopped = f"failed: KeyboardInterrupt: stopped at once, {kept} was kept"
                self._close(keep=False)
                raise
            except Exception as error:
                self._fail(error)
                raise
            self._close()
        return self.metrics()

    def metrics(self) -> dict[str, Any]:
        """What was measured so far."""
        measured = self.history.metrics(stopped=self._stopped, phases_s=self.worker.phases_s)
        return {**measured, **self._facts()}

    def _facts(self) -> dict[str, Any]:
        """What metrics.json says of the run's model."""
        return {**self.files.facts(), "best": self._early.summary()}

    def _train_epoch(self, number: int, stopping: Stopping) -> None:
        epoch = self._epoch = Epoch(number)
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

    def _step(self, epoch: Epoch, batch: Batch, following: Batch | None) -> None:
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
        self.files.scalars(self.history.step, {"train/loss": total})

    def _look_at_tables(self) -> None:
        stats = self.client.stats()
        self.history.add_tables(stats)
        self._add_training(self.worker.gradient_norms)
        self._rows = sum(it.rows for it in stats.values() if isinstance(it, TableStats))

    def _add_training(self, norms: Mapping[str, float]) -> None:
        """Note learning rates and gradient norms as of the last step."""
        rates = self.client.learning_rates()
        self.history.add_training(rates, norms)
        scalars = {f"learning_rate/{table}": rate for table, rate in rates.items()}
        scalars |= {f"gradient_norm/{table}": norm for table, norm in norms.items()}
        self.files.scalars(self.history.step, scalars)

    def _end_epoch(self, epoch: Epoch) -> None:
        note_trained(self.run.model, self.client)
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

    def _evaluate(self, epoch: Epoch) -> bool:
        """Evaluate as the run says, once a step; whether it is time to stop early."""
        run, phases, start = self.run, self.worker.phases_s, time.perf_counter()
        is_evaluated = epoch.evaluated_at == self.history.step
        if (run.eval_data is None and run.evaluate is None) or is_evaluated:
            return False
        self.progress.start_evaluation()
        pulled_s = phases["pull"]
        self.worker.pull_dense()
        note_trained(run.model, self.client)
        evaluation = Evaluation(results={}, samples=0, seconds=0.0)
        if run.eval_data is not None:
            with contextlib.closing(read_ahead(run.eval_data.batches(0))) as batches:
                evaluation = evaluate(run.model, batches, run.predict, run.label, run.device)
            for note in evaluation.notes:
                if note not in self._noted:
                    self._noted.add(note)
                    self.progress.say(note)
        if run.evaluate is not None:
            evaluation.results.update(own_results(run.evaluate, run.model))
        seconds = time.perf_counter() - start
        phases["evaluate"] += seconds
        self.history.add_evaluation(evaluation)
        epoch.results, epoch.evaluated_at = self.history.final, self.history.step
        step = self.history.step
        self.files.scalars(step, {f"eval/{name}": it for name, it in evaluation.results.items()})
        if self._early.see(evaluation, epoch=epoch.number, step=step) and self._early.keeps_best:
            self.worker.pull_dense()  # what a forward of the evaluation has changed, as max_norm
            self._best.keep(run, self.plan, self.client, epoch=epoch.number, step=step)
            self._write_metrics()
            phases["save"] += time.perf_counter() - start - seconds
        epoch.evaluated_s += time.perf_counter() - start
        phases["pull"] = pulled_s  # what was pulled meanwhile is in the evaluation's time
        return self._early.is_time

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
        self._close(after=error)
        if self.folder is not None and self.history.step:
            kept = self.files.best_text() or "what was trained until then"
            error.add_note(f"{kept} is kept in {self.folder}/")

    def _lose(self, error: Exception, why: object) -> None:
        """End after an error that the tables did not outlive; a best model is what is left."""
        if self._best.is_kept:
            self._end_with_best()
        kept = f"{text} is kept" if (text := self.files.best_text()) else "no model was kept"
        error.add_note(f"{kept}: {why}" if str(why) != str(error) else kept)
        self._stopped = f"failed: {kept}: {type(error).__name__}: {error}"
        self._close(keep=False)

    def _close(self, *, keep: bool = True, after: Exception | None = None) -> None:
        """End the threads and write what is left to write: the model as well, if `keep`.

        after: the error that has ended the run.
        """
        try:
            if keep:
                self._keep(after)
        except BaseException as error:
            self._stopped = f"failed: no model was kept: {type(error).__name__}: {error}"
            raise
        finally:
            self.files.end_events()
            self._write_metrics()
        if keep:
            self.files.write_report()

    def _keep(self, after: Exception | None) -> None:
        """Leave the tables' values in the model, or those of the best evaluation, and save them."""
        try:
            self._end_worker()
        except PlanError as error:  # of a change in the model, which `after` may have told already
            if after is None:
                raise
            if str(error) != str(after):
                after.add_note(str(error))
        step = self.history.step
        if not step:
            return
        note_trained(self.run.model, self.client)
        if not self._best.is_kept:
            epoch = len(self.history.epochs)
            self.files.save_model(
                self.run, self.plan, self.client, epoch=epoch, step=step, is_best=False
            )
        elif not self._best.is_now(step, self.client):
            self._restore_tables()
            self._end_with_best()

    def _end_with_best(self) -> None:
        """Make the model that of the best evaluation, and its results the final ones."""
        self._best.restore_model(self.run.model)
        best = self._early.best
        assert best is not None
        self.history.end_with(best.evaluation)
        metric = self.run.early_stop.metric if self.run.early_stop else ""
        self.progress.say(
            f"kept: the model of the best evaluation, {metric} {best.value:.4f} after epoch "
            f"{best.epoch}, step {best.step:,}"
        )

    def _restore_tables(self) -> None:
        self._best.restore_tables(self.client)
        self.worker.pull_dense()

    def _end_worker(self) -> None:
        """Push what is left, and give the model the tables' values."""
        self.worker.close()

    def _write_metrics(self) -> None:
        self.files.write_metrics(self.metrics())


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
