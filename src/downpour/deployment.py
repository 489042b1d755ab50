"""What servers must know of a plan, as text that travels, and a fingerprint for all to compare."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from downpour.accessor import CtrAccessor
from downpour.errors import DownpourError, PlanError, RefusedError
from downpour.plan.plan import Plan
from downpour.plan.sections import Sections

if TYPE_CHECKING:
    from downpour.plan.specs import SparseTableSpec
    from downpour.rules import Rule

MAX_SHARDS = 1 << 16  # servers
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in the repr of a function, other in each process


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """The tables of a plan and how they are spread over `num_shards` servers."""

    plan: Plan
    num_shards: int
    sections: Sections = field(default_factory=Sections)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that workers and servers must have alike: tables, programs, the split."""
        plan = self.plan
        said = (plan.sparse, plan.dense, plan.programs, plan.clip, self.num_shards, self.sections)
        return hashlib.sha256(ADDRESS.sub("", repr(said)).encode()).hexdigest()

    def message(self) -> dict[str, Any]:
        """The tables as a server can make them, JSON: learning rates come with each push.

        Raises PlanError for rules and initial values that are not Downpour's own: start the
        servers with the plan then, as `downpour train FILE --servers` does.
        """
        return {
            "fingerprint": self.fingerprint,
            "num_shards": self.num_shards,
            "sections": asdict(self.sections),
            "tables": str(_tables_alone(self.plan).fleet_desc()),
        }

    @classmethod
    def of_message(cls, message: dict[str, Any]) -> Deployment:
        """What `message` was of, without its programs. RefusedError for nonsense."""
        try:
            made = cls(
                plan=Plan.from_fleet_desc(message["tables"]),
                num_shards=message["num_shards"],
                sections=Sections(**message["sections"]),
            )
            if type(made.num_shards) is not int or not 1 <= made.num_shards <= MAX_SHARDS:
                raise PlanError(
                    f"num_shards must be an int in [1, {MAX_SHARDS}], got {made.num_shards!r:.80}"
                )
            fingerprint = str(message["fingerprint"])
        except (
            DownpourError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError,
            ValueError,
        ) as error:  # fmt: skip
            raise RefusedError(f"no tables can be made of this: {error!s:.1000}") from None
        made.__dict__["fingerprint"] = fingerprint  # of the whole plan, which the client has
        return made


def _tables_alone(plan: Plan) -> Plan:
    """The plan's tables without schedules, which only workers follow, and without programs."""
    dense = tuple(replace(spec, rule=_steady(spec.rule)) for spec in plan.dense)
    return Plan(sparse=tuple(map(_steady_table, plan.sparse)), dense=dense, programs={})


def _steady_table(spec: SparseTableSpec) -> SparseTableSpec:
    rules = [_steady(rule) for rule in spec.accessor.rules]
    if isinstance(spec.accessor, CtrAccessor):
        accessor: Any = replace(spec.accessor, rule=rules[0], embedx_rule=rules[1])
    else:
        accessor = replace(spec.accessor, rule=rules[0])
    return replace(spec, accessor=accessor)


def _steady(rule: Rule) -> Rule:
    made: Rule = rule if rule.schedule is None else replace(cast("Any", rule), schedule=None)
    return made
