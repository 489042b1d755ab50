"""Clients that come, go, fail, hang or are not asked: who counts, and what a federation says."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import downpour as dp
from downpour.engine import client_process
from tests.averaged import Averaged
from tests.fault_runs import until
from tests.federations import (
    COORDINATOR,
    Progress,
    Turning,
    assert_equal,
    coordinator_of,
    data_of,
    enrolled,
    error_of,
    federate,
    federate_on,
    federation,
    take_part,
)
from tests.networks import click
from tests.servers import at_once, servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import torch

    from downpour.federated.update import Update
    from downpour.remote.rounds import RoundClient

EVERYONE = [0, 1, 2]


@pytest.fixture
def progress() -> Progress:
    return Progress()


# Clients that are late, or raise.


def test_who_is_late_is_dropped_and_finds_out_amid_its_training(
    progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_process, "LOOK_S", 0.0)
    steps = [0, 0, 0, 0]

    def slow(model: torch.nn.Module, batch: dp.Batch) -> torch.Tensor:
        closed = progress.closed
        steps[closed] += 1
        if closed == 1:
            progress.wait_for(2)
        return click(model, batch)

    ours = federate(
        partial(federation, deadline_s=1.0),
        others={2: {"losses": {"click": slow}}},
        progress=progress,
    )
    assert ours.heard_from == [EVERYONE, [0, 1], EVERYONE]
    assert ours.rounds[1]["dropped"] == {2: "late: no update within 1 s"}
    assert steps[1:] == [1, 4, 0]  # of four batches
    assert_equal(ours, Averaged(federation()).train(ours.heard_from))


def test_an_update_that_comes_late_counts_on_no_server(progress: Progress) -> None:
    def held(update: Update) -> Update:
        if progress.closed == 1:
            progress.wait_for(2)
        return update

    ours = federate(
        partial(federation, deadline_s=1.0),
        num_servers=2,
        others={1: {"outgoing": [held]}},
        progress=progress,
    )
    assert ours.heard_from == [EVERYONE, [0, 2], EVERYONE]
    assert ours.rounds[1]["bytes_sent"] < ours.rounds[0]["bytes_sent"]
    assert_equal(ours, Averaged(federation()).train(ours.heard_from))


@pytest.mark.parametrize("what", ["losses", "outgoing", "data"])
def test_who_raises_is_dropped_and_named(what: str, progress: Progress) -> None:
    def raising(*given: Any) -> Any:
        if progress.closed == 1:
            raise ValueError("a broken disk")
        return click(*given) if what == "losses" else given[0]

    class Broken(Turning):
        def batches(self, epoch: int = 0) -> Iterator[dp.Batch]:
            return map(raising, super().batches(epoch))

    own: dict[str, Any] = {
        "losses": {"click": raising},
        "outgoing": [raising],
        "data": lambda client, clients: Broken(data_of(client, clients).given),
    }
    others = {1: {what: own[what]}}
    ours = federate(federation, others=others, fails=[1], progress=progress)
    assert ours.heard_from == [EVERYONE, [0, 2], [0, 2]]
    assert ours.rounds[1]["dropped"] == {1: "failed: ValueError: a broken disk"}
    assert ours.rounds[2]["sampled"] == [0, 2]
    assert_equal(ours, Averaged(federation()).train(ours.heard_from))


def test_a_loss_that_is_no_number_ends_its_client_alone(progress: Progress) -> None:
    def infinite(model: torch.nn.Module, batch: dp.Batch) -> torch.Tensor:
        return click(model, batch) / (0 if progress.closed == 1 else 1)

    others = {0: {"losses": {"click": infinite}}}
    ours = federate(federation, others=others, fails=[0], progress=progress)
    assert isinstance(ours.errors[0], dp.NonFiniteError)
    assert ours.rounds[1]["dropped"][0].startswith("failed: NonFiniteError: loss 'click' is inf")
    assert ours.heard_from == [EVERYONE, [1, 2], [1, 2]]


def test_a_round_may_last_longer_than_a_request_and_than_a_silence(progress: Progress) -> None:
    def held(update: Update) -> Update:
        if progress.closed == 1:
            threading.Event().wait(2.5)
        return update

    patience = {"deadline_s": 1.0, "worker_timeout_s": 1.5}
    others = {1: {"outgoing": [held]}}
    ours = federate(federation, others=others, progress=progress, **patience)
    assert ours.heard_from == [EVERYONE] * 3


# Rounds that do not count.


def test_a_round_without_a_quorum_changes_nothing(progress: Progress) -> None:
    def held(update: Update) -> Update:
        if progress.closed == 1:
            progress.wait_for(2)
        return update

    ours = federate(
        partial(federation, deadline_s=1.0, quorum=1.0, eval_data=data_of(5, 6)),
        others={2: {"outgoing": [held]}},
        progress=progress,
    )
    assert [it["is_committed"] for it in ours.rounds] == [True, False, True]
    assert [it["auc"] is None for it in ours.rounds] == [False, True, False]
    assert ours.heard_from == [EVERYONE, [0, 1], EVERYONE]
    assert_equal(ours, Averaged(federation()).train([EVERYONE, [], EVERYONE]))


def test_too_many_rounds_without_a_quorum_end_it_and_what_was_learned_is_kept(
    progress: Progress, tmp_path: Path
) -> None:
    def held(update: Update) -> Update:
        if progress.closed == 1:
            progress.wait_for_the_end()
        return update

    ours = federate(
        partial(federation, deadline_s=0.5, quorum=1.0, max_failed_rounds=2, rounds=9),
        others={2: {"outgoing": [held]}},
        fails=[COORDINATOR, *EVERYONE],
        progress=progress,
        folder=tmp_path / "run",
    )
    assert {type(error) for error in ours.errors.values()} == {dp.WorkerLostError}
    message = str(ours.errors[COORDINATOR])
    assert message.startswith("no quorum in 2 rounds in a row; round 3 needed 3 of 3 clients and ")
    assert "heard from 2. client 2: late: no update within 0.5 s. Give" in message
    assert "no quorum in 2 rounds" in str(ours.errors[0])
    assert [it["is_committed"] for it in ours.rounds] == [True, False, False]
    assert_equal(ours, Averaged(federation()).train([EVERYONE]))
    assert dp.load(tmp_path / "run").client.stats()


# Clients that come later, go and come again, or are not asked.


def waits_for(come: Callable[[], bool], progress: Progress, update: Update) -> Update:
    """Keep round 2 open until somebody has come."""
    if progress.closed == 1:
        until(lambda: come() and progress.present == EVERYONE)
    return update


def test_the_first_round_waits_for_all(progress: Progress) -> None:
    def come_late() -> None:
        until(lambda: progress.present == [0, 1])
        threading.Event().wait(0.5)  # in which the coordinator looks some times

    make = partial(federation, rounds=1)
    ours = federate(make, before={2: come_late}, progress=progress)
    assert ours.heard_from == [EVERYONE]


def test_who_comes_later_takes_part_from_the_next_round_on(progress: Progress) -> None:
    ours = federate(
        federation,
        others={0: {"outgoing": [partial(waits_for, lambda: True, progress)]}},
        before={2: lambda: progress.wait_for(1)},
        progress=progress,
        start_s=2.0,
    )
    assert ours.heard_from == [[0, 1], [0, 1], EVERYONE]
    assert_equal(ours, Averaged(federation()).train(ours.heard_from))


def test_who_has_failed_may_be_started_again(progress: Progress) -> None:
    failed: list[object] = []

    def raising(update: Update) -> Update:
        if progress.closed == 1:
            raise ValueError("a broken disk")
        return update

    with servers() as addresses:
        broken = partial(take_part, federation(outgoing=[raising]), addresses, 1)
        ours = federate_on(
            addresses,
            federation,
            others={0: {"outgoing": [partial(waits_for, lambda: bool(failed), progress)]}},
            before={1: lambda: failed.append(error_of(broken))},
            progress=progress,
        )
    assert ours.heard_from == [EVERYONE, [0, 2], EVERYONE]
    assert_equal(ours, Averaged(federation()).train(ours.heard_from))


def test_who_takes_the_place_of_a_dead_process_comes_once_that_is_lost(progress: Progress) -> None:
    dead: list[RoundClient] = []
    wait = partial(waits_for, lambda: progress.closed == 1, progress)
    with servers() as addresses:

        def die() -> None:
            dead.append(enrolled(addresses, 1))
            dead[0].enrolment._beats.end()  # it is never heard of again

        ours = federate_on(
            addresses,
            federation,
            others={0: {"outgoing": [wait]}},
            before={1: die},
            progress=progress,
            worker_timeout_s=2.0,
        )
        dead[0].abandon(None)
    assert ours.heard_from[0] == [0, 2]
    assert ours.heard_from[2] == EVERYONE
    assert ours.rounds[0]["dropped"][1].startswith("lost: client 1 was dropped in round 1 after 2")
    assert_equal(ours, Averaged(federation()).train(ours.heard_from))


def test_a_number_that_another_process_has_is_refused() -> None:
    with servers() as addresses:
        coordinator = coordinator_of(federation(clients=1), addresses, worker_timeout_s=1.0)
        first = enrolled(addresses, 0, clients=1)
        with pytest.raises(dp.RefusedError, match=r"client 0 is taken by another running process"):
            take_part(federation(clients=1), addresses, 0, worker_timeout_s=1.0)
        first.close()
        at_once([coordinator.train, partial(take_part, federation(clients=1), addresses, 0)])


def test_another_method_is_refused() -> None:
    with servers() as addresses:
        coordinator = coordinator_of(federation(clients=1), addresses)
        other = federation(clients=1, method=dp.FedProx(mu=0.5))
        with pytest.raises(dp.RefusedError, match=r"other settings than this federation"):
            take_part(other, addresses, 0, worker_timeout_s=0.2)
        at_once([coordinator.train, partial(take_part, federation(clients=1), addresses, 0)])


def test_who_is_not_sampled_does_not_train() -> None:
    trained: list[int] = []

    def note(client: int, update: Update) -> Update:
        trained.append(client)
        return update

    make = partial(federation, fraction=0.5, clients=4, rounds=6)
    others = {client: {"outgoing": [partial(note, client)]} for client in range(4)}
    ours = federate(make, others=others)
    sampled = [it["sampled"] for it in ours.rounds]
    assert sampled == [make().sample(range(4), number) for number in range(1, 7)]
    assert sorted(trained) == sorted(client for clients in sampled for client in clients)
    assert len({*map(tuple, sampled)}) > 1
    assert_equal(ours, Averaged(make()).train(sampled))
