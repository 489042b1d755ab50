"""What a run's `EarlyStop` makes of its evaluations: when to stop, and which was the best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from downpour.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from downpour.evaluate import Evaluation
    from downpour.run import EarlyStop


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """The best evaluation so far: what it gave, and after which step of which epoch."""

    value: float
    epoch: int
    step: int
    evaluation: Evaluation


class EarlyStopper:
    """Follows the evaluations of a run; without an `EarlyStop` nothing is best and no time to stop.

    A metric that is not defined (None) makes an evaluation neither better nor worse; `say` is told
    so once.
    """

    def __init__(self, rule: EarlyStop | None, say: Callable[[str], None]) -> None:
        self.best: Best | None = None
        self._rule, self._say = rule, say
        self._worse = self._undefined = 0

    @property
    def is_time(self) -> bool:
        """Whether the rule says to stop now."""
        return self._rule is not None and self._worse >= self._rule.patience

    @property
    def keeps_best(self) -> bool:
        """Whether the model of the best evaluation is to be kept."""
        return self._rule is not None and self._rule.restore_best

    def require_known(self, results: Mapping[str, float | None]) -> None:
        """Raise SettingError where the rule's metric is none of these."""
        if self._rule is not None and self._rule.metric not in results:
            raise SettingError(
                f"EarlyStop.metric {self._rule.metric!r} is not evaluated; there are: "
                f"{', '.join(results)}"
            )

    def see(self, evaluation: Evaluation, *, epoch: int, step: int) -> bool:
        """Take note of an evaluation after a step; whether it is the best so far."""
        self.require_known(evaluation.results)
        if self._rule is None:
            return False
        value = evaluation.results[self._rule.metric]
        if value is None:
            self._see_undefined(self._rule.metric)
            return False
        if self.best is not None and self._sign * value <= self._sign * self.best.value:
            self._worse += 1
            return False
        self.best = Best(value=value, epoch=epoch, step=step, evaluation=evaluation)
        self._worse = 0
        return True

    def summary(self) -> dict[str, Any] | None:
        """What metrics.json says of it; None without an `EarlyStop`."""
        if self._rule is None:
            return None
        best = self.best
        return {
            "metric": self._rule.metric,
            "mode": self._rule.mode,
            "value": None if best is None else best.value,
            "epoch": None if best is None else best.epoch,
            "step": None if best is None else best.step,
            "undefined": self._undefined,
        }

    @property
    def _sign(self) -> float:
        assert self._rule is not None
        return 1.0 if self._rule.mode == "max" else -1.0

    def _see_undefined(self, metric: str) -> None:
        self._undefined += 1
        if self._undefined == 1:
            self._say(
                f"EarlyStop: {metric} is not defined on this evaluation data (as AUC is not where "
                "all labels are one class); an evaluation without it counts neither as better nor "
                "as worse"
            )
