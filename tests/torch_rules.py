"""Rules of Downpour beside the torch optimizers that they equal."""

from __future__ import annotations

from typing import Any

import torch

import downpour as dp


class SparseAdam(torch.optim.SparseAdam):
    """Of rows whose gradient came dense: those that are not 0 move."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = parameter.grad.to_sparse(1)
        return super().step(closure)


# By name: our rules of rows and parameters, and torch's.
RULES: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "sgd": (
        {"sparse": dp.SGD(0.5), "dense": dp.SGD(0.2)},
        lambda p: torch.optim.SGD(p, lr=0.5),
        lambda p: torch.optim.SGD(p, lr=0.2),
    ),
    "adagrad": (
        {"sparse": dp.Adagrad(0.5), "dense": dp.Adagrad(0.2)},
        lambda p: torch.optim.Adagrad(p, lr=0.5, eps=1e-10),
        lambda p: torch.optim.Adagrad(p, lr=0.2, eps=1e-10),
    ),
    "adam": (
        {"sparse": dp.Adam(0.1), "dense": dp.Adam(0.05)},
        lambda p: SparseAdam(list(p), lr=0.1),
        lambda p: torch.optim.Adam(p, lr=0.05),
    ),
}
