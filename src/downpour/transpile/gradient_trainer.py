"""A trainer that sends gradients, for servers to step with: what its transpiled programs do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from downpour.accessor import CtrAccessor
from downpour.errors import NonFiniteError, PlanError
from downpour.plan.program import Compute, PullSparse, PushDense, PushSparse, WeighSamples
from downpour.serving.merging import RowPush, merge_rows
from downpour.step import Step
from downpour.tables.batches import is_finite
from downpour.team import with_torch_threads
from downpour.worker import StepResult, Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from downpour.client import Located
    from downpour.features import Batch
    from downpour.parameters import Window
    from downpour.plan.plan import Plan
    from downpour.remote.client import RemoteClient
    from downpour.transport import Floats


class GradientTrainer(Worker):
    """Runs recv, local and send, one after the other, for the batch of a step.

    Gradients of all losses on a parameter or a row are summed, and all are of the values that the
    step began with: a table makes one step a batch. With a client of sync training it is made once
    all trainers have sent, by the mean over their samples.

    Raises PlanError for a plan whose losses cannot be summed.
    """

    def __init__(
        self,
        plan: Plan,
        model: torch.nn.Module,
        client: RemoteClient,
        *,
        device: str | torch.device,
    ) -> None:
        super().__init__(plan, model, client, device=device)
        self._remote = client
        self._has_values = False  # of this step
        self._held: _Held | None = None

    def recv(self, tables: Sequence[str]) -> None:
        """Read the values of dense tables into the model."""
        for table in tables:
            self.client.ask_dense(table)
        for table in tables:
            self._values.refresh(table)
        self._has_values = True

    def local(self, batch: Batch) -> list[StepResult]:
        """Compute the gradients of each loss, and push those of rows.

        Raises PlanError before `recv`, and where those of a batch wait for `send`; and what
        `Worker.step` raises. Then nothing was pushed or held.
        """
        if self._held is not None:
            raise PlanError(
                "the gradients of a batch are held already: run the send program before the local "
                "program runs again"
            )
        if not self._has_values:
            raise PlanError(
                "the local program computes on values that servers have now: run the recv program "
                "before it, for each batch"
            )
        held = _Held(batch.size)
        results = [self._compute_loss(name, batch, held) for name in self.plan.programs]
        merged = {place: self._merged(place[0], pushes) for place, pushes in held.rows.items()}
        for (_, is_mean), (located, pushes) in merged.items():
            self.client.update(located, pushes, is_mean=is_mean)
        self._held = held
        return results

    def send(self) -> None:
        """Send the gradients that are held, and end the step with the other trainers.

        PlanError where none are.
        """
        held, self._held = self._held, None
        if held is None:
            raise PlanError(
                "no gradients are held: run the recv and the local program before the send program"
            )
        self._has_values = False
        for (table, is_mean), (grad, names) in held.dense.items():
            self.client.push_dense(table, grad, names, is_mean=is_mean)
        self.client.end_step(held.samples)
        self._remote.counted["steps"] += 1
        self._remote.counted["samples"] += held.samples

    def _compute_loss(self, name: str, batch: Batch, held: _Held) -> StepResult:
        program = self.plan.program(name)
        work = Step(program, batch.to(self.device), self._prepared(name, batch))
        for lookup in work.lookups:
            self.client.ask(lookup.located)
        self._current = work
        try:
            with with_torch_threads():
                for op in program.ops:
                    if isinstance(op, PullSparse | WeighSamples | Compute):
                        self._run(op, work)
        finally:
            self._current = None
        for push, pushed in work.pushes.items():
            held.rows.setdefault((push.table, not push.times_batch_size), []).append(pushed)
        for op in program.ops_of(PushDense):
            if names := work.reached[op.table]:
                held.add(self._windows[name, op.table], names)
        return StepResult(work.loss, batch.size)

    def _merged(
        self, table: str, pushes: Sequence[tuple[Located, Floats]]
    ) -> tuple[Located, Floats]:
        """One push of all losses."""
        if len(pushes) == 1:
            return pushes[0]
        own = [(RowPush(located.keys, values, is_mean=True), 1.0) for located, values in pushes]
        keys, merged = merge_rows(self.plan.sparse_table(table), own)
        return self.client.locate(table, keys, create=True), merged


@dataclass(slots=True)
class _Held:
    """What the losses have given of a batch, by table and whether it is a mean over samples.

    rows: as each loss has them. dense: gradients [size], and the parameters that have one.
    """

    samples: int
    rows: dict[tuple[str, bool], list[tuple[Located, Floats]]] = field(default_factory=dict)
    dense: dict[tuple[str, bool], tuple[Floats, set[str]]] = field(default_factory=dict)

    def add(self, window: Window, names: Sequence[str]) -> None:
        """Add the gradients of a loss. NonFiniteError where a sum is too large."""
        table, grad = window.block.spec.name, window.block.grad
        place = table, window.is_mean
        if place not in self.dense:
            self.dense[place] = grad.copy(), {*names}  # the next loss, or batch, writes there too
            return
        total, known = self.dense[place]
        with np.errstate(over="ignore", invalid="ignore"):  # the sums are checked
            total += grad
        if not is_finite(total):
            raise NonFiniteError(
                f"dense table {table!r}: the gradients of the losses sum to infinity; nothing of "
                "this step was applied"
            )
        known.update(names)


def refuse_shared_counts(plan: Plan) -> None:
    """Raise PlanError for CTR rows that several losses push and that count an id's places.

    Each loss counts the places of its batch, so that a sum of their pushes has them twice.
    """
    pushed: dict[tuple[str, str], str] = {}
    for program in plan.programs.values():
        for op in program.ops_of(PushSparse):
            accessor = plan.sparse_table(op.table).accessor
            if not (isinstance(accessor, CtrAccessor) and accessor.show_scale):
                continue
            if not any(rule.takes_mean for rule in accessor.rules):
                continue
            for feature in op.features:
                first = pushed.setdefault((op.table, feature), program.name)
                if first != program.name:
                    raise PlanError(
                        f"losses {first!r} and {program.name!r} both push the rows of feature "
                        f"{feature!r} (table {op.table!r}), whose gradient is divided by how often "
                        "an id stands in the batch, and each loss counts that. Plan with one loss "
                        "that is their sum, transpile one program of the plan, or plan with "
                        "CtrAccessor(show_scale=False)"
                    )
