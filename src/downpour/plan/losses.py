"""The losses that a plan is made of, by the names of their programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from downpour.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from downpour.plan.program import Loss


def named_losses(losses: Loss | Sequence[Loss] | Mapping[str, Loss]) -> dict[str, Loss]:
    """Losses by the name of their program. Raises PlanError."""
    if isinstance(losses, Mapping):
        named = dict(losses)
        unnamed = [name for name in named if type(name) is not str or not name]
        if unnamed:
            raise PlanError(f"the name of a loss must be a text, got {unnamed[0]!r}")
    else:
        given: Any = losses
        is_one = callable(given) or not isinstance(given, Iterable)
        listed = [given] if is_one else list(given)
        named = {_name_of(loss): loss for loss in listed}
        if len(named) < len(listed):
            names = [_name_of(loss) for loss in listed]
            twice = next(name for name in names if names.count(name) > 1)
            raise PlanError(
                f"two losses are called {twice!r}; name them: {{'first': ..., 'second': ...}}"
            )
    if not named:
        raise PlanError("minimize needs at least one loss, got none")
    for name, loss in named.items():
        if not callable(loss):
            raise PlanError(
                f"loss {name!r} must be a function (model, batch) -> scalar, got {loss!r}"
            )
    return named


def _name_of(loss: Any) -> str:
    name = getattr(loss, "__name__", None)
    if not callable(loss) or name is None or name == "<lambda>":
        raise PlanError(
            f"a loss is named by its function, and {loss!r} has no name; give {{'click': loss}}"
        )
    return str(name)
