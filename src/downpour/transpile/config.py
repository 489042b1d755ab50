"""How a transpiler splits variables and what its trainers send, by the names that Paddle gives."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, get_args

from downpour.errors import SettingError
from downpour.federated.methods import FedAvg
from downpour.plan.sections import Sections
from downpour.settings import require_choice

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SplitMethod = Literal["RoundRobin", "HashName"]
# The reference's other fields: the values that change nothing here, and the way out of others.
OTHERS: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "mode": (("pserver",), "all training is over servers"),
    "sync_mode": ((True,), "transpile(sync_mode=False)"),
    "runtime_split_send_recv": ((False,), "transpile(sync_mode=False)"),
    "half_async": ((False,), "Run(consistency=HalfAsync())"),
    "completely_not_async": ((False, True), ""),
    "geo_sgd_mode": ((False,), "Run(consistency=Geo())"),
    "geo_sgd_need_push_nums": ((100,), "Run(consistency=Geo(k_steps=...))"),
    "enable_dc_asgd": ((False,), "Run(consistency=Async(max_staleness=...)) bounds the delay"),
    "collective_mode": ((None,), "all training is over servers"),
    "nccl_comm_num": ((1,), "all training is over servers"),
    "use_hierarchical_allreduce": ((False,), "all training is over servers"),
    "hierarchical_allreduce_inter_nranks": ((0,), "all training is over servers"),
    "wait_port": ((False, True), ""),
    "print_log": ((False, True), ""),
}


@dataclass(kw_only=True)
class DistributeTranspilerConfig:
    """How variables are split over servers, and how training is spread.

    As in Paddle, its fields may be set one by one, `config.split_method = "HashName"`, until a
    transpiler has taken them: `Transpiled.config` is a copy that stays as it is. Raises
    SettingError for a value that a field cannot have, and for a field that there is not; other
    fields of the reference's may be set to what is so here anyway.

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

    def __setattr__(self, name: str, value: object) -> None:
        if self.__dict__.get("_is_taken"):
            raise SettingError(
                f"{_name(name)} was transpiled with and stays as it is; set it in the config of a "
                "DistributeTranspiler, and transpile again"
            )
        if name in CHECKS:
            CHECKS[name](_name(name), value)
            object.__setattr__(self, name, value)
        else:
            _check_other(name, value)

    def __hash__(self) -> int:
        """That of the values, once they stay as they are."""
        if not self.__dict__.get("_is_taken"):
            raise TypeError("a config whose fields can be set has no hash; take config.taken()")
        return hash(tuple(getattr(self, name) for name in CHECKS))

    def taken(self) -> DistributeTranspilerConfig:
        """A copy whose fields can no longer be set."""
        copy = replace(self)
        copy.__dict__["_is_taken"] = True
        return copy

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


def _name(field: str) -> str:
    return f"{DistributeTranspilerConfig.__name__}.{field}"


def _check_slice(what: str, value: object) -> None:
    if type(value) is not bool:
        raise SettingError(f"{what} must be True or False, got {value!r}")


def _check_size(what: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise SettingError(f"{what} must be an int >= 1, got {value!r}")


def _check_method(what: str, value: object) -> None:
    require_choice(what, value, get_args(SplitMethod))


def _check_federation(what: str, value: object) -> None:
    if not isinstance(value, FedAvg | None):
        raise SettingError(
            f"{what} must be a method, as FedAvg(local_steps=10), or None, got {value!r}"
        )


CHECKS: Mapping[str, Callable[[str, object], None]] = {
    "slice_var_up": _check_slice,
    "min_block_size": _check_size,
    "split_method": _check_method,
    "federation": _check_federation,
}


def _check_other(name: str, value: object) -> None:
    """A field of the reference's that is none here may have the value that changes nothing."""
    if name not in OTHERS:
        known = [field.name for field in fields(DistributeTranspilerConfig)]
        near = get_close_matches(name, [*known, *OTHERS], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(known)}"
        raise SettingError(f"{DistributeTranspilerConfig.__name__} has no field {name!r}; {hint}")
    kept, way_out = OTHERS[name]
    if not any(type(value) is type(it) and value == it for it in kept):
        raise SettingError(
            f"{_name(name)} must be {' or '.join(map(repr, kept))}, got {value!r}: "
            f"{way_out or 'it changes nothing here'}"
        )
