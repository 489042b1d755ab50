"""DownpourSGD: how the tables of a model learn, and the way from losses to a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from downpour.clip import ClipByNorm, ClipByValue
from downpour.errors import SettingError
from downpour.nn import sparse_embeddings
from downpour.plan.minimize import plan_losses
from downpour.rules import AdamD2Sum, BaseRule, G2SumAdagrad

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from downpour.clip import Clip
    from downpour.features import Batch
    from downpour.plan.program import Plan
    from downpour.rules import Rule


@dataclass(frozen=True, kw_only=True)
class DownpourSGD:
    """The optimizer of a run: a frozen value.

    `sparse`: the rule of all sparse tables, or one a table, `{"embedding": Adagrad(0.05)}`.
    `dense`: the rule of all dense tables. `learning_rate` is read only where a rule is not given:
    there sparse tables get `G2SumAdagrad(learning_rate)`, dense ones `AdamD2Sum(learning_rate)`.
    `window`: dense parameters are pulled and pushed every so many batches, their gradients summed
    between; rows are every batch. `clip`: `ClipByValue` or `ClipByNorm`, applied to the gradients
    of each batch. Raises SettingError.
    """

    learning_rate: float = 0.001
    window: int = 1
    sparse: Rule | Mapping[str, Rule] | None = None
    dense: Rule | None = None
    clip: Clip | None = None

    def __post_init__(self) -> None:
        if type(self.window) is not int or self.window < 1:
            raise SettingError(f"DownpourSGD.window must be an int >= 1, got {self.window!r}")
        rate: object = self.learning_rate
        if not (isinstance(rate, int | float) and rate > 0):
            raise SettingError(f"DownpourSGD.learning_rate must be > 0, got {rate!r}")
        rules = self.sparse.values() if isinstance(self.sparse, Mapping) else (self.sparse,)
        for rule in (*rules, self.dense):
            if not isinstance(rule, BaseRule | None):
                raise SettingError(
                    f"DownpourSGD.sparse and .dense take rules, such as Adagrad(lr=0.05), got "
                    f"{rule!r}"
                )
        if not isinstance(self.clip, ClipByNorm | ClipByValue | None):
            raise SettingError(
                f"DownpourSGD.clip takes ClipByValue or ClipByNorm, got {self.clip!r}"
            )
        if self.dense is not None and not self.dense.on_dense:
            raise SettingError(
                f"DownpourSGD.dense: {type(self.dense).__name__} updates sparse tables only; take "
                "SGD, Adagrad, Adam or AdamD2Sum"
            )

    def minimize(
        self,
        losses: Callable[..., Any] | Sequence[Callable[..., Any]] | Mapping[str, Any],
        *,
        model: torch.nn.Module,
        example: Batch,
        seed: int = 0,
    ) -> Plan:
        """Find out what each loss reads and reaches, and plan its tables and programs.

        `losses`: callables (model, batch) -> scalar: one, a list (each known by its function's
        name) or {name: loss}. `example`: a batch like those to come; each loss runs on it once,
        forward and backward, and the model is left as it was. `seed`: of the initial rows.

        Raises PlanError for losses that cannot be planned, NonFiniteError for one that is not
        finite, DataError for an example that lacks a feature, SettingError for the rule of a table
        that the model does not have.
        """
        self._check_tables(model)
        return plan_losses(
            losses,
            model=model,
            example=example,
            sparse_rule=self.sparse_rule,
            dense_rule=self.dense or AdamD2Sum(self.learning_rate),
            window=self.window,
            clip=self.clip,
            seed=seed,
        )

    def _check_tables(self, model: torch.nn.Module) -> None:
        """Refuse a rule for a table that no module of the model names."""
        if not isinstance(self.sparse, Mapping):
            return
        tables = {str(module.table): None for module in sparse_embeddings(model)}
        unknown = [name for name in self.sparse if name not in tables]
        if unknown:
            raise SettingError(
                f"DownpourSGD.sparse has rules for {unknown}, which are no tables of the model; it "
                f"has: {', '.join(tables) or 'none'}"
            )

    def sparse_rule(self, table: str) -> Rule:
        """The rule of a sparse table."""
        if not isinstance(self.sparse, Mapping):
            return self.sparse or G2SumAdagrad(self.learning_rate)
        return self.sparse.get(table) or G2SumAdagrad(self.learning_rate)
