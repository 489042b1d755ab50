"""What a federation is to learn, in plain torch: models that are trained apart, and averaged."""

from __future__ import annotations

import copy
from collections import defaultdict
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import downpour as dp
from downpour.run_plan import make_plan
from tests.networks import PlainRows, plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Averaged:
    """Models of plain torch that are trained apart, one a client, and averaged after each round."""

    def __init__(self, made: dp.Federation) -> None:
        self.made, self.method = made, made.method
        plan = make_plan(made.run)
        with dp.embedded(plan) as ps:
            self.whole: Any = plain(made.model, ps)
        self._models = [copy.deepcopy(self.whole) for _ in range(made.clients)]
        self._optimizers: dict[int, torch.optim.Optimizer] = {}
        self._going_on = [forever(made.data_of(client)) for client in range(made.clients)]
        self._state: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        self._losses = list(made.losses) if isinstance(made.losses, list) else [made.losses]

    def train(self, rounds: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The values after rounds in which these clients were heard from."""
        for number, heard in enumerate(rounds, start=1):
            batches = {client: self._batches(client, number) for client in heard}
            for client in heard:
                self._train(client, batches[client])
            if heard:
                self._average(batches)
        return self.values()

    def values(self) -> list[np.ndarray]:
        """Rows by table, and then all that is dense, as the tables have it."""
        named = sorted(self.whole.named_parameters())
        rows = [it.detach().numpy() for name, it in named if self._is_rows(name)]
        dense = [it.detach().numpy().ravel() for name, it in named if not self._is_rows(name)]
        return [*rows, np.concatenate(dense)]

    def _batches(self, client: int, number: int) -> list[dp.Batch]:
        epochs, steps = self.method.local_epochs, self.method.local_steps
        if epochs is None:
            return [*islice(self._going_on[client], steps)]
        source = self.made.data_of(client)
        first = (number - 1) * epochs
        return [it for epoch in range(first, first + epochs) for it in source.batches(epoch)]

    def _train(self, client: int, batches: Sequence[dp.Batch]) -> None:
        model = self._models[client]
        model.load_state_dict(self.whole.state_dict())
        if client not in self._optimizers or self.method.optimizer_state == "fresh":
            self._optimizers[client] = self.made.optimizer(model.parameters())
        optimizer = self._optimizers[client]
        for batch in batches:
            for loss in self._losses:
                optimizer.zero_grad()
                (loss(model, batch) + self._proximal(model)).backward()
                optimizer.step()

    def _proximal(self, model: Any) -> Any:
        pairs = zip(model.parameters(), self.whole.parameters(), strict=True)
        squares = sum((own - first.detach()).square().sum() for own, first in pairs)
        return self.method.proximal / 2 * squares

    def _average(self, batches: dict[int, list[dp.Batch]]) -> None:
        weights = {
            client: 1 if self.method.weighting == "equal" else sum(it.size for it in own)
            for client, own in batches.items()
        }
        with torch.no_grad():
            for name, value in self.whole.named_parameters():
                touched = {it: self._touched(name, value, own) for it, own in batches.items()}
                total = torch.zeros_like(value)
                counted = torch.zeros(len(value), 1, dtype=value.dtype)
                for client, weight in weights.items():
                    own = dict(self._models[client].named_parameters())[name]
                    total += weight * (own - value)
                    is_counted = self.method.rows_over == "all" or touched[client]
                    counted += weight * torch.as_tensor(is_counted).to(value).reshape(-1, 1)
                mean = total / counted.clamp(min=1e-9).reshape(-1, *[1] * (value.ndim - 1))
                moves = torch.stack([*touched.values()]).any(0)
                value[moves] = self._stepped(name, value, mean)[moves]

    def _stepped(self, name: str, value: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """One step of the servers, by the formulas of the papers."""
        method, state, lr = self.method, self._state[name], self.method.server_lr
        if isinstance(method, dp.FedAvgM):
            first = state.get("v", torch.zeros_like(value))
            state["v"] = torch.where(self._has_moved(mean), method.momentum * first - mean, first)
            return value - lr * state["v"]
        if isinstance(method, dp.FedAdam):
            b1, b2 = method.betas
            m = state.get("m", torch.zeros_like(value))
            v = state.get("v", torch.full_like(value, method.tau**2))
            state["m"] = torch.where(self._has_moved(mean), b1 * m + (1 - b1) * mean, m)
            state["v"] = torch.where(self._has_moved(mean), b2 * v + (1 - b2) * mean**2, v)
            return value + lr * state["m"] / (state["v"].sqrt() + method.tau)
        return value + lr * mean

    def _has_moved(self, mean: torch.Tensor) -> torch.Tensor:
        """Which rows somebody has touched: their steps alone count, each by each."""
        return mean.ne(0).any(-1, keepdim=True).expand_as(mean)

    def _touched(self, name: str, value: torch.Tensor, batches: Sequence[dp.Batch]) -> torch.Tensor:
        """Which rows a client's batches have; all of a parameter that has no ids."""
        touched = torch.full([len(value)], not self._is_rows(name))
        if self._is_rows(name):
            module = self.whole.get_submodule(name.rpartition(".")[0])
            for batch in batches:
                for feature in module.features:
                    touched[batch.features[feature].tensor + module.place[feature]] = True
        return touched

    def _is_rows(self, name: str) -> bool:
        return isinstance(self.whole.get_submodule(name.rpartition(".")[0]), PlainRows)


def forever(source: Any) -> Iterator[dp.Batch]:
    return chain.from_iterable(source.batches(epoch) for epoch in count())
