"""The torch side of a dense table: a model's parameters as one flat block, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from downpour.errors import NonFiniteError, PlanError
from downpour.plan.program import plan_name
from downpour.tables.batches import is_finite

if TYPE_CHECKING:
    from collections.abc import Mapping

    from downpour.plan.program import DenseTableSpec
    from downpour.transport import Floats


def dense_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """A model's parameters by the names that plans use; a tied one under its first name."""
    return {plan_name(name): p for name, p in model.named_parameters()}


class DenseBlock:
    """The parameters of one dense table and their gradients, summed over a window of batches.

    `grad` [size] is the last batch's, `total` the window's so far; `names` are the parameters
    that got one in the window, the others' part of `total` is 0.
    """

    def __init__(self, spec: DenseTableSpec, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        self.spec = spec
        self.parameters = {}
        for section in spec.sections:
            parameter = parameters.get(section.name)
            if parameter is None or tuple(parameter.shape) != section.shape:
                got = "has none" if parameter is None else f"has {list(parameter.shape)}"
                raise PlanError(
                    f"the plan's table {spec.name!r} holds parameter {section.name!r} "
                    f"{list(section.shape)}, and the model {got}; plan it with this model"
                )
            self.parameters[section.name] = parameter
        self.grad: Any = np.zeros(spec.size, spec.dtype)
        self.total: Any = np.zeros(spec.size, spec.dtype)
        self._grads = self._views(self.grad)
        self._reached: list[str] = []
        self.names: set[str] = set()
        self.num_batches = 0

    def read(self) -> Floats:
        """The parameters' values, [size]."""
        flat = np.empty(self.spec.size, self.spec.dtype)
        for view, parameter in zip(self._views(flat), self.parameters.values(), strict=True):
            view.copy_(parameter.detach())
        return flat

    def write(self, flat: Floats) -> None:
        """Set the parameters to the values [size]."""
        with torch.no_grad():
            for view, parameter in zip(self._views(flat), self.parameters.values(), strict=True):
                parameter.copy_(view)

    def collect(self, loss: str) -> None:
        """Take the gradients from the parameters into `grad`; NonFiniteError names a bad one."""
        self._reached = []
        for view, (name, parameter) in zip(self._grads, self.parameters.items(), strict=True):
            if parameter.grad is None:
                view.zero_()
            else:
                grad = parameter.grad
                view.copy_(grad.to_dense() if grad.is_sparse else grad)
                self._reached.append(name)
        if is_finite(self.grad):
            return
        bad = next(
            section.name for section in self.spec.sections if not is_finite(self.grad[section.span])
        )
        raise NonFiniteError(
            f"loss {loss!r}: the gradient of parameter {bad!r} holds NaN or infinity; nothing of "
            "this step was applied"
        )

    def add(self) -> None:
        """Count the last batch's gradient in."""
        if self.num_batches == 0:
            np.copyto(self.total, self.grad)
        else:
            self.total += self.grad
        self.names.update(self._reached)
        self.num_batches += 1

    def reset(self) -> None:
        """Begin the next window."""
        self.names.clear()
        self.num_batches = 0

    def _views(self, flat: Floats) -> list[torch.Tensor]:
        block = torch.from_numpy(flat)
        return [block[section.span].view(section.shape) for section in self.spec.sections]
