"""A plan: which tables there are, and what one worker does for each loss, op by op.

Everything here is a frozen value: a plan prints, compares and hashes by what it says. A worker is
an interpreter of the ops; nothing else decides what travels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from downpour.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from downpour.accessor import EmbeddingAccessor
    from downpour.clip import Clip
    from downpour.rules import Rule
    from downpour.tables.dense import Section

    Loss: TypeAlias = Callable[..., Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSpec:
    """One feature that reads a table, and the id space that its ids live in."""

    name: str
    space: str | None  # None: the ids are globally unique


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseTableSpec:
    """A table of rows keyed by 64-bit ids."""

    id: int
    name: str
    accessor: EmbeddingAccessor
    features: tuple[FeatureSpec, ...]
    padding_key: int | None = None
    seed: int = 0

    def space_of(self, feature: str) -> str | None:
        """Return the id space of a feature of this table.

        Raises:
            PlanError: the feature does not read this table.
        """
        for spec in self.features:
            if spec.name == feature:
                return spec.space
        names = ", ".join(spec.name for spec in self.features)
        raise PlanError(
            f"table {self.name!r} is not read by feature {feature!r}; it is by: {names}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseTableSpec:
    """A flat block that holds the parameters of a loss, one section each."""

    id: int
    name: str
    rule: Rule
    sections: tuple[Section, ...]
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Elements in the block."""
        return sum(section.size for section in self.sections)


Spec = TypeVar("Spec", SparseTableSpec, DenseTableSpec)


@dataclass(frozen=True, slots=True)
class PullDense:
    """Read the parameters of a dense table into the model."""

    table: str


@dataclass(frozen=True, slots=True)
class PullSparse:
    """Read the rows of the batch's keys for these features."""

    table: str
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Compute:
    """Run the loss forward and backward."""

    loss: str


@dataclass(frozen=True, slots=True)
class PushSparse:
    """Send the gradient of the rows of these features."""

    table: str
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PushDense:
    """Send the gradient of a dense table's parameters."""

    table: str


Op: TypeAlias = PullDense | PullSparse | Compute | PushSparse | PushDense


@dataclass(frozen=True, slots=True)
class Program:
    """The ordered ops that one worker runs on a batch for one loss."""

    name: str
    ops: tuple[Op, ...]

    def tables(self, *kinds: type) -> tuple[str, ...]:
        """Return the tables named by ops of these kinds, in order."""
        return tuple(op.table for op in self.ops if isinstance(op, kinds))  # type: ignore[union-attr]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What each table holds and what each program does.

    `losses` are the callables behind the programs; they take no part in comparison and stay behind
    when a plan is pickled.
    """

    sparse: tuple[SparseTableSpec, ...]
    dense: tuple[DenseTableSpec, ...]
    programs: Mapping[str, Program] = field(hash=False)
    window: int = 1
    clip: Clip | None = None
    losses: Mapping[str, Loss] = field(default_factory=dict, compare=False, repr=False)

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

    def loss(self, name: str) -> Loss:
        """Return the callable of a program, or raise PlanError."""
        if name not in self.losses:
            raise PlanError(
                f"the plan has no function for loss {name!r}: a plan that was pickled or loaded is "
                "without its losses; plan with DownpourSGD.minimize to train"
            )
        return self.losses[name]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "losses": {}}

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def plan_name(name: str) -> str:
    """What plans call a module, parameter or buffer: its name without what torch.compile adds."""
    return name.replace("_orig_mod.", "")


def _named(specs: tuple[Spec, ...], name: str, kind: str) -> Spec:
    for spec in specs:
        if spec.name == name:
            return spec
    known = ", ".join(repr(spec.name) for spec in specs) or "none"
    raise PlanError(f"no {kind} table {name!r}; the plan has: {known}")


def _lines(plan: Plan) -> Iterator[str]:
    clip = "" if plan.clip is None else f", {plan.clip!r}"
    yield f"plan: {len(plan.sparse)} sparse, {len(plan.dense)} dense, window {plan.window}{clip}"
    for table in plan.sparse:
        features = " ".join(_feature_text(feature) for feature in table.features)
        yield f"  {table.id} sparse {table.name}: dim {table.accessor.dim}, {table.accessor.rule!r}"
        padding = "" if table.padding_key is None else f", padding_key {table.padding_key}"
        yield f"      features {features}{padding}"
    for block in plan.dense:
        yield f"  {block.id} dense {block.name}: {block.size:,} elements, {block.rule!r}"
        for section in block.sections:
            yield f"      {section.name} {list(section.shape)}"
    for program in plan.programs.values():
        yield f"program {program.name}"
        for op in program.ops:
            yield f"  {_op_text(op)}"


def _feature_text(feature: FeatureSpec) -> str:
    if feature.space == feature.name:
        return feature.name
    return f"{feature.name}@{'*' if feature.space is None else feature.space}"


def _op_text(op: Op) -> str:
    kind = type(op).__name__
    if isinstance(op, Compute):
        return f"{kind:<11}{op.loss}"
    features = " ".join(op.features) if isinstance(op, (PullSparse, PushSparse)) else ""
    return f"{kind:<11}{op.table} {features}".rstrip()
