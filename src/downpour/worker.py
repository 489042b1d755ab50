"""A worker: runs the ops of a plan's programs on one batch after another."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch

from downpour.errors import PlanError
from downpour.gradients import Gradients
from downpour.lookup import TableKeys, joined_keys, table_keys
from downpour.loss_errors import explained
from downpour.model_tables import (
    note_trained,
    refuse_new_rows,
    require_connected,
    require_tables,
)
from downpour.model_values import ModelValues
from downpour.nn import sparse_embeddings
from downpour.no_grad import modules_named, outputs_detached
from downpour.parameters import DenseBlock, Window, dense_parameters
from downpour.plan.program import (
    Compute,
    PullDense,
    PullSparse,
    PushDense,
    PushSparse,
    WeighSamples,
)
from downpour.plan.startup import start
from downpour.step import Lookup, Step
from downpour.team import Chore, with_torch_threads
from downpour.transfer import HOST, Transfer, device_of
from downpour.weighing import weighed

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from downpour.client import Client
    from downpour.features import Batch
    from downpour.plan.plan import Plan
    from downpour.plan.program import Op, Program


@dataclass(frozen=True, slots=True)
class StepResult:
    """The loss of a step and the samples it was over."""

    loss: float
    samples: int


class Worker:
    """Interprets the programs of `plan` for `model`, whose tables `client` reads and updates.

    Dense tables that have no weights yet get those of the plan's `startup`, or the model's own.
    The model's SparseEmbeddings read through this worker from now on: in a step rows are made
    where they are missing, outside one an unknown id has its initial row and none is made.
    `phases_s`: seconds spent in each phase of the steps so far. `gradient_norms`: of the gradient
    of each dense table before clipping, in one of the last ten steps.

    Rows and batches go to the device of the model's parameters, or where it has none to `device`.
    A model must not move while a worker trains it.

    A model goes on with the rows that it was trained with. Raises PlanError for a trained model
    with empty tables, and for a client whose tables are not those of the plan.

    A step is atomic: whatever it raises, nothing of it is pushed, or in this process all of it is
    undone. What servers refuse of a step they refuse table by table (see docs/consistency.md).
    """

    def __init__(
        self,
        plan: Plan,
        model: torch.nn.Module,
        client: Client,
        *,
        device: str | torch.device = HOST,
    ) -> None:
        require_tables(plan, client)
        refuse_new_rows(plan, model, client)
        self.plan, self.model, self.client = plan, model, client
        self.device = device_of(model, device)
        self._transfer = Transfer(self.device)
        self.phases_s: dict[str, float] = defaultdict(float)
        self._parameters = dense_parameters(model)
        self._blocks = {
            spec.name: DenseBlock(spec, self._parameters, self._transfer) for spec in plan.dense
        }
        start(plan, model)
        self._values = ModelValues(plan, model, client, self._blocks)
        self._windows = {
            (program.name, op.table): Window(self._blocks[op.table], op)
            for program in plan.programs.values()
            for op in program.ops_of(PushDense)
        }
        self._detached = {
            op.loss: modules_named(model, op.detached)
            for program in plan.programs.values()
            for op in program.ops_of(Compute)
        }
        self._gradients = Gradients(plan, client, self._blocks, self._windows, self._parameters)
        self.gradient_norms = self._gradients.norms
        # Batches since the last pull, by program and table.
        self._since_pull: dict[tuple[str, str], int] = defaultdict(int)
        self._modules = list(sparse_embeddings(model))
        for module in self._modules:
            module.connect(self)
        self._has_trained = False
        self._ahead: list[tuple[str, Batch, Chore[list[Lookup]]]] = []
        self._current: Step | None = None
        self._num_steps = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            self.close()
        except PlanError:  # of what an error before it has said already
            if error is None:
                raise

    def close(self) -> None:
        """Push what a window has left, leave the tables' values in the model, end the thread."""
        self._ahead.clear()
        self.flush()
        self.pull_dense()

    def prefetch(self, program: str, batch: Batch) -> None:
        """Let the rows of a later step's batch be found during the steps before it.

        By those of torch's threads that have nothing to do meanwhile; a thread of our own would
        take its time from the model. What is not found by then is found at the start of its step.
        The values are read in that step, after all that came before it has been pushed; rows from
        servers that may be staler go to a GPU while the step before it computes. Steps are expected
        in the order of these calls.
        """
        planned = self.plan.program(program)
        look_up = Chore(self._look_up(planned.ops_of(PullSparse), batch))
        self._ahead.append((program, batch, look_up))

    def step(self, program: str, batch: Batch, *, goes_on: bool = True) -> StepResult:
        """Run a program on a batch: pull, compute, push.

        goes_on: whether another batch comes; in sync training of several workers the others have to
        know. Afterwards the model has the tables' dense values where they are in this process; with
        servers it has those that the step began with, until `pull_dense` or `close`.

        Changes that are made to dense parameters in place, between steps or in a forward, go into
        tables in this process; with servers they are refused (see `ModelValues`).

        Raises NonFiniteError where the loss or a gradient is NaN or infinite, PlanError for a
        parameter or feature that the plan does not have and for a change of a parameter that its
        table cannot follow, DataError for a batch that lacks one.
        """
        with with_torch_threads([chore for _, _, chore in self._ahead]):
            return self._step(program, batch, goes_on)

    def idle(self, program: str) -> None:
        """Take part in a step of sync training without a batch: others still have some."""
        planned = self.plan.program(program)
        for pull in planned.ops_of(PullDense):
            if pull.every > 1 and self._since_pull[program, pull.table] == 0:  # for later batches
                self._values.refresh(pull.table)
        for op in planned.ops_of(PushDense):
            window = self._windows[program, op.table]
            window.skip()
            if window.is_due:
                self._push_dense(window)
        self._end_step(program, 0, goes_on=False)

    def _step(self, program: str, batch: Batch, goes_on: bool) -> StepResult:
        plan = self.plan.program(program)
        require_connected(self._modules, self, self.client)
        with self._timed("wait for keys"):
            work = Step(plan, batch.to(self.device), self._prepared(program, batch))
            self._ask(plan, work)
            self._ask_ahead()
        self._current = work
        try:
            with self.client.atomic():
                for op in plan.ops:
                    self._run(op, work)
        finally:
            self._current = None
        with self._timed("pull"):
            for table in work.pushed_dense:  # which the step holds until its end
                self._values.pushed(program, table)
        self._end_step(program, batch.size, goes_on=goes_on)
        return StepResult(work.loss, batch.size)

    def _ask(self, program: Program, work: Step) -> None:
        """Let all that the step reads come at once, from wherever it is."""
        for op in program.ops_of(PullDense):
            if self._since_pull[program.name, op.table] == 0:
                self.client.ask_dense(op.table)
        for lookup in work.lookups:
            if lookup.sent is None:
                self.client.ask(lookup.located)

    def _ask_ahead(self) -> None:
        """Let the rows of later steps come from servers: behind what this step waits for."""
        if self.client.is_embedded:
            return
        for place, (_, _, look_up) in enumerate(self._ahead):
            for lookup in look_up.result():
                self.client.ask_ahead(lookup.located, self._num_steps + 2 + place)

    def _end_step(self, program: str, samples: int, *, goes_on: bool) -> None:
        share = 1.0
        if not self.client.is_embedded:
            with self._timed("wait for workers"):
                share = self.client.end_step(samples, goes_on=goes_on)
        self._num_steps += 1
        if not self._has_trained:
            self._has_trained = True
            note_trained(self.model, self.client)
        for push in self.plan.program(program).ops_of(PushDense):
            self._windows[program, push.table].weigh(share)
        for op in self.plan.program(program).ops_of(PullDense):
            since = self._since_pull[program, op.table] + 1
            self._since_pull[program, op.table] = since % op.every

    def pull_dense(self) -> None:
        """Read the dense parameters of all programs into the model."""
        for table in self._blocks:
            self._values.pull(table)

    def flush(self) -> None:
        """Push the dense gradients of windows that are not full; new ones begin with a pull.

        In sync training all workers do it at the same time.
        """
        self._values.take(self._blocks)
        for name, program in self.plan.programs.items():  # each is a step of its tables
            windows = [self._windows[name, op.table] for op in program.ops_of(PushDense)]
            for window in windows:
                if self._push_dense(window):
                    self._values.pushed(name, window.block.spec.name)
            if any(window.every > 1 for window in windows):
                self.client.end_step(0)
                self._num_steps += 1
        self._since_pull.clear()

    def rows(
        self, table: str, features: tuple[str, ...], batch: Batch
    ) -> tuple[torch.Tensor, TableKeys]:
        """See nn.RowSource."""
        if self._current is None:
            op = PullSparse(table, features)
            lookup = self._look_up_one(op, batch, create=False)
            return self._pulled(lookup, requires_grad=False), lookup.keys
        work = self._current
        lookups = [
            *work.lookups_of(
                table, features, batch, lambda op: self._look_up_one(op, batch, create=True)
            )
        ]
        parts = [
            self._pulled(lookup, requires_grad=self._learns(lookup.op, work)) for lookup in lookups
        ]
        keys = joined_keys([lookup.keys for lookup in lookups])
        return (parts[0] if len(parts) == 1 else torch.cat(parts)), keys

    def _prepared(self, program: str, batch: Batch) -> list[Lookup]:
        for place, (name, ahead, chore) in enumerate(self._ahead):
            if name == program and ahead is batch:
                del self._ahead[: place + 1]  # what was to come before it was passed over
                return chore.result()
        ops = self.plan.program(program).ops_of(PullSparse)
        return Chore(self._look_up(ops, batch)).result()

    def _look_up(
        self, ops: Sequence[PullSparse], batch: Batch
    ) -> Generator[None, None, list[Lookup]]:
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

    def _pulled(self, lookup: Lookup, *, requires_grad: bool) -> torch.Tensor:
        if lookup.rows is None:
            with self._timed("pull"):
                if lookup.sent is not None:
                    lookup.rows = lookup.sent.tensor()
                else:
                    lookup.rows = self._transfer.to_device(self.client.read(lookup.located))
                lookup.rows.requires_grad_(requires_grad)
        return lookup.rows

    def _run(self, op: Op, work: Step) -> None:
        match op:
            case PullDense(table):
                if self._since_pull[work.program.name, table] == 0:
                    with self._timed("pull"):
                        self._values.refresh(table)
            case PullSparse():
                for lookup in work.lookups:
                    if lookup.op == op:
                        self._pulled(lookup, requires_grad=self._learns(op, work))
            case WeighSamples():
                self._weigh(op, work)
            case Compute():
                self._compute(op, work)
            case PushSparse():
                with self._timed("push"):
                    if op in work.pushes:
                        self.client.update(*work.pushes[op], is_mean=not op.times_batch_size)
            case PushDense(table):
                window = self._windows[work.program.name, table]
                window.add(work.reached[table])
                if window.is_due and self._push_dense(window):
                    work.pushed_dense.append(table)

    def _push_dense(self, window: Window) -> bool:
        """Push what a window has, if anything."""
        if not window.num_batches:
            return False
        with self._timed("push"):
            try:
                window.push(self.client)
            finally:  # a push that was refused must not keep the next ones from being due
                window.reset()
        return True

    def _learns(self, op: PullSparse, work: Step) -> bool:
        """Whether a gradient of the op's rows is wanted, or to be refused if one comes."""
        return op.table not in work.program.no_grad

    def _weigh(self, op: WeighSamples, work: Step) -> None:
        """Replace the step's batch by one whose rarely shown samples weigh more."""
        lookup = next(
            it for it in work.lookups if it.op.table == op.table and op.feature in it.op.features
        )
        rows = self._pulled(lookup, requires_grad=self._learns(lookup.op, work))
        shown = self._transfer.to_host(rows)
        work.batch = weighed(op, work.batch, lookup, shown).to(self.device)

    def _compute(self, op: Compute, work: Step) -> None:
        function = self.plan.loss(op.loss)
        with outputs_detached(self._detached[op.loss]):  # also in backward, which may run it again
            with (
                self._timed("forward"),
                explained(f"loss {op.loss!r}", self.model, work.batch.size),
            ):
                for parameter in self._parameters.values():
                    parameter.grad = None
                value = function(self.model, work.batch)
            with self._timed("backward"):
                if value.requires_grad:
                    torch.autograd.backward(value)
                if not self._transfer.is_host:
                    self._gradients.fetch(work, self._transfer)
                    self._send_ahead()
                work.loss = float(value.detach())
        with self._timed("check"):
            self._gradients.collect(op.loss, work)
            self._values.take(work.program.tables(PullDense))

    def _send_ahead(self) -> None:
        """While the device computes, find the rows of the next step, and send what has come."""
        if not self._ahead:
            return
        _, _, look_up = self._ahead[0]
        with self._timed("wait for keys"):
            while not look_up.is_done:
                look_up.advance()
        if self.client.is_embedded:  # this step will change the rows
            return
        for lookup in look_up.result():
            rows = self.client.read_ahead(lookup.located, self._num_steps + 2)
            if rows is not None:
                lookup.sent = self._transfer.send(rows)

    def _timed(self, phase: str) -> _Timer:
        return _Timer(self.phases_s, phase)


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
