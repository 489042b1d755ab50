"""Programs that transpilers make of a plan: for trainers and servers, with a federation or not."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import downpour as dp
from downpour.accessor import CtrAccessor
from downpour.federated.methods import FedAdam, FedAvg
from downpour.plan.plan import Plan
from downpour.plan.program import PushSparse
from downpour.transpile.config import DistributeTranspilerConfig
from downpour.transpile.ops import (
    Apply,
    ApplyRows,
    Average,
    AverageRows,
    FetchBarrier,
    Initialize,
    Listen,
    Recv,
    Send,
    SendBarrier,
)
from downpour.transpile.programs import with_rule
from downpour.transpile.transpiler import DistributeTranspiler
from tests.networks import Network, click, planned
from tests.transpiled import SERVERS, UnitNorm, one_loss, transpiled, two_losses

ROUNDS = FedAvg(local_steps=5)


def test_in_async_nobody_waits_and_each_push_is_applied() -> None:
    made = transpiled(sync_mode=False)
    recv, local, send = made.trainer_programs
    assert {type(op) for op in recv.ops} == {Recv}
    assert {type(op) for op in send.ops} == {Send}
    assert local == transpiled().trainer_programs.local
    for endpoint in SERVERS:
        kinds = [type(op) for op in made.pserver_program(endpoint).ops]
        assert kinds[-2:] == [ApplyRows, Listen]
        assert {*kinds[:-2]} == {Apply}


@pytest.mark.parametrize("federation", [None, ROUNDS], ids=["gradients", "federation"])
@pytest.mark.parametrize("servers", [1, 2, 5])
@pytest.mark.parametrize("trainers", [1, 2])
def test_servers_average_and_apply_whatever_their_number_and_that_of_trainers(
    federation: Any, servers: int, trainers: int
) -> None:
    names = [f"10.0.0.{number}:6174" for number in range(servers)]
    made = transpiled(servers=",".join(names), trainers=trainers, federation=federation)
    programs = [made.pserver_program(name) for name in names]
    averaged = [op for program in programs for op in program.ops_of(Average)]
    assert {op.trainers for op in averaged} == {trainers}
    assert {op.section.variable.partition("@")[0] for op in averaged} == {
        "fc.bias", "fc.weight", "head.bias", "head.weight",
    }  # fmt: skip
    for name, program in zip(names, programs, strict=True):
        assert [op.table for op in program.ops_of(AverageRows)] == ["embedding"]
        assert program.ops[-1] == Listen(name, trainers, True)


@pytest.mark.parametrize(
    "rule",
    [dp.Adagrad(0.1), dp.AdamD2Sum(), dp.Ftrl(0.1), dp.Momentum(0.1), UnitNorm(0.1)],
    ids=lambda rule: type(rule).__name__,
)
def test_a_parameter_of_any_rule_is_exchanged_and_applied(rule: Any) -> None:
    made = transpiled(one_loss(rule, {"w": (256, 64), "b": (64,)}))
    sent = {op.section.variable for op in made.trainer_programs.send.ops_of(Send)}
    assert sent == {"w@GRAD", "b@GRAD"}
    applied = [op for it in SERVERS for op in made.pserver_program(it).ops_of(Apply)]
    assert {op.section.variable for op in applied} == {"w", "b"}
    assert {op.rule for op in applied} == {rule}


def test_the_decisions_are_there_as_values() -> None:
    made = transpiled()
    assert made.params_grads == (
        ("fc.bias", "fc.bias@GRAD"),
        ("fc.weight", "fc.weight@GRAD"),
        ("head.bias", "head.bias@GRAD"),
        ("head.weight", "head.weight@GRAD"),
    )
    assert (made.lookup_tables, made.endpoints) == (("embedding", "shop"), SERVERS)
    assert (made.is_chief, made.trainers, made.plan) == (True, 2, two_losses())
    barriers = [op for program in made.trainer_programs for op in program.ops[-1:]]
    assert barriers[::2] == [FetchBarrier(SERVERS), SendBarrier(SERVERS)]


def test_the_number_of_trainers_may_be_text_and_servers_may_have_spaces() -> None:
    made = transpiled(servers=" 127.0.0.1:6174 , 127.0.0.1:6175 ", trainers="2")
    assert made == transpiled()
    assert transpiled(servers="[::1]:1, ps-0.example.org:65535").endpoints[0] == "[::1]:1"


def test_a_server_begins_with_its_parameters_and_their_state() -> None:
    made = transpiled(two_losses(dp.Adagrad(0.1)))
    for endpoint in SERVERS:
        held = [it for it in made.split.endpoint(endpoint) if it.kind != "gradient"]
        assert [op.section for op in made.pserver_startup(endpoint).ops_of(Initialize)] == held
    parameters = [op.section for op in made.trainer_startup.ops_of(Initialize)]
    assert parameters == [*made.split.of_kind("parameter")]


def test_a_transpiler_gives_its_programs_by_the_names_of_paddle() -> None:
    transpiler = DistributeTranspiler()
    made = transpiler.transpile(1, two_losses(), ",".join(SERVERS), 2, current_endpoint=SERVERS[1])
    assert transpiler.transpiled is made
    assert not made.is_chief
    recv, local, send = transpiler.get_trainer_program()
    assert (recv, local, send) == made.trainer_programs
    assert transpiler.get_pserver_program() == made.pserver_program(SERVERS[1])
    assert transpiler.get_pserver_program(SERVERS[0]) == made.pserver_program(SERVERS[0])
    assert transpiler.get_startup_program() == made.trainer_startup
    assert transpiler.get_startup_program(SERVERS[0]) == made.pserver_startup(SERVERS[0])
    assert transpiler.get_trainer_program(wait_port=False) == (recv, local, send)
    main, startup = transpiler.get_pserver_programs(SERVERS[0])
    assert (main, startup) == (made.pserver_program(SERVERS[0]), made.pserver_startup(SERVERS[0]))
    assert transpiler.get_pserver_programs()[0] == made.pserver_program(SERVERS[1])
    assert transpiler.get_startup_program(SERVERS[0], main) == startup
    assert transpiler.get_startup_program(SERVERS[0], pserver_program=main) == startup
    own = transpiler.get_pserver_program()
    assert transpiler.get_startup_program(pserver_program=own) == made.pserver_startup(SERVERS[1])


@pytest.mark.parametrize("seed", ["0", "1"])
def test_another_process_decides_alike_and_needs_no_torch(seed: str) -> None:
    program = """
