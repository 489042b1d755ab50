"""How transpiled programs begin, on servers and trainers, and what is refused in which order."""

from __future__ import annotations

import contextlib
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

import downpour as dp
from tests.networks import a_batch, planned, weights_of
from tests.servers import at_once, held, servers
from tests.transpiled_runs import SPLIT, Layers, free_endpoints, reading, serving, transpiled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from downpour.transpile.transpiler import Transpiled

    Call = Callable[[dp.Executor, Any], object]

SGD = partial(torch.optim.SGD, lr=0.3)
FEDERATED: dict[str, Any] = {"federation": dp.FedAvg(local_steps=2)}
MODES: dict[str, dict[str, Any]] = {"plain": {}, "async": {"sync_mode": False}, "fed": FEDERATED}


def filled(value: float, model: Any) -> None:
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, value)


def state_of(value: float) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(it, value) for name, it in Layers().state_dict().items()}


STARTUPS: dict[str, Any] = {
    "function": partial(filled, 0.25),
    "state_dict": state_of(0.25),
    "function that returns one": lambda model: state_of(0.25),
}


def begun(endpoints: Sequence[str], plan: dp.Plan, startups: Sequence[Any], **config: Any) -> Any:
    """The weights that each trainer has after its first recv; models begin differently."""

    def begin(rank: int) -> dict[str, np.ndarray]:
        model = Layers()
        filled(0.5 + rank, model)
        made = transpiled(
            plan, endpoints, rank=rank, trainers=len(startups), startup=startups[rank], **config
        )
        with dp.Executor(made, model, optimizer=SGD) as executor:
            executor.run(made.trainer_startup)
            executor.run(made.trainer_programs.recv, [] if config.get("federation") else None)
            return weights_of(model)

    return at_once([partial(begin, rank) for rank in range(len(startups))])


@pytest.mark.parametrize("startup", STARTUPS)
@pytest.mark.parametrize("mode", MODES)
def test_the_startup_of_the_first_trainer_is_where_all_begin(mode: str, startup: str) -> None:
    first = STARTUPS[startup]
    with servers(3) as addresses:
        given = begun(addresses, planned(Layers()), [first, None, state_of(9.0)], **MODES[mode])
    for weights in given:
        assert all((it == 0.25).all() for it in weights.values())


def test_without_a_startup_all_begin_with_the_model_of_the_first_trainer() -> None:
    with servers(2) as addresses:
        for weights in begun(addresses, planned(Layers()), [None, None], **SPLIT):
            assert all((it == 0.5).all() for it in weights.values())


@pytest.mark.parametrize("mode", MODES)
def test_what_servers_begin_with_by_their_startup_programs_stays(mode: str) -> None:
    plan, config, endpoints = planned(Layers()), {**SPLIT, **MODES[mode]}, free_endpoints(2)
    made, model = transpiled(plan, endpoints, **config), Layers()
    executors = [dp.Executor(made, model) for _ in endpoints]
    for value in (0.25, 9.0):  # a second time it changes nothing
        filled(value, model)
        for executor, endpoint in zip(executors, endpoints, strict=True):
            executor.run(made.pserver_startup(endpoint))
    with serving(*executors):
        for weights in begun(endpoints, plan, [None, state_of(9.0)], **config):
            assert all((it == 0.25).all() for it in weights.values())


def test_a_server_without_its_startup_program_begins_as_the_first_trainer() -> None:
    plan, endpoints = planned(Layers()), free_endpoints(2)
    made = transpiled(plan, endpoints, startup=state_of(0.25), **SPLIT)
    executors = [dp.Executor(made, Layers()) for _ in endpoints]
    executors[0].run(made.pserver_startup(endpoints[0]))
    with serving(*executors):
        (weights,) = begun(endpoints, plan, [state_of(9.0)], **SPLIT)
    on_first = {it.variable for it in made.split.endpoint(endpoints[0]) if it.kind == "parameter"}
    assert {value for it in weights.values() for value in it.flat} == {0.25, 9.0}
    assert {name for name, it in weights.items() if (it == 0.25).any()} == on_first


def test_a_server_that_stops_gives_its_port_back_and_one_that_was_stopped_ends_at_once() -> None:
    plan, endpoints = planned(Layers()), free_endpoints(1)
    made = transpiled(plan, endpoints)
    for _ in range(2):
        with serving(dp.Executor(made)):
            begun(endpoints, plan, [None])
    with dp.Executor(made) as executor:
        pass
    executor.run(made.pserver_program(endpoints[0]))


# What is refused. Each call has the executor and its transpiled plan; those before it may pass.


def startup(executor: dp.Executor, made: Transpiled) -> object:
    return executor.run(made.trainer_startup)


def recv(executor: dp.Executor, made: Transpiled) -> object:
    takes = None if made.config.federation is None else [BATCH]
    return executor.run(made.trainer_programs.recv, takes)


def local(executor: dp.Executor, made: Transpiled) -> object:
    return executor.run(made.trainer_programs.local, BATCH)


def send(executor: dp.Executor, made: Transpiled) -> object:
    return executor.run(made.trainer_programs.send)


def local_on(batch: Any) -> Call:
    return lambda executor, made: executor.run(made.trainer_programs.local, batch)


def recv_of(batch: Any) -> Call:
    return lambda executor, made: executor.run(made.trainer_programs.recv, batch)


def send_of_another(executor: dp.Executor, made: Transpiled) -> object:
    other = transpiled(made.plan, ["127.0.0.1:1"])
    return executor.run(other.trainer_programs.send)


