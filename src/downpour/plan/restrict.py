"""What is to get no gradient: `parameter_list` and `no_grad_set`, as names of this model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from downpour.errors import PlanError
from downpour.plan.specs import plan_name

if TYPE_CHECKING:
    from collections.abc import Sequence

Parameters: TypeAlias = "Iterable[str | torch.nn.Parameter]"


@dataclass(frozen=True, slots=True)
class Restriction:
    """`allowed`: by loss, the parameters that it may train, None for all; `named`: the tables that
    its list names. `parameters`, `tables` and `modules` get no gradient from any loss.
    """

    allowed: Mapping[str, frozenset[str] | None]
    named: Mapping[str, frozenset[str]]
    parameters: frozenset[str]
    tables: frozenset[str]
    modules: frozenset[str]

    def may_train(self, loss: str, parameter: str) -> bool:
        """Whether a loss's gradient of a parameter is taken."""
        allowed = self.allowed[loss]
        return parameter not in self.parameters and (allowed is None or parameter in allowed)

    def check_tables(self, loss: str, trained: Iterable[str]) -> None:
        """Raise PlanError for a list that names some of the tables that a loss trains.

        As in the reference, rows are trained whether or not a list names their table.
        """
        lacking = [table for table in trained if table not in self.named[loss]]
        if self.named[loss] and lacking:
            raise PlanError(
                f"parameter_list names {_texts(sorted(self.named[loss]))}, and loss {loss!r} "
                f"trains the rows of {_texts(lacking)} as well: a list chooses among dense "
                "parameters, rows are trained in any case. Name all of these tables or none, or "
                f"give no_grad_set={lacking}"
            )


def restriction(
    model: torch.nn.Module,
    losses: Sequence[str],
    tables: Collection[str],
    parameter_list: Any,
    no_grad_set: Any,
) -> Restriction:
    """Read the two arguments of `minimize`. Raises PlanError for a name that nothing has."""
    names = _Names(model)
    by_loss = _by_loss(parameter_list, losses)
    modules = {plan_name(name) for name, _ in model.named_modules() if name}
    groups: dict[str, set[str]] = {"parameters": set(), "tables": set(), "modules": set()}
    for given in _listed("no_grad_set", no_grad_set):
        if (parameter := names.find(given)) is not None:
            groups["parameters"].add(parameter)
        elif isinstance(given, str) and given in tables:
            groups["tables"].add(given)
        elif isinstance(given, str) and plan_name(given) in modules:
            groups["modules"].add(plan_name(given))
        else:
            raise _unknown("no_grad_set", given, [*names.canonical, *tables, *modules])
    found = {
        loss: None if given is None else names.require(given, tables)
        for loss, given in by_loss.items()
    }
    return Restriction(
        allowed={loss: own and own[0] for loss, own in found.items()},
        named={loss: frozenset() if own is None else own[1] for loss, own in found.items()},
        **{group: frozenset(found) for group, found in groups.items()},
    )


class _Names:
    """The names of a model's parameters; a tied one answers to all of its own."""

    def __init__(self, model: torch.nn.Module) -> None:
        first: dict[int, str] = {}
        self.canonical: dict[str, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            own = first.setdefault(id(parameter), plan_name(name))
            self.canonical[plan_name(name)] = own
        self._by_id = first

    def find(self, given: object) -> str | None:
        if isinstance(given, torch.nn.Parameter):
            return self._by_id.get(id(given))
        return self.canonical.get(plan_name(given)) if isinstance(given, str) else None

    def require(
        self, listed: Parameters, tables: Collection[str]
    ) -> tuple[frozenset[str], frozenset[str]]:
        """The parameters and the tables of a list; PlanError for what is neither."""
        parameters, named = set(), set()
        for given in listed:
            if (name := self.find(given)) is not None:
                parameters.add(name)
            elif isinstance(given, str) and given in tables:
                named.add(given)
            else:
                raise _unknown("parameter_list", given, [*self.canonical, *tables])
        return frozenset(parameters), frozenset(named)


def _by_loss(parameter_list: Any, losses: Sequence[str]) -> dict[str, list[Any] | None]:
    """One list for all losses, one for each by name, or the reference's list of lists."""
    if parameter_list is None:
        return dict.fromkeys(losses)
    if isinstance(parameter_list, Mapping):
        for name in parameter_list:
            if name not in losses:
                raise PlanError(
                    f"parameter_list names the loss {name!r}; there are: {', '.join(losses)}"
                )
        given = {name: parameter_list.get(name) for name in losses}
        return {
            name: None if own is None else _listed("parameter_list", own)
            for name, own in given.items()
        }
    listed = _listed("parameter_list", parameter_list)
    if listed and all(isinstance(own, list | tuple) for own in listed):
        if len(listed) != len(losses):
            raise PlanError(
                f"parameter_list has {len(listed)} lists for {len(losses)} losses; give one each, "
                "or {loss: list}"
            )
        return {name: list(own) for name, own in zip(losses, listed, strict=True)}
    return dict.fromkeys(losses, listed)


def _listed(argument: str, given: Any) -> list[Any]:
    if given is None:
        return []
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise PlanError(f"{argument} must be a list of names, got {given!r}")
    return list(given)


def _texts(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _unknown(argument: str, given: object, known: Sequence[str]) -> PlanError:
    if not isinstance(given, str):
        return PlanError(f"{argument} has {given!r}, which is no parameter of the model")
    near = get_close_matches(given, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known[:10])}"
    return PlanError(f"{argument} has {given!r}, which the model does not have{hint}")