import sys
from downpour.federated.methods import FedAdam
from tests.transpiled import SERVERS, transpiled
made = transpiled(split_method="HashName", min_block_size=100, federation=FedAdam())
print(made, *map(made.pserver_program, SERVERS), sep="\\n")
assert "torch" not in sys.modules
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONHASHSEED": seed},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    made = transpiled(split_method="HashName", min_block_size=100, federation=FedAdam())
    expected = "\n".join([str(made), *(str(made.pserver_program(it)) for it in SERVERS)])
    assert run.stdout == expected + "\n"


def one_of(plan: Plan, name: str, **settings: Any) -> Plan:
    """The plan of one program of another."""
    transpiler = DistributeTranspiler(DistributeTranspilerConfig(**settings))
    return transpiler.transpile(0, plan.programs[name], plan=plan).plan


def test_of_one_program_only_what_its_loss_trains_takes_part() -> None:
    plan = one_of(two_losses(), "buy")
    assert {it.name: [own.name for own in it.sections] for it in plan.dense} == {
        "dense.click": ["fc.weight"], "dense.buy": ["head.bias", "head.weight"],
    }  # fmt: skip
    assert [own.offset for block in plan.dense for own in block.sections] == [0, 0, 1]
    assert [*plan.programs] == [*plan.losses] == ["buy"]
    assert plan.programs["buy"] == two_losses().programs["buy"]
    first = one_of(two_losses(), "click")
    assert ([it.name for it in first.sparse], len(first.dense)) == (["embedding"], 1)


def test_one_program_is_what_its_loss_alone_would_plan() -> None:
    def top(model: Any, batch: dp.Batch) -> Any:
        return model.out.weight.square().sum() + model.embedding(batch).sum()

    model = Network()
    rows = dp.CtrAccessor(counted_by="click")
    both = planned(model, [click, top], sparse=rows)
    alone = planned(model, [top], sparse=replace(rows, counted_by=None))
    part = one_of(both, "top")
    assert part.sparse == alone.sparse
    assert part.params_grads == alone.params_grads
    assert part.programs["top"].ops_of(PushSparse) == alone.programs["top"].ops_of(PushSparse)
    assert Plan.from_fleet_desc(part.fleet_desc()) == part


def test_a_startup_takes_the_place_of_the_plans() -> None:
    plan = replace(two_losses(), startup=len)
    transpiler = DistributeTranspiler()
    assert transpiler.transpile(0, plan).plan.startup is len
    state = {"fc.bias": 0}
    assert transpiler.transpile(0, plan, startup=state).plan.startup is state
    assert transpiler.transpile(0, plan, startup_program=state).plan.startup is state
    positional = transpiler.transpile(0, plan, ",".join(SERVERS), 1, True, state, SERVERS[0])
    assert positional.plan.startup is state


def test_all_tables_of_a_plan_get_one_rule_and_nothing_else_changes() -> None:
    plan = replace(two_losses(accessor=CtrAccessor(embedx_dim=3, rule=dp.SGD(0.1))), startup=len)
    moved = with_rule(plan, dp.Adagrad(0.3))
    accessors = [table.accessor for table in moved.sparse]
    assert {rule for it in accessors for rule in it.rules} == {dp.Adagrad(0.3)}
    assert {block.rule for block in moved.dense} == {dp.Adagrad(0.3)}
    assert (moved.losses, moved.startup) == (plan.losses, len)
    assert with_rule(moved, dp.SGD(0.1)).dense == plan.dense
    assert with_rule(plan, FedAvg().rule) == with_rule(moved, FedAvg().rule)
