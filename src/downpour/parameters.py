"""The torch side of a dense table: a model's parameters as one flat block, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from downpour.errors import NonFiniteError, PlanError
from downpour.plan.specs import plan_name
from downpour.tables.batches import bits_of, is_finite, same_bits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from downpour.client import Client
    from downpour.plan.program import PushDense
    from downpour.plan.specs import DenseTableSpec
    from downpour.transfer import Fetched, Transfer
    from downpour.transport import Floats


AUTOCAST = (
    "for less precision keep the model in float32 and compute under torch.autocast('cpu', "
    "dtype=torch.bfloat16) in the forward"
)
_CASTS = {
    torch.float64: "double",
    torch.float32: "float",
    torch.bfloat16: "bfloat16",
    torch.float16: "half",
}


def cast_call(parameter: torch.Tensor) -> str:
    """The call that makes parameters of this one's dtype: model.double()."""
    dtype = parameter.dtype
    return f"model.{_CASTS[dtype]}()" if dtype in _CASTS else f"model.to({dtype})"


def dense_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """A model's parameters by the names that plans use; a tied one under its first name."""
    return {plan_name(name): p for name, p in model.named_parameters()}


class DenseBlock:
    """The parameters of one dense table, and their last gradients as one array, `grad` [size].

    To and from a device they go as one block.
    """

    def __init__(
        self,
        spec: DenseTableSpec,
        parameters: Mapping[str, torch.nn.Parameter],
        transfer: Transfer,
    ) -> None:
        self.spec, self._transfer = spec, transfer
        self.parameters = {}
        for section in spec.sections:
            parameter = parameters.get(section.name)
            if parameter is None or tuple(parameter.shape) != section.shape:
                got = "has none" if parameter is None else f"has {list(parameter.shape)}"
                raise PlanError(
                    f"the plan's table {spec.name!r} holds parameter {section.name!r} "
                    f"{list(section.shape)}, and the model {got}; plan it with this model"
                )
            self._refuse_cast(section.name, parameter)
            self.parameters[section.name] = parameter
        self.sections = {section.name: section for section in spec.sections}
        self.grad: Any = np.zeros(spec.size, spec.dtype)
        views = self._views(torch.from_numpy(self.grad))
        self._grads = dict(zip(self.parameters, views, strict=True))
        self._fetched: Fetched | None = None
        self._written: list[torch.Tensor] = []  # what the parameters were last known to be
        self._bits: Any = None  # the same, [size], on the host
        self._memory: dict[str, tuple[object, NDArray[Any]]] = {}

    def read(self) -> Floats:
        """The parameters' values, [size]."""
        if not self._transfer.is_host:
            parts = [parameter.detach().reshape(-1) for parameter in self.parameters.values()]
            return self._transfer.to_host(torch.cat(parts))
        flat = np.empty(self.spec.size, self.spec.dtype)
        views = self._views(torch.from_numpy(flat))
        for view, parameter in zip(views, self.parameters.values(), strict=True):
            view.copy_(parameter.detach())
        return flat

    def write(self, flat: Floats) -> None:
        """Set the parameters to the values [size]."""
        self.know(flat)
        with torch.no_grad():
            self.refuse_cast()
            for view, parameter in zip(self._written, self.parameters.values(), strict=True):
                parameter.copy_(view)

    def know(self, flat: Floats) -> None:
        """Take note that the parameters have the values [size], which must not change any more."""
        self._written = self._views(self._transfer.to_device(flat))
        self._bits = bits_of(flat)

    def changed(self) -> list[str]:
        """The parameters that have other values than those last noted, bit for bit.

        Raises PlanError for one that was cast, moved or given another shape.
        """
        if self._transfer.is_host:
            return [
                name
                for name, parameter in self.parameters.items()
                if not same_bits(
                    self._bits_of(name, parameter), self._bits[self.sections[name].span]
                )
            ]
        known = list(zip(self.parameters.items(), self._written, strict=True))
        for (name, parameter), value in known:
            self._require_like(name, parameter, value)
        now = torch.cat([it.detach().reshape(-1) for it in self.parameters.values()])
        if torch.equal(now, torch.cat([value.reshape(-1) for value in self._written])):
            return []  # and so it mostly is: one answer of the device to wait for
        return [name for (name, parameter), value in known if not torch.equal(parameter, value)]

    def _bits_of(self, name: str, parameter: torch.nn.Parameter) -> NDArray[Any]:
        """The values as they are now, [size]; looked up anew only where their memory is another."""
        place = parameter.data_ptr(), parameter.stride(), parameter.dtype
        kept = self._memory.get(name)
        if kept is not None and kept[0] == place:
            return kept[1]
        section = self.sections[name]
        self._require_like(
            name, parameter, torch.from_numpy(self.grad[section.span]).view(section.shape)
        )
        bits = bits_of(parameter.detach().contiguous().numpy().reshape(-1))
        if parameter.is_contiguous():  # else that was a copy
            self._memory[name] = place, bits
        return bits

    def fetch(self, names: tuple[str, ...]) -> None:
        """Begin to bring the gradients of these parameters from their device, for `collect`."""
        parts = [
            self._flat_gradient(parameter, wanted=name in names)
            for name, parameter in self.parameters.items()
        ]
        self._fetched = self._transfer.fetch(torch.cat(parts))

    def collect(self, loss: str, names: tuple[str, ...]) -> list[str]:
        """Take the gradients of these parameters into `grad`, 0 for others; those that have one.

        Raises NonFiniteError, which names the parameter.
        """
        if self._fetched is not None:
            self.grad, self._fetched = self._fetched.array(), None
        else:
            self._copy_gradients(names)
        if not is_finite(self.grad):
            bad = next(name for name in names if not is_finite(self.grad[self.sections[name].span]))
            raise NonFiniteError(
                f"loss {loss!r}: the gradient of parameter {bad!r} holds NaN or infinity; nothing "
                "of this step was applied"
            )
        return [name for name in names if self.parameters[name].grad is not None]

    def _copy_gradients(self, names: tuple[str, ...]) -> None:
        if len(names) < len(self.parameters):
            self.grad.fill(0.0)
        for name in names:
            view, grad = self._grads[name], self.parameters[name].grad
            if grad is None:
                view.zero_()
            else:
                view.copy_(grad.to_dense() if grad.is_sparse else grad)

    @staticmethod
    def _flat_gradient(parameter: torch.nn.Parameter, *, wanted: bool) -> torch.Tensor:
        grad = parameter.grad
        if grad is None or not wanted:
            return parameter.detach().new_zeros(parameter.numel())
        return (grad.to_dense() if grad.is_sparse else grad).reshape(-1)

    def refuse_cast(self) -> None:
        """Raise PlanError for a parameter that was cast since the worker was made."""
        dtype = self._written[0].dtype
        for name, parameter in self.parameters.items():
            if parameter.dtype is not dtype:
                self._refuse_cast(name, parameter)

    def _refuse_cast(self, name: str, parameter: torch.Tensor) -> None:
        """Raise PlanError for a parameter of another dtype than its table has."""
        dtype = str(parameter.dtype).removeprefix("torch.")
        if dtype != self.spec.dtype:
            raise PlanError(
                f"parameter {name!r} is {dtype}, as after {cast_call(parameter)}, and the plan's "
                f"table {self.spec.name!r} holds {self.spec.dtype}; cast a model to float64 before "
                f"it is planned, or not at all; {AUTOCAST}"
            )

    def _require_like(
        self, name: str, parameter: torch.nn.Parameter, planned: torch.Tensor
    ) -> None:
        """Raise PlanError for a parameter of another dtype, device or shape than planned."""
        self._refuse_cast(name, parameter)
        if parameter.device != planned.device:
            raise PlanError(
                f"parameter {name!r} is on {parameter.device} now, and was on {planned.device} "
                "when the worker was made; move a model before DownpourSGD.minimize"
            )
        if parameter.shape != planned.shape:
            raise PlanError(
                f"parameter {name!r} is {list(parameter.shape)} now, the plan has "
                f"{list(planned.shape)}; plan with the model as it is"
            )

    def _views(self, block: torch.Tensor) -> list[torch.Tensor]:
        return [block[section.span].view(section.shape) for section in self.spec.sections]


