"""Normalisation by statistics that a server keeps over all batches: the reference's data_norm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch._compile import _disable_dynamo

from downpour.errors import DataError, SettingError
from downpour.plan.specs import SIZE, SQUARE_SUM, SUM, plan_name
from downpour.settings import is_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from downpour.tables import Section

MAX_EPS = 1e-3


class _Normalise(torch.autograd.Function):
    """The formulas of forward and of what backward gives the statistics in place of gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        size: torch.Tensor,
        total: torch.Tensor,
        square_total: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        mean, scale = total / size, torch.sqrt(size / square_total)
        ctx.save_for_backward(x, mean, scale)
        ctx.eps = eps
        return (x - mean) * scale

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, mean, scale = ctx.saved_tensors
        dx = grads[0] * scale if ctx.needs_input_grad[0] else None
        rows = x.reshape(-1, x.shape[-1]).to(mean.dtype)
        num_rows = len(rows)
        square_total = (rows - mean).square().sum(0) + num_rows * ctx.eps
        return dx, torch.full_like(mean, num_rows), rows.sum(0), square_total, None


class DataNorm(torch.nn.Module):
    """Normalise inputs [..., num_features] by running statistics of each, kept by a server.

    mean = batch_sum / batch_size, scale = sqrt(batch_size / batch_square_sum),
    y = (x - mean) * scale. A backward pass gives the three statistics what the batch adds to them
    (N samples, sum of x, sum of (x - mean)^2 + N * eps); their table is a data-norm table, which
    adds it to the decayed sums (`Summary`). Formulas: Paddle, data_norm_op.cc 0066e86c.

    Args:
        num_features: the size of the last dimension, >= 1.
        eps: added to each sample's square, in [0, 0.001].
        batch_size, batch_square_sum: the weight of the first mean, 0, and of the first scale, 1;
            > 0, equal for all features.
        dtype: torch.float32 or torch.float64.

    Raises SettingError; `forward` raises DataError for an input of another width.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-4,
        batch_size: float = 1e4,
        batch_square_sum: float = 1e4,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if type(num_features) is not int or num_features < 1:
            raise SettingError(f"DataNorm.num_features must be an int >= 1, got {num_features!r}")
        if not (is_number(eps) and 0.0 <= eps <= MAX_EPS):
            raise SettingError(f"DataNorm.eps must be in [0, {MAX_EPS}], got {eps!r}")
        if dtype not in (torch.float32, torch.float64):
            raise SettingError(f"DataNorm.dtype must be torch.float32 or float64, got {dtype}")
        for name, value in ((SIZE, batch_size), (SQUARE_SUM, batch_square_sum)):
            if not (is_number(value) and 0.0 < value <= torch.finfo(dtype).max):
                raise SettingError(
                    f"DataNorm.{name} must be > 0 and finite as {dtype}, got {value!r}"
                )
        self.num_features, self.eps = num_features, eps
        shape = (num_features,)
        self.batch_size = torch.nn.Parameter(torch.full(shape, batch_size, dtype=dtype))
        self.batch_sum = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
        self.batch_square_sum = torch.nn.Parameter(torch.full(shape, batch_square_sum, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x [..., num_features]."""
        if not isinstance(x, torch.Tensor):
            raise DataError(f"DataNorm needs a tensor, got {type(x).__name__}")
        if x.ndim == 0 or x.shape[-1] != self.num_features:
            raise DataError(
                f"DataNorm({self.num_features}) needs inputs [..., {self.num_features}], got "
                f"{list(x.shape)}"
            )
        if torch.compiler.is_dynamo_compiling():
            return _uncompiled(self, x)
        return self._normalised(x)

    def _normalised(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
            x, self.batch_size, self.batch_sum, self.batch_square_sum, self.eps
        )
        return y

    def extra_repr(self) -> str:
        """Say how wide it is."""
        return f"{self.num_features}, eps={self.eps}"


# The compiler would make an instance of the Function, which torch deprecates.
_uncompiled = _disable_dynamo(DataNorm._normalised)


def statistics_of(model: torch.nn.Module) -> frozenset[str]:
    """The names that plans use for the statistics of a model's DataNorms."""
    return frozenset(
        plan_name(f"{name}.{statistic}" if name else statistic)
        for name, module in model.named_modules()
        if isinstance(module, DataNorm)
        for statistic in (SIZE, SUM, SQUARE_SUM)
    )


def scale_statistics(
    grad: NDArray[np.floating], sections: Mapping[str, Section], num_samples: int, scale: float
) -> None:
    """Make what a batch adds independent of its size, in place: the reference's scale_datanorm.

    Size and sum are divided by the number of samples; the square sum becomes
    (g - N * scale) / N + N * scale.
    """
    for name, section in sections.items():
        part = grad[section.span]
        if name.endswith(SQUARE_SUM):
            part[:] = (part - num_samples * scale) / num_samples + num_samples * scale
        else:
            part /= num_samples
