"""A client's training in a round, with any torch optimizer, between taking and sending.

At its beginning a round has the dense values and rows of the servers, of which it trains copies for
some steps; at its end the change since then is sent. Servers' rules take gradients, so what they
get of a change points the other way.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

from downpour.errors import PlanError
from downpour.federated.local_checks import (
    check_gradients,
    check_loss,
    refuse_model,
    refuse_plan,
    refuse_unplanned,
)
from downpour.federated.local_lookups import RoundLookups
from downpour.federated.local_optimizer import LocalOptimizer
from downpour.federated.local_rows import LocalRows
from downpour.federated.methods import FedAvg
from downpour.federated.update import Update, sent_through
from downpour.lookup import joined_keys, table_keys
from downpour.loss_errors import explained
from downpour.model_tables import (
    note_trained,
    refuse_new_rows,
    require_connected,
    require_tables,
)
from downpour.nn import sparse_embeddings
from downpour.no_grad import modules_named, outputs_detached
from downpour.parameters import DenseBlock, dense_parameters
from downpour.plan.program import Compute, PushDense, PushSparse
from downpour.plan.startup import start
from downpour.step import Step
from downpour.team import with_torch_threads
from downpour.transfer import HOST, Transfer, device_of
from downpour.worker import StepResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from downpour.client import Client
    from downpour.features import Batch
    from downpour.lookup import TableKeys
    from downpour.plan.plan import Plan
    from downpour.step import Lookup
    from downpour.transport import Floats

OptimizerFactory: TypeAlias = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]

FEDAVG = FedAvg()


class LocalModel:
    """Trains `model` in the rounds of a client, whose tables `client` reads and updates.

    A round is `recv`, some calls of `step`, and `send`. `samples` and `losses`, each sample's loss
    summed by program, are of the round; programs that run on the same batches count their samples
    once. The model's SparseEmbeddings read through this object: the round's rows in a round, and
    what the tables have besides, of which none is made.

    optimizer: gives the torch optimizer of a list of parameters, first dense ones, then one of rows
    for each sparse table that is trained, [num_keys, dim] of the round's keys. It may be called
    several times, and is once with rows of zeros. outgoing: see `federated.update`.

    Dense tables that have no weights yet get those of the plan's `startup`, or the model's own.
    Rows and batches go to the device of the model's parameters, or where it has none to `device`.

    Raises SettingError for tables, modules and optimizers that a client cannot train.
    """

    def __init__(
        self,
        plan: Plan,
        model: torch.nn.Module,
        client: Client,
        *,
        optimizer: OptimizerFactory,
        method: FedAvg = FEDAVG,
        outgoing: Sequence[Callable[[Update], Update]] = (),
        device: str | torch.device = HOST,
    ) -> None:
        refuse_plan(plan)
        refuse_model(model)
        require_tables(plan, client)
        refuse_new_rows(plan, model, client)
        self.plan, self.model, self.client, self.method = plan, model, client, method
        self.outgoing = tuple(outgoing)
        self.device = device_of(model, device)
        self.losses: dict[str, float] = defaultdict(float)
        self._samples: Counter[str] = Counter()
        self._transfer = Transfer(self.device)
        self._parameters = dense_parameters(model)
        self._blocks = {
            spec.name: DenseBlock(spec, self._parameters, self._transfer) for spec in plan.dense
        }
        programs = [*plan.programs.values()]
        self._rows = {spec.name: LocalRows(spec, self._transfer) for spec in plan.sparse}
        learned = {table for program in programs for table in program.tables(PushSparse)}
        self._learned = {name: rows for name, rows in self._rows.items() if name in learned}
        self._optimizer = LocalOptimizer(
            optimizer,
            [it for block in self._blocks.values() for it in block.parameters.values()],
            self._learned,
            method.optimizer_state,
        )
        self._detached = {
            op.loss: modules_named(model, op.detached)
            for program in programs
            for op in program.ops_of(Compute)
        }
        self._round: _Round | None = None
        self._current: Step | None = None
        self._start()

    def _start(self) -> None:
        start(self.plan, self.model)
        for name, block in self._blocks.items():
            self.client.init_dense(name, block.read())
        self.client.begin()
        self._modules = list(sparse_embeddings(self.model))
        for module in self._modules:
            module.connect(self)

    @property
    def samples(self) -> int:
        """How many samples the round has trained on so far: those of the program with most."""
        return max(self._samples.values(), default=0)

    def recv(self, batches: Sequence[Batch]) -> None:
        """Begin a round: take all dense values, and the rows of these batches' keys.

        Rows that the servers do not have are as they would make them, and are made by an update
        alone. A round that was not sent is forgotten, but for its optimizer's state.
        """
        self._end_round()
        self.losses.clear()
        self._samples.clear()
        lookups = RoundLookups(self.plan, self._rows, batches)
        for table in self._blocks:
            self.client.ask_dense(table)
        located = {
            table: self.client.locate(table, keys, create=False)
            for table, keys in lookups.keys().items()
        }
        for keys in located.values():
            self.client.ask(keys)
        for table, block in self._blocks.items():
            block.write(self.client.pull_dense(table))
        for table, keys in located.items():
            self._rows[table].begin(keys.keys, self.client.read(keys))
        self._optimizer.begin()
        self._round = self._begun(lookups)

    def step(self, program: str, batch: Batch) -> StepResult:
        """Let the optimizer make a step by the gradients of a program's loss, on what it trains.

        Raises NonFiniteError where the loss or a gradient is NaN or infinite, PlanError for a
        parameter or feature that the plan does not have or an id that no batch of the round has,
        DataError for a batch that lacks a feature. Then no step was made.
        """
        planned = self.plan.program(program)
        require_connected(self._modules, self, self.client)
        lookups = self._of_round().lookups.of_batch(planned, batch)
        work = Step(planned, batch.to(self.device), lookups)
        (compute,) = planned.ops_of(Compute)
        function = self.plan.loss(compute.loss)
        for parameter in self._parameters.values():
            parameter.grad = None
        self._current = work
        try:
            with with_torch_threads(), outputs_detached(self._detached[compute.loss]):
                with explained(f"loss {compute.loss!r}", self.model, batch.size):
                    value = function(self.model, work.batch)
                if value.requires_grad:
                    torch.autograd.backward(value)
        finally:
            self._current = None
        work.loss = float(value.detach())
        self._collect(compute.loss, work)
        self._optimizer.step()
        self._samples[program] += batch.size
        self.losses[program] += work.loss * batch.size
        return StepResult(work.loss, batch.size)

    def send(self) -> float:
        """End the round: send by how much the weights have changed; this client's share of it.

        Rows travel that a step has read which trains them, and parameters that a program trains
        which has made a step. Raises NonFiniteError for NaN or infinity, SettingError where a
        function of `outgoing` gives another update than one of the same tables and keys: then
        nothing was sent. Raises what the client raises. The round is over, whatever it raises.
        """
        own = self._of_round()
        try:
            update = sent_through(self.outgoing, self._update(own))
            for table, (keys, change) in update.rows.items():
                self.client.update(self.client.locate(table, keys, create=True), -change)
            for table, change in update.dense.items():
                self.client.push_dense(table, -change, self._trained_of(table))
            note_trained(self.model, self.client)
            return self.client.end_step(update.samples)
        finally:
            self._end_round()

    def rows(
        self, table: str, features: tuple[str, ...], batch: Batch
    ) -> tuple[torch.Tensor, TableKeys]:
        """See nn.RowSource."""
        work = self._current
        if work is None:
            return self._seen(table, features, batch)
        lookups = [*self._of_round().lookups.of_step(work, table, features, batch)]
        for lookup in lookups:
            if lookup.rows is None:
                learns = table not in work.program.no_grad
                lookup.rows = self._rows[table].read(lookup.located, requires_grad=learns)
        parts = [lookup.rows for lookup in lookups if lookup.rows is not None]
        keys = joined_keys([lookup.keys for lookup in lookups])
        return (parts[0] if len(parts) == 1 else torch.cat(parts)), keys

    def _seen(
        self, table: str, features: tuple[str, ...], batch: Batch
    ) -> tuple[torch.Tensor, TableKeys]:
        """Rows for anything but training: the round's as they are now, others of the tables."""
        keys = table_keys(self.plan.sparse_table(table), features, batch)
        located = self.client.locate(table, keys.unique, create=False)
        rows = self._transfer.to_device(self.client.read(located))
        if self._round is not None:
            rows = self._rows[table].put_over(keys.unique, rows)
        return rows, keys

    def _begun(self, lookups: RoundLookups) -> _Round:
        first, anchors = {}, dict[str, torch.Tensor]()
        for table, block in self._blocks.items():
            first[table] = block.read()
            if self.method.proximal:
                anchors |= {name: it.detach().clone() for name, it in block.parameters.items()}
        return _Round(lookups, first, anchors)

    # Gradients and changes.

    def _collect(self, loss: str, work: Step) -> None:
        """Leave gradients to what the program trains, and to nothing else."""
        check_loss(loss, work.loss)
        refuse_unplanned(work, self._parameters)
        trained = {*work.program.parameters}
        for name, parameter in self._parameters.items():
            if name not in trained:
                parameter.grad = None
            elif parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
        read: dict[str, list[Lookup]] = {table: [] for table in self._learned}
        pushed = {(op.table, op.features) for op in work.program.ops_of(PushSparse)}
        for lookup in work.all_lookups():
            if lookup.rows is not None and (lookup.op.table, lookup.op.features) in pushed:
                read[lookup.op.table].append(lookup)
        for table, rows in self._learned.items():
            rows.collect(read[table])
        check_gradients(loss, self._parameters, [(self._learned[it], read[it]) for it in read])
        for table, lookups in read.items():
            for lookup in lookups:
                self._learned[table].mark(lookup.located)
        self._pull_back()

    def _pull_back(self) -> None:
        """Add the gradient of the method's proximal term to those that there are."""
        weight = self.method.proximal
        for name, first in self._of_round().anchors.items():
            parameter = self._parameters[name]
            if parameter.grad is not None:
                parameter.grad = parameter.grad + weight * (parameter.detach() - first)
        if weight:
            for rows in self._learned.values():
                rows.pull_back(weight)

    def _update(self, own: _Round) -> Update:
        changes = {table: rows.change() for table, rows in self._learned.items()}
        return Update(
            {
                table: block.read() - own.first[table]
                for table, block in self._blocks.items()
                if self._trained_of(table)
            },
            {table: (keys, change) for table, (keys, change) in changes.items() if len(keys)},
            self.samples,
        )

    def _trained_of(self, table: str) -> list[str]:
        """The parameters of a dense table that the programs train which have made a step."""
        programs = [self.plan.program(name) for name in self._samples]
        ops = [op for program in programs for op in program.ops_of(PushDense)]
        return sorted({name for op in ops if op.table == table for name in op.parameters})

    def _of_round(self) -> _Round:
        if self._round is None:
            raise PlanError(
                "a client steps and sends in a round alone: recv(batches) begins one, and send() "
                "ends it"
            )
        return self._round

    def _end_round(self) -> None:
        self._optimizer.end()
        for rows in self._rows.values():
            rows.end()
        self._round = None


@dataclass(frozen=True, slots=True)
class _Round:
    """What a round began with: where the rows of its batches are, and the values of dense tables.

    anchors: the values of parameters, where a proximal term needs them.
    """

    lookups: RoundLookups
    first: dict[str, Floats]
    anchors: dict[str, torch.Tensor]
