"""The rules of dense and data-norm tables as messages."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from downpour.plan.fleet_desc.rules import (
    BESIDE,
    DENSE_RULES,
    read_beside,
    rule_name,
    write_beside,
)
from downpour.plan.fleet_desc.values import read_value, write_value
from downpour.rules import SGD, AdamD2Sum, Summary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from downpour.plan.fleet_desc.fleet_desc_pb2 import DenseSGDRuleParameter
    from downpour.plan.fleet_desc.places import Node
    from downpour.rules import Rule

NAMES: Mapping[str, type] = {"adam": AdamD2Sum, "naive": SGD, "summary": Summary}
# By the rule's name, its settings and what its message calls them.
FIELDS: Mapping[str, Mapping[str, str]] = {
    "adam": {
        "lr": "learning_rate",
        "ada_decay": "ada_decay_rate",
        "eps": "ada_epsilon",
        "mom_decay": "mom_decay_rate",
    },
    "naive": {"lr": "learning_rate"},
    "summary": {"decay": "summary_decay_rate"},
}
# The messages stand beside each other in the reference's own files, whatever the name.
BLOCKS = (*NAMES, "moving_average")
AVG_DECAY = "avg_decay_rate"  # no formula reads it


def write_rule(
    message: DenseSGDRuleParameter, rule: Rule, avg_decay: float | None, what: str
) -> None:
    """Write a rule: by its name where the reference has it, else as a value of ours."""
    for name, of in NAMES.items():
        if type(rule) is of:
            message.name = name
            block = getattr(message, name)
            for setting, field in FIELDS[name].items():
                setattr(block, field, float(getattr(rule, setting)))
            if avg_decay is not None and AVG_DECAY in block.DESCRIPTOR.fields_by_name:
                setattr(block, AVG_DECAY, avg_decay)
            write_beside(message.extension, rule, what)
            return
    write_value(message.extension.rule, rule, DENSE_RULES, f"{what}: rule")


def read_rule(node: Node) -> Rule:
    """Read what `write_rule` wrote. Raises PlanError."""
    extension = node.child("extension")
    if extension.has("rule"):
        node.refuse_others(("extension",), "a rule of Downpour's own")
        extension.refuse_others(("rule",), "a rule of Downpour's own")
        own: Rule = read_value(extension.child("rule"), DENSE_RULES)
        return own
    extension.refuse_others(BESIDE, "the rule of a dense table")
    name = rule_name(node, NAMES, BLOCKS)
    return node.made(lambda it: _named_rule(it, name))


def read_avg_decay(node: Node) -> float | None:
    """The avg_decay_rate of a rule that `read_rule` has read, None where it is the default."""
    if node.child("extension").has("rule"):
        return None
    block = node.child(rule_name(node, NAMES, BLOCKS))
    if AVG_DECAY not in block.message.DESCRIPTOR.fields_by_name:
        return None
    default = block.message.DESCRIPTOR.fields_by_name[AVG_DECAY].default_value
    value: float = block.get(AVG_DECAY)
    if not math.isfinite(value):
        raise block.error(AVG_DECAY, f"must be a finite number, got {value}")
    return None if value == default else value


def _named_rule(node: Node, name: str) -> Rule:
    block, beside = node.child(name), read_beside(node.child("extension"))
    settings = {setting: block.get(field) for setting, field in FIELDS[name].items()}
    made: Rule = NAMES[name](**settings, **beside)
    return made
