"""Paddle's DistributeTranspiler over a plan: who sends which section where, and what servers do."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from downpour.errors import PlanError, SettingError
from downpour.settings import short
from downpour.transpile.config import DistributeTranspilerConfig
from downpour.transpile.given import endpoints_of, num_trainers, planned
from downpour.transpile.programs import (
    pserver_program,
    pserver_startup,
    trainer_programs,
    trainer_startup,
)
from downpour.transpile.split import split_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from downpour.plan.plan import Plan
    from downpour.plan.program import Program
    from downpour.transpile.programs import DistributedProgram, TrainerPrograms
    from downpour.transpile.split import Split

DEFAULT_ENDPOINT = "127.0.0.1:6174"  # Paddle's


class DistributeTranspiler:
    """Makes the programs of trainers and servers from a plan, as Paddle's does from a program.

    It decides and shows; `transpiled` has all of it as values. Each `get_` raises PlanError before
    `transpile`.
    """

    def __init__(self, config: DistributeTranspilerConfig | None = None) -> None:
        self.config = DistributeTranspilerConfig() if config is None else config
        if not isinstance(self.config, DistributeTranspilerConfig):
            raise SettingError(
                f"DistributeTranspiler takes a DistributeTranspilerConfig, got {config!r}"
            )
        self._transpiled: Transpiled | None = None

    def transpile(
        self,
        trainer_id: int,
        program: Plan | Program,
        pservers: str = DEFAULT_ENDPOINT,
        trainers: int | str = 1,
        sync_mode: bool = True,
        startup_program: Callable[[Any], Any] | Mapping[str, Any] | None = None,
        current_endpoint: str = DEFAULT_ENDPOINT,
        *,
        plan: Plan | None = None,
        startup: Callable[[Any], Any] | Mapping[str, Any] | None = None,
    ) -> Transpiled:
        """Decide where every variable is and what travels.

        Args:
            trainer_id: which trainer this is, from 0.
            program: a plan, of which all losses are trained; or one of its programs, with `plan`,
                of which then only that loss is.
            pservers: the servers, "host:port" by commas; "[address]:port" for IPv6.
            trainers: how many there are.
            sync_mode: whether trainers wait for each other and servers average what they send.
            startup_program: what gives the model its first values, in place of the plan's own: a
                function of the model or a state_dict.
            current_endpoint: the server that this process is, if it is one.
            startup: `startup_program` by the name that minimize gives it; give one of the two.

        Raises SettingError; PlanError for what is planned and cannot be trained like this.
        """
        if startup is not None and startup_program is not None:
            raise SettingError("transpile: startup_program and startup are the same; give one")
        first = startup if startup_program is None else startup_program
        config = self.config.taken()
        self._transpiled = Transpiled(
            plan=planned(program, plan, first, config),
            trainer_id=trainer_id,
            trainers=num_trainers(trainers),
            sync_mode=sync_mode,
            endpoints=endpoints_of(pservers),
            config=config,
            current_endpoint=current_endpoint,
        )
        return self._transpiled

    @property
    def transpiled(self) -> Transpiled:
        """What the last `transpile` has decided."""
        if self._transpiled is None:
            raise PlanError(
                "DistributeTranspiler: nothing is transpiled yet; call transpile(trainer_id, plan, "
                "pservers=..., trainers=...) first"
            )
        return self._transpiled

    def get_trainer_program(self, wait_port: bool = True) -> TrainerPrograms:
        """What a trainer runs: (recv, local, send).

        wait_port: True or False, as in Paddle, and nothing waits here either way: the trainer's
        startup program does, until all servers answer.
        """
        if type(wait_port) is not bool:
            raise SettingError(
                f"get_trainer_program: wait_port must be True or False, got {wait_port!r}"
            )
        return self.transpiled.trainer_programs

    def get_pserver_program(self, endpoint: str | None = None) -> DistributedProgram:
        """What a server runs; None is `current_endpoint`."""
        done = self.transpiled
        return done.pserver_program(done.current_endpoint if endpoint is None else endpoint)

    def get_pserver_programs(
        self, endpoint: str | None = None
    ) -> tuple[DistributedProgram, DistributedProgram]:
        """What a server runs, and what it runs before that: its main and its startup program."""
        done = self.transpiled
        endpoint = done.current_endpoint if endpoint is None else endpoint
        return done.pserver_program(endpoint), done.pserver_startup(endpoint)

    def get_startup_program(
        self,
        endpoint: str | None = None,
        pserver_program: DistributedProgram | None = None,
        startup_program: Callable[[Any], Any] | Mapping[str, Any] | None = None,
    ) -> DistributedProgram:
        """What a server runs first; None is the trainer's own.

        pserver_program: as Paddle's callers give it; it must be the main program of that server.
        startup_program: likewise; it must be the one that `transpile` was given.
        """
        done = self.transpiled
        if startup_program is not None and startup_program is not done.plan.startup:
            raise SettingError(
                "get_startup_program: startup_program is not the one that was transpiled; give it "
                "to transpile(startup_program=...)"
            )
        if endpoint is None and pserver_program is None:
            return done.trainer_startup
        if endpoint is None:
            endpoint = done.current_endpoint
        if pserver_program not in (None, done.pserver_program(endpoint)):
            raise SettingError(
                f"get_startup_program: pserver_program is not the program of server {endpoint!r}; "
                f"give what get_pserver_program({endpoint!r}) gave, or leave it out, got "
                f"{pserver_program!r:.80}"
            )
        return done.pserver_startup(endpoint)


@dataclass(frozen=True, kw_only=True)
class Transpiled:
    """All that a transpiler has decided: equal in every process that was told the same.

    plan: what is trained; with a federation, by its rules on the servers. endpoints: the servers;
    the place of one is the number of its shard. current_endpoint: the server that this process is,
    if it is one. Raises SettingError.
    """

    plan: Plan
    trainer_id: int
    trainers: int
    sync_mode: bool
    endpoints: tuple[str, ...]
    config: DistributeTranspilerConfig
    current_endpoint: str = DEFAULT_ENDPOINT

    def __post_init__(self) -> None:
        if type(self.sync_mode) is not bool:
            raise SettingError(
                f"transpile: sync_mode must be True or False, got {self.sync_mode!r}"
            )
        if type(self.trainer_id) is not int or not 0 <= self.trainer_id < self.trainers:
            raise SettingError(
                f"transpile: trainer_id must be an int in [0, {self.trainers}), as there are "
                f"trainers={self.trainers}, got {self.trainer_id!r}"
            )
        if type(self.current_endpoint) is not str:
            raise SettingError(
                f"transpile: current_endpoint must be text, got {self.current_endpoint!r}"
            )
        if self.config.federation is not None and not self.sync_mode:
            raise SettingError(
                "transpile: a federation trains in rounds, in which servers wait for all trainers; "
                "take sync_mode=True, or a config without federation, got sync_mode=False with "
                f"{short(self.config.federation)}"
            )
        object.__setattr__(self, "config", self.config.taken())
        _ = self.split  # which refuses names that clash

    @property
    def is_chief(self) -> bool:
        """Whether this is the first trainer, which does what one alone is to do."""
        return self.trainer_id == 0

    @property
    def params_grads(self) -> tuple[tuple[str, str], ...]:
        """The parameters of all losses, each once with its gradient's name; sorted."""
        return tuple(sorted({pair for own in self.plan.params_grads.values() for pair in own}))

    @property
    def lookup_tables(self) -> tuple[str, ...]:
        """The sparse tables."""
        return tuple(spec.name for spec in self.plan.sparse)

    @cached_property
    def split(self) -> Split:
        """Where the sections of all variables are."""
        return split_of(self.plan, self.endpoints, self.config)

    @cached_property
    def trainer_startup(self) -> DistributedProgram:
        """What a trainer runs first."""
        return trainer_startup(self.split)

    @cached_property
    def trainer_programs(self) -> TrainerPrograms:
        """What a trainer runs: (recv, local, send)."""
        return trainer_programs(self.plan, self.split, self.config, sync_mode=self.sync_mode)

    def pserver_startup(self, endpoint: str) -> DistributedProgram:
        """What a server runs first; PlanError for one that is no server."""
        return pserver_startup(self.split, endpoint)

    def pserver_program(self, endpoint: str) -> DistributedProgram:
        """What a server runs; PlanError for one that is no server."""
        return pserver_program(
            self.plan,
            self.split,
            self.config,
            endpoint,
            trainers=self.trainers,
            sync_mode=self.sync_mode,
        )

    def __str__(self) -> str:
        federation = self.config.federation
        said = [
            f"trainer {self.trainer_id} of {self.trainers}{', the chief' * self.is_chief}",
            "sync" if self.sync_mode else "async",
            *([] if federation is None else [short(federation)]),
            f"servers {', '.join(self.endpoints)}",
        ]
        programs = map(str, (self.trainer_startup, *self.trainer_programs))
        table = str(self.split).replace("\n", "\n  ")
        return "\n\n".join(["; ".join(said), *programs, f"split:\n  {table}"])
