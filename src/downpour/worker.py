"""A worker: runs the ops of a plan's programs on one batch after another."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from downpour.errors import NonFiniteError, PlanError
from downpour.lookup import TableKeys, joined_keys, table_keys
from downpour.nn import sparse_embeddings
from downpour.parameters import DenseBlock, dense_parameters
from downpour.plan.program import Compute, PullDense, PullSparse, PushDense, PushSparse
from downpour.tables.batches import dedup, is_finite, segment_sum
from downpour.team import Chore, with_torch_threads

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from downpour.client import Client, Located
    from downpour.features import Batch
    from downpour.plan.program import Op, Plan, Program
    from downpour.transport import Floats


@dataclass(frozen=True, slots=True)
class StepResult:
    """The loss of a step and the samples it was over."""

    loss: float
    samples: int


@dataclass(slots=True)
class Lookup:
    """The keys that one op reads for a batch, their places, and once pulled their rows."""

    op: PullSparse
    keys: TableKeys
    located: Located
    rows: torch.Tensor | None = None

    def features_of(self, bad_rows: np.ndarray) -> list[str]:
        """The features with an id whose row is among those of the mask [num_unique]."""
        inverse = self.keys.inverse
        return [
            name
            for name, bag in self.keys.bags.items()
            if bad_rows[inverse[bag.start : bag.stop]].any()
        ]


@dataclass(slots=True)
class _Step:
    """What one step has pulled and what it is about to push."""

    program: Program
    batch: Batch
    lookups: list[Lookup]  # of `batch`, by prefetch
    others: list[tuple[Batch, Lookup]] = field(default_factory=list)  # batches made on the way
    loss: float = 0.0
    grads: dict[tuple[str, tuple[str, ...]], tuple[Located, Floats]] = field(default_factory=dict)

    def all_lookups(self) -> list[Lookup]:
        """Those of the step's batch, and those of the batches made on the way."""
        return [*self.lookups, *(lookup for _, lookup in self.others)]

    def pushed(self, op: PullSparse | PushSparse) -> list[Lookup]:
        """All lookups of an op that the loss has reached."""
        return [
            lookup
            for lookup in self.all_lookups()
            if (lookup.op.table, lookup.op.features) == (op.table, op.features)
            and lookup.rows is not None
            and lookup.rows.grad is not None
        ]


