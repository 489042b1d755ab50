"""Modules whose outputs get no gradient: a loss's part of `no_grad_set`."""

from __future__ import annotations

import contextlib
import sys
from collections import OrderedDict
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from downpour.errors import PlanError
from downpour.plan.specs import plan_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

PLAIN = (str, bytes, int, float, complex, bool, type(None))


def modules_named(model: torch.nn.Module, names: Collection[str]) -> dict[str, torch.nn.Module]:
    """The modules of these names in plans."""
    if not names:
        return {}
    named = {plan_name(name): module for name, module in model.named_modules()}
    return {name: named[name] for name in names}


@contextlib.contextmanager
def outputs_detached(modules: Mapping[str, torch.nn.Module]) -> Iterator[set[str]]:
    """Detach what modules return, and give the names of those that ran.

    Nothing is compiled meanwhile: a graph that was compiled before has no place for it. Raises
    PlanError in a forward that returns what cannot be detached.
    """
    ran: set[str] = set()
    if not modules:
        yield ran
        return
    with uncompiled(), contextlib.ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(_hook(name, ran)).remove)
        yield ran


def has_compiler() -> bool:
    """Whether torch's compiler is loaded, which takes most of a second."""
    return "torch._dynamo" in sys.modules


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Whatever is compiled runs as it was written; nothing is where there is no compiler yet."""
    if not has_compiler():
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _hook(name: str, ran: set[str]) -> Any:
    def detach(_: torch.nn.Module, inputs: object, output: Any) -> Any:
        ran.add(name)
        return _detached(output, name)

    return detach


def _detached(value: Any, module: str) -> Any:
    """The same value with every tensor in it detached."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, PLAIN):
        return value
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _detached(each, module)) for key, each in value.items())
    if type(value) in (list, tuple) or hasattr(value, "_fields"):
        parts = [_detached(each, module) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if is_dataclass(value) and not isinstance(value, type):
        named = {it.name: _detached(getattr(value, it.name), module) for it in fields(value)}
        return replace(value, **named)
    raise PlanError(
        f"no_grad_set names module {module!r}, which returns a {type(value).__name__}: only "
        "tensors, and tuples, lists, dicts and dataclasses of them, can be detached"
    )