class Window:
    """What one program's batches have added to the gradient of a dense table since its last push.

    A batch's gradient is a mean over its samples, or of statistics a sum. In sync training of
    several workers a mean counts by the worker's share of a step's samples, which is known when the
    step has ended: so the last batch's gradient stays apart until `weigh`.
    """

    def __init__(self, block: DenseBlock, op: PushDense) -> None:
        self.block, self.every = block, op.every
        self.names: set[str] = set()
        self.num_batches = 0
        self.is_mean = not block.spec.is_data_norm or op.scale_datanorm is not None
        self._earlier: Any = None if self.every == 1 else np.zeros_like(block.grad)
        self._has_earlier = self._has_last = False

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
        if not self._has_earlier:
            return
        with np.errstate(over="ignore"):
            summed = self._earlier + self.block.grad
        if not is_finite(summed):
            raise NonFiniteError(
                f"loss {loss!r}: the gradients of table {self.block.spec.name!r} sum to infinity "
                f"over {self.num_batches + 1} batches; nothing of this step was applied"
            )

    def add(self, reached: list[str]) -> None:
        """Count the block's gradient of a batch in."""
        self._has_last = True
        self.names.update(reached)
        self.num_batches += 1

    def skip(self) -> None:
        """Count a batch that other workers have and this one has not."""
        self.num_batches += 1

    def weigh(self, share: float) -> None:
        """Fold the last batch's gradient in, by this worker's share of the step's samples."""
        if not self._has_last:
            return
        factor = share if self.is_mean else 1.0
        last = (
            self.block.grad if factor == 1.0 else self.block.grad * self._earlier.dtype.type(factor)
        )
        if self._has_earlier:
            self._earlier += last
        else:
            np.copyto(self._earlier, last)
        self._has_earlier, self._has_last = True, False

    def push(self, client: Client) -> None:
        """Push what there is, if any batch has reached a parameter."""
        if not self.names:
            return
        name = self.block.spec.name
        if self._has_last and self._has_earlier and client.is_alone:
            self.weigh(1.0)
        if self._has_earlier:
            client.push_dense(name, self._earlier, self.names, is_mean=False)
        if self._has_last:
            client.push_dense(name, self.block.grad, self.names, is_mean=self.is_mean)

    def reset(self) -> None:
        """Begin the next one."""
        self.names.clear()
        self.num_batches = 0
        self._has_earlier = self._has_last = False
