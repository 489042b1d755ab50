"""The coordinator: what it writes and evaluates, one after another, and what it cannot begin."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import downpour as dp
from downpour.engine.children import Children
from downpour.engine.clients import Clients
from downpour.engine.cluster import Cluster
from downpour.engine.coordinator import Coordinator
from downpour.folder import CONTENT
from downpour.stopping import Stopping
from tests.averaged import Averaged
from tests.federations import (
    TARGET,
    Turning,
    assert_equal,
    broken,
    coordinator_of,
    data_of,
    enrolled,
    federate,
    federate_on,
    federation,
    left_on,
    take_part,
)
from tests.networks import Network, random_batches
from tests.servers import at_once, servers

if TYPE_CHECKING:
    from collections.abc import Sequence

BROKEN = f"{Path(__file__).with_name('federations.py')}:broken"
EVERYONE = [0, 1, 2]
COMMIT = {"at": 1, "samples": {}, "rates": {}, "over_touched": False}
HELD_BACK = Turning(random_batches(9, 3))


def test_a_federation_writes_the_folder_of_a_run(tmp_path: Path) -> None:
    ours = federate(partial(federation, eval_data=HELD_BACK), folder=tmp_path / "run")
    assert {it.name for it in (tmp_path / "run").iterdir()} == {*CONTENT} - {"logs"}
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["stopped"] == "finished"
    assert metrics["settings"]["federation"]["clients"] == 3
    assert metrics["rounds"] == json.loads(json.dumps(ours.rounds))
    assert "Rounds" in (tmp_path / "run" / "report.html").read_text()


def test_a_round_is_told_with_all_that_came_of_it() -> None:
    ours = federate(partial(federation, eval_data=HELD_BACK))
    samples = sum(batch.size for client in EVERYONE for batch in data_of(client, 3).given)
    for number, it in enumerate(ours.rounds, start=1):
        assert (it["round"], it["sampled"], it["heard_from"]) == (number, EVERYONE, EVERYONE)
        assert (it["dropped"], it["is_committed"], it["samples"]) == ({}, True, samples)
        assert it["bytes_sent"] > 0
        assert it["bytes_received"] > 0
        assert 0.0 < it["loss"] < 2.0
        assert 0.0 <= it["auc"] <= 1.0
        assert it["logloss"] > 0.0
        assert it["seconds"] > 0.0
    assert ours.metrics["final"]["auc"] == ours.rounds[-1]["auc"]


def test_what_was_saved_is_what_the_last_round_was_evaluated_with(tmp_path: Path) -> None:
    ours = federate(partial(federation, eval_data=HELD_BACK), folder=tmp_path / "run")
    loaded = dp.load(tmp_path / "run")
    assert loaded.evaluate(HELD_BACK.batches()).results["auc"] == ours.rounds[-1]["auc"]


def test_it_may_stop_early() -> None:
    stop = dp.EarlyStop(metric="same", patience=2)
    ours = federate(
        partial(federation, rounds=9, evaluate=lambda _: {"same": 1.0}, early_stop=stop)
    )
    assert ours.metrics["stopped"] == "early_stop"
    assert len(ours.rounds) == 3


# One federation after another on the same servers.


def test_the_next_federation_goes_on_from_the_last() -> None:
    with servers(2) as addresses:
        federate_on(addresses, partial(federation, rounds=2))
        ours = federate_on(addresses, partial(federation, rounds=1))
    assert [it["round"] for it in ours.rounds] == [3]
    assert_equal(ours, Averaged(federation()).train([EVERYONE] * 3))


def test_another_coordinator_is_refused_while_one_is_there() -> None:
    with servers() as addresses:
        first = coordinator_of(federation(), addresses)
        with pytest.raises(dp.RefusedError, match=r"does not coordinate this federation"):
            coordinator_of(federation(), addresses)
        calls = [partial(take_part, federation(), addresses, client) for client in EVERYONE]
        at_once([first.train, *calls])
        assert_equal(left_on(addresses, first, {}), Averaged(federation()).train([EVERYONE] * 3))


def test_a_round_that_was_opened_and_never_committed_is_passed_over() -> None:
    with servers(2) as addresses:
        lost = coordinator_of(federation(), addresses)
        client = enrolled(addresses, 0)
        lost._coordination.open(1, [0], 9.0)
        lost._coordination.end("lost")
        client.abandon(None)
        ours = federate_on(addresses, federation)
        lost._exits.close()
    assert [it["round"] for it in ours.rounds] == [2, 3, 4]
    assert ours.heard_from == [EVERYONE] * 3
    assert_equal(ours, Averaged(federation()).train([[], *ours.heard_from]))


# What cannot begin, or comes to nothing.


def test_it_ends_where_no_client_comes(tmp_path: Path) -> None:
    with servers() as addresses:
        coordinator = coordinator_of(federation(), addresses, tmp_path / "run", start_s=0.3)
        with pytest.raises(dp.WorkerLostError, match=r"no client came within 0.3 s; start them wi"):
            coordinator.train()
        coordinator = coordinator_of(federation(), addresses, start_s=0.3)  # the first has ended
        coordinator._coordination.end("over")
        coordinator._exits.close()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["stopped"].startswith("failed: WorkerLostError: no client came")
    assert metrics["rounds"] == []
    assert not (tmp_path / "run" / "model").exists()
    assert "no client came" in (tmp_path / "run" / "report.html").read_text()


class Statistics(Network):
    """Has sums that are no weights."""

    def __init__(self) -> None:
        super().__init__(dtype=torch.float64)
        self.norm = dp.DataNorm(8)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        return self.out(self.norm(self.embedding(batch).flatten(1).float()).double()).squeeze(1)


def test_tables_that_are_no_weights_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(dp.SettingError, match=r"statistics of DataNorms"):
        Coordinator(TARGET, federation(model=Statistics()), tmp_path / "run", cluster=Cluster())
    assert not (tmp_path / "run").exists()


def test_a_folder_of_other_things_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(dp.SettingError, match=r"holds other files \(thesis.tex\) and no run"):
        Coordinator(TARGET, federation(), tmp_path, cluster=Cluster())
    assert [it.name for it in tmp_path.iterdir()] == ["thesis.tex"]


def test_servers_that_are_at_different_rounds_are_refused() -> None:
    with servers(2) as addresses:
        first = coordinator_of(federation(), addresses)
        first._coordination.end("lost")
        first.client.remote[1].begin_write("commit", COMMIT).result()
        with pytest.raises(
            dp.RefusedError, match=r"different rounds, \[0, 1\]: a coordinator was "
        ):
            coordinator_of(federation(), addresses)
        first._exits.close()


def test_clients_that_all_fail_at_once_end_it_with_what_one_said(tmp_path: Path) -> None:
    made = replace(broken(), clients=1)
    coordinator = Coordinator(BROKEN, made, tmp_path / "run", cluster=Cluster(), quiet=True)
    client, server = coordinator._children.trainers[0], coordinator._children.servers[0]
    with pytest.raises(dp.WorkerLostError, match=r"all clients have ended: client 0: .* no disk"):
        coordinator.train()
    assert client.exit_code == 1
    assert server.exit_code == 0
    assert "client 0 has no disk" in (tmp_path / "run" / "logs" / "client-0.log").read_text()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["stopped"].startswith("failed: WorkerLostError: all clients have ended")


def test_ctrl_c_is_heard_while_clients_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def present(*clients: object) -> list[int]:
        signal.raise_signal(signal.SIGINT)
        return []

    monkeypatch.setattr(Clients, "present", present)
    with servers() as addresses:
        metrics = coordinator_of(federation(), addresses).train()
    assert (metrics["stopped"], metrics["rounds"]) == ("interrupted", [])


# Whom it waits for.


@dataclass
class Process:
    """Stands in a client process's place."""

    name: str
    exit_code: int | None
    asked_by: int | None = None

    @property
    def pid(self) -> int:
        return hash(self.name)

    def how_it_ended(self) -> str:
        return f"{self.name} ended with exit code {self.exit_code}{self.last_words()}"

    def last_words(self) -> str:
        return ": no disk"


