"""What a transpiler is given, checked: the plan, the servers and the number of trainers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from downpour.accessor import CtrAccessor
from downpour.errors import PlanError, SettingError
from downpour.plan.plan import Plan
from downpour.plan.program import Program, PullDense, PushDense
from downpour.transpile.programs import restricted, with_rule

if TYPE_CHECKING:
    from downpour.transpile.config import DistributeTranspilerConfig

ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):([1-9][0-9]{0,4})")


def planned(
    program: object, plan: object, startup: object, config: DistributeTranspilerConfig
) -> Plan:
    """The plan that is trained. Raises SettingError or PlanError."""
    if isinstance(program, Program):
        if not isinstance(plan, Plan):
            raise SettingError(
                f"transpile: program {program.name!r} is one of a plan's; give that plan as well, "
                f"plan=..., got {plan!r:.80}"
            )
        taken = restricted(plan, program)
    elif not isinstance(program, Plan):
        raise SettingError(
            "transpile: program must be a Plan, as DownpourSGD.minimize gives it, or one of its "
            f"programs, got {program!r:.80}"
        )
    elif plan is not None:
        raise SettingError(
            "transpile: program is a whole plan; leave plan= out, or give one of its programs"
        )
    else:
        taken = program
    _refuse(taken, config)
    if config.federation is not None:
        taken = with_rule(taken, config.federation.rule)
    if startup is None:
        return taken
    if not (callable(startup) or isinstance(startup, Mapping)):
        raise PlanError(
            "transpile: the startup must be a function of the model or a state_dict, got "
            f"{startup!r}"
        )
    return replace(taken, startup=startup)


def _refuse(plan: Plan, config: DistributeTranspilerConfig) -> None:
    """Raise PlanError for what transpiled programs cannot train."""
    if not plan.programs:
        raise PlanError(
            "transpile: the plan has no program, so nothing would be trained; take the plan that "
            "DownpourSGD.minimize gave"
        )
    if config.federation is None:
        _refuse_windows(plan)
        return
    way = "or take a config without federation"
    for table in plan.sparse:
        if isinstance(table.accessor, CtrAccessor):
            raise PlanError(
                f"transpile: rows of table {table.name!r} count show and click, which are no "
                "weights that clients could average; plan it with a rule, as "
                f"sparse=Adagrad(0.05), in place of a CtrAccessor, {way}"
            )
    for block in plan.dense:
        if block.is_data_norm:
            raise PlanError(
                f"transpile: table {block.name!r} holds sums over samples, which are no weights "
                f"that clients could average; take a LayerNorm in place of the DataNorm, {way}"
            )


def _refuse_windows(plan: Plan) -> None:
    for program in plan.programs.values():
        for op in program.ops:
            if isinstance(op, PullDense | PushDense) and op.every > 1:
                raise PlanError(
                    f"transpile: program {program.name!r} has {type(op).__name__} of "
                    f"{op.table!r} every {op.every} batches, which send and recv programs cannot "
                    "say; plan without a window, DownpourSGD(window=1)"
                )


def num_trainers(trainers: object) -> int:
    """The number of trainers, which may come as text, as from the environment."""
    count = trainers
    if isinstance(trainers, str) and re.fullmatch(r"\s*[0-9]{1,9}\s*", trainers, re.ASCII):
        count = int(trainers)
    if type(count) is not int or count < 1:
        raise SettingError(
            f"transpile: trainers must be how many there are, an int >= 1 or the text of one, got "
            f"{trainers!r}"
        )
    return count


def endpoints_of(pservers: object) -> tuple[str, ...]:
    """The servers by their numbers, of text with commas. Raises SettingError."""
    if not isinstance(pservers, str) or not pservers.strip():
        raise SettingError(
            f"transpile: pservers must name the servers, as '10.0.0.1:6174,10.0.0.2:6174', got "
            f"{pservers!r}"
        )
    endpoints = tuple(given.strip() for given in pservers.split(","))
    seen: set[tuple[str, int]] = set()
    for endpoint in endpoints:
        address = _address(endpoint)
        if address in seen:
            raise SettingError(
                f"transpile: pservers names {endpoint!r} twice; a server has a number of its own: "
                "name each once"
            )
        seen.add(address)
    return endpoints


def _address(endpoint: str) -> tuple[str, int]:
    """Host and port, alike for two spellings of one address."""
    match = ADDRESS.fullmatch(endpoint)
    host, port = (match[1].lower(), int(match[2])) if match else ("", 0)
    try:
        if host.startswith("["):
            host = str(IPv6Address(host[1:-1]))
    except ValueError:
        port = 0
    if not 0 < port < 2**16:
        raise SettingError(
            f"transpile: a server of pservers must be HOST:PORT or [IPV6]:PORT with a port from 1 "
            f"to 65535, got {endpoint!r}"
        )
    return host, port
