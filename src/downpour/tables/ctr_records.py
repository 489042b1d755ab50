"""What a CTR row keeps beside its weights, as kernels store it and as `CtrTable` gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from downpour.tables import ctr_kernels

if TYPE_CHECKING:
    from downpour.accessor import CtrAccessor

STATISTICS = np.dtype(
    [
        ("show", np.float64),
        ("click", np.float64),
        ("delta_score", np.float32),
        ("unseen_days", np.int32),
        ("slot", np.int32),  # -1: none
        ("has_embedx", np.bool_),
    ]
)
# The format of each field of a short row, and where it is.
FIELDS = {
    "key": ("u8", 0),
    "show": ("f8", int(ctr_kernels.SHOW)),
    "click": ("f8", int(ctr_kernels.CLICK)),
    "delta_score": ("f4", int(ctr_kernels.DELTA_SCORE)),
    "unseen_days": ("i4", int(ctr_kernels.UNSEEN_DAYS)),
    "slot": ("i4", int(ctr_kernels.SLOT)),  # + 1: none is 0, as new memory is
    "embedx": ("u4", int(ctr_kernels.EMBEDX)),  # its number + 1
}
SAME = ("show", "click", "delta_score", "unseen_days")
MOST_DAYS = 2**31 - 1


def statistics_of(short: np.ndarray) -> np.ndarray:
    """The statistics of short rows, [n] of STATISTICS."""
    statistics = np.empty(short.size, STATISTICS)
    for name in SAME:
        statistics[name] = short[name]
    statistics["slot"] = short["slot"] - 1
    statistics["has_embedx"] = short["embedx"] > 0
    return statistics


def put_statistics(short: np.ndarray, statistics: np.ndarray) -> None:
    """Overwrite the statistics of short rows; which embedx they have stays."""
    for name in SAME:
        short[name] = statistics[name]
    short["slot"] = statistics["slot"] + 1


def embedx_numbers(short: np.ndarray) -> np.ndarray:
    """Which embedx short rows have, int64 [n]; -1: none."""
    return short["embedx"].astype(np.int64) - 1


def let_a_day_pass(short: np.ndarray, accessor: CtrAccessor) -> np.ndarray:
    """Age short rows, in place; which of them stay, bool [n]. See `Lifecycle`."""
    # As Paddle's ctr_accessor.cc (a883f87f) decays, and then decides. It adds the day to
    # unseen_days at the save that a day ends with.
    life = accessor.lifecycle
    short["show"] *= life.show_click_decay_rate
    short["click"] *= life.show_click_decay_rate
    short["unseen_days"] = np.minimum(short["unseen_days"], MOST_DAYS - 1) + 1
    is_shown = accessor.score(short["show"], short["click"]) >= life.delete_threshold
    is_seen = short["unseen_days"] <= life.delete_after_unseen_days
    stays: np.ndarray = is_shown & is_seen
    return stays
