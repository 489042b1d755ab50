"""What transpilers refuse: who is who, servers, modes, and plans that programs cannot say."""

from __future__ import annotations

from dataclasses import replace
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


def test_a_config_says_how_tables_are_split() -> None:
    config = DistributeTranspilerConfig(split_method="HashName", min_block_size=5)
    assert config.sections == dp.Sections(min_size=5, placement="hash")
    whole = DistributeTranspilerConfig(slice_var_up=False)
    assert whole.sections == dp.Sections(split=False)
    with pytest.raises(dp.SettingError, match=r"takes a DistributeTranspilerConfig, got {'min"):
        DistributeTranspiler({"min_block_size": 3})  # type: ignore[arg-type]


def test_fields_of_a_config_are_set_as_in_paddle_until_it_is_transpiled() -> None:
    config = DistributeTranspilerConfig()
    config.split_method = "HashName"
    config.min_block_size = 5
    config.slice_var_up = False
    config.federation = ROUNDS
    assert config == DistributeTranspilerConfig(
        split_method="HashName", min_block_size=5, slice_var_up=False, federation=ROUNDS
    )
    transpiler = DistributeTranspiler(config)
    made = transpiler.transpile(0, two_losses())
    assert made.config == config
    config.min_block_size = 7
    assert made.config.min_block_size == 5
    assert transpiler.transpile(0, two_losses()).config.min_block_size == 7
    with pytest.raises(dp.SettingError, match=r"min_block_size was transpiled with and stays as i"):
        made.config.min_block_size = 3
    assert made.config.sections == dp.Sections(min_size=5, placement="hash", split=False)
    assert hash(made.config) == hash(made.config.taken())
    with pytest.raises(TypeError, match="a config whose fields can be set has no hash"):
        hash(config)


@pytest.mark.parametrize("settings", [{"slice_var_up": 1}, {"split_method": "Hash"}])
def test_a_field_that_cannot_be_set_stays(settings: dict[str, Any]) -> None:
    config = DistributeTranspilerConfig()
    ((name, value),) = settings.items()
    with pytest.raises(dp.SettingError, match=f"DistributeTranspilerConfig.{name} must be"):
        setattr(config, name, value)
    assert config == DistributeTranspilerConfig()


# Paddle 2.6.2's other fields, with their defaults there.
OTHERS = {
    "mode": "pserver", "sync_mode": True, "runtime_split_send_recv": False, "half_async": False,
    "completely_not_async": False, "geo_sgd_mode": False, "geo_sgd_need_push_nums": 100,
    "enable_dc_asgd": False, "collective_mode": None, "nccl_comm_num": 1,
    "use_hierarchical_allreduce": False, "hierarchical_allreduce_inter_nranks": 0,
    "wait_port": True, "print_log": False,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_fields_of_paddles_config_may_be_set_to_their_defaults(name: str) -> None:
    config = DistributeTranspilerConfig()
    setattr(config, name, OTHERS[name])
    assert config == DistributeTranspilerConfig()
    with pytest.raises(dp.SettingError, match=rf"Config.{name} must be .*, got 'other': "):
        setattr(config, name, "other")


def test_a_field_that_there_is_not_is_refused_with_the_nearest() -> None:
    config = DistributeTranspilerConfig()
    with pytest.raises(dp.SettingError, match="has no field 'spilt_method'; did you mean 'split_"):
        config.spilt_method = "HashName"  # type: ignore[attr-defined]
    with pytest.raises(dp.SettingError, match="has no field 'x'; it has: slice_var_up, min_block"):
        config.x = 1  # type: ignore[attr-defined]


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


def test_a_startup_is_given_by_one_of_its_names() -> None:
    with pytest.raises(dp.SettingError, match="startup_program and startup are the same; give one"):
        DistributeTranspiler().transpile(0, two_losses(), startup_program=len, startup=len)


def test_getters_refuse_what_is_of_another_server_or_was_not_transpiled() -> None:
    transpiler = DistributeTranspiler()
    transpiler.transpile(0, two_losses(), ",".join(SERVERS), startup_program=len)
    first, second = map(transpiler.get_pserver_program, SERVERS)
    assert transpiler.get_startup_program(SERVERS[0], first, len).endpoint == SERVERS[0]
    with pytest.raises(
        dp.SettingError, match=r"is not the program of server '127.0.0.1:6174'; giv"
    ):
        transpiler.get_startup_program(SERVERS[0], second)
    with pytest.raises(
        dp.SettingError, match=r"is not the one that was transpiled; give it to tra"
    ):
        transpiler.get_startup_program(SERVERS[0], first, max)
    with pytest.raises(dp.SettingError, match="wait_port must be True or False, got 1"):
        transpiler.get_trainer_program(wait_port=1)  # type: ignore[arg-type]


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
