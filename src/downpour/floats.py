"""Dense columns, labels and sample weights as finite float tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from downpour.arrow import Column, as_array, is_list, is_tensor, list_parts
from downpour.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


def as_floats(data: Column) -> Tensor:
    """Make a finite float tensor [batch] or [batch, k] of a column, on the CPU.

    float32 and float64 tensors keep their type, all else becomes float32. Raises DataError for
    what is not a number, missing, NaN or infinite.
    """
    tensor = _float_tensor(data)
    if tensor.ndim not in (1, 2):
        raise DataError(f"must be [batch] or [batch, k], got shape {list(tensor.shape)}")
    finite = np.isfinite(tensor.numpy())  # numpy: torch would wake its threads for this
    if not finite.all():
        row = int(np.argwhere(~finite)[0, 0])
        raise DataError(
            f"must be finite, got {tensor[row].tolist()} at sample {row} (missing, NaN or infinite "
            f"values: {(~finite).sum()}); fill them or drop the samples first"
        )
    return tensor


def as_weights(data: Column) -> Tensor:
    """Make finite, non-negative sample weights [batch] of a column; DataError otherwise."""
    weights = as_floats(data)
    if weights.ndim != 1:
        raise DataError(f"must be [batch], got shape {list(weights.shape)}")
    if bool((weights < 0).any()):
        row = int(weights.argmin())
        raise DataError(f"must not be negative, got {weights[row].item()} at sample {row}")
    return weights


def require_binary(labels: Tensor | NDArray[Any], who: str) -> None:
    """Raise DataError, naming who asked, unless every label is 0 or 1."""
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    values = np.asarray(labels)
    bad = (values != 0) & (values != 1)
    if bad.any():
        raise DataError(
            f"{who} needs labels that are 0 or 1, got {values[bad][0]}; "
            f"make them so first, for instance rating >= 4"
        )


def _float_tensor(data: Column) -> Tensor:
    if is_tensor(data):
        tensor: Tensor = data.detach().cpu()
        if tensor.is_complex():
            raise DataError(f"must hold numbers, got {tensor.dtype}")
        return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)
    numbers = data if isinstance(data, np.ndarray) else _numbers(data)
    if numbers.dtype.kind not in "iubf":
        raise DataError(f"must hold numbers, got {numbers.dtype}")
    floats = np.ascontiguousarray(numbers, np.float32)
    return torch.from_numpy(floats if floats.flags.writeable else floats.copy())


def _numbers(data: Column) -> NDArray[Any]:
    if hasattr(data, "columns") and hasattr(data, "to_numpy"):  # a frame: [batch, k]
        return np.asarray(data.to_numpy())
    return numbers_of(as_array(data))


def numbers_of(array: pa.Array) -> NDArray[Any]:
    """Give the numbers of an Arrow array, [n] or [n, k] of lists; a missing one is NaN.

    Raises DataError for what are not numbers and for lists of unlike lengths.
    """
    if not is_list(array.type):
        return _flat_numbers(array)
    flat, lengths = list_parts(array)
    width = int(lengths[0]) if len(lengths) else 0
    other = lengths != width
    if other.any():
        row = int(other.argmax())
        raise DataError(
            f"must have {width} numbers in each list as in the first, got {lengths[row]} at {row}"
        )
    return _flat_numbers(flat).reshape(len(lengths), width)


def _flat_numbers(array: pa.Array) -> NDArray[Any]:
    kind = array.type
    if pa.types.is_decimal(kind) or pa.types.is_null(kind):
        array = array.cast(pa.float64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise DataError(f"must hold numbers, got {kind}")
    elif pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    return np.asarray(array.to_numpy(zero_copy_only=False))
