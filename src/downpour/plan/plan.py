"""A plan: which tables there are, and the program of each loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from downpour.errors import PlanError
from downpour.plan.fleet_desc import decode, encode, encode_for_paddle, extension_lines
from downpour.plan.opt_info import opt_info
from downpour.plan.specs import (
    DenseTableSpec,
    FsClient,
    Launch,
    Service,
    SparseTableSpec,
    grad_name,
)
from downpour.plan.text import lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from downpour.clip import Clip
    from downpour.plan.fleet_desc import PSParameter
    from downpour.plan.program import Loss, Program

Spec = TypeVar("Spec", SparseTableSpec, DenseTableSpec)


class Programs(Mapping[str, "Program"]):
    """Programs by name, in the order in which they run on a batch, which counts in comparison."""

    def __init__(self, programs: Mapping[str, Program]) -> None:
        self._programs = dict(programs)

    def __getitem__(self, name: str) -> Program:
        return self._programs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._programs)

    def __len__(self) -> int:
        return len(self._programs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Programs) and [*self.items()] == [*other.items()]

    def __hash__(self) -> int:
        return hash(tuple(self.items()))

    def __repr__(self) -> str:
        return repr(self._programs)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What each table holds and what each program does.

    Attributes:
        sparse, dense: the tables, by rising id; `dense` has the data-norm tables as well.
        programs: by loss, in the order in which they run on a batch.
        clip: how the gradients of a batch are clipped.
        service, fs_client, launch: what a description says of servers, of files and of processes,
            kept for it.

    `losses` are the callables behind the programs, and `startup` what gives the model its first
    dense values; they take no part in comparison and stay behind when a plan is pickled.
    """

    sparse: tuple[SparseTableSpec, ...]
    dense: tuple[DenseTableSpec, ...]
    programs: Mapping[str, Program]
    clip: Clip | None = None
    service: Service = field(default_factory=Service)
    fs_client: FsClient = field(default_factory=FsClient)
    launch: Launch = field(default_factory=Launch)
    losses: Mapping[str, Loss] = field(default_factory=dict, compare=False, repr=False)
    startup: Callable[[Any], Any] | Mapping[str, Any] | None = field(
        default=None, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "programs", Programs(self.programs))

    @classmethod
    def from_fleet_desc(cls, description: str | PSParameter) -> Plan:
        """Read what `fleet_desc` gave, as a message or as its text, into an equal plan.

        Raises PlanError naming the line and the field of what is unknown or cannot be.
        """
        return cls(**decode(description))

    def sparse_table(self, name: str) -> SparseTableSpec:
        """Return the sparse table of that name, or raise PlanError with the names there are."""
        return _named(self.sparse, name, "sparse")

    def dense_table(self, name: str) -> DenseTableSpec:
        """Return the dense table of that name, or raise PlanError with the names there are."""
        return _named(self.dense, name, "dense")

    def program(self, name: str) -> Program:
        """Return the program of that name, or raise PlanError with the names there are."""
        if name not in self.programs:
            raise PlanError(f"no program {name!r}; the plan has: {', '.join(self.programs)}")
        return self.programs[name]

    def program_for(self, loss: Loss) -> Program:
        """Return the program of a loss function that the plan was made of, or raise PlanError."""
        for name, planned in self.losses.items():
            if planned == loss:  # a bound method is another object each time
                return self.programs[name]
        known = ", ".join(self.losses) or "none, as a plan that was pickled or loaded"
        raise PlanError(f"the plan was not made of {loss!r}; it has the functions: {known}")

    def loss(self, name: str) -> Loss:
        """Return the callable of a program, or raise PlanError."""
        if name not in self.losses:
            raise PlanError(
                f"the plan has no function for loss {name!r}: a plan that was pickled or loaded is "
                "without its losses; plan with DownpourSGD.minimize to train"
            )
        return self.losses[name]

    @property
    def ids(self) -> dict[str, int]:
        """The number of each table, by name."""
        return {it.name: it.id for it in self.sparse} | {it.name: it.id for it in self.dense}

    @property
    def params_grads(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """By loss, the dense parameters that it trains, each with its gradient's name; sorted."""
        return {
            name: tuple((parameter, grad_name(parameter)) for parameter in program.parameters)
            for name, program in self.programs.items()
        }

    @property
    def skipped_ops(self) -> tuple[str, ...]:
        """The kinds of op that do not run in a worker, of all programs."""
        names = (name for program in self.programs.values() for name in program.skipped_ops)
        return tuple(dict.fromkeys(names))

    @property
    def opt_info(self) -> dict[str, Any]:
        """What the reference's `minimize` hands its trainers; see docs/paddle.md."""
        return opt_info(self)

    def fleet_desc(self, *, extensions: bool = True) -> PSParameter:
        """Say the plan as the reference's PSParameter message; `str` of it is its text.

        extensions: with the fields that Downpour adds to the message, so that the text reads back
            to an equal plan. False gives what Paddle's own parser takes, and where losses share
            parameters a copy of them in the table of each, as Paddle has it; `extensions` lists
            what is missing there.

        Raises PlanError for what no message can hold: a rule, schedule or initial value that is
        not one of Downpour's own.
        """
        return encode(self) if extensions else encode_for_paddle(self)

    @property
    def extensions(self) -> tuple[str, ...]:
        """What `fleet_desc(extensions=False)` leaves out: a line for each table and program."""
        return tuple(extension_lines(self))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "losses": {}, "startup": None}

    def __str__(self) -> str:
        return "\n".join(lines(self))


def _named(specs: tuple[Spec, ...], name: str, kind: str) -> Spec:
    for spec in specs:
        if spec.name == name:
            return spec
    known = ", ".join(repr(spec.name) for spec in specs) or "none"
    raise PlanError(f"no {kind} table {name!r}; the plan has: {known}")
