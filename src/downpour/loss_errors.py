"""What torch says of a forward run, with what it means for a model of sparse tables."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from downpour.errors import DataError, DownpourError, PlanError
from downpour.nn import sparse_embeddings
from downpour.parameters import AUTOCAST, cast_call
from downpour.plan.specs import plan_name

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def explained(who: str, model: torch.nn.Module, num_samples: int) -> Iterator[None]:
    """Raise PlanError for a model that was cast to another dtype than its rows have, and DataError
    for a batch of one sample that reaches a BatchNorm; all else as it is.

    who: names what runs, as "loss 'click'".
    """
    try:
        yield
    except DownpourError:
        raise
    except (RuntimeError, ValueError) as error:
        if num_samples <= 1 and "more than 1 value per channel" in str(error):
            raise DataError(
                f"{who}: a BatchNorm needs more than one sample in training, and this batch has "
                f"{num_samples}, as the last one of an epoch may: leave it out with drop_last=True "
                f"of Files and Frame, or take another batch_size ({error})"
            ) from error
        cast = cast_note(model) if "type" in str(error) else ""
        if not cast:
            raise
        raise PlanError(f"{who}: {error}. {cast}") from error


def cast_note(model: torch.nn.Module) -> str:
    """Which cast made a model's parameters of another dtype than its rows; "" where none did."""
    rows = {module.dtype: module.features for module in sparse_embeddings(model)}
    for name, parameter in model.named_parameters():
        dtype = str(parameter.dtype).removeprefix("torch.")
        for own, features in rows.items():
            if parameter.is_floating_point() and dtype != own:
                return (
                    f"Parameter {plan_name(name)!r} is {dtype}, as after {cast_call(parameter)}, "
                    f"and the rows of SparseEmbedding {features} are {own}; "
                    f"{_way_out(parameter.dtype)}"
                )
    return ""


def _way_out(dtype: torch.dtype) -> str:
    if dtype in (torch.float32, torch.float64):
        return f"make the SparseEmbedding with dtype={dtype} as well, or do not cast the model"
    return AUTOCAST
