"""The first values of the dense parameters, where they are not the model's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from downpour.errors import NonFiniteError, PlanError
from downpour.plan.specs import SIZE, SQUARE_SUM, plan_name

if TYPE_CHECKING:
    from downpour.plan.plan import Plan


def checked_startup(startup: Any, plan: Plan, model: torch.nn.Module) -> Any:
    """Give `startup` back if it can start this model. Raises PlanError or NonFiniteError."""
    if startup is None or (callable(startup) and not isinstance(startup, Mapping)):
        return startup
    if not isinstance(startup, Mapping):
        raise PlanError(f"startup must be a function of the model or a state_dict, got {startup!r}")
    _check(startup, plan, model)
    return startup


def start(plan: Plan, model: torch.nn.Module) -> None:
    """Give a model the values that the plan's `startup` says.

    A function is called with the model, which it changes, or whose state_dict it returns; what else
    it returns is not looked at. Raises PlanError or NonFiniteError, before a value of the model is
    changed by a state_dict.
    """
    startup: Callable[[Any], Any] | Mapping[str, Any] | None = plan.startup
    if startup is None:
        return
    state = startup if isinstance(startup, Mapping) else startup(model)
    if not isinstance(state, Mapping):
        return
    _check(state, plan, model)
    own = _state(model)
    with torch.no_grad():
        for name, value in state.items():
            own[plan_name(name)].copy_(torch.as_tensor(value))


def _check(state: Mapping[str, Any], plan: Plan, model: torch.nn.Module) -> None:
    """Every planned parameter, nothing that the model does not have, finite and in its shape."""
    own = _state(model)
    given = {plan_name(str(name)): value for name, value in state.items()}
    planned = [section.name for table in plan.dense for section in table.sections]
    for what, names, all_names in (
        ("has {}, which the model does not have", [*given], own),
        ("lacks {}, which the losses train", planned, given),
    ):
        unlike = [name for name in names if name not in all_names]
        if unlike:
            raise PlanError(f"startup: the state_dict {what.format(', '.join(unlike[:5]))}")
    weights = {
        section.name
        for table in plan.dense
        if table.is_data_norm
        for section in table.sections
        if section.name.endswith((SIZE, SQUARE_SUM))
    }
    for name, value in given.items():
        tensor = _tensor(name, value)
        if tensor.shape != own[name].shape:
            raise PlanError(
                f"startup: {name!r} must be {list(own[name].shape)}, got {list(tensor.shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"startup: {name!r} holds NaN or infinity")
        if name in weights and not bool((tensor > 0).all()):
            raise PlanError(
                f"startup: {name!r} is a weight of data-norm statistics and must be > 0, got "
                f"{tensor.min().item()}"
            )


def _tensor(name: str, value: Any) -> torch.Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PlanError(f"startup: {name!r} must be a tensor, got {value!r}") from error
    if tensor.is_complex():
        raise PlanError(f"startup: {name!r} must be real numbers, got {tensor.dtype}")
    return tensor


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by the names that plans use; a tied parameter by each of its own."""
    return {
        plan_name(name): tensor
        for named in (model.named_parameters, model.named_buffers)
        for name, tensor in named(remove_duplicate=False)
    }
