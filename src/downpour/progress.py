"""How a run looks while it goes: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias, TypeVar

from rich import progress as rich_progress
from rich.console import Console

from downpour.cluster_view import cluster_lines, cluster_table
from downpour.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rich.console import RenderableType

    from downpour.cluster_report import ClusterReport

    Earlier: TypeAlias = ClusterReport | None

T = TypeVar("T")
LOSS_DECAY = 0.98  # the loss shown is a mean over about the last 50 steps
SPEED_WINDOW_S = 10.0
BAR_EVERY_S = 0.1


@dataclass(kw_only=True)
class RunState:
    """What is shown, as of the last step or report."""

    epochs: int
    unit: str = "epoch"  # or round, of a federation
    epoch: int = 0
    step: int = 0  # of this epoch
    num_steps: int | None = None
    samples_per_s: float = 0.0
    loss: float | None = None
    results: dict[str, float | None] = field(default_factory=dict)
    rows: int = 0
    is_evaluating: bool = False

    @property
    def epoch_text(self) -> str:
        """epoch 2/6"""
        return f"{self.unit} {self.epoch}/{self.epochs}"

    @property
    def steps_text(self) -> str:
        """120/196, or 120 where the number of steps is not known"""
        return f"{self.step:,}" if self.num_steps is None else f"{self.step:,}/{self.num_steps:,}"

    @property
    def numbers_text(self) -> str:
        """27,431 samples/s  loss 0.5121  auc 0.7705  2,625 rows"""
        parts = ["evaluating" if self.is_evaluating else f"{self.samples_per_s:,.0f} samples/s"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        if self.results.get("auc") is not None:
            parts.append(f"auc {self.results['auc']:.4f}")
        return "  ".join([*parts, f"{self.rows:,} rows"])


class View(Protocol):
    """A way to show a run. `show` is called at most every `every_s` seconds."""

    every_s: float

    def start(self) -> None:
        """Begin to show."""

    def show(self, state: RunState) -> None:
        """Show the state of now."""

    def show_cluster(self, report: ClusterReport, earlier: Earlier, seconds: float) -> None:
        """Show workers and servers of now, with the speeds of the seconds since `earlier`."""

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def stop(self) -> None:
        """Leave the console as it was."""


class BarAndMore(rich_progress.Progress):
    """A bar over whatever else is redrawn with it."""

    more: RenderableType | None = None

    def get_renderables(self) -> Iterator[RenderableType]:
        """The bar, and what is under it."""
        yield from super().get_renderables()
        if self.more is not None:
            yield self.more


class Bar:
    """One live line under the lines that stay, and under it workers and servers if there are."""

    def __init__(self, console: Console) -> None:
        self.every_s = BAR_EVERY_S
        self._bar = BarAndMore(
            rich_progress.TextColumn("{task.fields[state].epoch_text}"),
            rich_progress.BarColumn(bar_width=None),
            rich_progress.TextColumn("{task.fields[state].steps_text}"),
            rich_progress.TextColumn("{task.fields[state].numbers_text}", style="cyan"),
            rich_progress.TimeRemainingColumn(compact=True),
            console=console,
            expand=True,
            transient=True,
        )
        self._task: rich_progress.TaskID | None = None
        self._epoch = 0

    def start(self) -> None:
        """Take the line under the cursor."""
        self._bar.start()

    def show(self, state: RunState) -> None:
        """Move the bar; a new epoch begins a new one, and with it the estimate of its end."""
        if self._task is None or state.epoch != self._epoch:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task("", total=state.num_steps, state=state)
            self._epoch = state.epoch
        self._bar.update(self._task, completed=state.step, total=state.num_steps, state=state)

    def show_cluster(self, report: ClusterReport, earlier: Earlier, seconds: float) -> None:
        """Redraw the tables under the bar."""
        self._bar.more = cluster_table(report, earlier, seconds)
        self._bar.refresh()

    def say(self, text: str) -> None:
        """Print above the bar."""
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Remove the bar and give the cursor back."""
        self._bar.stop()