def all_at_once(executor: dp.Executor, made: Any) -> object:
    return executor.run(made.trainer_programs)


BATCH = a_batch()
REFUSED: dict[str, tuple[str, Sequence[Call], Call, str]] = {
    "recv before startup": ("plain", [], recv, r"startup program before any other"),
    "local before startup": ("plain", [], local, r"startup program before any other"),
    "send before startup": ("fed", [], send, r"startup program before any other"),
    "startup twice": ("plain", [startup], startup, r"has run already; run recv, local and send"),
    "local before recv": ("plain", [startup], local, r"run the recv program before it"),
    "local again before recv": (
        "async", [startup, recv, local, send], local, r"run the recv program before it",
    ),
    "local before the recv of a round": ("fed", [startup], local, r"recv\(batches\) begins one"),
    "send before recv": ("plain", [startup], send, r"recv and the local program before the send"),
    "send before local": ("plain", [startup, recv], send, r"the local program before the send"),
    "send twice": ("plain", [startup, recv, local, send], send, r"no gradients are held"),
    "send twice in a round": ("fed", [startup, recv, local, send], send, r"begins one"),
    "local twice": ("plain", [startup, recv, local], local, r"run the send program before"),
    "local without a batch": ("plain", [startup, recv], local_on(None), r"one batch at a time"),
    "local on a round": ("fed", [startup, recv], local_on([BATCH]), r"one batch at a time"),
    "recv of a batch": ("plain", [startup], recv_of(BATCH), r"recv program takes no batch"),
    "recv without a round": ("fed", [startup], recv_of(None), r"all batches of the round"),
    "recv of no batches": ("fed", [startup], recv_of([1]), r"all batches of the round"),
    "another's program": ("plain", [startup, recv, local], send_of_another, r"'send' is none of"),
    "three programs": ("plain", [startup], all_at_once, r"run takes one program"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_program_that_is_not_next_is_refused_and_changes_nothing(case: str) -> None:
    mode, before, call, says = REFUSED[case]
    plan, model = planned(Layers()), Layers()
    with servers(2) as addresses:
        made = transpiled(plan, addresses, **MODES[mode])
        with dp.Executor(made, model, optimizer=SGD) as executor:
            for earlier in before:
                earlier(executor, made)
            if before:
                executor._trainer.client.finish()  # a commit may be on its way
                with reading(made) as ps:
                    tables, weights = held(ps), str(weights_of(model))
                    with pytest.raises(dp.PlanError, match=says):
                        call(executor, made)
                    assert (held(ps), str(weights_of(model))) == (tables, weights)
            else:
                with pytest.raises(dp.PlanError, match=says):
                    call(executor, made)


@pytest.mark.parametrize("mode", ["plain", "fed"])
def test_after_a_refusal_a_trainer_goes_on(mode: str) -> None:
    plan, tables = planned(Layers()), []
    for calls in ([recv, local, send], [local, recv, startup, local, send_of_another, send, send]):
        with servers(2) as addresses:
            made = transpiled(plan, addresses, **MODES[mode])
            with dp.Executor(made, Layers(), optimizer=SGD) as executor:
                startup(executor, made)
                for call in calls:
                    with contextlib.suppress(dp.PlanError):
                        call(executor, made)
            with reading(made) as ps:
                tables.append(held(ps))
    assert tables[0] == tables[1]


def test_what_an_executor_lacks_is_said_before_anybody_waits_for_it() -> None:
    plan = planned(Layers())
    made, rounds = (transpiled(plan, ["127.0.0.1:1"], **it) for it in ({}, FEDERATED))
    with pytest.raises(dp.PlanError, match=r"startup program of a trainer needs a model"):
        dp.Executor(made).run(made.trainer_startup)
    with pytest.raises(dp.PlanError, match=r"startup program of a server needs a model"):
        dp.Executor(made).run(made.pserver_startup("127.0.0.1:1"))
    with pytest.raises(dp.PlanError, match=r"give Executor its optimizer, as functools"):
        dp.Executor(rounds, Layers()).run(rounds.trainer_startup)
    with pytest.raises(dp.PlanError, match=r"what transpile\(...\) returned, got <.*Transpiler"):
        dp.Executor(dp.DistributeTranspiler())  # type: ignore[arg-type]
    far = transpiled(plan, ["0.0.0.0:6174"])
    with pytest.raises(dp.SettingError, match=r"without a token listens on loopback only"):
        dp.Executor(far).run(far.pserver_program("0.0.0.0:6174"))


@pytest.mark.parametrize(
    ("first", "second"),
    [(FEDERATED, {"federation": dp.FedAvg(weighting="equal")}), ({}, {"sync_mode": False})],
    ids=["methods", "modes"],
)
def test_trainers_that_were_told_otherwise_do_not_train_together(first: Any, second: Any) -> None:
    plan = planned(Layers(), sparse=dp.SGD(1.0), dense=dp.SGD(1.0))

    def begin(rank: int, config: Any) -> None:
        made = transpiled(plan, addresses, rank=rank, trainers=2, **config)
        with dp.Executor(made, Layers(), optimizer=SGD, start_s=1.0) as executor:
            startup(executor, made)

    with servers() as addresses, pytest.raises(ExceptionGroup) as raised:
        at_once([partial(begin, 0, first), partial(begin, 1, second)])
    errors = {type(it): str(it) for it in raised.value.exceptions}
    assert errors.keys() == {dp.RefusedError, dp.WorkerLostError}  # the first to come waits alone
    assert re.search(r"in run .transpiled, .* got run .transpiled, ", errors[dp.RefusedError])
