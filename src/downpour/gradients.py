"""The gradients of a step: checked, clipped and merged before the first of them is pushed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from downpour.accessor import NUM_COUNTS, CtrAccessor
from downpour.clip import l2_norm
from downpour.data_norm import scale_statistics
from downpour.errors import DataError, NonFiniteError, PlanError
from downpour.plan.program import PushDense, PushSparse
from downpour.tables import add_shows, dedup, segment_sum
from downpour.tables.batches import is_finite
from downpour.tables.pushes import NO_SLOT, PUSH_HEAD

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    import torch
    from numpy.typing import NDArray

    from downpour.client import Client, Located
    from downpour.features import Batch
    from downpour.parameters import DenseBlock, Window
    from downpour.plan.plan import Plan
    from downpour.plan.specs import SparseTableSpec
    from downpour.step import Lookup, Step
    from downpour.transfer import Transfer
    from downpour.transport import Floats


NORM_EVERY = 10


class Gradients:
    """Collects what a step's loss has given, for the ops that push it.

    `collect` raises before anything is pushed: NonFiniteError for NaN or infinity, PlanError for
    a gradient that the plan does not have, DataError for a click label that is not there,
    SettingError for a schedule that gives no rate.
    """

    def __init__(
        self,
        plan: Plan,
        client: Client,
        blocks: Mapping[str, DenseBlock],
        windows: Mapping[tuple[str, str], Window],
        parameters: Mapping[str, torch.nn.Parameter],
    ) -> None:
        self._plan, self._client = plan, client
        self._blocks, self._windows = blocks, windows
        self._parameters = parameters
        self._planned = {
            program.name: {*program.parameters, *program.no_grad}
            for program in plan.programs.values()
        }
        self._slots = {
            spec.name: {it.name: NO_SLOT if it.slot is None else it.slot for it in spec.features}
            for spec in plan.sparse
        }
        # Of the dense tables' gradients before clipping, as of a step now and then.
        self.norms: dict[str, float] = {}
        self._num_collected = 0

    def fetch(self, work: Step, transfer: Transfer) -> None:
        """Begin to bring what backward has given to the host, all of it at once."""
        for op in work.program.ops_of(PushDense):
            self._blocks[op.table].fetch(op.parameters)
        for lookup in work.all_lookups():
            lookup.fetch(transfer)

    def collect(self, loss: str, work: Step) -> None:
        """Fill `work.pushes` and `work.reached`."""
        if not np.isfinite(work.loss):
            raise NonFiniteError(
                f"loss {loss!r} is {work.loss}; nothing of this step was applied. A smaller "
                "learning rate or DownpourSGD(clip=ClipByNorm(...)) may help"
            )
        self._refuse_unplanned(work)
        _refuse_fixed(work)
        for op in work.program.ops_of(PushDense):
            self._collect_dense(op, loss, work)
        self._measure(work)
        merged = {}
        for push in work.program.ops_of(PushSparse):
            if reached := work.pushed(push):
                merged[push] = self._merged(loss, push, reached)
                self._client.next_step(push.table)
        self._clip(work, [grads for _, grads, _ in merged.values()])
        for push, (located, grads, places) in merged.items():
            work.pushes[push] = located, self._push_of(push, grads, places, work)

    def _collect_dense(self, op: PushDense, loss: str, work: Step) -> None:
        block, window = self._blocks[op.table], self._windows[work.program.name, op.table]
        work.reached[op.table] = block.collect(loss, op.parameters)
        if op.scale_datanorm is not None and work.batch.size:
            reached = {name: block.sections[name] for name in work.reached[op.table]}
            scale_statistics(block.grad, reached, work.batch.size, op.scale_datanorm)
        window.check(loss)
        if window.is_last:
            self._client.next_step(op.table)

    def _measure(self, work: Step) -> None:
        """Note how large the gradients are, in every NORM_EVERYth step of a program."""
        if work.program.name == next(iter(self._planned)):
            self._num_collected += 1
        if self._num_collected % NORM_EVERY != 1:
            return
        for table in work.reached:
            block = self._blocks[table]
            if not block.spec.is_data_norm:
                self.norms[table] = l2_norm(block.grad)

    def _clip(self, work: Step, rows: list[Floats]) -> None:
        """Of rows and parameters; what is added to statistics is no gradient."""
        if self._plan.clip is None:
            return
        blocks = [self._blocks[table] for table in work.reached]
        self._plan.clip.apply([*rows, *(it.grad for it in blocks if not it.spec.is_data_norm)])

    def _merged(
        self, loss: str, op: PushSparse, lookups: list[Lookup]
    ) -> tuple[Located, Floats, list[tuple[Lookup, NDArray[Any] | None]]]:
        """One gradient a distinct key, and where each lookup's rows are among them."""
        grads = [lookup.grad for lookup in lookups]
        for lookup, grad in zip(lookups, grads, strict=True):
            if not is_finite(grad):
                features = lookup.features_of(~np.isfinite(grad).all(axis=1))
                raise NonFiniteError(
                    f"loss {loss!r}: the gradient of feature {', '.join(features)} (table "
                    f"{op.table!r}) holds NaN or infinity; nothing of this step was applied"
                )
        if len(lookups) == 1:
            return lookups[0].located, grads[0], [(lookups[0], None)]
        keys, inverse = dedup(np.concatenate([lookup.keys.unique for lookup in lookups]))
        summed = segment_sum(np.concatenate(grads), inverse, len(keys))
        if not is_finite(summed):
            raise NonFiniteError(
                f"loss {loss!r}: the gradients of table {op.table!r} sum to infinity; nothing of "
                "this step was applied"
            )
        ends = np.cumsum([len(lookup.keys.unique) for lookup in lookups])
        places = np.split(inverse, ends[:-1])
        located = self._client.locate(op.table, keys, create=True)
        return located, summed, list(zip(lookups, places, strict=True))

    def _push_of(
        self,
        op: PushSparse,
        grads: Floats,
        places: Sequence[tuple[Lookup, NDArray[Any] | None]],
        work: Step,
    ) -> Floats:
        """What travels for the rows of an op: their gradients, or CTR pushes [n, push_dim]."""
        spec = self._plan.sparse_table(op.table)
        if op.times_batch_size:
            with np.errstate(over="ignore"):  # looked for just below
                grads *= work.batch.size
            self._refuse_infinite(op, grads, work)
        if not isinstance(spec.accessor, CtrAccessor):
            return grads
        pushes = np.empty((len(grads), spec.accessor.push_dim), grads.dtype)
        pushes[:, :PUSH_HEAD] = NO_SLOT, 0.0, 0.0, 0.0
        pushes[:, PUSH_HEAD:] = grads[:, NUM_COUNTS:]
        clicks = _clicks(spec, work.batch) if op.counts else None
        for lookup, own in places:
            if work.is_own(lookup):
                self._count(op, pushes, lookup, own, clicks)
        return pushes

    def _count(
        self,
        op: PushSparse,
        pushes: Floats,
        lookup: Lookup,
        places: NDArray[Any] | None,
        clicks: NDArray[np.floating] | None,
    ) -> None:
        """Note for each id of a lookup that it stood there, and count what the op counts."""
        inverse = lookup.keys.inverse if places is None else places[lookup.keys.inverse]
        for feature, bag in lookup.keys.bags.items():
            ids, slot = inverse[bag.start : bag.stop], self._slots[op.table][feature]
            add_shows(pushes, ids, bag.offsets, clicks, slot, counts=feature in op.counts)

    def _refuse_infinite(self, op: PushSparse, grads: Floats, work: Step) -> None:
        if not is_finite(grads):
            raise NonFiniteError(
                f"program {work.program.name!r}: the gradients of table {op.table!r} are infinite "
                f"times the batch size, {work.batch.size}; nothing of this step was applied"
            )

    def _refuse_unplanned(self, work: Step) -> None:
        program, planned = work.program, self._planned[work.program.name]
        for name, parameter in self._parameters.items():
            if parameter.grad is not None and name not in planned:
                raise PlanError(
                    f"program {program.name!r} reaches parameter {name!r}, which it did not on the "
                    "example batch that it was planned with; nothing of this step was applied"
                )


