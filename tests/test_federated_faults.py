"""Federations of real processes that are killed, stopped, started again and interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import downpour as dp
from downpour.engine.cluster import Cluster
from downpour.engine.coordinator import Coordinator
from downpour.remote.connect import connect
from tests.averaged import Averaged
from tests.fault_runs import MARGIN_S, until
from tests.federations import (
    FOLDER,
    Federated,
    Signs,
    assert_equal,
    coordinator_of,
    error_of,
    federation,
    is_running,
    left_on,
    take_part,
    values_of,
    watched,
)
from tests.processes import Process
from tests.servers import LIMIT_S, servers

if TYPE_CHECKING:
    from collections.abc import Sequence

TARGET = f"{Path(__file__).with_name('federations.py')}:watched"
TIMEOUT_S, DEADLINE_S = 4.0, 10.0
EVERYONE = [0, 1, 2, 3]


def a_client(folder: Path, addresses: Sequence[str], client: int, *more: str) -> Process:
    command = ["-m", "downpour", "client", TARGET, "--servers", ",".join(addresses)]
    options = ["--client", str(client), "--client-timeout", f"{TIMEOUT_S:g}"]
    return Process([*command, *options, *more], env={**os.environ, FOLDER: str(folder)})


@dataclass(frozen=True)
class Storm:
    """What came of a federation of four rounds. In the second client 0 was killed, 1 was stopped,
    and 2 did not finish; then 0 was started again, and 1 went on.
    """

    left: Federated
    logs: list[str]
    exit_codes: list[int]


@pytest.fixture(scope="module")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Storm:
    folder = tmp_path_factory.mktemp("signs")
    signs = Signs(folder)
    for client in (0, 1, 2):
        signs.leave(f"client {client} waits in 1")
    signs.leave("client 3 waits in 2")
    made = replace(watched(), rounds=4, deadline_s=DEADLINE_S, quorum=0.25)
    with servers(2) as addresses, ExitStack() as stack:
        clients = [stack.enter_context(closing(a_client(folder, addresses, it))) for it in EVERYONE]
        coordinator = coordinator_of(made, addresses, worker_timeout_s=TIMEOUT_S, start_s=300.0)
        thread = threading.Thread(target=coordinator.train)
        thread.start()
        for client in (0, 1, 2):
            signs.wait(f"client {client} begins 1")
        coordinator.federation = replace(made, deadline_s=LIMIT_S)  # of the rounds to come
        clients[0].kill()
        clients[1].stop()
        signs.take("client 0 waits in 1")
        clients.append(stack.enter_context(closing(a_client(folder, addresses, 0))))
        until(lambda: len(coordinator.rounds) >= 2)
        signs.take("client 1 waits in 1")
        signs.take("client 2 waits in 1")
        clients[1].go_on()
        until(lambda: coordinator.present() == EVERYONE)
        signs.take("client 3 waits in 2")
        thread.join(LIMIT_S)
        codes = [client.exit_code() for client in clients]
        return Storm(left_on(addresses, coordinator, {}), [it.log() for it in clients], codes)


def test_a_round_closes_by_its_deadline_with_those_that_sent(storm: Storm) -> None:
    first, second, *_ = storm.left.rounds
    assert (first["heard_from"], first["dropped"]) == (EVERYONE, {})
    assert (second["sampled"], second["heard_from"]) == (EVERYONE, [3])
    assert second["is_committed"]
    assert second["seconds"] < DEADLINE_S + MARGIN_S


def test_who_was_killed_stopped_or_late_is_named(storm: Storm) -> None:
    dropped = storm.left.rounds[1]["dropped"]
    assert [*dropped] == [0, 1, 2]
    for client in (0, 1):
        assert re.match(
            rf"lost: client {client} was dropped in round 2 after [4-9]", dropped[client]
        )
    assert dropped[2] == "late: no update within 10 s"


def test_the_tables_hold_the_average_of_those_that_sent(storm: Storm) -> None:
    assert_equal(storm.left, Averaged(federation(clients=4)).train(storm.left.heard_from))


def test_who_goes_on_or_is_started_again_takes_part_again(storm: Storm) -> None:
    *_, third, fourth = storm.left.rounds
    assert {2, 3} <= {*third["heard_from"]}
    assert 1 not in third["sampled"]
    assert fourth["heard_from"] == EVERYONE
    assert "event=refused round=2" in storm.logs[1]
    assert "event=sent round=4" in storm.logs[1]
    assert "event=sent round=4" in storm.logs[4]


def test_clients_end_with_the_federation(storm: Storm) -> None:
    assert storm.exit_codes == [-signal.SIGKILL, 0, 0, 0, 0]
    for log in storm.logs[1:]:
        assert "event=over reason=finished" in log


# A coordinator that is killed, and servers.


def test_the_loss_of_its_coordinator_ends_a_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    signs, errors = Signs(tmp_path), []
    made = replace(watched(), clients=1)
    with servers() as addresses:
        options = ["--connect", addresses[0], "--clients", "1", "--rounds", "999"]
        command = ["-m", "downpour", "federated", TARGET, *options, "--client-timeout", "5"]
        with closing(Process([*command, "--out", str(tmp_path / "run")])) as coordinator:
            client = threading.Thread(
                target=lambda: errors.append(error_of(partial(take_part, made, addresses, 0)))
            )
            client.start()
            signs.wait("client 0 begins 2")
            coordinator.kill()
            client.join(LIMIT_S)
    assert isinstance(errors[0], dp.WorkerLostError)
    assert "the coordinator was dropped" in str(errors[0])


def test_what_a_killed_coordinator_has_started_ends_with_it(tmp_path: Path) -> None:
    signs, logs = Signs(tmp_path), tmp_path / "run" / "logs"
    with closing(started(tmp_path, "--clients", "1")) as coordinator:
        client = int(signs.wait("client 0 begins 2"))
        server = pid_of((logs / "server-0.log").read_text())
        coordinator.kill()
        until(lambda: not (is_running(client) or is_running(server)))
    assert "event=stopped" in (logs / "server-0.log").read_text()
    assert "event=orphaned" in (logs / "client-0.log").read_text()


def started(folder: Path, *options: str) -> Process:
    """`downpour federated`, of many rounds."""
    command = ["-m", "downpour", "federated", TARGET, "--rounds", "999"]
    settings = {"env": {**os.environ, FOLDER: str(folder)}}
    return Process([*command, "--out", str(folder / "run"), *options], **settings)


def pid_of(log: str) -> int:
    found = re.search(r"pid=(\d+)", log)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("server", [0, 1])
def test_a_killed_server_ends_the_federation_and_is_named(
    server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    signs, made = Signs(tmp_path), replace(watched(), clients=1, rounds=999)
    cluster = Cluster(servers=2, worker_timeout_s=20.0)
    coordinator = Coordinator(TARGET, made, tmp_path / "run", cluster=cluster, quiet=True)
    errors: list[Any] = []
    thread = threading.Thread(target=lambda: errors.append(error_of(coordinator.train)))
    thread.start()
    client = int(signs.wait("client 0 begins 2"))
    with pytest.raises(dp.RefusedError, match="check the token"):  # servers of a run's own have one
        connect(coordinator.plan, [coordinator.client.remote[0].endpoint.address])
    coordinator._children.servers[server].kill()
    thread.join(LIMIT_S)
    assert isinstance(errors[0], dp.ServerError)
    assert str(errors[0]).startswith(f"server {server} ended with signal SIGKILL")
    assert errors[0].__notes__ == ["no model was kept"]
    assert not is_running(client)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["stopped"].startswith("failed: no model was kept: ServerError: server")


# Signals.


def test_sigterm_closes_the_round_and_keeps_what_was_trained(tmp_path: Path) -> None:
    signs, run = Signs(tmp_path), tmp_path / "run"
    signs.leave("client 0 waits in 2")
    with closing(started(tmp_path, "--clients", "2")) as coordinator:
        pids = [int(signs.wait(f"client {client} begins 2")) for client in range(2)]
        pids.append(pid_of((run / "logs" / "server-0.log").read_text()))
        until(lambda: "event=sent round=3" in (run / "logs" / "client-1.log").read_text())
        coordinator.terminate()
        until(lambda: json.loads((run / "metrics.json").read_text())["stopped"] == "interrupted")
        signs.take("client 0 waits in 2")
        assert coordinator.exit_code() == 143, coordinator.log()
        out = coordinator.out.read()
    assert "round 3: client 0 was dropped: late" in out
    assert not any(map(is_running, pids))
    rounds = json.loads((run / "metrics.json").read_text())["rounds"]
    heard_from = [it["heard_from"] for it in rounds]
    assert heard_from == [[0, 1], [0, 1], [1]]
    assert rounds[2]["is_committed"]
    kept = Federated({}, values_of(dp.load(run).client), 0, {})
    assert_equal(kept, Averaged(federation(clients=2)).train(heard_from))


def test_a_client_that_is_sent_sigterm_leaves_in_the_middle_of_its_round(tmp_path: Path) -> None:
    signs = Signs(tmp_path)
    signs.leave("client 0 waits in 1")
    made = replace(watched(), clients=2, rounds=3, quorum=0.5)
    with servers() as addresses, ExitStack() as stack:
        clients = [
            stack.enter_context(closing(a_client(tmp_path, addresses, it, "--clients", "2")))
            for it in range(2)
        ]
        coordinator = coordinator_of(made, addresses, start_s=300.0)
        thread = threading.Thread(target=coordinator.train)
        thread.start()
        signs.wait("client 0 begins 1")
        clients[0].terminate()
        until(lambda: "stopping after this step" in clients[0].log())
        signs.take("client 0 waits in 1")
        assert [it.exit_code() for it in clients] == [143, 0]
        thread.join(LIMIT_S)
    assert [it["heard_from"] for it in coordinator.rounds] == [[0, 1], [1], [1]]
    assert coordinator.rounds[1]["dropped"] == {0: "left"}