@dataclass
class Here:
    """Stands in the place of what the first server knows."""

    running: Sequence[int]

    def clients(self) -> list[dict[str, Any]]:
        states = {client: "running" if client in self.running else "lost" for client in EVERYONE}
        return [{"client": client, "state": state} for client, state in states.items()]


def waited_for(
    running: Sequence[int],
    exit_codes: Sequence[int | None],
    *,
    for_all: bool,
    start_s: float = 0.3,
) -> Any:
    """Who is here, and what was said; clients with these exit codes were started."""
    said: list[str] = []
    children: Any = Children(None, may_go=True)
    children.trainers = [Process(f"client {it}", code) for it, code in enumerate(exit_codes)]
    clients = Clients(3, children, Cluster(start_s=start_s), said.append)
    here: Any = Here(running)
    return clients.wait(here, Stopping(said.append), for_all=for_all), said


def test_all_clients_are_waited_for_and_then_those_that_came() -> None:
    assert waited_for(EVERYONE, [], for_all=True) == (EVERYONE, [])
    assert waited_for([1], [], for_all=True) == ([1], ["1 of 3 clients are here; others may come"])
    assert waited_for([1], [], for_all=False) == ([1], [])


def test_a_process_that_has_ended_is_named_and_not_waited_for() -> None:
    present, said = waited_for([0, 2], [None, 1, None], for_all=True, start_s=600.0)
    assert present == [0, 2]
    assert said == [
        "client 1 ended with exit code 1: no disk",
        "2 of 3 clients are here; others may come",
    ]


def test_who_comes_from_elsewhere_is_enough_where_all_processes_have_ended() -> None:
    present, _ = waited_for([1], [-9, -9, -9], for_all=False, start_s=600.0)
    assert present == [1]
    with pytest.raises(dp.WorkerLostError, match=r"all clients have ended: client 0: no disk"):
        waited_for([], [-9, -9, -9], for_all=False, start_s=600.0)
