"""A program: what one worker does on a batch for one loss, op by op.

Ops are frozen values. A worker is an interpreter of them; nothing else decides what travels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    Loss: TypeAlias = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class PullDense:
    """Read the values of a dense table into the model, on the first of `every` batches."""

    table: str
    every: int = 1


@dataclass(frozen=True, slots=True)
class PullSparse:
    """Read the rows of the batch's keys for these features."""

    table: str
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WeighSamples:
    """Raise the weight of samples whose id of `feature` was rarely shown.

    Where 0 <= show < threshold the sample weight becomes at least
    log(e + (threshold - show) / threshold * ratio): the reference's adjust_ins_weight.
    """

    table: str
    feature: str
    threshold: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Compute:
    """Run the loss forward and backward.

    `no_grad`: names of parameters and tables that the loss reaches and is not to train.
    `detached`: names of modules whose outputs get no gradient.
    """

    loss: str
    no_grad: tuple[str, ...] = ()
    detached: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PushSparse:
    """Send the gradient of the rows of these features.

    `times_batch_size`: multiplied by the number of samples, for a loss that is their mean.
    `counts`: the features whose ids this push counts as shown, and clicked.
    """

    table: str
    features: tuple[str, ...]
    times_batch_size: bool = False
    counts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PushDense:
    """Send the gradients of these parameters of a dense table, summed over `every` batches.

    `scale_datanorm`: of a data-norm table, the square sum that a sample is taken to add when its
    gradients are divided by the number of samples; None sends them as they are.
    """

    table: str
    parameters: tuple[str, ...]
    every: int = 1
    scale_datanorm: float | None = None


Kind = TypeVar("Kind")
Op: TypeAlias = PullDense | PullSparse | WeighSamples | Compute | PushSparse | PushDense


@dataclass(frozen=True, slots=True)
class Program:
    """The ordered ops that one worker runs on a batch for one loss.

    `skipped_ops`: the kinds of op that its model has and that do not run in the worker, since
    servers do their work: the look-up of rows and its gradient.
    """

    name: str
    ops: tuple[Op, ...]
    skipped_ops: tuple[str, ...] = ()

    def tables(self, *kinds: type) -> tuple[str, ...]:
        """Return the tables named by ops of these kinds, in order, each once."""
        named = (op.table for op in self.ops if isinstance(op, kinds))  # type: ignore[union-attr]
        return tuple(dict.fromkeys(named))

    def ops_of(self, kind: type[Kind]) -> tuple[Kind, ...]:
        """Return the ops of a kind, in order."""
        return tuple(op for op in self.ops if isinstance(op, kind))

    @property
    def parameters(self) -> tuple[str, ...]:
        """The dense parameters that the loss trains, sorted by name."""
        return tuple(sorted(name for op in self.ops_of(PushDense) for name in op.parameters))

    @property
    def no_grad(self) -> tuple[str, ...]:
        """The parameters and tables that the loss reaches and is not to train."""
        return tuple(name for op in self.ops_of(Compute) for name in op.no_grad)
