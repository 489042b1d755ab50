from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from downpour.errors import SettingError
from downpour.progress import Progress


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def console(*, is_terminal: bool, width: int = 110) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    kind: dict[str, Any] = {"force_terminal": is_terminal, "width": width, "color_system": None}
    return Console(file=out, _environ={"TERM": "xterm"}, **kind), out


def train(progress: Progress, clock: Clock, *, steps: int = 40, num_steps: int | None = 40) -> None:
    """One epoch of steps of 0.5 s and 100 samples each."""
    with progress:
        progress.start_epoch(1, num_steps=num_steps)
        for step in range(1, steps + 1):
            clock.now += 0.5
            progress.step(samples=100, loss=0.5, rows=10 * step)
        progress.end_epoch(seconds=20.0, loss=0.5, results={"auc": 0.75, "logloss": None})


def test_lines_come_every_few_seconds() -> None:
    clock = Clock()
    lines, out = console(is_terminal=False, width=20)
    train(Progress(epochs=3, console=lines, every_s=5, clock=clock), clock)
    assert out.getvalue().splitlines() == [
        "epoch 1/3  step 10/40  200 samples/s  loss 0.5000  100 rows",
        "epoch 1/3  step 20/40  200 samples/s  loss 0.5000  200 rows",
        "epoch 1/3  step 30/40  200 samples/s  loss 0.5000  300 rows",
        "epoch 1/3  step 40/40  200 samples/s  loss 0.5000  400 rows",
        "epoch 1/3  40 steps in 20.0 s  loss 0.5000  auc 0.7500  400 rows",
    ]


def test_an_unknown_total_shows_steps_alone() -> None:
    clock = Clock()
    lines, out = console(is_terminal=False)
    train(Progress(epochs=1, console=lines, clock=clock), clock, num_steps=None)
    assert "epoch 1/1  step 10  200 samples/s" in out.getvalue()


def test_the_last_auc_stays_in_the_next_epoch() -> None:
    clock = Clock()
    lines, out = console(is_terminal=False)
    progress = Progress(epochs=2, console=lines, clock=clock)
    train(progress, clock)
    progress.start_epoch(2)
    clock.now += 6
    progress.step(samples=600, loss=0.5, rows=400)
    expected = "epoch 2/2  step 1  100 samples/s  loss 0.5000  auc 0.7500  400 rows"
    assert out.getvalue().splitlines()[-1] == expected


def test_speed_is_of_the_last_seconds_only() -> None:
    clock = Clock()
    lines, _ = console(is_terminal=False)
    progress = Progress(epochs=1, console=lines, every_s=1, clock=clock)
    progress.start_epoch(1)
    for samples in [1000] * 30 + [100] * 30:
        clock.now += 1
        progress.step(samples=samples, loss=0.5, rows=0)
    assert progress.state.samples_per_s == pytest.approx(100)


def test_loss_is_smooth_and_without_bias_at_the_start() -> None:
    progress = Progress(epochs=1, quiet=True)
    progress.step(samples=1, loss=2.0, rows=0)
    assert progress.state.loss == pytest.approx(2.0)
    progress.step(samples=1, loss=1.0, rows=0)
    assert progress.state.loss == pytest.approx((0.98 * 2 + 1) / 1.98)
    for _ in range(1000):
        progress.step(samples=1, loss=0.3, rows=0)
    assert progress.state.loss == pytest.approx(0.3)


def test_a_terminal_gets_a_bar() -> None:
    clock = Clock()
    terminal, out = console(is_terminal=True)
    progress = Progress(epochs=3, console=terminal, clock=clock)
    train(progress, clock)
    shown = out.getvalue()
    assert "epoch 1/3  40 steps in 20.0 s  loss 0.5000  auc 0.7500  400 rows\n" in shown
    assert "40/40 200 samples/s  loss 0.5000  auc 0.7500  400 rows" in shown
    assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in shown
    assert shown.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # the cursor is back, the bar is gone


def test_a_terminal_is_told_of_evaluation() -> None:
    terminal, out = console(is_terminal=True)
    with Progress(epochs=1, console=terminal) as progress:
        progress.start_epoch(1)
        progress.step(samples=1, loss=0.5, rows=7)
        progress.start_evaluation()
    assert "1 evaluating  loss 0.5000  7 rows" in out.getvalue()


def interrupt(progress: Progress) -> None:
    with progress:
        progress.start_epoch(1, num_steps=10)
        raise KeyboardInterrupt


def test_ctrl_c_gives_the_cursor_back() -> None:
    terminal, out = console(is_terminal=True)
    with pytest.raises(KeyboardInterrupt):
        interrupt(Progress(epochs=1, console=terminal))
    assert "\x1b[?25h" in out.getvalue()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_quiet_says_nothing(is_terminal: bool) -> None:
    clock = Clock()
    anywhere, out = console(is_terminal=is_terminal)
    progress = Progress(epochs=3, console=anywhere, quiet=True, clock=clock)
    train(progress, clock)
    progress.say("something")
    assert out.getvalue() == ""


@pytest.mark.parametrize("is_terminal", [True, False])
def test_text_is_shown_as_it_is(is_terminal: bool) -> None:
    anywhere, out = console(is_terminal=is_terminal)
    with Progress(epochs=1, console=anywhere) as progress:
        progress.say("runs/[bold]x[/bold] " + "y" * 200)
    assert "runs/[bold]x[/bold] " + "y" * 200 + "\n" in out.getvalue()


def test_every_s_must_be_positive() -> None:
    with pytest.raises(SettingError, match="every_s must be > 0, got 0"):
        Progress(epochs=1, every_s=0)
