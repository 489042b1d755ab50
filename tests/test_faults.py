"""What clients see of servers that hang, die, come back, and end."""

from __future__ import annotations

import pickle
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from downpour.deployment import Deployment
from downpour.errors import ServerLostError, ServerTimeoutError
from downpour.parent import first_message, framed
from downpour.remote import connect as connecting
from downpour.remote.connect import connect
from downpour.serving.process import LISTENING
from tests.fault_runs import (
    DEADLINE_S,
    KEYS,
    PLAN,
    fails_in_time,
    push,
    reports,
    rows,
    served,
    until,
    within,
)
from tests.geo_runs import DENSE, DIM, NAMES, SIZE, TABLE
from tests.processes import Process, ServerProcess, started
from tests.servers import at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from downpour.remote.client import RemoteClient

MANY = np.arange(500_000)  # 20 MB of keys and gradients: more than buffers on the way take


@pytest.fixture(scope="module")
def pair() -> Iterator[list[ServerProcess]]:
    with started(2) as servers:
        yield servers


@pytest.fixture
def client(pair: list[ServerProcess]) -> Iterator[RemoteClient]:
    with connect(PLAN, [it.address for it in pair], deadline_s=DEADLINE_S) as ps:
        yield ps


# A server that hangs.

CALLS: dict[str, tuple[Callable[[Any], object], str]] = {
    "pull": (rows, r"'pull' of table 'embedding'"),
    "push": (push, r"'push' of table 'embedding'"),
    "pull_blocks": (lambda it: rows(it, MANY), r"'pull' of table 'embedding'"),
    "push_blocks": (lambda it: push(it, MANY), r"'push' of table 'embedding'"),
    "pull_dense": (lambda it: it.pull_dense(DENSE), r"'pull_dense' of table 'dense.click'"),
    "push_dense": (
        lambda it: it.push_dense(DENSE, np.ones(SIZE), NAMES),
        r"'push_dense' of table 'dense.click'",
    ),
    "set": (
        lambda it: it.set(TABLE, KEYS, np.ones((len(KEYS), DIM)), feature="item"),
        r"'set' of table 'embedding'",
    ),
    "stats": (lambda it: it.stats(), r"'stats'"),
    "export": (lambda it: it.export(TABLE), r"'export' of table 'embedding'"),
    "restore": (
        lambda it: it.remote[1].restore(TABLE, it.saved),
        r"'restore' of table 'embedding'",
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_of_a_server_that_hangs_ends_in_time(
    call: str, pair: list[ServerProcess], client: Any
) -> None:
    do, request = CALLS[call]
    client.saved = served(lambda: client.export(TABLE))
    served(lambda: rows(client)), served(lambda: client.pull_dense(DENSE))
    pair[1].stop()
    try:
        message = rf"server 1 \(.*{pair[1].port}\) did not answer {request} within 1 s"
        fails_in_time(lambda: do(client), ServerTimeoutError, message)
    finally:
        pair[1].go_on()
    if call != "restore":  # the table has rows
        served(lambda: do(client))


def test_calls_of_all_threads_end_in_time_where_all_servers_hang(
    pair: list[ServerProcess], client: RemoteClient
) -> None:
    served(lambda: rows(client))
    for server in pair:
        server.stop()
    try:
        calls = [CALLS[call][0] for call in ("push_blocks", "push", "pull_blocks", "stats")]
        with within(), pytest.raises(ExceptionGroup) as raised:
            at_once([lambda call=call: call(client) for call in calls])  # type: ignore[misc]
        assert [type(error) for error in raised.value.exceptions] == [ServerTimeoutError] * 4
        with within():
            client.close()
    finally:
        for server in pair:
            server.go_on()


# A server that dies.


def test_a_server_that_died_is_lost_and_so_are_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "FORMING_S", 0.1)
    with started(2) as servers:
        addresses = [server.address for server in servers]
        calls = [CALLS[name][0] for name in ("push", "pull", "stats", "export")]
        with connect(PLAN, addresses, deadline_s=DEADLINE_S) as client:
            served(lambda: push(client))
            servers[1].kill()
            for call in calls:
                fails_in_time(partial(call, client), ServerLostError, r"server 1 .* reached for '")
            start_again(servers, 1)
            with pytest.raises(ServerLostError, match=r"server 1 .* without its tables, while"):
                connect(PLAN, addresses)
            for call in calls:
                fails_in_time(partial(call, client), ServerLostError, r"server 1.* without its tab")
        for place in range(2):
            start_again(servers, place)
        with connect(PLAN, addresses) as client:
            assert rows(client) == [1.0] * len(KEYS)


def start_again(servers: list[ServerProcess], place: int) -> None:
    """Put a new server in place of one, at its address."""
    old = servers[place]
    old.close()
    servers[place] = ServerProcess(old.port)
    assert servers[place].address == old.address


# The end of a server.


def test_a_server_that_is_told_to_end_answers_what_is_in_progress() -> None:
    with started(2) as servers:
        addresses = [server.address for server in servers]
        with connect(PLAN, addresses, deadline_s=10.0) as client:
            rows(client)
            wait = {"op": "pull_dense", "table": DENSE, "after": 5, "wait_s": 1.0}
            asked = [server.reads.send(wait) for server in client.remote]
            until(lambda: all(report.in_progress for report in reports(client)))
            servers[0].terminate()
            client.remote[1].ask("stop", {})
            for ticket in asked:
                with pytest.raises(ServerTimeoutError, match=r"step 5 was not committed"):
                    ticket.result()
            for server in servers:
                assert server.exit_code() == 0
                assert "event=stopped" in server.log()
                assert "Traceback" not in server.log()


PARENT = """
import subprocess, sys

server = [sys.executable, "-m", "downpour", "server", "--of-parent"]
child = subprocess.Popen(server, stdin=subprocess.PIPE)
child.stdin.write(open(sys.argv[1], "rb").read())
child.stdin.flush()
child.wait()
"""


def test_a_server_ends_with_its_parent(tmp_path: Path) -> None:
    told = tmp_path / "told"
    deployment = Deployment(plan=PLAN, num_shards=1)
    messages = [first_message(None), pickle.dumps([]), pickle.dumps((deployment, 0))]
    told.write_bytes(b"".join(map(framed, messages)))
    with closing(Process(["-c", PARENT, str(told)])) as parent:
        address = parent.line().removeprefix(LISTENING).strip()
        with connect(PLAN, [address], deadline_s=DEADLINE_S) as client:
            rows(client)  # a client that stays does not keep it
            parent.kill()
            assert parent.line() == ""  # both have closed their standard output
            assert "event=stopped" in parent.log()
