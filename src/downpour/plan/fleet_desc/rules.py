"""What the rules of rows and of dense tables have alike as messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from downpour import rules
from downpour.plan.fleet_desc.values import SCHEDULES, named, read_value, write_value

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from downpour.plan.fleet_desc.fleet_desc_pb2 import RuleExtension
    from downpour.plan.fleet_desc.places import Node
    from downpour.rules import BaseRule, Rule

_FORMS = ("BaseRule", "Rule")  # of rules, and not rules themselves
_RULES: Sequence[type[BaseRule]] = [
    getattr(rules, name) for name in rules.__all__ if name not in _FORMS
]
SPARSE_RULES = named(*(rule for rule in _RULES if rule.on_sparse))
DENSE_RULES = named(*(rule for rule in _RULES if rule.on_dense))
BESIDE = ("schedule", "weight_decay", "batch_l2")  # what every rule has beside its numbers


def rule_name(node: Node, names: Collection[str], blocks: Collection[str]) -> str:
    """The rule's name; where it is left out, that of the one message there is. PlanError if none.

    `blocks`: the messages of rules' numbers.
    """
    written = [block for block in blocks if node.has(block)]
    name: str = node.get("name") or (written[0] if len(written) == 1 else "")
    if name == "moving_average":
        raise node.error("name", "no formula of 'moving_average' is known; take adam or naive")
    if name not in names:
        raise node.error("name", f"must be one of {', '.join(names)}, got {name!r}")
    return name


def write_beside(extension: RuleExtension, rule: Rule, what: str) -> None:
    """Write what every rule may have and no message of the reference's has."""
    if rule.schedule is not None:
        write_value(extension.schedule, rule.schedule, SCHEDULES, f"{what}: schedule")
    for name in ("weight_decay", "batch_l2"):
        if getattr(rule, name):
            setattr(extension, name, float(getattr(rule, name)))


def read_beside(extension: Node) -> dict[str, Any]:
    """Read what `write_beside` wrote, as settings of a rule."""
    read = {
        name: extension.get(name) for name in ("weight_decay", "batch_l2") if extension.has(name)
    }
    if extension.has("schedule"):
        read["schedule"] = read_value(extension.child("schedule"), SCHEDULES)
    return read
