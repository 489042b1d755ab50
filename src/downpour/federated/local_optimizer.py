"""A client's optimizer, and what it has noted of rows, from one of its rounds to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from downpour.errors import SettingError
from downpour.federated.local_rows import places_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from downpour.federated.local import OptimizerFactory
    from downpour.federated.local_rows import LocalRows
    from downpour.federated.methods import OptimizerState
    from downpour.transport import Keys

REFUSED = {
    torch.optim.SparseAdam: "takes sparse gradients alone, and those of rows are dense here, as of "
    "an nn.Embedding; use torch.optim.Adam",
    torch.optim.LBFGS: "computes the loss several times a step; use one that takes the gradients "
    "of one backward pass, as torch.optim.Adam",
}


class LocalOptimizer:
    """A torch optimizer of dense parameters and of the rows of tables, `step` by step of a round.

    state: whether what it notes is "kept" from one round to the next, or each has a "fresh" one.
    Raises SettingError for an optimizer that cannot step them.
    """

    def __init__(
        self,
        make: OptimizerFactory,
        dense: Sequence[torch.nn.Parameter],
        rows: Mapping[str, LocalRows],
        state: OptimizerState,
    ) -> None:
        self._make, self._dense, self._rows = make, tuple(dense), rows
        self._is_kept = state == "kept"
        self._optimizer: torch.optim.Optimizer | None = None
        self._stepped: dict[str, torch.nn.Parameter] = {}  # the rows that it has
        self._kept = {table: KeptState(new) for table, new in self._new_rows().items()}

    def begin(self) -> None:
        """Begin a round, whose rows are there."""
        if self._optimizer is None:
            self._stepped = {table: it.weight for table, it in self._rows.items()}
            self._optimizer = self._made([*self._stepped.values()])
            return
        self._replace_rows()
        for table, rows in self._rows.items():
            if state := self._kept[table].give(rows.keys, rows.weight.device):
                self._optimizer.state[rows.weight] = state

    def step(self) -> None:
        """Step whatever has a gradient."""
        assert self._optimizer is not None
        self._optimizer.step()

    def end(self) -> None:
        """End the round, and its rows with it."""
        for table, rows in self._rows.items():
            if self._is_kept and self._optimizer is not None:
                state = self._optimizer.state.pop(rows.weight, {})
                self._kept[table].take(rows.keys, rows.weight, state)
            rows.end()
        if self._is_kept:
            self._replace_rows()
        else:
            self._optimizer = None

    def _replace_rows(self) -> None:
        """Let the optimizer have the rows of now in place of those before, which then are free."""
        if self._optimizer is None:
            return
        now = {id(old): self._rows[table].weight for table, old in self._stepped.items()}
        for group in self._optimizer.param_groups:
            group["params"] = [now.get(id(it), it) for it in group["params"]]
        self._stepped = {table: it.weight for table, it in self._rows.items()}

    def _made(self, rows: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
        optimizer: object = self._make([*self._dense, *rows])
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise SettingError(
                "a client's optimizer must be a function of parameters that gives a torch "
                "optimizer, as functools.partial(torch.optim.SGD, lr=0.1); it gave "
                f"{optimizer!r}"
            )
        for kind, reason in REFUSED.items():
            if isinstance(optimizer, kind):
                raise SettingError(f"a client cannot train with {kind.__name__}: it {reason}")
        return optimizer

    def _new_rows(self) -> dict[str, NewRows]:
        """Let an optimizer step rows of zeros, by gradients of zeros, to see what it notes."""
        for parameter in self._dense:
            parameter.grad = None
        some = {
            table: torch.nn.Parameter(rows.zeros(rows.spec.accessor.dim + 2))
            for table, rows in self._rows.items()
        }
        optimizer = self._made([*some.values()])
        for parameter in some.values():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        return {table: NewRows.of(optimizer, parameter) for table, parameter in some.items()}


@dataclass(frozen=True, slots=True)
class NewRows:
    """What an optimizer has noted of rows that have had no gradient.

    by_row: by name, of one row. whole: the names of what it notes of all rows together.
    """

    by_row: Mapping[str, torch.Tensor]
    whole: frozenset[str] = frozenset()

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, rows: torch.nn.Parameter) -> NewRows:
        """Read it from an optimizer that has stepped rows of zeros with gradients of zeros.

        The rows must be more than one, and another number than their width.
        """
        state = optimizer.state.get(rows, {})
        by_row = {
            name: value[0].detach().cpu().clone()
            for name, value in state.items()
            if _is_by_row(value, len(rows))
        }
        return cls(by_row, frozenset(state.keys() - by_row.keys()))


class KeptState:
    """What a client's optimizer has noted of a table's rows, kept by key between its rounds.

    State with a row a key is kept on the host; what else there is, as a count of steps, as it is. A
    row that was in no earlier round begins with what is `new`, zeros unless the optimizer says so.
    """

    def __init__(self, new: NewRows) -> None:
        self._new = new
        self._keys: Keys = np.empty(0, np.uint64)
        self._by_row: dict[str, torch.Tensor] = {}
        self._whole: dict[str, Any] = {}

    def take(self, keys: Keys, weight: torch.Tensor, state: Mapping[str, Any]) -> None:
        """Keep the state of rising keys, whose rows are `weight` [num_keys, dim]."""
        if not state:
            return
        own = {name: it for name, it in state.items() if self._has_rows(name, it, weight)}
        self._whole = {name: it for name, it in state.items() if name not in own}
        known, self._keys = self._keys, np.union1d(self._keys, keys)
        if len(self._keys) > len(known):
            at = torch.from_numpy(places_of(self._keys, known))
            for name, values in self._by_row.items():
                grown = self._new_rows(name, values, len(self._keys))
                grown[at] = values
                self._by_row[name] = grown
        at = torch.from_numpy(places_of(self._keys, keys))
        for name, values in own.items():
            if name not in self._by_row:
                self._by_row[name] = self._new_rows(name, values.cpu(), len(self._keys))
            self._by_row[name][at] = values.detach().cpu()

    def give(self, keys: Keys, device: torch.device) -> dict[str, Any]:
        """The state of rows of these keys, on their device; empty where there is none yet."""
        places = places_of(self._keys, keys)
        known = np.flatnonzero(places >= 0)
        from_kept = torch.from_numpy(places[known])
        state = dict(self._whole)
        for name, kept in self._by_row.items():
            values = self._new_rows(name, kept, len(keys))
            values[torch.from_numpy(known)] = kept[from_kept]
            state[name] = values.to(device)
        return state

    def _has_rows(self, name: str, value: Any, weight: torch.Tensor) -> bool:
        """Whether it has a row a key: by what the optimizer had of new rows, else by its shape."""
        if name in self._new.by_row or name in self._new.whole:
            return name in self._new.by_row
        return isinstance(value, torch.Tensor) and value.shape == weight.shape

    def _new_rows(self, name: str, like: torch.Tensor, num_rows: int) -> torch.Tensor:
        rows = torch.zeros((num_rows, *like.shape[1:]), dtype=like.dtype)
        if name in self._new.by_row:
            rows[:] = self._new.by_row[name]
        return rows


def _is_by_row(value: Any, num_rows: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == num_rows
