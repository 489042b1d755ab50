"""A device that is not the CPU, on any machine: for tests of models that sit on a GPU.

`with pretend_device() as device:` gives torch's "meta" device values. As on a GPU, an operation on
tensors of both devices raises, and so does `numpy()` of a tensor that is there; there are no
streams and there is no pinned memory.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICE = torch.device("meta")
ANYWHERE = ("copy_", "_to_copy")  # operations that take tensors of two devices


class There(torch.Tensor):
    """A tensor on the device; `here` has its values."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> There:
        made: There = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            layout=here.layout,
            device=DEVICE,
        )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(function, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Makes what is asked for on the device."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(function, args, kwargs or {})


@contextlib.contextmanager
def pretend_device() -> Iterator[torch.device]:
    """The device, for as long as the context lasts."""
    with _Mode():  # type: ignore[no-untyped-call]
        yield DEVICE


def _run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [it for it in tree_leaves((args, kwargs)) if isinstance(it, torch.Tensor)]
    is_there = any(isinstance(it, There) for it in tensors)
    name = function._schema.name.removeprefix("aten::")
    # As on a GPU, a number of the host may come along.
    is_mixed = is_there and any(it.ndim and not isinstance(it, There) for it in tensors)
    if is_mixed and name not in ANYWHERE:
        raise RuntimeError(f"{name}: expected all tensors on one device")
    wanted = kwargs.get("device")
    if wanted is not None:
        is_there = torch.device(wanted) == DEVICE
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args_here, kwargs_here = tree_map(_here, (args, kwargs))
    made = function(*args_here, **kwargs_here)
    if name.endswith("_") and not name.startswith("_"):
        return args[0]
    return tree_map(_there, made) if is_there else made


def _here(value: Any) -> Any:
    return value.here if isinstance(value, There) else value


def _there(value: Any) -> Any:
    return There(value) if isinstance(value, torch.Tensor) else value
