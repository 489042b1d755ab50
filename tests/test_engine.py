"""Runs with server and worker processes: the same folder, the same quality, errors with names."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

import downpour as dp
from downpour.cli import main
from downpour.cli_options import cluster_of
from downpour.engine.chief import Chief
from downpour.engine.cluster import Cluster
from downpour.engine.processes import cluster_options
from downpour.folder import CONTENT
from downpour.target import load_run
from tests.small_runs import frame

ROOT = Path(__file__).parents[1]
MOVIELENS = str(ROOT / "examples" / "movielens.py")

SMALL = str(ROOT / "tests" / "cluster_run.py")
KILLED = r"^server 1 ended with signal SIGKILL: .* event=listening .* \(see .*/server-1.log\)"


def train(target: str, folder: Path | None, *options: str, **cluster: Any) -> Chief:
    """Train a target on a cluster to its end."""
    chief = Chief(
        target,
        load_run(target),
        folder,
        cluster=Cluster(**{"worker_timeout_s": 20.0, **cluster}),
        worker_options=options,
        quiet=True,
    )
    chief.train()
    return chief


@pytest.mark.parametrize("name", ["worker", "client"])
@pytest.mark.parametrize(
    "sections",
    [dp.Sections(), dp.Sections(min_size=7, placement="hash"), dp.Sections(split=False)],
    ids=["default", "small by hash", "whole"],
)
def test_processes_that_are_started_are_told_all_of_the_cluster(
    name: str, sections: dp.Sections
) -> None:
    cluster = Cluster(deadline_s=7.0, start_s=8.0, sections=sections)
    who = {"worker": ["--rank", "0", "--workers", "1"], "client": ["--client", "0"]}[name]
    words = ["run.py", "--servers", "a:1", *who, *cluster_options(cluster)]
    above = click.Context(main, **main.context_settings)  # commands keep the help option they get
    with main.commands[name].make_context(name, words, parent=above) as context:
        assert cluster_of(context.params) == cluster


def metrics_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def embedded_auc() -> float:
    trainer = dp.Trainer(load_run(MOVIELENS), quiet=True)
    auc: float = trainer.train()["final"]["auc"]
    return auc


# Sync training equals embedded training to the bit: `test_sync.py`, and below.
@pytest.mark.parametrize("consistency", ["async", "half-async", "geo"])
def test_movielens_is_as_good_as_embedded(
    consistency: str, embedded_auc: float, tmp_path: Path
) -> None:
    command = [
        *(sys.executable, "-m", "downpour", "train", MOVIELENS, "--quiet"),
        *("--servers", "2", "--workers", "2", "--consistency", consistency),
        *("--out", str(tmp_path / "run")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    metrics = metrics_of(tmp_path / "run")
    assert metrics["stopped"] == "finished"
    assert metrics["final"]["auc"] == pytest.approx(embedded_auc, abs=0.005)


def test_a_run_with_servers_writes_the_same_folder(tmp_path: Path) -> None:
    embedded, cluster = tmp_path / "embedded", tmp_path / "cluster"
    dp.Trainer(load_run(SMALL), embedded, quiet=True).train()
    train(SMALL, cluster, servers=2, workers=2)
    assert {it.name for it in cluster.iterdir()} == {*CONTENT}
    assert {it.name for it in embedded.iterdir()} == {*CONTENT} - {"logs"}
    ours, theirs = metrics_of(cluster), metrics_of(embedded)
    assert {*ours} - {*theirs} == {"workers", "servers"}
    assert {*theirs} <= {*ours}
    assert [it["samples"] for it in ours["epochs"]] == [700, 700]
    assert ours["features"] == theirs["features"]
    assert ours["tables"].keys() == theirs["tables"].keys()


def test_metrics_say_how_workers_and_servers_fared(tmp_path: Path) -> None:
    train(SMALL, tmp_path / "run", servers=2, workers=2)
    metrics = metrics_of(tmp_path / "run")
    assert sum(worker["samples"] for worker in metrics["workers"]) == 1400
    for worker in metrics["workers"]:
        assert worker["pull"]["p99_ms"] >= worker["pull"]["p50_ms"] > 0
        assert worker["push"]["count"] > 0
        assert worker["bytes_sent"] > 0
        assert worker["retries"] == 0
        assert worker["staleness"] == {"mean": 0.0, "max": 0}
    assert sum(server["rows"] for server in metrics["servers"]) == 50
    curves = metrics["curves"]
    assert curves["learning_rate"]["embedding"][-1][1] == 0.1
    assert curves["learning_rate"]["dense.click"][-1][1] == 0.01
    assert curves["gradient_norm"]["dense.click"][-1][1] > 0.0
    assert metrics["staleness"] == {"mean": 0.0, "max": 0}


def test_one_worker_in_sync_trains_what_the_embedded_run_does(tmp_path: Path) -> None:
    dp.Trainer(load_run(SMALL), tmp_path / "embedded", quiet=True).train()
    train(SMALL, tmp_path / "cluster", servers=3, workers=1)
    ours, theirs = dp.load(tmp_path / "cluster"), dp.load(tmp_path / "embedded")
    for name in ("user", "item"):
        keys = list(range(30))
        a = ours.client.pull("embedding", keys, feature=name)
        assert (a == theirs.client.pull("embedding", keys, feature=name)).all()
    final = metrics_of(tmp_path / "cluster")["final"]
    assert final["auc"] == metrics_of(tmp_path / "embedded")["final"]["auc"]


def test_the_first_workers_buffers_are_kept(tmp_path: Path) -> None:
    train(f"{SMALL}:with_buffers", tmp_path / "run", workers=2)
    model: Any = dp.load(tmp_path / "run").model
    assert int(model.norm.num_batches_tracked) == 11


def test_a_worker_without_a_batch_takes_part() -> None:
    chief = train(f"{SMALL}:of_one_batch", None, workers=2)
    assert [worker["samples"] for worker in chief.metrics()["workers"]] == [32, 0]


def test_an_error_in_a_worker_names_it(tmp_path: Path) -> None:
    with pytest.raises(dp.WorkerLostError, match=r"worker 1 .*NonFiniteError.*loss") as caught:
        train(f"{SMALL}:failing", tmp_path / "run", workers=2)
    assert "kept" in caught.value.__notes__[0]
    assert metrics_of(tmp_path / "run")["stopped"].startswith("failed: WorkerLostError")
    assert dp.load(tmp_path / "run").client.stats()


def test_a_killed_worker_stops_the_run_and_is_named() -> None:
    with pytest.raises(dp.WorkerLostError, match=r"^worker 1 ended with signal SIGKILL"):
        train(f"{SMALL}:fatal", None, workers=2, worker_timeout_s=60.0)


def test_a_worker_that_hangs_stops_the_run_and_is_killed(tmp_path: Path) -> None:
    with pytest.raises(dp.WorkerLostError, match=r"worker 1 was dropped .* of silence"):
        train(f"{SMALL}:frozen", tmp_path / "run", workers=2, worker_timeout_s=4.0)
    stopped = metrics_of(tmp_path / "run")["stopped"]
    assert stopped.startswith("failed: WorkerLostError: server 0")
    assert dp.load(tmp_path / "run").client.stats()


def test_a_killed_worker_lets_the_others_go_on_where_it_may() -> None:
    settings = {"worker_timeout_s": 3.0, "on_worker_loss": "continue"}
    chief = train(f"{SMALL}:fatal", None, workers=2, **settings)
    metrics = chief.metrics()
    assert metrics["stopped"] == "finished"
    assert [worker["state"] for worker in metrics["workers"]] == ["running", "lost"]


def test_a_killed_server_is_named(tmp_path: Path) -> None:
    run = load_run(f"{SMALL}:endless")
    cluster = Cluster(servers=2, workers=1, deadline_s=600.0, worker_timeout_s=600.0)
    chief = Chief(f"{SMALL}:endless", run, tmp_path / "run", cluster=cluster, quiet=True)
    threading.Timer(2.0, chief._children.servers[1].kill).start()
    with pytest.raises(dp.ServerError, match=KILLED):  # and not at a deadline
        chief.train()
    assert "no model was kept" in metrics_of(tmp_path / "run")["stopped"]


def test_a_server_that_is_killed_during_an_evaluation_is_named() -> None:
    chiefs: list[Chief] = []

    def killing(model: Any) -> dict[str, float]:
        for chief in chiefs:  # none where an evaluation is tried before training
            chief._children.servers[1].kill()
        return {"mean": float(model(next(frame(32).batches())).mean())}  # which reads rows

    run = replace(load_run(SMALL), eval_data=None, evaluate=killing)
    cluster = Cluster(servers=2, workers=1, deadline_s=600.0, worker_timeout_s=600.0)
    chiefs.append(Chief(SMALL, run, None, cluster=cluster, quiet=True))
    with pytest.raises(dp.ServerError, match=r"^server 1 ended with signal SIGKILL"):
        chiefs[0].train()


def test_ctrl_c_stops_all_and_keeps_the_model(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "downpour", "train", f"{SMALL}:endless"),
        *("--servers", "1", "--workers", "2", "--out", str(tmp_path / "run")),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "logs" / "server-0.log"
    until = time.monotonic() + 300
    assert process.stdout is not None
    while "worker=0" not in process.stdout.readline():  # its first report
        assert time.monotonic() < until
    pids = [int(number) for number in re.findall(r"pid=(\d+)", log.read_text("utf-8"))]
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "interrupted" in out
    assert dp.load(tmp_path / "run").client.stats()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("servers", 0, r"Cluster.servers must be an int >= 1, got 0"),
        ("workers", "2", r"Cluster.workers must be an int >= 1, got '2'"),
        ("on_worker_loss", "wait", r"must be 'stop' or 'continue', got 'wait'"),
        ("deadline_s", 0.0, r"deadline_s must be seconds > 0, got 0.0"),
        ("addresses", ("here",), r"must be HOST:PORT.* got 'here'"),
        ("addresses", ("a:1", "a:1"), r"must be different"),
    ],
)
def test_a_cluster_refuses(setting: str, value: object, message: str) -> None:
    with pytest.raises(dp.SettingError, match=message):
        Cluster(**{setting: value})  # type: ignore[arg-type]


def test_all_started_by_hand_with_a_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a token of many characters\n")
    secured = ["--token-file", str(token)]
    downpour = [sys.executable, "-m", "downpour"]
    with contextlib.ExitStack() as started:

        def start(*arguments: str) -> subprocess.Popen[str]:
            process = started.enter_context(
                subprocess.Popen([*downpour, *arguments], stdout=subprocess.PIPE, text=True)
            )
            started.callback(process.terminate)
            return process

        server = start("server", *secured)
        assert server.stdout is not None
        address = server.stdout.readline().removeprefix("listening on").strip()
        worker = ["worker", SMALL, "--servers", address, "--workers", "2", "--chief", *secured]
        workers = [start(*worker, "--rank", str(rank)) for rank in range(2)]
        run = load_run(SMALL)
        security = dp.Security(token="a token of many characters")
        cluster = Cluster(workers=2, addresses=(address,), starts_workers=False, security=security)
        metrics = Chief(SMALL, run, None, cluster=cluster, quiet=True).train()
        assert metrics["stopped"] == "finished"
        assert [process.wait(300) for process in workers] == [0, 0]
        assert server.poll() is None  # it is not the chief's to end
