"""`downpour federated` and `downpour client`: what they print and write, and what they refuse."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import downpour as dp
from downpour.cli import main
from downpour.serving.process import LISTENING
from tests.averaged import Averaged
from tests.certificates import make_authority
from tests.federations import (
    Federated,
    assert_equal,
    evaluated,
    federation,
    values_of,
)
from tests.processes import Process
from tests.servers import servers

FILE = str(Path(__file__).with_name("federations.py"))
TARGET = f"{FILE}:evaluated"
ROUND = {
    *("round", "sampled", "heard_from", "dropped", "is_committed", "samples", "loss", "auc"),
    *("logloss", "bytes_sent", "bytes_received", "seconds"),
}
DOWNPOUR = [sys.executable, "-m", "downpour"]


# On this machine.


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a federation of processes, and what it printed."""
    folder = tmp_path_factory.mktemp("federated") / "run"
    options = ["--clients", "2", "--rounds", "2", "--seed", "3", "--servers", "2", "--json"]
    command = [*DOWNPOUR, "federated", TARGET, *options, "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert (done.returncode, done.stderr) == (0, "")
    return folder, json.loads(done.stdout)


def test_json_has_each_round(made: tuple[Path, dict[str, Any]]) -> None:
    folder, told = made
    assert told["folder"] == str(folder)
    assert told["stopped"] == "finished"
    assert [it["round"] for it in told["rounds"]] == [1, 2]
    for it in told["rounds"]:
        assert it.keys() == ROUND
        assert it["sampled"] == it["heard_from"] == [0, 1]
        assert (it["dropped"], it["is_committed"]) == ({}, True)


def test_the_folder_has_the_rounds_a_report_logs_and_the_model(
    made: tuple[Path, dict[str, Any]],
) -> None:
    folder, told = made
    assert json.loads((folder / "metrics.json").read_text())["rounds"] == told["rounds"]
    assert (folder / "report.html").is_file()
    logs = {it.stem: it.read_text() for it in (folder / "logs").iterdir()}
    assert logs.keys() == {"client-0", "client-1", "server-0", "server-1"}
    assert "event=sent round=2" in logs["client-1"]
    results = dp.load(folder).evaluate(evaluated().run.data.batches()).results
    assert results["auc"] == told["rounds"][-1]["auc"]


def test_options_reach_the_coordinator_and_its_clients(made: tuple[Path, dict[str, Any]]) -> None:
    kept = Federated({}, values_of(dp.load(made[0]).client), 0, {})
    assert_equal(kept, Averaged(federation(clients=2, seed=3)).train([[0, 1]] * 2))


# Between machines.


def test_servers_and_clients_may_be_started_by_hand_with_tls_and_a_token(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    own = authority.sign("server")
    (tmp_path / "token").write_text("a token of many characters\n")
    token = ["--token-file", str(tmp_path / "token")]
    secured = [*token, "--tls-authority", str(authority.file)]
    served = [*token, "--tls-certificate", str(own.certificate), "--tls-key", str(own.key)]
    with ExitStack() as stack:

        def start(*command: str) -> Process:
            return stack.enter_context(closing(Process(["-m", "downpour", *command])))

        server = start("server", *served)
        address = server.line().removeprefix(LISTENING).strip()
        assert address.startswith("grpc+tls://")
        options = ["--clients", "2", *secured]
        clients = [
            start("client", TARGET, "--servers", address, "--client", str(number), *options)
            for number in range(2)
        ]
        out = ["--quiet", "--out", str(tmp_path / "run")]
        coordinator = start("federated", TARGET, "--connect", address, *options, *out)
        assert coordinator.exit_code() == 0, coordinator.log()
        assert coordinator.out.read() == (
            f"{tmp_path}/run/ (report.html, metrics.json, plan.txt, events/, model/)\n"
        )
        assert [client.exit_code() for client in clients] == [0, 0]
        server.terminate()  # it is not the coordinator's to end
        assert server.exit_code() == 0
    kept = Federated({}, values_of(dp.load(tmp_path / "run").client), 0, {})
    assert_equal(kept, Averaged(federation(clients=2)).train([[0, 1]] * 3))


# What the options say.


class Recorded:
    """Stands in a coordinator's place; `stopped` is how it ends."""

    stopped = "finished"
    stopped_by: int | None = None
    unwritten: tuple[str, ...] = ()
    given: dict[str, Any]

    def __init__(self, target: str, made: dp.Federation, folder: Path, **more: Any) -> None:
        type(self).given = {"target": target, "federation": made, "folder": folder, **more}

    def train(self) -> dict[str, Any]:
        return {"stopped": self.stopped, "final": {}, "samples_per_s": None, "rounds": []}


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Recorded]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("downpour.engine.coordinator.Coordinator", Recorded)
    monkeypatch.setattr(Recorded, "stopped", "finished")
    return Recorded


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, [*arguments])


