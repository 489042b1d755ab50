"""Which parameters a loss is computed from, with a gradient or without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
# By these values leave torch without an operation.
_EXITS = ("numpy", "__array__", "tolist", "__dlpack__", "data_ptr", "untyped_storage")


class Dataflow(TorchDispatchMode):
    """While entered, follows what operations make of `parameters`, by the memory that has it.

    What is computed and not used, as another loss's output in one forward, does not count. A value
    that leaves torch, as by `item` or `numpy`, may decide on all that comes after it, and counts.
    """

    supports_higher_order_operators = True

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = list(parameters)
        self._exits = _Exits(self)
        self._outside = 0  # the sources of what has left torch
        # By address of memory its sources, a bit for each parameter.
        self._sources = {_address(it): 1 << bit for bit, it in enumerate(parameters.values())}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not by a wrapper that loads the compiler: a loss runs uncompiled."""
        return False

    def __enter__(self) -> Dataflow:
        self._exits.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._exits.__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        taken = {*_addresses((args, kwargs))}
        sources = self._of(taken)
        made = function(*args, **kwargs)
        for address in _addresses((made, *_written(function, args, kwargs))):
            before = self._sources.get(address, 0) if address in taken else 0
            self._sources[address] = before | sources
        if any(not isinstance(it, torch.Tensor) for it in tree_leaves(made)):
            self._outside |= sources
        return made

    def sources_of(self, value: torch.Tensor) -> frozenset[str]:
        """The names of the parameters that a value was computed from."""
        sources = self._of(_addresses(value)) | self._outside
        return frozenset(name for bit, name in enumerate(self._names) if sources >> bit & 1)

    def let_out(self, values: object) -> None:
        """Note that values are read outside torch."""
        self._outside |= self._of(_addresses(values))

    def _of(self, addresses: Iterable[int]) -> int:
        sources = 0
        for address in addresses:
            sources |= self._sources.get(address, 0)
        return sources


class _Exits(TorchFunctionMode):
    """Tells a Dataflow of the values that leave torch."""

    def __init__(self, flow: Dataflow) -> None:
        super().__init__()
        self._flow = flow

    def __torch_function__(
        self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__name__", "") in _EXITS:
            self._flow.let_out(args)
        return function(*args, **(kwargs or {}))


def _address(tensor: torch.Tensor) -> int:
    """Where the memory of a tensor begins, also that of a view of it."""
    return tensor.untyped_storage().data_ptr()


def _addresses(values: object) -> Iterator[int]:
    for value in tree_leaves(values):
        if isinstance(value, torch.Tensor):
            for part in _dense_parts(value):
                yield _address(part)


def _dense_parts(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors with the memory of one: of a sparse one its values."""
    if tensor.layout == torch.strided:
        return (tensor,)
    if tensor.is_sparse:
        return (tensor._values(),)
    return (tensor.values(),) if tensor.layout in _COMPRESSED else ()


def _written(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """The arguments that an operation changes."""
    if not isinstance(function, torch._ops.OpOverload):
        return  # of higher order: what it is made of comes by itself
    for place, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield args[place] if place < len(args) else kwargs.get(argument.name)
