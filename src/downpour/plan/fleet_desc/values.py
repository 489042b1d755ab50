"""Frozen values of Downpour's own as messages: rules, schedules, first values, clips."""

from __future__ import annotations

import importlib
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from downpour.clip import ClipByNorm, ClipByValue
from downpour.errors import PlanError, SettingError
from downpour.init import Constant, Normal, Uniform
from downpour.schedules import (
    Cosine,
    Exponential,
    Linear,
    StepDecay,
    TorchSchedule,
    Warmup,
)
from downpour.settings import default_of, is_number, said

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from dataclasses import Field

    from downpour.plan.fleet_desc.fleet_desc_pb2 import Setting, Value
    from downpour.plan.fleet_desc.places import Node


def named(*types: type) -> Mapping[str, type]:
    """Types by their names, as a description calls them."""
    return {it.__name__: it for it in types}


SCHEDULES = named(Cosine, Exponential, Linear, StepDecay, TorchSchedule, Warmup)
INITS = named(Constant, Normal, Uniform)
CLIPS = named(ClipByNorm, ClipByValue)
TORCH_SCHEDULERS = "torch.optim.lr_scheduler"


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))


# By what a setting is declared as, what a message calls its values, and whether a value is one.
KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "bool": ("true or false", lambda it: isinstance(it, bool)),
    "int": ("a finite number", is_number),
    "float": ("a finite number", is_number),
    "tuple[float, float]": ("two numbers", _is_pair),
    "Schedule": (f"one of {', '.join(SCHEDULES)}", lambda it: type(it) in SCHEDULES.values()),
    "None": ("", lambda it: it is None),
}


def write_value(message: Value, value: object, types: Mapping[str, type], what: str) -> None:
    """Write a frozen value of these types; `what` it is, for the PlanError about any other."""
    if type(value) not in types.values():
        raise PlanError(
            f"{what}: {value!r} is not one of {', '.join(types)}, which is what a description can "
            "name; take one of them, or pickle the plan"
        )
    message.type = type(value).__name__
    settings = _torch_settings(value, what) if isinstance(value, TorchSchedule) else said(value)
    for name, setting in settings.items():
        _write_setting(message.setting.add(name=name), setting, f"{what}: {name}")


def _torch_settings(schedule: TorchSchedule, what: str) -> dict[str, Any]:
    name = schedule.scheduler.__name__
    if getattr(importlib.import_module(TORCH_SCHEDULERS), name, None) is not schedule.scheduler:
        raise PlanError(
            f"{what}: TorchSchedule of {schedule.scheduler!r}, and a description can name only "
            f"those of {TORCH_SCHEDULERS}; take one of them, or pickle the plan"
        )
    return {"scheduler": name, **schedule.settings}


def _write_setting(message: Setting, value: Any, what: str) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        message.truth = value
    elif isinstance(value, int | np.integer):
        message.whole = int(value)
    elif isinstance(value, float | np.floating):
        message.number = float(value)
    elif isinstance(value, str):
        message.text = value
    elif isinstance(value, list | tuple):
        items = message.tuple if isinstance(value, tuple) else message.list
        items.SetInParent()  # an empty one is there too
        for index, item in enumerate(value):
            _write_setting(items.item.add(), item, f"{what}[{index}]")
    else:
        write_value(message.value, value, SCHEDULES, what)


def read_value(node: Node, types: Mapping[str, type]) -> Any:
    """Read a frozen value of these types. Raises PlanError for what they cannot be."""
    node.place.refuse_deep()
    name = node.get("type")
    if name not in types:
        raise node.error("type", f"must be one of {', '.join(types)}, got {name!r}")
    make = _torch_schedule if types[name] is TorchSchedule else _value
    return node.made(lambda it: make(it, types[name]))


def _value(node: Node, of: Any) -> Any:
    settings = _read_settings(node)
    known = {field.name: field for field in fields(of) if field.init}
    for index, (name, value) in enumerate(settings.items()):
        if name not in known:
            why = f"{of.__name__} has no {name!r}; it has: {', '.join(known)}"
            raise node.error("setting", why, index)
        if why := _refusal(known[name], value):
            raise node.error("setting", f"{of.__name__}.{name} {why}", index)
    needed = [name for name, field in known.items() if default_of(field) is MISSING]
    for name in needed:
        if name not in settings:
            raise node.error("type", f"{of.__name__} needs a setting of name {name!r}")
    if needed:
        _check_needed(node, of, settings, needed)
    return of(**settings)


def _check_needed(node: Node, of: Any, settings: Mapping[str, Any], needed: Sequence[str]) -> None:
    """What has no default is tried alone: there is no other value that Node.made could try."""
    try:
        of(**{name: settings[name] for name in needed})
    except SettingError as error:
        raise node.error("setting", str(error), [*settings].index(needed[-1])) from error


def _refusal(field: Field[Any], value: Any) -> str:
    """Why a setting cannot have a value, by what it is declared as; empty where it can."""
    kinds = [KINDS[kind] for kind in str(field.type).split(" | ")]
    if any(is_one(value) for _, is_one in kinds):
        return ""
    return f"must be {' or '.join(what for what, _ in kinds if what)}, got {value!r}"


def _torch_schedule(node: Node, of: type[TorchSchedule]) -> TorchSchedule:
    settings = _read_settings(node)
    names = [*settings]
    if "scheduler" not in names:
        raise node.error("type", "TorchSchedule needs a setting of name 'scheduler'")
    if "self" in names:
        raise node.error("setting", "no scheduler has 'self'; take it out", names.index("self"))
    name = settings["scheduler"]
    # A scheduler of torch, and nothing else that its module may have.
    module = importlib.import_module(TORCH_SCHEDULERS)
    found = getattr(module, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, module.LRScheduler)):
        why = f"{TORCH_SCHEDULERS} has no scheduler {name!r}"
        raise node.error("setting", why, names.index("scheduler"))
    settings["scheduler"] = found
    _check_needed(node, of, settings, ["scheduler"])
    return of(**settings)


def _read_settings(node: Node) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for index, setting in enumerate(node.children("setting")):
        name = setting.get("name")
        if name in settings:
            why = f"{name!r} of {node.get('type')} is given twice; keep one"
            raise node.error("setting", why, index)
        settings[name] = _read_setting(setting)
    return settings


def _read_setting(node: Node) -> Any:
    kind = node.message.WhichOneof("kind")
    if kind is None:
        return None
    if kind == "value":
        return read_value(node.child(kind), SCHEDULES)
    if kind not in ("list", "tuple"):
        return node.get(kind)
    items = [_read_setting(it) for it in node.child(kind).children("item")]
    return tuple(items) if kind == "tuple" else items
