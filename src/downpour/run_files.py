"""What a run writes into its folder while it trains, and at its end."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

from downpour import folder as run_folder
from downpour import saved
from downpour.checkpoint import write_whole
from downpour.report import write_report
from downpour.unwritten import SafeEvents, Unwritten, save_somewhere

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from downpour.client import Client
    from downpour.plan.plan import Plan
    from downpour.run import Run


class RunFiles:
    """Writes the folder of a run; without a folder it writes nothing.

    Nobody else may write there from `open` to `close`. `run_id` is in metrics.json and in the
    manifest of the run's model, so that one tells whether the other is of the same run. `model`:
    what the folder's model is of, if it is this run's. say: told of each file that cannot be
    written, for which a run does not end.
    """

    def __init__(self, folder: Path | None, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.run_id = secrets.token_hex(8)
        self.model: dict[str, Any] | None = None
        self.has_earlier_model = False
        self._lock: run_folder.Lock | None = None
        self._events: SafeEvents | None = None
        self._unwritten = Unwritten(say)
        self._is_open = False

    @property
    def unwritten(self) -> list[str]:
        """What is not in the folder as it could not be written, a sentence for each file."""
        return self._unwritten.told

    def open(self, run: Run, plan: Plan) -> None:
        """Make the folder, once, and leave in it of an earlier run its model.

        Raises SettingError for a model that could not be saved, and where another run writes there.
        """
        if self.folder is None or self._is_open:
            return
        saved.pickled_model(run, plan)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = run_folder.Lock(self.folder)
        self._is_open = True
        run_folder.start_over(self.folder)
        self.has_earlier_model = (self.folder / run_folder.MODEL).exists()
        write_whole(self.folder / run_folder.PLAN, f"{plan}\n")
        self._events = SafeEvents(self.folder / run_folder.EVENTS, self._unwritten)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Write values of a global step for TensorBoard."""
        if self._events is not None:
            self._events.scalars(step, values)

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Replace metrics.json."""
        if self.folder is not None and self._is_open:
            path = self.folder / run_folder.METRICS
            with self._unwritten.noted(path):
                write_whole(path, json.dumps(metrics, indent=1, allow_nan=False))

    def save_model(
        self, run: Run, plan: Plan, client: Client, *, epoch: int, step: int, is_best: bool
    ) -> None:
        """Replace the model in the folder by that of now.

        The last model of a run goes into a temporary folder where it cannot be written here, which
        raises SavedElsewhereError; for the best one so far that is a plain OSError.
        """
        if self.folder is None:
            return

        def save(folder: Path) -> None:
            saved.save(folder, run, plan, client, self.run_id)

        if is_best:
            save(self.folder)
        else:
            save_somewhere(save, self.folder)
        self.model = {"epoch": epoch, "step": step, "is_best": is_best}
        self.has_earlier_model = False
        run_folder.forget_earlier(self.folder)

    def facts(self) -> dict[str, Any]:
        """What metrics.json says of the folder's model."""
        facts: dict[str, Any] = {"run": self.run_id, "model": self.model}
        return {**facts, "has_earlier_model": True} if self.has_earlier_model else facts

    def best_text(self) -> str:
        """What the folder has where it is the model of the best evaluation; else nothing."""
        if self.model is None or not self.model["is_best"]:
            return ""
        epoch, step = self.model["epoch"], self.model["step"]
        return f"the model of the best evaluation (epoch {epoch}, step {step})"

    def write_report(self, metrics: Mapping[str, Any]) -> None:
        """Write report.html of what metrics.json has, though it may not be written."""
        if self.folder is not None:
            with self._unwritten.noted(self.folder / run_folder.REPORT):
                write_report(self.folder, json.loads(json.dumps(metrics)))

    def end_events(self) -> None:
        """Bring what was written for TensorBoard to the disk."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def close(self) -> None:
        """Let go of the folder."""
        self.end_events()
        if self._lock is not None:
            self._lock.close()
            self._lock = None
