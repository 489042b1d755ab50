"""DownpourSGD: how the tables of a model learn, and the way from losses to a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from downpour.accessor import CtrAccessor
from downpour.clip import ClipByNorm, ClipByValue
from downpour.errors import SettingError
from downpour.plan.minimize import plan_losses
from downpour.rules import BaseRule, Summary
from downpour.settings import is_number
from downpour.strategy import Strategy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch

    from downpour.clip import Clip
    from downpour.features import Batch
    from downpour.plan.plan import Plan
    from downpour.rules import Rule


@dataclass(frozen=True)
class DownpourSGD:
    """The optimizer of a run: a frozen value. `DownpourSGD(0.2)` sets its learning rate.

    Args:
        learning_rate: read only where a rule is not given: there sparse tables get
            `G2SumAdagrad(learning_rate)`, dense ones `AdamD2Sum(learning_rate)`.
        window: dense parameters are pulled and pushed every so many batches of a program, their
            gradients summed between; rows are every batch. What is left is pushed at the end.
        sparse: the rule of all sparse tables, a `CtrAccessor` for rows that count show and click,
            or either by table, `{"embedding": Adagrad(0.05)}`.
        dense: the rule of all dense tables.
        data_norm: the rule of all data-norm tables.
        clip: `ClipByValue` or `ClipByNorm`, applied to the gradients of each batch.
        scale_sparse_gradient_with_batch_size: multiply the gradients of rows by the number of
            samples, for a loss that is their mean. None is off, but on where minimize is given a
            strategy, as in the reference.
        scale_datanorm: make what a batch adds to data-norm statistics independent of its size (see
            `PushDense.scale_datanorm`). None is off, or what a strategy says.

    Raises SettingError.
    """

    learning_rate: float = 0.001
    window: int = 1
    _: KW_ONLY
    sparse: Rule | CtrAccessor | Mapping[str, Rule | CtrAccessor] | None = None
    dense: Rule | None = None
    data_norm: Summary | None = None
    clip: Clip | None = None
    scale_sparse_gradient_with_batch_size: bool | None = None
    scale_datanorm: float | None = None

    def __post_init__(self) -> None:
        if type(self.window) is not int or self.window < 1:
            raise SettingError(f"DownpourSGD.window must be an int >= 1, got {self.window!r}")
        rate: Any = self.learning_rate
        if not (is_number(rate) and rate > 0):
            raise SettingError(f"DownpourSGD.learning_rate must be > 0, got {rate!r}")
        given = self.sparse.values() if isinstance(self.sparse, Mapping) else (self.sparse,)
        for entry in given:
            if not isinstance(entry, BaseRule | CtrAccessor | None):
                raise SettingError(
                    "DownpourSGD.sparse takes rules, such as Adagrad(lr=0.05), or a CtrAccessor, "
                    f"got {entry!r}"
                )
        self._check_dense()
        if not isinstance(self.clip, ClipByNorm | ClipByValue | None):
            raise SettingError(
                f"DownpourSGD.clip takes ClipByValue or ClipByNorm, got {self.clip!r}"
            )
        scales: object = self.scale_sparse_gradient_with_batch_size
        if type(scales) not in (bool, type(None)):
            raise SettingError(
                "DownpourSGD.scale_sparse_gradient_with_batch_size must be a bool or None, got "
                f"{scales!r}"
            )
        scale: Any = self.scale_datanorm
        if scale is not None and not (is_number(scale) and scale >= 0):
            raise SettingError(
                f"DownpourSGD.scale_datanorm must be a number >= 0 or None, got {scale!r}"
            )

    def _check_dense(self) -> None:
        if not isinstance(self.dense, BaseRule | None):
            raise SettingError(
                f"DownpourSGD.dense takes a rule, such as Adam(lr=0.001), got {self.dense!r}"
            )
        if self.dense is not None and (not self.dense.on_dense or isinstance(self.dense, Summary)):
            holds = "data-norm statistics" if self.dense.on_dense else "sparse tables only"
            raise SettingError(
                f"DownpourSGD.dense: {type(self.dense).__name__} updates {holds}; take SGD, "
                "Adagrad, Adam or AdamD2Sum"
            )
        if not isinstance(self.data_norm, Summary | None):
            raise SettingError(
                f"DownpourSGD.data_norm takes Summary(decay), got {self.data_norm!r}"
            )

    def minimize(
        self,
        losses: Callable[..., Any] | Sequence[Callable[..., Any]] | Mapping[str, Any],
        *,
        model: torch.nn.Module,
        example: Batch,
        startup: Callable[[Any], Any] | Mapping[str, Any] | None = None,
        parameter_list: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None,
        no_grad_set: Iterable[Any] = (),
        strategy: Strategy | Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> Plan:
        """Find out what each loss reads and reaches, and plan its tables and programs.

        Args:
            losses: callables (model, batch) -> scalar: one, a list (each known by its function's
                name) or {name: loss}.
            model: it is left as it was.
            example: a batch like those to come; each loss runs on it once, forward and backward. A
                feature to which its samples pass no gradient is taken to get none.
            startup: the first values of the dense parameters: a state_dict, or a function of the
                model that changes it or returns one. None takes the model's own.
            parameter_list: the dense parameters to train, by name or as they are; of all losses,
                {loss: list}, or a list of lists. None trains all that a loss reaches. Rows are
                trained in any case, as in the reference; a list may name all of their tables.
            no_grad_set: parameters, tables and modules that get no gradient from any loss; the
                output of a module is detached.
            strategy: the reference's fleet strategy, a dict or a `Strategy`.
            seed: of the initial rows, >= 0.

        Raises PlanError for what cannot be planned, NonFiniteError for a loss that is not finite,
        DataError for an example that lacks a feature, SettingError for a setting of a strategy.
        """
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise SettingError(f"minimize: seed must be an int in [0, 2**63), got {seed!r}")
        return plan_losses(
            losses,
            model=model,
            example=example,
            optimizer=self,
            startup=startup,
            parameter_list=parameter_list,
            no_grad_set=no_grad_set,
            strategy=None if strategy is None else Strategy.of(strategy),
            seed=seed,
        )

    def named_tables(self) -> tuple[str, ...]:
        """The sparse tables that `sparse` names."""
        return tuple(self.sparse) if isinstance(self.sparse, Mapping) else ()

    def sparse_of(self, table: str) -> Rule | CtrAccessor | None:
        """What is said of a sparse table."""
        return self.sparse.get(table) if isinstance(self.sparse, Mapping) else self.sparse
