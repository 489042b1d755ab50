"""What kernels are told of a table: tuples of numbers, for numba counts references to arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class TableView(NamedTuple):
    """Where rows are and what a new one holds; uint64 where not said otherwise.

    Rows: `chunks` is the address of the chunks' addresses, `shift` log2 of the rows a chunk; the
    rest are sizes and places in bytes, `item_bytes` that of a number; `decay_offset` 0 means that
    rows do not decay; weights stay within `low` and `high` if `is_bounded`. New rows: the
    initialiser's compiled `fill`, its `params` and the rule's `initial_state` are addresses,
    `num_uniforms` is how many random numbers a weight `fill` takes.
    Of one call: `log_decay` now, `scratch` the address of room for two rows of weights, `ring` that
    of the keys on their way (see `tables.kernels`). `like` is any number of the table's dtype.
    """

    chunks: np.uint64
    shift: np.uint64
    row_bytes: np.uint64
    item_bytes: np.uint64
    weight_offset: np.uint64
    weight_bytes: np.uint64
    state_offset: np.uint64
    state_bytes: np.uint64
    decay_offset: np.uint64
    fill: np.uint64
    salt: np.uint64
    params: np.uint64
    num_params: int
    num_uniforms: int
    initial_state: np.uint64
    like: np.floating
    is_bounded: bool
    low: np.floating
    high: np.floating
    log_decay: float
    scratch: np.uint64
    ring: np.uint64


class RuleView(NamedTuple):
    """The rule's compiled `update`, the address of its `hyper`, and the penalty."""

    update: np.uint64
    hyper: np.uint64
    num_hyper: int
    batch_l2: np.floating


class CtrView(NamedTuple):
    """A CTR table's score, how a push is taken, and how many embedx there were when it began.

    `takes_mean`, `embedx_takes_mean`: whether the rule's gradient is divided by the push's places.
    """

    nonclk_coeff: float
    click_coeff: float
    embedx_threshold: float
    takes_mean: bool
    embedx_takes_mean: bool
    keeps_slot: bool
    num_embedx: int
