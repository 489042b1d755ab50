"""The trainer: read, prefetch, step, measure, show; then evaluate, and keep what was learned."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from downpour import folder as run_folder
from downpour.best import BestModel
from downpour.client import embedded
from downpour.data.ahead import read_ahead
from downpour.early_stop import EarlyStopper
from downpour.epoch import Epoch
from downpour.errors import DataError, DownpourError, PlanError, SettingError
from downpour.evaluate import Evaluation, evaluate, own_results
from downpour.history import History
from downpour.local_path import WRITE_ELSEWHERE, local_path
from downpour.model_tables import note_trained, tables_to_go_on_with
from downpour.plan.losses import named_losses
from downpour.progress import Progress
from downpour.run_files import RunFiles
from downpour.run_plan import check_labels, make_plan
from downpour.sketch import DistinctCount
from downpour.stopping import StoppedAtOnce, Stopping
from downpour.tables import TableStats
from downpour.trial import try_evaluation
from downpour.unwritten import SavedElsewhereError
from downpour.warm import warm
from downpour.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping
    from pathlib import Path

    from rich.console import Console

    from downpour.client import Client
    from downpour.features import Batch
    from downpour.run import Run

TABLES_EVERY = 10  # steps between two looks at the tables' sizes


class Trainer:
    """Trains a `Run` on tables in this process.

    folder: where the run is written (metrics.json, plan.txt, report.html, events/, model/);
    None keeps nothing on disk. quiet: show nothing. `client` has the tables, `metrics()` what was
    measured.
    """

    stops_after = "step"  # what Ctrl-C lets come to its end

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
        self.files = RunFiles(self.folder, self.progress.say)
        self._early = EarlyStopper(run.early_stop, self.progress.say)
        self._best = BestModel(self.files, self.progress.say)
        self._epoch: Epoch | None = None  # the one under way
        self._rows = 0
        self._noted: set[str] = set()  # what was said of results that are not defined
        self._stopped: str | None = None
        self._has_begun = False
        self._is_saved = False
        self._stopping = Stopping(self.progress.say, after=self.stops_after)
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
        and `stopped` says so. SIGTERM does what Ctrl-C does. A second one of them raises
        StoppedAtOnce, a KeyboardInterrupt, and saves nothing more. An OSError where the model could
        not be saved names a folder that has it instead, if any has; `unwritten` tells of other
        files. A trainer trains once; SettingError where it has trained already.
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
            torch.manual_seed(self.run.seed)
            with self.progress:
                self._warm()
                with self._stopping as stopping:
                    try:
                        self._train_epochs(stopping)
                        self._close()
                    except KeyboardInterrupt as error:
                        stopping.settle()
                        self._stop_at_once(error)
                        raise
            return self.metrics()

    def _train_epochs(self, stopping: Stopping) -> None:
        try:
            for number in range(1, self.run.epochs + 1):
                self._train_epoch(number, stopping)
                if stopping.requested and self._stopped is None:
                    self._stopped = "interrupted"
                if self._stopped:
                    break
            self._stopped = self._stopped or "finished"
        except Exception as error:
            self._fail(error)
            raise

    @property
    def stopped_by(self) -> int | None:
        """The number of the signal that stopped the run, or None."""
        return self._stopping.number if self._stopped == "interrupted" else None

    @property
    def unwritten(self) -> list[str]:
        """What could not be written into the folder, a sentence for each file."""
        return self.files.unwritten

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
        """Evaluate as the run says, once a step; whether it is time to stop early.

        An evaluation that a signal breaks off does not count.
        """
        is_evaluated = epoch.evaluated_at == self.history.step
        if (self.run.eval_data is None and self.run.evaluate is None) or is_evaluated:
            return False
        self.progress.start_evaluation()
        try:
            return self._evaluate_now(epoch)
        except _BrokenOff:
            return False

    def _evaluate_now(self, epoch: Epoch) -> bool:
        run, phases, start = self.run, self.worker.phases_s, time.perf_counter()
        pulled_s = phases["pull"]
        self.worker.pull_dense()
        note_trained(run.model, self.client)
        evaluation = Evaluation(results={}, samples=0, seconds=0.0)
        if run.eval_data is not None:
            with contextlib.closing(read_ahead(run.eval_data.batches(0))) as batches:
                evaluation = evaluate(
                    run.model, self._watched(batches), run.predict, run.label, run.device
                )
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

    def _watched(self, batches: Iterable[Batch]) -> Generator[Batch]:
        """Batches to evaluate on, until something ends the run or asks it to stop."""
        for batch in batches:
            self._look_around()
            if self._stopping.requested:
                raise _BrokenOff
            yield batch

    def _look_around(self) -> None:
        """Raise what ends the run, though this process does something else meanwhile."""

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
        try:
            self._close(after=error)
        except OSError as unsaved:
            if isinstance(unsaved, DownpourError):
                raise
            for note in (str(unsaved), *getattr(unsaved, "__notes__", [])):
                error.add_note(note)
            return
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

    def _stop_at_once(self, error: KeyboardInterrupt) -> None:
        """After a second signal: save nothing more, and say what there is."""
        if not self._is_saved:
            why = str(error) if isinstance(error, StoppedAtOnce) else "stopped at once"
            kept = f"{text} is kept" if (text := self.files.best_text()) else "no model was saved"
            self._stopped = f"failed: KeyboardInterrupt: {why}, {kept}"
            error.add_note(kept)
        self._close(keep=False)

    def _close(self, *, keep: bool = True, after: Exception | None = None) -> None:
        """Write what is left to write: the model as well, if `keep`.

        after: the error that has ended the run.
        """
        try:
            if keep:
                self._keep(after)
                self._is_saved = True
        except Exception as error:
            is_kept = isinstance(error, SavedElsewhereError)
            what = "" if is_kept else f"no model was kept: {type(error).__name__}: "
            self._stopped = f"failed: {what}{error}"
            raise
        finally:
            self.files.end_events()
            self._write_metrics()
        if keep:
            self.files.write_report(self.metrics())

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


class _BrokenOff(Exception):  # noqa: N818 (it is no error)
    """An evaluation ends before its time."""
