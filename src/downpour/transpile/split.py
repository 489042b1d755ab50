"""Which server has which section of which variable, asked by variable, section or server."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from downpour.errors import PlanError
from downpour.plan.sections import Layout, moves_by_element
from downpour.plan.specs import grad_name
from downpour.transpile.ops import VariableSection
from downpour.transpile.text import aligned, shape_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from downpour.plan.plan import Plan
    from downpour.plan.sections import Part
    from downpour.plan.specs import DenseTableSpec
    from downpour.rules import Rule
    from downpour.tables.dense import Section
    from downpour.transpile.config import DistributeTranspilerConfig
    from downpour.transpile.ops import Kind

T = TypeVar("T")
COLUMNS = ("variable", "kind", "section", "offset", "size", "shape", "endpoint")


@dataclass(frozen=True, kw_only=True)
class Split:
    """The sections of all dense variables, a parameter's before those that belong to it.

    endpoints: the servers, by their number. tables: the lookup tables, each with the numbers that
    it gives of a row; every server has a shard of each, the rows by the hash of their keys.

    Raises PlanError for two variables or two sections of one name.
    """

    sections: tuple[VariableSection, ...]
    endpoints: tuple[str, ...]
    tables: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        homes = dict.fromkeys((it.variable, it.table, it.kind) for it in self.sections)
        for names in (
            Counter(name for name, _, _ in homes),
            Counter(section.name for section in self.sections),
        ):
            twice = [name for name, count in names.items() if count > 1]
            if twice:
                raise PlanError(
                    f"two variables or sections of transpiled programs would be called "
                    f"{twice[0]!r}; give a parameter of the model another name"
                )

    @property
    def variables(self) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(self._by_variable)

    def variable(self, name: str) -> tuple[VariableSection, ...]:
        """The sections of a variable, in order; PlanError for one that there is not."""
        return _named(self._by_variable, name, "variable")

    def section(self, name: str) -> VariableSection:
        """The section of that name; PlanError if there is none."""
        return _named(self._by_name, name, "section")

    def endpoint(self, endpoint: str) -> tuple[VariableSection, ...]:
        """The sections that a server has, in order; PlanError for one that is no server."""
        if endpoint not in self.endpoints:
            raise PlanError(f"no server {endpoint!r}; there are: {', '.join(self.endpoints)}")
        return tuple(it for it in self.sections if it.endpoint == endpoint)

    def of_kind(self, kind: Kind) -> tuple[VariableSection, ...]:
        """The sections of all parameters, gradients or others, in order."""
        return tuple(section for section in self.sections if section.kind == kind)

    def __iter__(self) -> Iterator[VariableSection]:
        return iter(self.sections)

    def __len__(self) -> int:
        return len(self.sections)

    def __str__(self) -> str:
        rows = [COLUMNS]
        rows += [
            (
                it.variable,
                it.kind,
                it.name,
                f"{it.offset}",
                f"{it.size}",
                shape_text(it.shape),
                it.endpoint,
            )
            for it in self.sections
        ]
        for table, dim in self.tables:
            rows += [
                (table, "rows", f"shard {number}", "", "", shape_text(("*", dim)), endpoint)
                for number, endpoint in enumerate(self.endpoints)
            ]
        return "\n".join(aligned(rows))

    @cached_property
    def _by_variable(self) -> dict[str, tuple[VariableSection, ...]]:
        found: dict[str, list[VariableSection]] = {}
        for section in self.sections:
            found.setdefault(section.variable, []).append(section)
        return {name: tuple(sections) for name, sections in found.items()}

    @cached_property
    def _by_name(self) -> dict[str, VariableSection]:
        return {section.name: section for section in self.sections}


def split_of(plan: Plan, endpoints: tuple[str, ...], config: DistributeTranspilerConfig) -> Split:
    """Where everything of a plan is: its parameters' sections are those of its servers' tables."""
    trained = {name for program in plan.programs.values() for name in program.parameters}
    sections: list[VariableSection] = []
    for spec in plan.dense:
        parts = Layout(spec, len(endpoints), config.sections).parts
        by_element = moves_by_element(spec.rule)
        for whole in spec.sections:
            parameter = [_section(spec, whole, part, endpoints) for part in parts[whole.name]]
            sections += parameter
            sections += _state(spec.rule, parameter, by_element)
            if whole.name in trained:
                sections += _like(parameter, _sent_name(whole.name, config), config.sent_kind)
    tables = tuple((spec.name, spec.accessor.pull_dim) for spec in plan.sparse)
    return Split(sections=tuple(sections), endpoints=endpoints, tables=tables)


def _sent_name(parameter: str, config: DistributeTranspilerConfig) -> str:
    return grad_name(parameter) if config.sent_kind == "gradient" else f"{parameter}@UPDATE"


def _section(
    spec: DenseTableSpec, whole: Section, part: Part, endpoints: tuple[str, ...]
) -> VariableSection:
    return VariableSection(
        name=part.name,
        variable=part.parameter,
        table=spec.name,
        kind="parameter",
        offset=part.offset - whole.offset,
        size=part.size,
        shape=part.shape,
        endpoint=endpoints[part.server],
    )


def _state(
    rule: Rule, parameter: Sequence[VariableSection], by_element: bool
) -> list[VariableSection]:
    """The variables of a rule's state: in the parameter's sections if it is so many an element."""
    name = parameter[0].variable
    if by_element:
        names = [f"{name}@STATE.{number}" for number in range(rule.state_dim(1))]
        return [section for own in names for section in _like(parameter, own, "optimizer")]
    (whole,) = parameter  # which a rule that mixes the elements keeps
    dim = rule.state_dim(whole.size)
    state = replace(whole, size=dim, shape=(dim,))
    return _like([state], f"{name}@STATE.0", "optimizer") if dim else []


def _like(sections: Sequence[VariableSection], name: str, kind: Kind) -> list[VariableSection]:
    """The sections of a variable that is split as another is."""
    return [
        replace(it, name=name + it.name.removeprefix(it.variable), variable=name, kind=kind)
        for it in sections
    ]


def _named(of: Mapping[str, T], name: str, what: str) -> T:
    if name in of:
        return of[name]
    near = get_close_matches(str(name), of, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}?"
    if not near:
        hint = f"there are: {', '.join([*of][:10]) or 'none'}"
    raise PlanError(f"the split has no {what} {name!r}; {hint}")