def test_what_is_not_said_is_the_federations_own(recorded: type[Recorded]) -> None:
    done = run("federated", TARGET)
    assert (done.exit_code, done.stderr) == (0, "")
    given, cluster = recorded.given, recorded.given["cluster"]
    assert given["target"] == TARGET
    assert given["folder"] == Path("runs/federations")
    assert (given["federation"].clients, given["federation"].rounds) == (3, 3)
    assert (cluster.servers, cluster.addresses, cluster.starts_workers) == (1, (), True)
    assert (given["changes"], given["quiet"]) == ([], False)
    assert done.output.splitlines()[-1].startswith("runs/federations/ (report.html, ")


def test_options_change_the_federation_and_its_cluster(recorded: type[Recorded]) -> None:
    options = ["--clients", "5", "--rounds", "7", "--seed", "2", "--servers", "3", "--quiet"]
    patience = ["--client-timeout", "4", "--deadline", "9", "--start", "50"]
    assert run("federated", TARGET, *options, *patience).exit_code == 0
    made, cluster = recorded.given["federation"], recorded.given["cluster"]
    assert (made.clients, made.rounds, made.seed) == (5, 7, 2)
    assert (cluster.servers, cluster.worker_timeout_s) == (3, 4.0)
    assert (cluster.deadline_s, cluster.start_s) == (9.0, 50.0)
    assert recorded.given["changes"] == ["--rounds", "7", "--seed", "2"]
    assert recorded.given["quiet"]


def test_servers_that_run_have_clients_from_elsewhere(recorded: type[Recorded]) -> None:
    assert run("federated", TARGET, "--connect", "a:1, b:2").exit_code == 0
    cluster = recorded.given["cluster"]
    assert (cluster.addresses, cluster.starts_workers) == (("a:1", "b:2"), False)


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_a_federation_that_sigterm_has_stopped_ends_with_143(
    form: list[str], recorded: type[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "stopped", "interrupted")
    monkeypatch.setattr(recorded, "stopped_by", signal.SIGTERM)
    done = run("federated", TARGET, *form)
    assert done.exit_code == 143
    if form:
        assert json.loads(done.stdout)["stopped"] == "interrupted"


# What they refuse.


REFUSED = {
    "--servers 2 --connect a:1": (2, "--servers starts servers, --connect names some; give one"),
    "--servers 0": (1, "Error: --servers must be an int >= 1, got 0"),
    "--connect here": (1, "Error: --connect: a server's address must be HOST:PORT"),
    "--clients 0": (1, "Error: --clients must be an int >= 1, got 0"),
    "--rounds 0": (1, "Error: --rounds must be an int >= 1, got 0"),
    "--seed -1": (1, "Error: --seed must be an int >= 0, got -1"),
    "--client-timeout 0": (1, "Error: --client-timeout must be seconds > 0, got 0.0"),
    "--token-file missing": (1, "missing"),
    "--clients many": (2, "'many' is not a valid integer"),
    "--epochs 3": (2, "No such option"),
}


@pytest.mark.parametrize("options", REFUSED)
def test_an_option_is_refused(options: str, recorded: type[Recorded]) -> None:
    status, message = REFUSED[options]
    done = run("federated", TARGET, *options.split())
    assert (done.exit_code, done.stdout) == (status, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["federated", "client --servers a:1 --client 0"])
def test_a_target_without_a_federation_is_refused(command: str, tmp_path: Path) -> None:
    file = tmp_path / f"without_{command.split()[0]}.py"  # a module of this process from then on
    file.write_text("def run():\n    return None\n")
    done = run(*command.split(), str(file))
    assert done.exit_code == 1
    assert "has no function 'federation'" in done.stderr
    assert "downpour.Federation" in done.stderr


def test_a_client_that_there_is_not_is_refused() -> None:
    done = run("client", TARGET, "--servers", "a:1", "--client", "3")
    assert done.exit_code == 1
    assert "--client must be from 0 to 2, as a federation of 3 clients has" in done.stderr


def test_a_client_without_a_coordinator_says_so() -> None:
    with servers() as addresses:
        where = ["--servers", addresses[0], "--client", "0", "--start", "0.2"]
        done = run("client", TARGET, *where)
    assert done.exit_code == 1
    assert "no federation has begun" in done.stderr
    assert "start it with `downpour federated`" in done.stderr


@pytest.mark.parametrize("command", ["federated", "client"])
def test_help_needs_no_torch(command: str) -> None:
    code = (
        "import sys; from downpour.cli import main; "
        f"main([{command!r}, '--help'], standalone_mode=False); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"