class Worker:
    """Interprets the programs of `plan` for `model`, whose tables `client` reads and updates.

    The model's SparseEmbeddings read through this worker from now on: in a step rows are made
    where they are missing, outside one an unknown id has its initial row and none is made.
    `phases_s`: seconds spent in each phase of the steps so far.

    A step is atomic: whatever it raises, it raises before anything is pushed.
    """

    def __init__(self, plan: Plan, model: torch.nn.Module, client: Client) -> None:
        self.plan, self.model, self.client = plan, model, client
        self.phases_s: dict[str, float] = defaultdict(float)
        self._parameters = dense_parameters(model)
        self._blocks = {spec.name: DenseBlock(spec, self._parameters) for spec in plan.dense}
        for name, block in self._blocks.items():
            client.init_dense(name, block.read())
        self._modules = list(sparse_embeddings(model))
        for module in self._modules:
            module.connect(self)
        self._ahead: list[tuple[str, Batch, Chore[list[Lookup]]]] = []
        self._current: _Step | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Push what a window has left, leave the tables' values in the model, end the thread."""
        self._ahead.clear()
        self.flush()
        self.pull_dense()

    def prefetch(self, program: str, batch: Batch) -> None:
        """Let the rows of a later step's batch be found during the steps before it.

        By those of torch's threads that have nothing to do meanwhile; a thread of our own would
        take its time from the model. What is not found by then is found at the start of its step.
        The values are read in that step, after all that came before it has been pushed. Steps are
        expected in the order of these calls.
        """
        ops = self._pulls(program)
        self._ahead.append((program, batch, Chore(self._look_up(ops, batch))))

    def step(self, program: str, batch: Batch) -> StepResult:
        """Run a program on a batch: pull, compute, push.

        Afterwards the model has the dense values that the step began with: `pull_dense` or `close`
        give it the tables' own.

        Raises NonFiniteError where the loss or a gradient is NaN or infinite, PlanError for a
        parameter or feature that the plan does not have, DataError for a batch that lacks one.
        """
        with with_torch_threads([chore for _, _, chore in self._ahead]):
            return self._step(program, batch)

    def _step(self, program: str, batch: Batch) -> StepResult:
        plan = self.plan.program(program)
        with self._timed("wait for keys"):
            work = _Step(plan, batch, self._prepared(program, batch))
        self._current = work
        try:
            for op in plan.ops:
                self._run(op, work)
        finally:
            self._current = None
        return StepResult(work.loss, batch.size)

    def pull_dense(self) -> None:
        """Read the dense parameters of all programs into the model."""
        for name, block in self._blocks.items():
            block.write(self.client.pull_dense(name))

    def flush(self) -> None:
        """Push the dense gradients of windows that are not full."""
        for block in self._blocks.values():
            self._push_dense(block)

    def rows(
        self, table: str, features: tuple[str, ...], batch: Batch
    ) -> tuple[torch.Tensor, TableKeys]:
        """See nn.RowSource."""
        if self._current is None:
            op = PullSparse(table, features)
            lookup = self._look_up_one(op, batch, create=False)
            return self._pulled(lookup, requires_grad=False), lookup.keys
        lookups = list(self._lookups(self._current, table, features, batch))
        parts = [self._pulled(lookup, requires_grad=True) for lookup in lookups]
        keys = joined_keys([lookup.keys for lookup in lookups])
        return (parts[0] if len(parts) == 1 else torch.cat(parts)), keys

    def _pulls(self, program: str) -> list[PullSparse]:
        return [op for op in self.plan.program(program).ops if isinstance(op, PullSparse)]

    def _prepared(self, program: str, batch: Batch) -> list[Lookup]:
        for place, (name, ahead, chore) in enumerate(self._ahead):
            if name == program and ahead is batch:
                del self._ahead[: place + 1]  # what was to come before it was passed over
                return chore.result()
        return Chore(self._look_up(self._pulls(program), batch)).result()

    def _look_up(self, ops: list[PullSparse], batch: Batch) -> Generator[None, None, list[Lookup]]:
        """Find the rows of each op; a stage for its keys, and one for their places."""
        lookups = []
        for op in ops:
            keys = table_keys(self.plan.sparse_table(op.table), op.features, batch)
            yield
            located = self.client.locate(op.table, keys.unique, create=True)
            lookups.append(Lookup(op, keys, located))
            yield
        return lookups

    def _look_up_one(self, op: PullSparse, batch: Batch, *, create: bool) -> Lookup:
        keys = table_keys(self.plan.sparse_table(op.table), op.features, batch)
        return Lookup(op, keys, self.client.locate(op.table, keys.unique, create=create))

    def _lookups(
        self, work: _Step, table: str, features: tuple[str, ...], batch: Batch
    ) -> Iterator[Lookup]:
        """The step's lookups that together hold these features of a batch."""
        planned = [op for op in work.program.ops if isinstance(op, PullSparse)]
        ops = [op for op in planned if op.table == table and {*op.features} & {*features}]
        unplanned = {*features} - {name for op in ops for name in op.features}
        if unplanned:
            raise PlanError(
                f"program {work.program.name!r} reads {sorted(unplanned)} of table {table!r}, "
                "which it did not read on the example batch that it was planned with"
            )
        for op in ops:
            if batch is work.batch:
                yield next(lookup for lookup in work.lookups if lookup.op == op)
            else:
                yield self._other(work, op, batch, features)

    def _other(
        self, work: _Step, op: PullSparse, batch: Batch, features: tuple[str, ...]
    ) -> Lookup:
        """The lookup of a batch that the loss made of its own, as sampled negatives.

        It may lack features of the op, but none of `features`.
        """
        there = PullSparse(
            op.table,
            tuple(name for name in op.features if name in batch.features or name in features),
        )
        for other, lookup in work.others:
            if other is batch and lookup.op == op and lookup.keys.bags.keys() >= {*there.features}:
                return lookup
        lookup = self._look_up_one(there, batch, create=True)
        lookup.op = op
        work.others.append((batch, lookup))
        return lookup

    def _pulled(self, lookup: Lookup, *, requires_grad: bool) -> torch.Tensor:
        if lookup.rows is None:
            with self._timed("pull"):
                lookup.rows = torch.from_numpy(self.client.read(lookup.located))
                lookup.rows.requires_grad_(requires_grad)
        return lookup.rows

    def _run(self, op: Op, work: _Step) -> None:
        match op:
            case PullDense(table):
                block = self._blocks[table]
                if block.num_batches == 0:
                    with self._timed("pull"):
                        block.write(self.client.pull_dense(table))
            case PullSparse():
                for lookup in work.lookups:
                    if lookup.op == op:
                        self._pulled(lookup, requires_grad=True)
            case Compute(loss):
                self._compute(loss, work)
            case PushSparse(table, features):
                with self._timed("push"):
                    if (table, features) in work.grads:
                        self.client.update(*work.grads[table, features])
            case PushDense(table):
                block = self._blocks[table]
                block.add()
                if block.num_batches == self.plan.window:
                    self._push_dense(block)

    def _push_dense(self, block: DenseBlock) -> None:
        if block.num_batches:
            with self._timed("push"):
                if block.names:
                    self.client.push_dense(block.spec.name, block.total, block.names)
                block.reset()

    def _compute(self, loss: str, work: _Step) -> None:
        function = self.plan.loss(loss)
        with self._timed("forward"):
            for parameter in self._parameters.values():
                parameter.grad = None
            value = function(self.model, work.batch)
        with self._timed("backward"):
            if value.requires_grad:
                torch.autograd.backward(value)
            work.loss = float(value.detach())
        with self._timed("check"):
            self._collect(loss, work)

    def _collect(self, loss: str, work: _Step) -> None:
        """Check and clip all gradients, before the first is pushed."""
        if not np.isfinite(work.loss):
            raise NonFiniteError(
                f"loss {loss!r} is {work.loss}; nothing of this step was applied. A smaller "
                "learning rate or DownpourSGD(clip=ClipByNorm(...)) may help"
            )
        blocks = [self._blocks[op.table] for op in work.program.ops if isinstance(op, PushDense)]
        self._refuse_unplanned(work.program, blocks)
        self._refuse_fixed(work)
        for block in blocks:
            block.collect(loss)
            if block.num_batches + 1 == self.plan.window:
                self.client.next_step(block.spec.name)
        for op in work.program.ops:
            if isinstance(op, PushSparse) and (reached := work.pushed(op)):
                work.grads[op.table, op.features] = self._merged(loss, op, reached)
                self.client.next_step(op.table)
        if self.plan.clip is not None:
            rows = [grads for _, grads in work.grads.values()]
            self.plan.clip.apply([*rows, *(block.grad for block in blocks)])

    def _merged(self, loss: str, op: PushSparse, lookups: list[Lookup]) -> tuple[Located, Floats]:
        """One gradient a distinct key, [num_keys, dim]."""
        grads = [_grad_of(lookup) for lookup in lookups]
        for lookup, grad in zip(lookups, grads, strict=True):
            if not is_finite(grad):
                features = lookup.features_of(~np.isfinite(grad).all(axis=1))
                raise NonFiniteError(
                    f"loss {loss!r}: the gradient of feature {', '.join(features)} (table "
                    f"{op.table!r}) holds NaN or infinity; nothing of this step was applied"
                )
        if len(lookups) == 1:
            return lookups[0].located, grads[0]
        keys, inverse = dedup(np.concatenate([lookup.keys.unique for lookup in lookups]))
        summed = segment_sum(np.concatenate(grads), inverse, len(keys))
        if not is_finite(summed):
            raise NonFiniteError(
                f"loss {loss!r}: the gradients of table {op.table!r} sum to infinity; nothing of "
                "this step was applied"
            )
        return self.client.locate(op.table, keys, create=True), summed

    def _refuse_unplanned(self, program: Program, blocks: list[DenseBlock]) -> None:
        planned = {name for block in blocks for name in block.parameters}
        for name, parameter in self._parameters.items():
            if parameter.grad is not None and name not in planned:
                raise PlanError(
                    f"program {program.name!r} reaches parameter {name!r}, which it did not on the "
                    "example batch that it was planned with; nothing of this step was applied"
                )

    def _refuse_fixed(self, work: _Step) -> None:
        """A feature that the plan pulls and does not push must get no gradient."""
        pushed = {(op.table, op.features) for op in work.program.ops if isinstance(op, PushSparse)}
        for lookup in work.all_lookups():
            fixed = (lookup.op.table, lookup.op.features) not in pushed
            if fixed and lookup.rows is not None and lookup.rows.grad is not None:
                reached = (lookup.rows.grad != 0).any(dim=1).numpy()
                if reached.any():
                    names = ", ".join(lookup.features_of(reached))
                    raise PlanError(
                        f"program {work.program.name!r} reaches feature {names} of table "
                        f"{lookup.op.table!r}, which it did not on the example batch that it was "
                        "planned with; nothing of this step was applied"
                    )

    def _timed(self, phase: str) -> _Timer:
        return _Timer(self.phases_s, phase)


def _grad_of(lookup: Lookup) -> Any:
    assert lookup.rows is not None
    assert lookup.rows.grad is not None
    return lookup.rows.grad.numpy()


class _Timer:
    """Adds the seconds of a block to a phase; what phases inside it take is theirs alone."""

    __slots__ = ("_before", "_phase", "_seconds", "_start")

    def __init__(self, seconds: dict[str, float], phase: str) -> None:
        self._seconds, self._phase = seconds, phase

    def __enter__(self) -> None:
        self._before = sum(self._seconds.values())
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        inside = sum(self._seconds.values()) - self._before
        self._seconds[self._phase] += time.perf_counter() - self._start - inside
