"""Memory for rows of one layout, and what kernels are told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from downpour.tables.arena import Arena
from downpour.tables.callback import address_of
from downpour.tables.kernels import RING_BYTES
from downpour.tables.rows import gather, scatter
from downpour.tables.views import RuleView, TableView

if TYPE_CHECKING:
    from collections.abc import Mapping

    from downpour.accessor import Bounds, RowLayout
    from downpour.init import Init
    from downpour.rules.base import Rule


class RowStore:
    """Rows by number: an arena of them, how a new one begins, and the rule that moves one.

    `view` is what kernels are told that work on no weights; it is replaced when memory is added.
    `record` is a stored row as numpy has it: `fields` (name to format and offset), weights, state.
    """

    def __init__(
        self,
        layout: RowLayout,
        rule: Rule,
        init: Init,
        bounds: Bounds | None,
        *,
        salt: np.uint64,
        dtype: np.dtype[np.floating],
        fields: Mapping[str, tuple[str, int]] | None = None,
    ) -> None:
        self.layout = layout
        self.rule = rule
        self.dim = layout.weight_bytes // layout.item_bytes
        self.record = _record(layout, dtype, fields or {})
        self._dtype = dtype
        self._arena = Arena(layout.num_bytes)
        self.capacity = 0  # rows that fit before the next growth
        # Kernels get the addresses of these two, so they stay.
        self._params = np.array(init.params(), dtype)
        self.initial_state = rule.initial_state(self.dim).astype(dtype)
        self.view = self._first_view(init, bounds, salt)
        self._rule_view = RuleView(
            update=address_of(rule.update, dtype),
            hyper=np.uint64(0),
            num_hyper=0,
            batch_l2=dtype.type(rule.batch_l2),
        )

    def _first_view(self, init: Init, bounds: Bounds | None, salt: np.uint64) -> TableView:
        layout = self.layout
        low, high = bounds or (0.0, 0.0)
        return TableView(
            chunks=np.uint64(self._arena.address),
            shift=np.uint64(self._arena.shift),
            row_bytes=np.uint64(layout.num_bytes),
            item_bytes=np.uint64(layout.item_bytes),
            weight_offset=np.uint64(layout.weight_offset),
            weight_bytes=np.uint64(layout.weight_bytes),
            state_offset=np.uint64(layout.state_offset),
            state_bytes=np.uint64(self.initial_state.nbytes),
            decay_offset=np.uint64(max(layout.decay_offset, 0)),
            fill=address_of(init.fill, self._dtype),
            salt=salt,
            params=np.uint64(self._params.ctypes.data),
            num_params=self._params.size,
            num_uniforms=init.num_uniforms,
            initial_state=np.uint64(self.initial_state.ctypes.data),
            like=self._dtype.type(0.0),
            is_bounded=bounds is not None,
            low=self._dtype.type(low),
            high=self._dtype.type(high),
            log_decay=0.0,
            scratch=np.uint64(0),
            ring=np.uint64(0),
        )

    def grow(self) -> None:
        """Add a chunk of memory; rows stay where they are. MemoryError if there is none."""
        self._arena.grow()
        self.view = self.view._replace(chunks=np.uint64(self._arena.address))
        self.capacity = self._arena.capacity

    def touched_bytes(self, num_rows: int) -> int:
        """Bytes of memory in use by the first `num_rows` rows."""
        return self._arena.touched_bytes(num_rows)

    def scratch(self) -> np.ndarray:
        """Memory for one call of a kernel: the ring and two rows of weights."""
        return np.empty(RING_BYTES + 2 * self.layout.weight_bytes, np.uint8)

    def view_with(self, scratch: np.ndarray, log_decay: float = 0.0) -> TableView:
        """For one call of a kernel, which must not outlive `scratch`."""
        ring = np.uint64(scratch.ctypes.data)
        weights = ring + np.uint64(RING_BYTES)
        return self.view._replace(log_decay=log_decay, ring=ring, scratch=weights)

    def hyper(self, step: int, lr: float) -> np.ndarray:
        """The numbers that the rule reads in a step."""
        return np.array(self.rule.hyper(step, lr), self._dtype)

    def rule_with(self, hyper: np.ndarray) -> RuleView:
        """For kernels that do not outlive `hyper`."""
        address = np.uint64(hyper.ctypes.data)
        return self._rule_view._replace(hyper=address, num_hyper=hyper.size)

    def records(self, rows: np.ndarray) -> np.ndarray:
        """Copies of whole rows, [n] of `record`."""
        out = np.empty(rows.size, self.record)
        gather(rows, out.view(np.uint8), self.view)
        return out

    def write_records(self, rows: np.ndarray, records: np.ndarray) -> None:
        """Overwrite whole rows, in order."""
        scatter(rows, records.view(np.uint8), self.view)


def _record(
    layout: RowLayout, dtype: np.dtype[np.floating], fields: Mapping[str, tuple[str, int]]
) -> np.dtype[np.void]:
    weights = dtype, (layout.weight_bytes // layout.item_bytes,)
    state = dtype, (layout.state_dim,)
    formats = [format for format, _ in fields.values()]
    offsets = [offset for _, offset in fields.values()]
    return np.dtype(
        {
            "names": [*fields, "weights", "state"],
            "formats": [*formats, weights, state],
            "offsets": [*offsets, layout.weight_offset, layout.state_offset],
            "itemsize": layout.num_bytes,
        }
    )
