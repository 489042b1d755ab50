"""The torch side of a dense table: a model's parameters as one flat block, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from downpour.errors import NonFiniteError, PlanError
from downpour.plan.specs import plan_name
from downpour.tables.batches import is_finite

if TYPE_CHECKING:
    from collections.abc import Mapping

    from downpour.plan.specs import DenseTableSpec
    from downpour.transport import Floats


def dense_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """A model's parameters by the names that plans use; a tied one under its first name."""
    return {plan_name(name): p for name, p in model.named_parameters()}


class DenseBlock:
    """The parameters of one dense table, and their last gradients as one array, `grad` [size]."""

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
        self.sections = {section.name: section for section in spec.sections}
        self.grad: Any = np.zeros(spec.size, spec.dtype)
        self._grads = dict(zip(self.parameters, self._views(self.grad), strict=True))

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

    def collect(self, loss: str, names: tuple[str, ...]) -> list[str]:
        """Take the gradients of these parameters into `grad`, 0 for others; those that have one.

        Raises NonFiniteError, which names the parameter.
        """
        if len(names) < len(self.parameters):
            self.grad.fill(0.0)
        reached = []
        for name in names:
            view, grad = self._grads[name], self.parameters[name].grad
            if grad is None:
                view.zero_()
            else:
                view.copy_(grad.to_dense() if grad.is_sparse else grad)
                reached.append(name)
        if not is_finite(self.grad):
            bad = next(name for name in names if not is_finite(self.grad[self.sections[name].span]))
            raise NonFiniteError(
                f"loss {loss!r}: the gradient of parameter {bad!r} holds NaN or infinity; nothing "
                "of this step was applied"
            )
        return reached

    def _views(self, flat: Floats) -> list[torch.Tensor]:
        block = torch.from_numpy(flat)
        return [block[section.span].view(section.shape) for section in self.spec.sections]


class Window:
    """What one program's batches have added to the gradient of a dense table since its last push.

    `total` [size] is their sum; `names` are the parameters that got a gradient, the others' part of
    `total` is 0.
    """

    def __init__(self, block: DenseBlock, every: int) -> None:
        self.block, self.every = block, every
        self.total: Any = block.grad if every == 1 else np.zeros_like(block.grad)
        self.names: set[str] = set()
        self.num_batches = 0

    @property
    def is_due(self) -> bool:
        """Whether the batches are as many as a push has."""
        return self.num_batches >= self.every

    @property
    def is_last(self) -> bool:
        """Whether the push is due after one more batch."""
        return self.num_batches + 1 >= self.every

    def check(self, loss: str) -> None:
        """Raise NonFiniteError where the block's gradient could not be counted in."""
        if self.num_batches == 0 or self.every == 1:
            return
        with np.errstate(over="ignore"):
            summed = self.total + self.block.grad
        if not is_finite(summed):
            raise NonFiniteError(
                f"loss {loss!r}: the gradients of table {self.block.spec.name!r} sum to infinity "
                f"over {self.num_batches + 1} batches; nothing of this step was applied"
            )

    def add(self, reached: list[str]) -> None:
        """Count the block's gradient of a batch in."""
        if self.every > 1 and self.num_batches == 0:
            np.copyto(self.total, self.block.grad)
        elif self.every > 1:
            self.total += self.block.grad
        self.names.update(reached)
        self.num_batches += 1

    def reset(self) -> None:
        """Begin the next one."""
        self.names.clear()
        self.num_batches = 0
