"""Federation: all that a user states about one federated training, checked here."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeAlias

from downpour.data import Source
from downpour.errors import SettingError
from downpour.federated.local_checks import refuse_model
from downpour.federated.methods import FedAvg
from downpour.optimizer import DownpourSGD
from downpour.run import EarlyStop, Evaluate, Predict, Run, sigmoid_of_model
from downpour.settings import is_number, refuse_unknown

if TYPE_CHECKING:
    from typing import Self

    import torch

    from downpour.features import Batch
    from downpour.federated.local import OptimizerFactory
    from downpour.federated.update import Update
    from downpour.plan.plan import Plan

ClientData: TypeAlias = Callable[[int, int], Source]


@dataclass(frozen=True, kw_only=True)
class Federation:
    """One federated training: a frozen value. Raises SettingError or PlanError for what cannot be.

    In each round some clients take what the servers have, train on data of their own with a torch
    optimizer of their own, and send by how much their weights have changed; servers take the mean.
    No batch leaves a client.

    Args:
        model, losses: as of a `Run`.
        data: (client, clients) -> the `Source` of a client, from 0, of so many; each client asks
            for its own alone.
        optimizer: (parameters) -> the torch optimizer of a client, as
            `functools.partial(torch.optim.SGD, lr=0.1)`. Rows of lookup tables are parameters of it
            like others, as those of an `nn.Embedding` are.
        clients: how many there are; one may come later, go, and come again.
        rounds: how many there are.
        method: `FedAvg`, `FedProx`, `FedAvgM` or `FedAdam`.
        fraction: how many of the clients that are there are sampled for a round, in (0, 1].
        quorum: of those sampled, how many must be heard from for their round to count, in (0, 1].
            Of another round nothing is applied.
        deadline_s: after how long a round closes, whoever has not been heard from.
        max_failed_rounds: after how many rounds in a row without a quorum the federation gives up.
        outgoing: what is done to a client's update before it leaves, one after the other:
            `ClipUpdate`, or functions Update -> Update.
        eval_data, predict, label, evaluate, early_stop: as of a `Run`; after each round the
            coordinator evaluates. Without eval_data it plans with the data of client 0.
        startup, parameter_list, no_grad_set, device: as of a `Run`.
        seed: of the initial rows, of the sampling, and of torch's random numbers in each client.

    What a client cannot train is refused here, as running statistics of a BatchNorm.
    """

    model: torch.nn.Module
    losses: Callable[..., Any] | Sequence[Callable[..., Any]] | Mapping[str, Callable[..., Any]]
    data: ClientData
    optimizer: OptimizerFactory
    clients: int
    rounds: int = 10
    method: FedAvg = field(default_factory=FedAvg)
    fraction: float = 1.0
    quorum: float = 0.5
    deadline_s: float = 600.0
    max_failed_rounds: int = 3
    outgoing: Sequence[Callable[[Update], Update]] = ()
    eval_data: Source | None = None
    predict: Predict = sigmoid_of_model
    label: str | None = None
    evaluate: Evaluate | None = None
    early_stop: EarlyStop | None = None
    startup: Callable[[Any], Any] | Mapping[str, Any] | None = None
    parameter_list: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None
    no_grad_set: Iterable[Any] = ()
    seed: int = 0
    device: str | torch.device = "cpu"

    if not TYPE_CHECKING:

        def __new__(cls, *args: object, **settings: object) -> Self:
            """Refuse a setting that there is not, with the name that may have been meant."""
            refuse_unknown(cls, settings)
            return object.__new__(cls)

    def __post_init__(self) -> None:
        self._check_numbers()
        if not isinstance(self.method, FedAvg):
            raise SettingError(
                f"Federation.method must be FedAvg, FedProx, FedAvgM or FedAdam, got "
                f"{self.method!r}"
            )
        for name, what in (
            ("data", "a function (client, clients) that gives the client's Source"),
            ("optimizer", "a function of parameters that gives a torch optimizer, as "
             "functools.partial(torch.optim.SGD, lr=0.1)"),
        ):  # fmt: skip
            if not callable(getattr(self, name)):
                raise SettingError(f"Federation.{name} must be {what}, got {getattr(self, name)!r}")
        outgoing: object = self.outgoing
        if not isinstance(outgoing, Sequence) or not all(map(callable, outgoing)):
            raise SettingError(
                f"Federation.outgoing must be a list of functions of updates, got {outgoing!r}"
            )
        object.__setattr__(self, "outgoing", tuple(outgoing))
        run = self._run(_Nothing())
        for name in ("parameter_list", "no_grad_set", "device"):  # those that it has checked, kept
            object.__setattr__(self, name, getattr(run, name))
        refuse_model(self.model)

    def _check_numbers(self) -> None:
        for name in ("clients", "rounds", "max_failed_rounds"):
            count: object = getattr(self, name)
            if type(count) is not int or count < 1:
                raise SettingError(f"Federation.{name} must be an int >= 1, got {count!r}")
        for name in ("fraction", "quorum"):
            share: Any = getattr(self, name)
            if not (is_number(share) and 0.0 < share <= 1.0):
                raise SettingError(f"Federation.{name} must be a number in (0, 1], got {share!r}")
        seconds: Any = self.deadline_s
        if not (is_number(seconds) and 0.0 < seconds < 1e6):
            raise SettingError(
                f"Federation.deadline_s must be a number of seconds > 0, got {seconds!r}"
            )

    @cached_property
    def run(self) -> Run:
        """The run that the coordinator plans, evaluates and saves; its epochs are the rounds.

        Its tables have the rules that servers step by.
        """
        return self._run(self.data_of(0) if self.eval_data is None else self.eval_data)

    def run_of(self, client: int) -> Run:
        """The run that a client plans, with its own data."""
        return self._run(self.data_of(client))

    def data_of(self, client: int) -> Source:
        """The data of a client. SettingError where `data` gives none."""
        if not 0 <= client < self.clients:
            raise SettingError(
                f"a federation of {self.clients} clients has client 0 to {self.clients - 1}, got "
                f"{client}"
            )
        source: object = self.data(client, self.clients)
        if not isinstance(source, Source):
            raise SettingError(
                f"Federation.data({client}, {self.clients}) must give a Source, which has "
                f"batches(epoch) and num_batches(), got {source!r}"
            )
        return source

    def fingerprint(self, plan: Plan) -> str:
        """A hash of what the coordinator and all clients must have alike, beside the plan."""
        said = (self.method, sorted(plan.programs), self.clients)
        return hashlib.sha256(repr(said).encode()).hexdigest()

    def sample(self, present: Collection[int], number: int) -> list[int]:
        """The clients of a round, of those that are there: by the seed and the round's number."""
        chance = random.Random(f"{self.seed} {number}")
        return sorted(chance.sample(sorted(present), self.num_sampled(len(present))))

    def num_sampled(self, present: int) -> int:
        """Of so many clients, how many a round has."""
        return min(present, max(1, math.ceil(self.fraction * present - 1e-9)))

    def num_needed(self, sampled: int) -> int:
        """Of so many sampled clients, how many must be heard from."""
        return max(1, math.ceil(self.quorum * sampled - 1e-9))

    def run_settings(self) -> dict[str, Any]:
        """The settings of its run, for metrics.json: data and optimizer are those of clients."""
        settings = self.run.settings()
        own = {
            "data": f"{_name_of(self.data)} of each of {self.clients} clients",
            "optimizer": f"{_name_of(self.optimizer)} in each client",
            "server_rule": repr(self.method.rule),
        }
        return {name: own.pop(name, value) for name, value in settings.items()} | own

    def settings(self) -> dict[str, Any]:
        """What was set of the federation, beside the settings of its run, for metrics.json."""
        return {
            "clients": self.clients,
            "rounds": self.rounds,
            "method": repr(self.method),
            "fraction": self.fraction,
            "quorum": self.quorum,
            "deadline_s": self.deadline_s,
            "max_failed_rounds": self.max_failed_rounds,
            "optimizer": _name_of(self.optimizer),
            "outgoing": [repr(change) for change in self.outgoing],
        }

    def _run(self, data: Source) -> Run:
        rule = self.method.rule
        try:
            return Run(
                model=self.model,
                losses=self.losses,
                data=data,
                optimizer=DownpourSGD(sparse=rule, dense=rule),
                startup=self.startup,
                parameter_list=self.parameter_list,
                no_grad_set=self.no_grad_set,
                eval_data=self.eval_data,
                predict=self.predict,
                label=self.label,
                evaluate=self.evaluate,
                early_stop=self.early_stop,
                epochs=self.rounds,
                seed=self.seed,
                device=self.device,
            )
        except SettingError as error:  # who is told has made no Run
            raise SettingError(str(error).replace("Run.", "Federation.")) from None


def _name_of(function: Any) -> str:
    """A function's name; of a partial one with what it is given: SGD(lr=0.1)."""
    if isinstance(function, partial):
        given = [*map(repr, function.args), *(f"{k}={v!r}" for k, v in function.keywords.items())]
        return f"{_name_of(function.func)}({', '.join(given)})"
    return str(getattr(function, "__name__", None) or repr(function))


class _Nothing:
    """Stands for data that nobody has asked for yet."""

    def batches(self, epoch: int = 0) -> Iterator[Batch]:
        """None."""
        return iter(())

    def num_batches(self) -> int | None:
        """0"""
        return 0
