"""The one way a kernel is compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import numba

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")


def kernel(function: F) -> F:
    """Compile with numba: without the GIL, cached on disk, division by zero as numpy has it.

    Kernels that call each other must share a file: numba renews a cached kernel when its own
    file changes, not when the file of one that it calls does.
    """
    return cast("F", numba.njit(nogil=True, cache=True, error_model="numpy")(function))


def inlined(function: F) -> F:
    """As `kernel`, for what kernels call for every row with more arguments than registers hold."""
    njit = numba.njit(nogil=True, cache=True, error_model="numpy", forceinline=True)
    return cast("F", njit(function))
