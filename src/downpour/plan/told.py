"""What optimizer and strategy say together of dense tables and of what is pushed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from downpour.errors import SettingError
from downpour.plan.fleet_desc import data_norm_of_strategy, dense_of_strategy
from downpour.plan.specs import TableFiles
from downpour.rules import AdamD2Sum, Summary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from downpour.optimizer import DownpourSGD
    from downpour.rules import Rule
    from downpour.strategy import AdjustInsWeight, Strategy

Kind: TypeAlias = Literal["dense", "data_norm"]
T = TypeVar("T")
OF_STRATEGY = {"dense": "dense_table", "data_norm": "datanorm_table"}


@dataclass(frozen=True, slots=True)
class Told:
    """`tables`: the rule and files of dense and data-norm tables. `scale_datanorm`: None is off.

    `given`: which of `times_batch_size` and `scale_datanorm` somebody has said.
    """

    tables: Mapping[Kind, tuple[Rule, TableFiles]]
    window: int
    times_batch_size: bool
    scale_datanorm: float | None
    adjust: AdjustInsWeight | None
    given: frozenset[str]


def told(optimizer: DownpourSGD, strategy: Strategy | None) -> Told:
    """Put together what the two say. Raises SettingError for what both say, or cannot be."""
    scales = _scales(optimizer, strategy)
    scale_datanorm = _scale_datanorm(optimizer, strategy)
    given = {"times_batch_size": scales, "scale_datanorm": scale_datanorm}
    return Told(
        tables={
            "dense": _table("dense", optimizer, strategy),
            "data_norm": _table("data_norm", optimizer, strategy),
        },
        window=optimizer.window,
        times_batch_size=strategy is not None if scales is None else scales,  # as the reference
        scale_datanorm=scale_datanorm,
        adjust=None if strategy is None else strategy.adjust_ins_weight,
        given=frozenset(name for name, value in given.items() if value is not None),
    )


def _table(
    kind: Kind, optimizer: DownpourSGD, strategy: Strategy | None
) -> tuple[Rule, TableFiles]:
    own: Rule | None = optimizer.dense if kind == "dense" else optimizer.data_norm
    setting = OF_STRATEGY[kind]
    given = None if strategy is None else getattr(strategy, setting)
    if given is None:
        default = AdamD2Sum(optimizer.learning_rate) if kind == "dense" else Summary()
        return own or default, TableFiles()
    if own is not None:
        raise SettingError(f"DownpourSGD.{kind} is {own!r}, and strategy has {setting!r}; keep one")
    desc = dense_of_strategy(given) if kind == "dense" else data_norm_of_strategy(given)
    return desc.rule, desc.files


def _scales(optimizer: DownpourSGD, strategy: Strategy | None) -> bool | None:
    """Whether gradients of rows are multiplied by the batch size; None where nobody says."""
    setting = "scale_sparse_gradient_with_batch_size"
    given = None if strategy is None else getattr(strategy, setting)
    return _one(setting, optimizer.scale_sparse_gradient_with_batch_size, given)


def _scale_datanorm(optimizer: DownpourSGD, strategy: Strategy | None) -> float | None:
    given = None if strategy is None or strategy.scale_datanorm < 0 else strategy.scale_datanorm
    return _one("scale_datanorm", optimizer.scale_datanorm, given)


def _one(setting: str, own: T | None, given: T | None) -> T | None:
    """What one of the two says. SettingError where they differ."""
    if None not in (own, given) and own != given:
        raise SettingError(
            f"DownpourSGD.{setting} is {own}, and strategy has {setting}={given}; keep one"
        )
    return given if own is None else own
