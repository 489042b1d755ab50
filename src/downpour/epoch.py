"""One epoch of a run, or one round of a federation, as far as it was trained."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Epoch:
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
