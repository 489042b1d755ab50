"""How a transpiler splits variables and what its trainers send, by the names that Paddle gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from downpour.errors import SettingError
from downpour.federated.methods import FedAvg
from downpour.plan.sections import Sections

SplitMethod = Literal["RoundRobin", "HashName"]


@dataclass(frozen=True, kw_only=True)
class DistributeTranspilerConfig:
    """How variables are split over servers, and how training is spread. Raises SettingError.

    Args:
        slice_var_up: whether variables are split at all, or each is whole on one server.
        min_block_size: elements below which a variable is not split further.
        split_method: sections go to the servers in turn, or each to the one that the hash of its
            name gives: the same in every process.
        federation: a method as `FedAvg`, by which trainers step by themselves and servers average
            what has changed; None: trainers send gradients, and servers step.
    """

    slice_var_up: bool = True
    min_block_size: int = 8192
    split_method: SplitMethod = "RoundRobin"
    federation: FedAvg | None = None

    def __post_init__(self) -> None:
        name, size = type(self).__name__, self.min_block_size
        if type(self.slice_var_up) is not bool:
            raise SettingError(
                f"{name}.slice_var_up must be True or False, got {self.slice_var_up!r}"
            )
        if type(size) is not int or size < 1:
            raise SettingError(f"{name}.min_block_size must be an int >= 1, got {size!r}")
        if self.split_method not in get_args(SplitMethod):
            raise SettingError(
                f"{name}.split_method must be one of {', '.join(get_args(SplitMethod))}, got "
                f"{self.split_method!r}"
            )
        if not isinstance(self.federation, FedAvg | None):
            raise SettingError(
                f"{name}.federation must be a method, as FedAvg(local_steps=10), or None, got "
                f"{self.federation!r}"
            )

    @property
    def sent_kind(self) -> Literal["gradient", "update"]:
        """What trainers send of a parameter."""
        return "gradient" if self.federation is None else "update"

    @property
    def sections(self) -> Sections:
        """The same settings as servers and their clients have them."""
        return Sections(
            min_size=self.min_block_size,
            placement="hash" if self.split_method == "HashName" else "round_robin",
            split=self.slice_var_up,
        )
