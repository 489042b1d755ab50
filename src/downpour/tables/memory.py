"""Raw memory inside kernels: prefetch, loads and stores at an address, calls through one.

Addresses are uint64. These are inlined into the kernels that use them, which numba does not
notice when this file changes: after an edit here, remove the `__pycache__` folders.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np import arrayobj

from downpour.jit import kernel

if TYPE_CHECKING:
    from collections.abc import Callable

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def _prefetch(typing_context: Any, address: Any) -> tuple[Any, Callable[..., Any]]:
    """Ask for the cache line at an address; any address will do, also one past the end."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function_type = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [I8.as_pointer()], function_type
        )
        pointer = builder.inttoptr(args[0], I8.as_pointer())
        read, keep_in_all_caches, data = I32(0), I32(3), I32(1)
        builder.call(function, [pointer, read, keep_in_all_caches, data])
        return context.get_dummy_value()

    return types.void(types.uint64), generate


def _load(typing_context: Any, address: Any) -> tuple[Any, Callable[..., Any]]:
    """The uint64 at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], I64.as_pointer()))

    return types.uint64(types.uint64), generate


def _load_float(typing_context: Any, address: Any) -> tuple[Any, Callable[..., Any]]:
    """The float64 at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], ir.DoubleType().as_pointer()))

    return types.float64(types.uint64), generate


def _store(typing_context: Any, address: Any, value: Any) -> tuple[Any, Callable[..., Any]]:
    """Write a uint64 to an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], I64.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), generate


def _copier(num_bytes: int | None) -> Callable[[np.uint64, np.uint64, np.uint64], None]:
    def copy(
        typing_context: Any, target: Any, source: Any, size: Any
    ) -> tuple[Any, Callable[..., Any]]:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer_type = I8.as_pointer()
            function_type = ir.FunctionType(
                ir.VoidType(), [pointer_type, pointer_type, I64, ir.IntType(1)]
            )
            function = builder.module.declare_intrinsic(
                "llvm.memcpy", [pointer_type, pointer_type, I64], function_type
            )
            ends = [builder.inttoptr(arg, pointer_type) for arg in args[:2]]
            size = args[2] if num_bytes is None else I64(num_bytes)
            builder.call(function, [*ends, size, ir.IntType(1)(0)])
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64, types.uint64), generate

    return cast("Callable[[np.uint64, np.uint64, np.uint64], None]", intrinsic(copy))


def _array_at(
    typing_context: Any, address: Any, size: Any, like: Any
) -> tuple[Any, Callable[..., Any]]:
    """The `size` numbers at an address as an array of the type of the number `like`.

    Nobody owns it, so that making one costs nothing: references to arrays that numba owns, views
    and arguments included, are counted up and down in atomic operations of 5 ns each.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.return_type)(context, builder)
        item_bytes = context.get_abi_sizeof(context.get_data_type(like))
        arrayobj.populate_array(  # type: ignore[no-untyped-call]
            array,
            data=builder.inttoptr(args[0], array.data.type),
            shape=[args[1]],
            strides=[I64(item_bytes)],
            itemsize=I64(item_bytes),
            meminfo=None,
        )
        return array._getvalue()

    return types.Array(like, 1, "C")(types.uint64, types.int64, like), generate


def _call(
    typing_context: Any, function: Any, a: Any, b: Any, c: Any, d: Any
) -> tuple[Any, Callable[..., Any]]:
    """Call the compiled function at an address (see `tables.callback`) with four arrays."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function_type = ir.FunctionType(ir.VoidType(), [arg.type for arg in args[1:]])
        builder.call(builder.inttoptr(args[0], function_type.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.uint64, a, b, c, d), generate


prefetch = cast("Callable[[np.uint64], None]", intrinsic(_prefetch))
load = cast("Callable[[np.uint64], np.uint64]", intrinsic(_load))
load_float = cast("Callable[[np.uint64], float]", intrinsic(_load_float))
store = cast("Callable[[np.uint64, np.uint64], None]", intrinsic(_store))
array_at = cast("Callable[[np.uint64, int | np.integer, Any], np.ndarray]", intrinsic(_array_at))
call = cast("Callable[..., None]", intrinsic(_call))
_copy_any, _copy_32, _copy_64, _copy_128 = map(_copier, (None, 32, 64, 128))


@kernel
def copy(target: np.uint64, source: np.uint64, num_bytes: np.uint64) -> None:
    """Copy bytes from one address to another; the commonest row widths in a few instructions."""
    if num_bytes == np.uint64(64):
        _copy_64(target, source, num_bytes)
    elif num_bytes == np.uint64(32):
        _copy_32(target, source, num_bytes)
    elif num_bytes == np.uint64(128):
        _copy_128(target, source, num_bytes)
    else:
        _copy_any(target, source, num_bytes)