def _refuse_fixed(work: Step) -> None:
    """A feature that the plan pulls and does not push must get no gradient."""
    pushed = {(op.table, op.features) for op in work.program.ops if isinstance(op, PushSparse)}
    for lookup in work.all_lookups():
        if (lookup.op.table, lookup.op.features) in pushed or not lookup.is_reached:
            continue
        reached = (lookup.grad != 0).any(axis=1)
        if reached.any():
            names = ", ".join(lookup.features_of(reached))
            raise PlanError(
                f"program {work.program.name!r} reaches feature {names} of table "
                f"{lookup.op.table!r}, which it did not on the example batch that it was planned "
                "with; nothing of this step was applied. Plan with an example, as a larger batch, "
                "on which it does"
            )


def _clicks(spec: SparseTableSpec, batch: Batch) -> NDArray[np.floating]:
    """The click of each sample [batch], the label that the table's accessor names."""
    assert isinstance(spec.accessor, CtrAccessor)
    name = spec.accessor.click
    if name is None or name not in batch.labels:
        known = ", ".join(batch.labels) or "none"
        raise DataError(
            f"table {spec.name!r} counts clicks by label {name!r}, which the batch lacks; it has: "
            f"{known}"
        )
    clicks: NDArray[np.floating] = batch.labels[name].cpu().numpy()
    if clicks.shape != (batch.size,) or (clicks < 0).any():
        raise DataError(
            f"table {spec.name!r}: clicks, label {name!r}, must be numbers [batch] of at least 0, "
            f"got {list(clicks.shape)}{', least ' + str(clicks.min()) if clicks.size else ''}"
        )
    return clicks
