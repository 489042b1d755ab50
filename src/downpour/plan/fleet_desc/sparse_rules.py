"""The rules of rows as messages, each with the first value and the bounds of what it moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from downpour.init import Constant, Uniform
from downpour.plan.fleet_desc.numbers import read_floats, write_floats
from downpour.plan.fleet_desc.rules import (
    BESIDE,
    SPARSE_RULES,
    read_beside,
    rule_name,
    write_beside,
)
from downpour.plan.fleet_desc.values import INITS, read_value, write_value
from downpour.rules import SGD, G2SumAdagrad, RowAdam, SharedAdam

if TYPE_CHECKING:
    from collections.abc import Mapping

    from downpour.accessor import Bounds
    from downpour.init import Init
    from downpour.plan.fleet_desc.fleet_desc_pb2 import (
        RuleExtension,
        SparseCommonSGDRuleParameter,
        SparseSGDRuleParameter,
    )
    from downpour.plan.fleet_desc.places import Node
    from downpour.rules import Rule

# By the name that a description gives the rule: the message of its numbers, and the rule. Those of
# pslib first, which are written, then those of the_one_ps.
NAMES: Mapping[str, tuple[str, type, Mapping[str, Any]]] = {
    "naive": ("naive", SGD, {}),
    "adagrad": ("adagrad", G2SumAdagrad, {}),
    "std_adagrad": ("adagrad", G2SumAdagrad, {"per_element": True}),
    "adam": ("adam", RowAdam, {}),
    "SparseNaiveSGDRule": ("naive", SGD, {}),
    "SparseAdaGradSGDRule": ("adagrad", G2SumAdagrad, {}),
    "StdAdaGradSGDRule": ("adagrad", G2SumAdagrad, {"per_element": True}),
    "SparseAdamSGDRule": ("adam", RowAdam, {}),
    "SparseSharedAdamSGDRule": ("adam", SharedAdam, {}),
}
BLOCKS = ("naive", "adagrad", "adam")


@dataclass(frozen=True, slots=True)
class Part:
    """What moves a part of a row, what it is at first, and what it stays within."""

    rule: Rule
    init: Init
    bounds: Bounds | None


def write_shared(message: SparseSGDRuleParameter, part: Part, what: str) -> None:
    """Write the one Adagrad of w and embedx; its first value is that of embedx."""
    _write_block(message, message.extension, part, what)


def write_common(message: SparseCommonSGDRuleParameter, part: Part, what: str) -> None:
    """Write any rule: by its name where the reference has it, else as a value of ours."""
    name = _name_of(part.rule)
    if name is not None:
        message.name = name
        _write_block(getattr(message, NAMES[name][0]), message.extension, part, what)
        return
    extension = message.extension
    write_value(extension.rule, part.rule, SPARSE_RULES, f"{what}: rule")
    write_value(extension.init, part.init, INITS, f"{what}: init")
    extension.weight_bounds.extend(part.bounds or ())


def read_shared(node: Node) -> Part:
    """Read what `write_shared` wrote. Raises PlanError."""
    extension = node.child("extension")
    extension.refuse_others((*BESIDE, "init", "weight_bounds"), "the one Adagrad of a row")
    return _read_named(node, "", G2SumAdagrad, {})


def read_common(node: Node) -> Part:
    """Read what `write_common` wrote. Raises PlanError."""
    extension = node.child("extension")
    if not extension.has("rule"):
        name = rule_name(node, NAMES, BLOCKS)
        node.refuse_others(("name", NAMES[name][0], "extension"), f"rule {name!r}")
        return _read_named(node, *NAMES[name])
    node.refuse_others(("extension",), "a rule of Downpour's own")
    extension.refuse_others(("rule", "init", "weight_bounds"), "a rule of Downpour's own")
    rule = read_value(extension.child("rule"), SPARSE_RULES)
    if not extension.has("init"):
        raise extension.error("init", "is missing: the first value, by a rule of Downpour's own")
    return Part(
        rule,
        read_value(extension.child("init"), INITS),
        _pair(extension, extension.get("weight_bounds")),
    )


def _name_of(rule: Rule) -> str | None:
    per_element = getattr(rule, "per_element", False)
    for name, (_, of, settings) in NAMES.items():
        if type(rule) is of and per_element == settings.get("per_element", False):
            return name
    return None


def _write_block(block: Any, extension: RuleExtension, part: Part, what: str) -> None:
    """Write a rule's numbers, first value and bounds, and what it has beside them."""
    for name, value in _numbers(part.rule).items():
        setattr(block, name, value)
    if (bound := _range_of(part.init)) is None:
        write_value(extension.init, part.init, INITS, f"{what}: init")
    else:
        block.initial_range = bound
    write_floats(block.weight_bounds, part.bounds or (), extension.weight_bounds)
    write_beside(extension, part.rule, what)


def _numbers(rule: Any) -> dict[str, float]:
    numbers = {"learning_rate": float(rule.lr)}
    if isinstance(rule, G2SumAdagrad):
        numbers["initial_g2sum"] = float(rule.initial_g2sum)
    if isinstance(rule, RowAdam | SharedAdam):
        numbers["beta1_decay_rate"], numbers["beta2_decay_rate"] = map(float, rule.betas)
        numbers["ada_epsilon"] = float(rule.eps)
    return numbers


def _range_of(init: Init) -> float | None:
    """The initial_range of a first value, None if it has none."""
    if type(init) is Constant and init.value == 0.0:
        return 0.0
    if type(init) is Uniform and 0.0 < init.high == -init.low:
        return float(init.high)
    return None


def _read_named(node: Node, block: str, of: type, settings: Mapping[str, Any]) -> Part:
    """Read a rule whose numbers are in `block`, or in the message itself."""
    numbers, extension = _numbers_of(node, block), node.child("extension")
    return Part(
        node.made(lambda it: _rule(it, block, of, settings)),
        _read_init(numbers, extension),
        _pair(numbers, read_floats(numbers, "weight_bounds", extension)),
    )


def _numbers_of(node: Node, block: str) -> Node:
    return node.child(block) if block else node


def _rule(node: Node, block: str, of: type, settings: Mapping[str, Any]) -> Rule:
    numbers = _numbers_of(node, block)
    given = {**settings, **read_beside(node.child("extension")), "lr": numbers.get("learning_rate")}
    if of is G2SumAdagrad:
        given["initial_g2sum"] = numbers.get("initial_g2sum")
    elif of is not SGD:
        given["betas"] = (numbers.get("beta1_decay_rate"), numbers.get("beta2_decay_rate"))
        given["eps"] = numbers.get("ada_epsilon")
    made: Rule = of(**given)
    return made


def _read_init(node: Node, extension: Node) -> Init:
    if extension.has("init"):
        if node.has("initial_range"):
            raise node.error("initial_range", "there is an extension { init {...} } too; keep one")
        made: Init = read_value(extension.child("init"), INITS)
        return made
    bound = node.get("initial_range")
    if not 0.0 <= bound < float("inf"):
        raise node.error("initial_range", f"must be finite and >= 0, got {bound}")
    return Uniform(bound) if bound else Constant()


def _pair(node: Node, bounds: Any) -> Bounds | None:
    values = tuple(bounds)
    if len(values) not in (0, 2):
        why = f"must be two numbers, or none for no bounds, got {', '.join(map(str, values))}"
        raise node.error("weight_bounds", why)
    return (values[0], values[1]) if values else None