class Lines:
    """Plain lines, for logs and pipes."""

    def __init__(self, console: Console, *, every_s: float) -> None:
        self.every_s = every_s
        self._console = console

    def start(self) -> None:
        """Nothing to do."""

    def show(self, state: RunState) -> None:
        """One line with everything."""
        self.say(f"{state.epoch_text}  step {state.steps_text}  {state.numbers_text}")

    def show_cluster(self, report: ClusterReport, earlier: Earlier, seconds: float) -> None:
        """One line for each worker and each server."""
        for line in cluster_lines(report, earlier, seconds):
            self.say(line)

    def say(self, text: str) -> None:
        """Print and flush, since logs are watched."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()

    def stop(self) -> None:
        """Nothing to do."""


class Progress:
    """Shows a run as it goes. Use as a context manager; an error or Ctrl-C restores the console.

    quiet: show nothing at all. console: where to (standard output by default). every_s: seconds
    between lines where that is no terminal. clock: seconds, for tests.
    """

    def __init__(
        self,
        *,
        epochs: int,
        quiet: bool = False,
        console: Console | None = None,
        every_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if every_s <= 0:
            raise SettingError(f"Progress: every_s must be > 0, got {every_s}")
        self.state = RunState(epochs=epochs)
        self._view = None if quiet else choose_view(console or Console(), every_s=every_s)
        self._clock = clock
        self._shown_at = clock()
        self._loss_sum = 0.0
        self._loss_weight = 0.0
        self._samples = 0
        self._past: deque[tuple[float, int]] = deque()
        self._cluster: ClusterReport | None = None
        self._reports: deque[tuple[float, Earlier]] = deque([(clock(), None)])
        self._steps_before = 0  # of all workers, when this epoch began

    def __enter__(self) -> Self:
        if self._view is not None:
            self._view.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._view is not None:
            self._view.stop()

    def start_epoch(self, epoch: int, *, num_steps: int | None = None) -> None:
        """Begin epoch `epoch`, counted from 1, of `num_steps` steps if that is known."""
        state = self.state
        state.epoch, state.step, state.num_steps = epoch, 0, num_steps
        state.is_evaluating = False
        now = self._clock()
        self._past = deque([(now, self._samples)])
        self._reports = deque([(now, self._cluster)])
        self._steps_before = 0 if self._cluster is None else self._cluster.steps
        self._shown_at = now

    def step(self, *, samples: int, loss: float, rows: int, steps: int = 1) -> None:
        """Count a step, or several: their samples, mean loss, and the rows in all tables then."""
        state = self.state
        state.step += steps
        state.rows = rows
        self._samples += samples
        self._loss_sum = LOSS_DECAY * self._loss_sum + (1 - LOSS_DECAY) * loss
        self._loss_weight = LOSS_DECAY * self._loss_weight + (1 - LOSS_DECAY)
        state.loss = self._loss_sum / self._loss_weight
        now = self._clock()
        if view := self._view_due(now):
            then, earlier = _move_window(self._past, now, self._samples)
            state.samples_per_s = _speed(self._samples - earlier, now - then)
            view.show(state)

    def show_cluster(self, report: ClusterReport) -> None:
        """Count what workers and servers have done, in place of steps of one's own, and show it.

        Speeds, the loss and latencies are of the last few seconds of this epoch.
        """
        now, state = self._clock(), self.state
        then, earlier = _move_window(self._reports, now, report)
        recent = report if earlier is None else report.since(earlier)
        self._cluster = report
        state.step = max(report.steps - self._steps_before, 0)
        state.rows = report.rows
        state.samples_per_s = _speed(recent.samples, now - then)
        state.loss = state.loss if recent.loss is None else recent.loss
        if view := self._view_due(now):
            view.show(state)
            view.show_cluster(report, earlier, now - then)

    def start_evaluation(self) -> None:
        """Say on the bar that the model is being evaluated, until the next epoch starts."""
        self.state.is_evaluating = True
        if isinstance(self._view, Bar):
            self._view.show(self.state)

    def end_epoch(
        self, *, seconds: float, loss: float, results: Mapping[str, float | None] | None = None
    ) -> None:
        """Tell how an epoch went: its time, mean loss and results of evaluation by name."""
        state = self.state
        state.results = dict(results or {})
        numbers = {"loss": loss, **state.results}
        texts = [f"{name} {value:.4f}" for name, value in numbers.items() if value is not None]
        steps = f"{state.step:,} step{'' if state.step == 1 else 's'} in {seconds:.1f} s"
        self.say("  ".join([state.epoch_text, steps, *texts, f"{state.rows:,} rows"]))

    def say(self, text: str) -> None:
        """Show a line that stays."""
        if self._view is not None:
            self._view.say(text)

    def _view_due(self, now: float) -> View | None:
        """What is to show the state now; None until it is time again."""
        if self._view is None or now - self._shown_at < self._view.every_s:
            return None
        self._shown_at = now
        return self._view


def _move_window(past: deque[tuple[float, T]], now: float, value: T) -> tuple[float, T]:
    """Add the value of now, and drop what is too old; the time and value that are left first."""
    past.append((now, value))
    while len(past) > 2 and now - past[1][0] >= SPEED_WINDOW_S:
        past.popleft()
    return past[0]


def _speed(samples: int, seconds: float) -> float:
    return samples / seconds if seconds > 0 else 0.0


def choose_view(console: Console, *, every_s: float) -> View:
    """A bar where the console can redraw a line, else lines."""
    if console.is_terminal and not console.is_dumb_terminal:
        return Bar(console)
    return Lines(console, every_s=every_s)
