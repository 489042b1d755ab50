"""What transpilers refuse: who is who, servers, modes, and plans that programs cannot say."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import TYPE_CHECKING, Any

import pytest

import downpour as dp
from downpour.accessor import CtrAccessor
from downpour.federated.methods import FedAvg
from downpour.rules import Summary
from downpour.transpile.config import DistributeTranspilerConfig
from downpour.transpile.programs import with_rule
from downpour.transpile.transpiler import DistributeTranspiler
from tests.transpiled import SERVERS, one_loss, transpiled, two_losses

if TYPE_CHECKING:
    from downpour.plan.plan import Plan

ROUNDS = FedAvg(local_steps=5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slice_var_up": 1}, r"Config.slice_var_up must be True or False, got 1"),
        ({"min_block_size": 0}, r"min_block_size must be an int >= 1, got 0"),
        ({"min_block_size": True}, r"min_block_size must be an int >= 1, got True"),
        ({"min_block_size": 8192.0}, r"min_block_size must be an int >= 1, got 8192.0"),
        ({"split_method": "Hash"}, r"must be one of RoundRobin, HashName, got 'Hash'"),
        ({"split_method": ["HashName"]}, r"must be one of RoundRobin, HashName, got \['Hash"),
        ({"federation": FedAvg}, r"must be a method, as FedAvg\(local_steps=10\), or None"),
    ],
)
def test_settings_of_a_config_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(dp.SettingError, match=message):
        DistributeTranspilerConfig(**settings)


def test_a_config_is_a_frozen_value_that_says_how_tables_are_split() -> None:
    config = DistributeTranspilerConfig(split_method="HashName", min_block_size=5)
    assert config.sections == dp.Sections(min_size=5, placement="hash")
    whole = DistributeTranspilerConfig(slice_var_up=False)
    assert whole.sections == dp.Sections(split=False)
    assert hash(config) == hash(replace(config))
    with pytest.raises(FrozenInstanceError):
        config.min_block_size = 3  # type: ignore[misc]
    with pytest.raises(dp.SettingError, match=r"takes a DistributeTranspilerConfig, got {'min"):
        DistributeTranspiler({"min_block_size": 3})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trainer_id": 2}, r"trainer_id must be an int in \[0, 2\), as there are trainers=2, got"),
        ({"trainer_id": -1}, r"trainer_id must be an int in \[0, 2\).* got -1"),
        ({"trainer_id": "0"}, r"trainer_id must be an int in \[0, 2\).* got '0'"),
        ({"trainer_id": False}, r"trainer_id must be an int in \[0, 2\).* got False"),
        ({"trainers": 0}, r"trainers must be how many there are, an int >= 1 .*, got 0"),
        ({"trainers": "0"}, r"trainers must be how many .*, got '0'"),
        ({"trainers": "two"}, r"trainers must be how many .*, got 'two'"),
        ({"trainers": "10.0.0.1:80,10.0.0.2:80"}, r"trainers must be how many .*, got '10\.0"),
        ({"trainers": "\u0662"}, r"trainers must be how many .*, got"),
        ({"trainers": True}, r"trainers must be how many .*, got True"),
        ({"trainers": 2.0}, r"trainers must be how many .*, got 2.0"),
        ({"sync_mode": 1}, r"sync_mode must be True or False, got 1"),
        ({"sync_mode": None}, r"sync_mode must be True or False, got None"),
        ({"current_endpoint": 6174}, r"current_endpoint must be text, got 6174"),
        ({"pservers": ""}, r"pservers must name the servers, as '10\.0\.0\.1:6174,.*, got ''"),
        ({"pservers": "  "}, r"pservers must name the servers"),
        ({"pservers": None}, r"pservers must name the servers.* got None"),
        ({"pservers": ["a:1"]}, r"pservers must name the servers.* got \['a:1'\]"),
    ],
)
def test_roles_and_modes_are_refused(settings: Any, message: str) -> None:
    given = {"trainer_id": 0, "program": two_losses(), "trainers": 2, **settings}
    with pytest.raises(dp.SettingError, match=message):
        DistributeTranspiler().transpile(**given)


@pytest.mark.parametrize(
    "server",
    [
        "localhost", "localhost:", ":6174", "localhost:0", "localhost:65536", "localhost:06174",
        "localhost:6174:1", "http://localhost:6174", "local host:6174", "::1:6174", "[::1]",
        "[1:2]:6174", "[localhost]:6174", "localhost:\u0666\u0661", "localhost:-1", "a:1,", ",a:1",
        "a:1,,b:1", "a:1;b:1", "a:123456",
    ],
)  # fmt: skip
def test_a_malformed_server_is_refused(server: str) -> None:
    with pytest.raises(dp.SettingError, match=r"must be HOST:PORT or \[IPV6\]:PORT with a port"):
        transpiled(servers=server)


@pytest.mark.parametrize(
    "servers",
    ["a:1,b:1,a:1", "a:1, A:1", "[::1]:1,[0:0:0:0:0:0:0:1]:1"],
    ids=["text", "case", "ip"],
)
def test_a_server_that_is_named_twice_is_refused(servers: str) -> None:
    with pytest.raises(dp.SettingError, match=r"pservers names '.*' twice; a server has a number"):
        transpiled(servers=servers)
    assert len(transpiled(servers="a:1,a:2,b:1").endpoints) == 3


def test_a_federation_trains_in_rounds_of_all() -> None:
    with pytest.raises(dp.SettingError, match=r"take sync_mode=True, .* with FedAvg\(local_steps"):
        transpiled(sync_mode=False, federation=ROUNDS)


def test_counts_and_sums_are_not_averaged_by_a_federation() -> None:
    rows = two_losses(accessor=CtrAccessor(embedx_dim=3, rule=dp.SGD(0.1)))
    norm = one_loss(Summary(), {"norm.batch_size": (4,)})
    assert transpiled(rows).lookup_tables == ("embedding", "shop")
    assert transpiled(norm).params_grads == (("norm.batch_size", "norm.batch_size@GRAD"),)
    with pytest.raises(dp.PlanError, match=r"'embedding' count show and click.*in place of a Ctr"):
        transpiled(rows, federation=ROUNDS)
    with pytest.raises(dp.PlanError, match=r"'dense.fit' holds sums.*LayerNorm in place of the Da"):
        transpiled(norm, federation=ROUNDS)


def test_windows_cannot_be_said_by_programs_that_send_gradients() -> None:
    with pytest.raises(dp.PlanError, match=r"'click' has PullDense of 'dense.click' every 3 batch"):
        transpiled(two_losses(every=3))
    assert transpiled(two_losses(every=3), federation=ROUNDS).plan.programs


def test_a_plan_without_programs_is_refused() -> None:
    for federation in (None, ROUNDS):
        with pytest.raises(dp.PlanError, match=r"the plan has no program, so nothing would be tr"):
            transpiled(replace(two_losses(), programs={}), federation=federation)


@pytest.mark.parametrize(
    ("program", "plan", "error", "message"),
    [
        (two_losses().programs["buy"], None, dp.SettingError, r"'buy' is one of a plan's; give th"),
        (two_losses(), two_losses(), dp.SettingError, r"is a whole plan; leave plan= out, or give"),
        (None, None, dp.SettingError, r"must be a Plan, as DownpourSGD.minimize gives it, .* None"),
        ("buy", two_losses(), dp.SettingError, r"must be a Plan, .* or one of its programs, got '"),
        (
            two_losses(every=2).programs["buy"], two_losses(),
            dp.PlanError, r"'buy' is not the plan's own of that name; take plan.programs\['buy'\]",
        ),
        (
            two_losses().programs["buy"], one_loss(dp.SGD(0.1), {"w": (1,)}),
            dp.PlanError, r"no program 'buy'; the plan has: fit",
        ),
    ],
    ids=["no plan", "two plans", "nothing", "a name", "of another", "not there"],
)  # fmt: skip
def test_what_is_no_program_of_the_plan_is_refused(
    program: Any, plan: Plan | None, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        DistributeTranspiler().transpile(0, program, plan=plan)


def test_a_startup_that_gives_no_values_is_refused() -> None:
    with pytest.raises(dp.PlanError, match=r"startup must be a function .* or a state_dict, got 3"):
        DistributeTranspiler().transpile(0, two_losses(), startup=3)  # type: ignore[arg-type]


def test_programs_are_asked_for_after_transpile() -> None:
    transpiler = DistributeTranspiler()
    for ask in (
        lambda: transpiler.transpiled,
        transpiler.get_trainer_program,
        transpiler.get_pserver_program,
        transpiler.get_startup_program,
    ):
        with pytest.raises(dp.PlanError, match=r"nothing is transpiled yet; call transpile\(tra"):
            ask()


def test_a_server_that_is_not_there_has_no_program() -> None:
    transpiler = DistributeTranspiler()
    made = transpiler.transpile(0, two_losses(), ",".join(SERVERS), current_endpoint="10.0.0.1:1")
    for ask in (
        transpiler.get_pserver_program,
        lambda: transpiler.get_startup_program("10.0.0.1:1"),
        lambda: made.pserver_program("10.0.0.1:1"),
    ):
        with pytest.raises(dp.PlanError, match=r"no server '10.0.0.1:1'; there are: 127.0.0.1:617"):
            ask()


def test_a_rule_of_dense_tables_alone_is_no_rule_of_all() -> None:
    with pytest.raises(dp.SettingError, match=r"AdamD2Sum updates dense tables only"):
        with_rule(two_losses(), dp.AdamD2Sum())
