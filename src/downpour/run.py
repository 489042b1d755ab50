"""Run: all that a user states about one training run, checked here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import FunctionType, NoneType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from downpour.consistency import Consistency, Sync
from downpour.data import Source
from downpour.errors import SettingError
from downpour.evaluate import sigmoid_of_model as sigmoid_of_model  # saved runs name it here
from downpour.features import Batch
from downpour.metrics import RunMetrics
from downpour.optimizer import DownpourSGD
from downpour.plan.losses import named_losses
from downpour.settings import refuse_unknown, short
from downpour.strategy import Strategy
from downpour.transfer import checked_device

if TYPE_CHECKING:
    from typing import Self

Predict: TypeAlias = Callable[[Any, Batch], torch.Tensor]
Evaluate: TypeAlias = Callable[[Any], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """Stop once `metric` has not improved for `patience` evaluations in a row.

    The run ends with the model of its best evaluation, however it ends: in its folder, in the model
    and in its tables. At each evaluation that is the best so far the model is saved, as at the
    end; without a folder it is copied in memory, rows included. `restore_best=False` saves that
    time and memory, and ends with the model of the last step.

    An evaluation where the metric is not defined, as AUC where all labels are one class, counts
    neither as better nor as worse. `mode`: whether more ("max") or less ("min") of the metric is
    better.
    """

    metric: str = "auc"
    patience: int = 1
    mode: Literal["max", "min"] = "max"
    restore_best: bool = True

    def __post_init__(self) -> None:
        if type(self.metric) is not str or not self.metric:
            raise SettingError(f"EarlyStop.metric must be a name, got {self.metric!r}")
        if type(self.patience) is not int or self.patience < 1:
            raise SettingError(f"EarlyStop.patience must be an int >= 1, got {self.patience!r}")
        if self.mode not in ("max", "min"):
            raise SettingError(f"EarlyStop.mode must be 'max' or 'min', got {self.mode!r}")
        if type(self.restore_best) is not bool:
            raise SettingError(
                f"EarlyStop.restore_best must be True or False, got {self.restore_best!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run: a frozen value. Raises SettingError or PlanError for what cannot be.

    Args:
        model: reads its rows through `SparseEmbedding`s; any torch module otherwise.
        losses: callables (model, batch) -> scalar: one, a list, or {name: loss}. Each is a
            program; the programs run in order on each batch.
        data: where training batches come from: `Files`, `Frame`, or a `Source` of your own.
        optimizer: the rules of the tables.
        startup, parameter_list, no_grad_set, strategy: as in `DownpourSGD.minimize`.
        eval_data: held-back batches, evaluated after each epoch: AUC, logloss and COPC, and RMSE
            and MAE where labels are other numbers than 0 and 1. What is not defined for the labels
            is None.
        predict: (model, batch) -> predictions [batch]: probabilities of labels 0 and 1, or what
            other labels are numbers of; by default the sigmoid of what the model returns.
            Evaluation and `downpour predict` use it.
        label: the label that predictions are of; by default the only one there is.
        evaluate: (model) -> {name: value}, an evaluation of your own, after each epoch. NaN and
            infinity count as undefined. It is called once before the first step as well, as is one
            batch of `eval_data` evaluated, to find mistakes before any work is spent.
        epochs: how often to go through `data`.
        eval_every: evaluate also after every so many steps.
        early_stop: when to stop before the last epoch.
        consistency: when workers see each other's pushes, in a run with servers: `Sync` (as one
            process with all their batches joined), `Async`, `HalfAsync` or `Geo`.
        seed: of the initial rows and of torch's random numbers while it trains (dropout).
        device: where the model computes, "cpu" or a GPU: "cuda", "cuda:1" or a torch.device. The
            model is moved there, and rows and batches follow; tables stay on servers' CPUs.
    """

    model: torch.nn.Module
    losses: Callable[..., Any] | Sequence[Callable[..., Any]] | Mapping[str, Callable[..., Any]]
    data: Source
    optimizer: DownpourSGD
    startup: Callable[[Any], Any] | Mapping[str, Any] | None = None
    parameter_list: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None
    no_grad_set: Iterable[Any] = ()
    strategy: Strategy | Mapping[str, Any] | None = None
    eval_data: Source | None = None
    predict: Predict = sigmoid_of_model
    label: str | None = None
    evaluate: Evaluate | None = None
    epochs: int = 1
    eval_every: int | None = None
    early_stop: EarlyStop | None = None
    consistency: Consistency = field(default_factory=Sync)
    seed: int = 0
    device: str | torch.device = "cpu"

    if not TYPE_CHECKING:

        def __new__(cls, *args: object, **settings: object) -> Self:
            """Refuse a setting that there is not, with the name that may have been meant."""
            refuse_unknown(cls, settings)
            return object.__new__(cls)

    def __post_init__(self) -> None:
        self._require("losses", (Callable, Sequence, Mapping), "a function, a list or {name: loss}")
        named_losses(self.losses)
        self._require("model", torch.nn.Module, "a torch.nn.Module, made, not its class")
        self._require("optimizer", DownpourSGD, "a DownpourSGD")
        if self.strategy is not None:
            object.__setattr__(self, "strategy", Strategy.of(self.strategy))
        for name in ("parameter_list", "no_grad_set"):
            object.__setattr__(self, name, _kept(getattr(self, name)))
        self._require("data", Source, "a Source, such as downpour.Files or downpour.Frame")
        if self.eval_data is not None:
            self._require("eval_data", Source, "a Source or None")
        self._require("predict", Callable, "a function (model, batch) -> probabilities [batch]")
        self._require("label", (str, NoneType), "a label's name or None")
        if self.evaluate is not None:
            self._require("evaluate", Callable, "a function (model) -> {name: value}, or None")
        self._require("consistency", Consistency, "Sync(), Async(), HalfAsync() or Geo()")
        self._require("early_stop", (EarlyStop, NoneType), "an EarlyStop or None")
        object.__setattr__(self, "device", checked_device("Run.device", self.device))
        self._check_numbers()
        self._check_evaluated()

    def _check_numbers(self) -> None:
        for name in ("epochs", "eval_every"):
            value = getattr(self, name)
            if not (value is None and name == "eval_every") and (
                type(value) is not int or value < 1
            ):
                raise SettingError(f"Run.{name} must be an int >= 1, got {value!r}")
        if type(self.seed) is not int or self.seed < 0:
            raise SettingError(f"Run.seed must be an int >= 0, got {self.seed!r}")

    def _check_evaluated(self) -> None:
        needs = "eval_every" if self.eval_every else "early_stop" if self.early_stop else None
        if needs and self.eval_data is None and self.evaluate is None:
            raise SettingError(f"Run.{needs} needs eval_data or evaluate to look at, got neither")
        known = RunMetrics.NAMES
        if self.early_stop and self.evaluate is None and self.early_stop.metric not in known:
            raise SettingError(
                f"EarlyStop.metric must be one of {', '.join(known)}, or of what Run.evaluate "
                f"gives, got {self.early_stop.metric!r}"
            )

    def _require(self, name: str, kind: Any, what: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, kind):
            raise SettingError(f"Run.{name} must be {what}, got {value!r}")

    def settings(self) -> dict[str, Any]:
        """What was set, as texts and numbers, for metrics.json."""
        return {
            "model": type(self.model).__name__,
            "losses": list(named_losses(self.losses)),
            "data": repr(self.data),
            "optimizer": {
                field.name: _plain(getattr(self.optimizer, field.name))
                for field in fields(self.optimizer)
            },
            "startup": None if self.startup is None else type(self.startup).__name__,
            "parameter_list": _plain(self.parameter_list),
            "no_grad_set": _plain(self.no_grad_set),
            "strategy": None if self.strategy is None else short(self.strategy),
            "eval_data": None if self.eval_data is None else repr(self.eval_data),
            "predict": _plain(self.predict),
            "label": self.label,
            "evaluate": _plain(self.evaluate),
            "epochs": self.epochs,
            "eval_every": self.eval_every,
            "early_stop": _plain(self.early_stop),
            "consistency": repr(self.consistency),
            "seed": self.seed,
            "device": str(self.device),
        }


def _kept(names: Any) -> Any:
    """What may be gone through more than once; what is no list is refused when planning."""
    if isinstance(names, Mapping):
        return {loss: _kept(own) for loss, own in names.items()}
    return tuple(names) if isinstance(names, Iterable) and not isinstance(names, str) else names


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, FunctionType):
        return value.__name__
    return value if value is None or isinstance(value, (int, float, str)) else repr(value)
