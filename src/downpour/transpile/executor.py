"""Runs transpiled programs: a trainer's with its model, or those of a server."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from downpour.consistency import Async, Sync
from downpour.errors import PlanError
from downpour.features import Batch
from downpour.federated.local import LocalModel
from downpour.plan.program import Compute
from downpour.remote.connect import connect
from downpour.remote.staging import StagingClient
from downpour.settings import short
from downpour.transfer import HOST
from downpour.transpile.gradient_trainer import GradientTrainer, refuse_shared_counts
from downpour.transpile.ops import Recv
from downpour.transpile.programs import DistributedProgram
from downpour.transpile.pserver import ParameterServers
from downpour.transpile.transpiler import Transpiled

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from downpour.federated.local import OptimizerFactory
    from downpour.federated.update import Update
    from downpour.remote.client import RemoteClient
    from downpour.security import Security
    from downpour.worker import StepResult


class Executor:
    """Runs the programs that `transpile` gave: use it as a context manager.

    A trainer runs its startup program once, which waits for the servers and the other trainers, and
    then again and again recv, local and send. In federated training recv takes all batches of the
    round, whose rows it reads, and local runs on one after the other before send::

        with dp.Executor(transpiled, model) as executor:
            executor.run(transpiler.get_startup_program())
            recv, local, send = transpiler.get_trainer_program()
            for batch in batches:
                executor.run(recv)
                executor.run(local, batch)
                executor.run(send)

    Its model has what the last recv has read: run it once more at the end.

    A server runs its startup program, if its dense tables are to get their first values there, and
    its main program, which serves until `stop` is called, or Ctrl-C, and then until nobody is
    connected. Trainers say how many they are and how they average.

    Args:
        model: the trainer's; a server needs one for its startup program alone.
        optimizer: (parameters) -> a torch optimizer, of a federated trainer.
        outgoing: what is done to a federated trainer's update before it leaves; see `Federation`.
        on_worker_loss: "stop" all trainers where one dies or hangs, or "continue" without it.
        device, security, deadline_s, start_s, worker_timeout_s: as of `Worker` and `connect`.

    Raises PlanError for what is no transpiled plan; in `run` also what `connect`, `Worker` and
    federated training raise. An error that leaves the block stops the other trainers.
    """

    def __init__(
        self,
        transpiled: Transpiled,
        model: torch.nn.Module | None = None,
        *,
        optimizer: OptimizerFactory | None = None,
        outgoing: Sequence[Callable[[Update], Update]] = (),
        device: str | torch.device = HOST,
        security: Security | None = None,
        on_worker_loss: str = "stop",
        deadline_s: float = 30.0,
        start_s: float = 60.0,
        worker_timeout_s: float = 10.0,
    ) -> None:
        if not isinstance(transpiled, Transpiled):
            raise PlanError(
                "Executor runs what is transpiled: give it what transpile(...) returned, got "
                f"{transpiled!r:.80}"
            )
        self.transpiled, self.model = transpiled, model
        self._optimizer, self._outgoing, self._device = optimizer, tuple(outgoing), device
        self._connect = partial(
            connect,
            security=security,
            on_worker_loss=on_worker_loss,
            deadline_s=deadline_s,
            start_s=start_s,
            worker_timeout_s=worker_timeout_s,
        )
        self._trainer: GradientTrainer | LocalModel | None = None
        self._servers = ParameterServers(transpiled, security)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        trainer, self._trainer = self._trainer, None
        if trainer is not None:
            trainer.client.__exit__(*error)

    def close(self) -> None:
        """End a trainer's part: the others go on without it. A server stops."""
        self.__exit__(None, None, None)

    def stop(self) -> None:
        """Let what serves, on another thread, come to its end; who comes later ends at once."""
        self._servers.stop()

    def run(
        self, program: DistributedProgram, batch: Batch | Sequence[Batch] | None = None
    ) -> list[StepResult]:
        """Run a program; what each loss of a local program gave.

        batch: that of a local program, or all batches of a round for the recv program of federated
        training. Raises PlanError for a program of another transpiler, for one that is not next,
        or that lacks its batch or has one to which it does nothing. Then nothing has changed.
        """
        self._require_own(program)
        self._check_batch(program, batch)
        match program.name:
            case "startup" if program.endpoint is not None:
                self._servers.start(program, self._model("the startup program of a server"))
            case "startup":
                self._start_trainer()
            case "pserver":
                self._servers.serve(program)
            case "recv":
                self._recv(program, batch)
            case "local":
                return self._local(program, batch)
            case "send":
                self.trainer.send()
        return []

    @property
    def trainer(self) -> GradientTrainer | LocalModel:
        """What runs the trainer's programs. PlanError before its startup program has run."""
        if self._trainer is None:
            raise PlanError(
                "a trainer runs its startup program before any other: executor.run(transpiler."
                "get_startup_program())"
            )
        return self._trainer

    # A trainer.

    def _start_trainer(self) -> None:
        made, federation = self.transpiled, self.transpiled.config.federation
        model = self._model("the startup program of a trainer")
        if self._trainer is not None:
            raise PlanError("the startup program has run already; run recv, local and send")
        if federation is None:
            refuse_shared_counts(made.plan)
        elif self._optimizer is None:
            raise PlanError(
                "a federated trainer steps by itself: give Executor its optimizer, as "
                "functools.partial(torch.optim.SGD, lr=0.1)"
            )
        client = self._connect(
            made.plan,
            made.endpoints,
            consistency=Sync() if made.sync_mode else Async(max_staleness=0),
            rank=made.trainer_id,
            num_workers=made.trainers,
            run=self._run_name,
            sections=made.config.sections,
        )
        try:
            self._trainer = self._made_trainer(model, client)
        except BaseException as error:
            client.abandon(f"{type(error).__name__}: {error}")
            raise

    @property
    def _run_name(self) -> str:
        """What all trainers must have alike, beside the plan and the sections: servers compare."""
        made, federation = self.transpiled, self.transpiled.config.federation
        said = ["sync" if made.sync_mode else "async"]
        said += [] if federation is None else [short(federation)]
        return f"transpiled, {', '.join(said)}"

    def _made_trainer(
        self, model: torch.nn.Module, client: RemoteClient
    ) -> GradientTrainer | LocalModel:
        plan, federation = self.transpiled.plan, self.transpiled.config.federation
        if federation is None:
            return GradientTrainer(plan, model, client, device=self._device)
        assert isinstance(client, StagingClient)
        assert self._optimizer is not None
        client.average_by(federation)
        return LocalModel(
            plan,
            model,
            client,
            optimizer=self._optimizer,
            method=federation,
            outgoing=self._outgoing,
            device=self._device,
        )

    def _recv(self, program: DistributedProgram, batch: Any) -> None:
        trainer = self.trainer
        if isinstance(trainer, LocalModel):
            trainer.recv(batch if isinstance(batch, Sequence) else [batch])
        else:
            tables = dict.fromkeys(op.section.table for op in program.ops_of(Recv))
            trainer.recv([*tables])

    def _local(self, program: DistributedProgram, batch: Any) -> list[StepResult]:
        trainer = self.trainer
        if isinstance(trainer, LocalModel):
            return [trainer.step(op.loss, batch) for op in program.ops_of(Compute)]
        return trainer.local(batch)

    # What is asked for.

    def _model(self, what: str) -> torch.nn.Module:
        if self.model is None:
            raise PlanError(f"{what} needs a model: Executor(transpiled, model)")
        return self.model

    def _require_own(self, program: object) -> None:
        if not isinstance(program, DistributedProgram):
            raise PlanError(
                "run takes one program, as recv, local and send of get_trainer_program(), got "
                f"{program!r:.80}"
            )
        made = self.transpiled
        own: tuple[DistributedProgram, ...] = (made.trainer_startup, *made.trainer_programs)
        if program.endpoint in made.endpoints:
            own = (made.pserver_startup(program.endpoint), made.pserver_program(program.endpoint))
        if program not in own:
            raise PlanError(
                f"program {program.name!r} is none of this transpiler's; run what the get_... "
                "functions give after the transpile(...) whose result this Executor has"
            )

    def _check_batch(self, program: DistributedProgram, batch: object) -> None:
        """Raise PlanError where a program lacks its batch, or has one to which it does nothing."""
        takes_round = program.name == "recv" and self.transpiled.config.federation is not None
        if program.name == "local":
            is_right, must_be = isinstance(batch, Batch), "one batch at a time"
        elif takes_round:
            several = batch if isinstance(batch, Sequence) else [batch]
            is_right = all(isinstance(it, Batch) for it in several)
            must_be = "all batches of the round, a list, be it empty"
        else:
            is_right, must_be = batch is None, "no batch"
        if not is_right:
            raise PlanError(
                f"the {program.name} program takes {must_be}, got {batch!r:.80}; give batches to "
                "local, and in federated training those of a round to recv as well"
            )
