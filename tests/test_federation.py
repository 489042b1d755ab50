"""Federation, the value: what it refuses, what is planned of it, and who is sampled."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import downpour as dp
from downpour.federated.update import ClipUpdate
from downpour.run_plan import make_plan
from tests.federations import Turning, data_of, federation
from tests.networks import Network, random_batches


def test_it_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        federation().rounds = 5  # type: ignore[misc]


@pytest.mark.parametrize("name", ["clients", "rounds", "max_failed_rounds"])
@pytest.mark.parametrize("value", [0, -1, 1.0, True, "3", None], ids=repr)
def test_a_number_is_refused(name: str, value: object) -> None:
    message = rf"^Federation\.{name} must be an int >= 1, got {value!r}$"
    with pytest.raises(dp.SettingError, match=message):
        federation(**{name: value})


@pytest.mark.parametrize("name", ["fraction", "quorum"])
@pytest.mark.parametrize("value", [0, 0.0, -0.5, 1.5, math.nan, True, "1", None], ids=repr)
def test_a_share_is_refused(name: str, value: object) -> None:
    with pytest.raises(dp.SettingError, match=rf"^Federation\.{name} must be a number in \(0, 1\]"):
        federation(**{name: value})


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, 1e6, "30", None], ids=repr)
def test_a_deadline_is_refused(value: object) -> None:
    with pytest.raises(dp.SettingError, match=r"^Federation\.deadline_s must be a number of secon"):
        federation(deadline_s=value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("method", "FedAvg", r"Federation\.method must be FedAvg, .* got 'FedAvg'"),
        ("method", dp.FedAvg, r"Federation\.method must be FedAvg, .* got <class"),
        ("data", random_batches(0, 1), r"Federation\.data must be a function \(client, clients\)"),
        ("optimizer", "sgd", r"Federation\.optimizer must be a function .*partial\(torch\.optim"),
        ("outgoing", ClipUpdate(1.0), r"Federation\.outgoing must be a list .* got ClipUpdate"),
        ("outgoing", [1.0], r"Federation\.outgoing must be a list of functions .* got \[1\.0\]"),
        ("outgoing", None, r"Federation\.outgoing must be a list of functions .* got None"),
        ("model", Network, r"Federation\.model must be a torch\.nn\.Module, made, not its class"),
        ("losses", 3, r"Federation\.losses must be a function, a list or"),
        ("eval_data", [1], r"Federation\.eval_data must be a Source or None, got \[1\]"),
        ("predict", 0.5, r"Federation\.predict must be a function"),
        ("label", 1, r"Federation\.label must be a label's name or None"),
        ("evaluate", {}, r"Federation\.evaluate must be a function"),
        ("early_stop", 3, r"Federation\.early_stop must be an EarlyStop or None"),
        ("early_stop", dp.EarlyStop(), r"Federation\.early_stop needs eval_data or evaluate"),
        ("seed", -1, r"Federation\.seed must be an int >= 0, got -1"),
        ("device", "gpu", r"Federation\.device"),
        ("round", 3, r"Federation has no setting 'round'; did you mean 'rounds'\?"),
    ],
)
def test_a_setting_is_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(dp.SettingError, match=rf"^{message}"):
        federation(**{name: value})


def test_running_statistics_are_refused() -> None:
    model = torch.nn.Sequential(Network(), torch.nn.BatchNorm1d(1))
    with pytest.raises(dp.SettingError, match=r"module '1' is a BatchNorm1d .* Use LayerNorm"):
        federation(model=model)


def test_lists_that_can_be_gone_through_once_are_kept() -> None:
    made = federation(no_grad_set=iter(["out.bias"]), parameter_list=iter(["out.weight"]))
    for run in (made.run, made.run_of(1), replace(made, rounds=5).run):
        assert (*run.no_grad_set,) == ("out.bias",)
        assert run.parameter_list == ("out.weight",)


# The runs that it is planned as.


def test_the_coordinators_run_evaluates_and_has_the_servers_rules() -> None:
    held_back = Turning(random_batches(9, 2))
    method = dp.FedAvgM(momentum=0.5)
    run = federation(rounds=7, seed=4, method=method, eval_data=held_back).run
    assert (run.data, run.eval_data) == (held_back, held_back)
    assert (run.epochs, run.seed) == (7, 4)
    assert run.optimizer.sparse == run.optimizer.dense == dp.Momentum(lr=1.0, momentum=0.5)


def test_without_evaluation_the_coordinator_plans_with_client_0() -> None:
    asked: list[tuple[int, int]] = []

    def data(client: int, clients: int) -> Turning:
        asked.append((client, clients))
        return data_of(client, clients)

    made = federation(data=data)
    assert asked == []
    assert made.run is made.run
    assert asked == [(0, 3)]
    held_back = Turning(random_batches(9, 2))
    assert federation(data=data, eval_data=held_back).run.data is held_back
    assert asked == [(0, 3)]


def test_evaluation_data_that_counts_as_empty_is_still_there() -> None:
    class Sized(Turning):
        def __len__(self) -> int:
            return 0

    held_back = Sized(random_batches(9, 2))
    assert federation(eval_data=held_back).run.data is held_back


def test_a_client_asks_for_data_of_its_own_alone() -> None:
    sources = {client: data_of(client, 3) for client in range(3)}
    made = federation(data=lambda client, clients: sources.pop(client))
    own = sources[2]
    assert made.run_of(2).data is own
    assert [*sources] == [0, 1]


@pytest.mark.parametrize("client", [-1, 3])
def test_a_client_that_there_is_not_is_refused(client: int) -> None:
    with pytest.raises(dp.SettingError, match=rf"3 clients has client 0 to 2, got {client}"):
        federation().run_of(client)


def test_data_that_is_no_source_is_refused() -> None:
    made = federation(data=lambda client, clients: random_batches(client, 2))
    with pytest.raises(dp.SettingError, match=r"Federation\.data\(1, 3\) must give a Source"):
        made.run_of(1)


def test_all_clients_have_one_plan_and_one_fingerprint() -> None:
    made = federation()
    plans = [make_plan(run) for run in (made.run, made.run_of(1), made.run_of(2))]
    assert len({made.fingerprint(plan) for plan in plans}) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"method": dp.FedAvg(local_steps=2)},
        {"method": dp.FedProx(mu=0.1)},
        {"method": dp.FedAvg(weighting="equal")},
        {"clients": 4},
    ],
    ids=repr,
)
def test_other_settings_have_another_fingerprint(other: dict[str, Any]) -> None:
    made = federation()
    plan = make_plan(made.run)
    assert replace(made, **other).fingerprint(plan) != made.fingerprint(plan)
    assert replace(made, rounds=9, quorum=0.1).fingerprint(plan) == made.fingerprint(plan)


def test_settings_are_told_as_json_has_them() -> None:
    optimizer = partial(torch.optim.Adam, lr=0.1)
    told = federation(optimizer=optimizer, outgoing=[ClipUpdate(2.0)], fraction=0.5).settings()
    assert (told["clients"], told["rounds"], told["fraction"]) == (3, 3, 0.5)
    assert told["method"].startswith("FedAvg(")
    assert told["optimizer"].endswith("lr=0.1)")
    assert told["outgoing"] == ["ClipUpdate(max_norm=2.0)"]


def data_of_a_user(client: int, clients: int) -> Any:
    return data_of(client, clients)


def test_a_report_shows_clients_data_and_optimizer_and_the_servers_rule_as_such() -> None:
    optimizer = partial(torch.optim.Adam, lr=0.1)
    made = federation(optimizer=optimizer, data=data_of_a_user, method=dp.FedAvgM(momentum=0.5))
    told = made.run_settings()
    assert told["data"] == "data_of_a_user of each of 3 clients"
    assert told["optimizer"] == "Adam(lr=0.1) in each client"
    assert told["server_rule"] == repr(made.method.rule)
    assert told["eval_data"] == made.run.settings()["eval_data"]
    assert federation(optimizer=torch.optim.SGD).run_settings()["optimizer"] == "SGD in each client"


# Who is sampled.

SHARES = st.floats(0.01, 1.0)


@given(share=SHARES, present=st.integers(1, 200))
def test_a_share_of_clients_is_rounded_up(share: float, present: int) -> None:
    made = federation(fraction=share, quorum=share)
    for number in (made.num_sampled(present), made.num_needed(present)):
        assert 1 <= number <= present
        assert -1e-6 <= number - share * present < 1 or number == 1


def test_shares_that_are_no_binary_numbers_are_not_rounded_up_twice() -> None:
    made = federation(fraction=0.07, quorum=0.55)
    assert made.num_sampled(100) == 7
    assert made.num_needed(20) == 11


@given(present=st.sets(st.integers(0, 50), min_size=1), seed=st.integers(0, 9))
def test_the_sample_is_of_the_seed_the_round_and_who_is_there(present: set[int], seed: int) -> None:
    made, same = federation(fraction=0.4, seed=seed), federation(fraction=0.4, seed=seed)
    for number in range(1, 4):
        sampled = made.sample(present, number)
        assert sampled == same.sample(sorted(present, reverse=True), number)
        assert {*sampled} <= present
        assert len({*sampled}) == len(sampled) == made.num_sampled(len(present))


def test_rounds_and_seeds_have_other_samples_and_everyone_has_a_turn() -> None:
    made, present = federation(fraction=0.25), range(20)
    samples = [made.sample(present, number) for number in range(1, 41)]
    assert len({*map(tuple, samples)}) > 30
    assert {client for sample in samples for client in sample} == {*present}
    assert samples != [federation(fraction=0.25, seed=1).sample(present, n) for n in range(1, 41)]
