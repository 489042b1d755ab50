"""The plain functions of rules and initialisers, compiled to addresses that kernels call.

The row loops are compiled once for all rules: they call the rule through an address, which costs
about 5 ns a row and leaves a new rule nothing to write but its equation.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from numba import types

if TYPE_CHECKING:
    from downpour.rules.base import Update


@functools.cache
def _compiled(function: Update, dtype: str) -> Any:
    array = types.Array(numba.from_dtype(np.dtype(dtype)), 1, "C")
    signature = types.void(array, array, array, array)
    return numba.cfunc(signature, cache=True, error_model="numpy")(function)


def address_of(function: Update, dtype: np.dtype[np.floating]) -> np.uint64:
    """The address of `function` compiled for four arrays of `dtype`; cached on disk.

    The function must live in a module: its file names the cache, and its age renews it.
    """
    return np.uint64(_compiled(function, dtype.name).address)
