"""Tokens and TLS of whole runs: of servers that a run starts itself, and under load."""

from __future__ import annotations

import logging
import subprocess
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import downpour as dp
from downpour.engine.chief import Chief
from downpour.engine.cluster import Cluster
from downpour.serving.flight_server import FlightServer
from downpour.serving.service import Service
from downpour.target import load_run
from tests.certificates import make_authority
from tests.fault_runs import KEYS, PLAN, push, rows
from tests.geo_runs import DIM, TABLE
from tests.servers import at_once

if TYPE_CHECKING:
    from collections.abc import Iterator

    from downpour.remote.client import RemoteClient

SMALL = f"{Path(__file__).with_name('cluster_run.py')}:run"
TOKEN = "correct horse battery staple"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> dp.Security:
    """Of both ends of a connection: certificates that each asks the other for, and a token."""
    authority = make_authority(tmp_path_factory.mktemp("certificates"))
    return replace(authority.sign("both", of=authority), token=TOKEN)


def chief_of(folder: Path, **cluster: object) -> Chief:
    own = Cluster(servers=2, workers=2, **cluster)  # type: ignore[arg-type]
    return Chief(SMALL, load_run(SMALL), folder, cluster=own, quiet=True)


def told_of(pid: int) -> str:
    """The arguments and the environment of a process, as anyone with its rights can see them."""
    command = ["ps", "eww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_servers_that_a_run_starts_take_nobody_else(tmp_path: Path) -> None:
    chief = chief_of(tmp_path / "run")
    token = chief.cluster.security.token
    assert token is not None
    addresses = [server.endpoint.address for server in chief.client.remote]
    for stranger in (dp.Security(), dp.Security(token=TOKEN)):
        with pytest.raises(dp.RefusedError, match="check the token"):
            dp.connect(chief.plan, addresses, security=stranger)
    for child in (*chief._children.servers, *chief._children.trainers):
        told = told_of(child.pid)
        assert "--of-parent" in told
        assert token not in told
    assert chief.train()["stopped"] == "finished"
    written = [it for it in (tmp_path / "run").rglob("*") if it.is_file()]
    assert not [it for it in written if token.encode() in it.read_bytes()]


def test_each_run_has_a_token_of_its_own() -> None:
    tokens = {Cluster().secured().security.token for _ in range(3)}
    assert len(tokens) == 3
    given = Cluster(security=dp.Security(token=TOKEN))
    assert given.secured() is given
    elsewhere = Cluster(addresses=("a:1",))
    assert elsewhere.secured() is elsewhere


def test_a_run_with_tls_on_both_ends_and_a_token_trains(
    tmp_path: Path, secured: dp.Security
) -> None:
    chief = chief_of(tmp_path / "run", security=secured)
    address = chief.client.remote[0].endpoint.address
    assert address.startswith("grpc+tls://")
    with pytest.raises(dp.RefusedError, match="clients with a certificate"):
        dp.connect(chief.plan, [address], security=dp.Security(authority=secured.authority))
    metrics = chief.train()
    assert metrics["stopped"] == "finished"
    assert sum(worker["samples"] for worker in metrics["workers"]) == 1400


# Many requests at a time.

NUM_CLIENTS, NUM_PUSHES = 8, 25


@pytest.fixture
def addresses(secured: dp.Security) -> Iterator[list[str]]:
    started = [FlightServer(Service(), security=secured) for _ in range(2)]
    yield [server.address for server in started]
    for server in started:
        server.end()


def test_tls_and_a_token_hold_under_load(
    addresses: list[str], secured: dp.Security, caplog: pytest.LogCaptureFixture
) -> None:
    """Each push is applied once, and strangers are refused, while many clients are served."""
    caplog.set_level(logging.ERROR)
    is_over = threading.Event()
    num_refused = 0

    def push_and_pull(client: RemoteClient) -> None:
        for number in range(NUM_PUSHES):
            push(client)
            assert len(rows(client)) == len(KEYS)
            many = client.pull(TABLE, np.arange(3000) + 100 * number, feature="item")
            assert many.shape == (3000, DIM)
            assert client.stats()[TABLE].rows > 0

    def intrude() -> None:
        nonlocal num_refused
        wrong = replace(secured, token=TOKEN + "?")
        while not is_over.is_set():
            with pytest.raises(dp.RefusedError, match="check the token"):
                dp.connect(PLAN, addresses, security=wrong)
            num_refused += 1

    with ExitStack() as stack:
        clients = [
            stack.enter_context(dp.connect(PLAN, addresses, security=secured))
            for _ in range(NUM_CLIENTS)
        ]
        stranger = threading.Thread(target=intrude)
        stranger.start()
        try:
            at_once([lambda client=client: push_and_pull(client) for client in clients])  # type: ignore[misc]
        finally:
            is_over.set()
            stranger.join()
        assert rows(clients[0]) == [1.0 - NUM_CLIENTS * NUM_PUSHES] * len(KEYS)
    assert num_refused
    assert not caplog.records


def test_workers_in_sync_train_over_tls_with_a_token(
    addresses: list[str], secured: dp.Security
) -> None:
    def work(rank: int) -> None:
        run = {"consistency": dp.Sync(), "rank": rank, "num_workers": 4}
        with dp.connect(PLAN, addresses, security=secured, **run) as client:  # type: ignore[arg-type]
            client.begin()
            for _ in range(10):
                push(client, KEYS, 1.0)
                client.end_step(1)

    at_once([lambda rank=rank: work(rank) for rank in range(4)])  # type: ignore[misc]
    with dp.connect(PLAN, addresses, security=secured) as client:
        assert rows(client) == [1.0 - 10] * len(KEYS)


# Secrets that others can read.


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_token_that_others_can_read_is_a_warning(
    mode: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(mode)
    assert dp.Security.of_files(token_file=file).token == TOKEN
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"the token file {file} can be read by others (mode {mode:o})" in record.getMessage()
    assert f"chmod 600 {file}" in record.getMessage()
    assert TOKEN not in record.getMessage()


def test_a_secret_that_is_ones_own_is_none(
    tmp_path: Path, secured: dp.Security, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    assert secured.key is not None
    for own in (file, secured.key):
        own.chmod(0o600)
    files = {"certificate": secured.certificate, "key": secured.key}
    dp.Security.of_files(token_file=file, **files)
    assert not caplog.records
    secured.key.chmod(0o644)
    dp.Security.of_files(token_file=file, **files)
    assert "the key file" in caplog.text
