"""The ops of transpiled programs, beside those of a plan's own.

Dense variables travel in sections, and each op names one. Rows of lookup tables travel by the ops
of a plan, `PullSparse` and `PushSparse`, to whichever servers have them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from downpour.plan.program import Compute, PullSparse, PushSparse, WeighSamples

if TYPE_CHECKING:
    from downpour.accessor import Accessor
    from downpour.federated.methods import RowsOver, Weighting
    from downpour.rules import Rule

Kind: TypeAlias = Literal["parameter", "optimizer", "gradient", "update"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VariableSection:
    """Elements offset to offset + size of a variable, which are whole rows of it, on one server.

    name: the variable's where it has one section, else with the section's number: "fc.weight:1".
    table: the dense table of the parameter. kind: what the variable is: a parameter, a variable of
    the servers' optimizer, a gradient, or in federated training the change since the round began.
    """

    name: str
    variable: str
    table: str
    kind: Kind
    offset: int
    size: int
    shape: tuple[int, ...]
    endpoint: str


@dataclass(frozen=True, slots=True)
class Initialize:
    """Give a section its first value: a parameter's, or what a rule's state begins with.

    One that has a value keeps it.
    """

    section: VariableSection


@dataclass(frozen=True, slots=True)
class Recv:
    """Ask for a section of a parameter."""

    section: VariableSection


@dataclass(frozen=True, slots=True)
class FetchBarrier:
    """Wait until all that was asked of these servers is here, and the model has it."""

    endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LocalStep:
    """One step of the trainer's own optimizer, on what the loss before it has given gradients.

    `tables`: the lookup tables whose rows it moves.
    """

    loss: str
    parameters: tuple[str, ...]
    tables: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Send:
    """Send a section of a gradient, or of a parameter's update."""

    section: VariableSection


@dataclass(frozen=True, slots=True)
class SendBarrier:
    """All that was sent to these servers is there; wait until they have it of all trainers."""

    endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Average:
    """Merge what trainers have sent of a section: their mean, by their samples or each alike."""

    section: VariableSection
    trainers: int
    weighting: Weighting = "samples"


@dataclass(frozen=True, slots=True)
class Apply:
    """One step of a rule on a section of a parameter, with what was sent or averaged."""

    section: VariableSection
    rule: Rule


@dataclass(frozen=True, slots=True)
class AverageRows:
    """Merge what trainers have sent of the rows of a lookup table that are on this server.

    `over`: a row's mean is over all trainers, of which some have sent nothing of it, or over those
    that touched it.
    """

    table: str
    trainers: int
    weighting: Weighting = "samples"
    over: RowsOver = "all"


@dataclass(frozen=True, slots=True)
class ApplyRows:
    """One step of the rules of a lookup table on the rows that were sent, where they are."""

    table: str
    accessor: Accessor


@dataclass(frozen=True, slots=True)
class Listen:
    """Serve trainers: a round is over when all of them have sent, or in async each push is."""

    endpoint: str
    trainers: int
    sync_mode: bool


TrainerOp: TypeAlias = (
    Initialize | Recv | FetchBarrier | PullSparse | WeighSamples | Compute | LocalStep
    | PushSparse | Send | SendBarrier
)  # fmt: skip
ServerOp: TypeAlias = Initialize | Average | Apply | AverageRows | ApplyRows | Listen
Op: TypeAlias = TrainerOp | ServerOp
