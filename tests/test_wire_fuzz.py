"""Ten thousand messages that no server may take: nothing is changed, and the server goes on."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.flight as fl
import pytest

from downpour.errors import RefusedError, TableError
from downpour.remote.endpoint import Endpoint
from downpour.remote.server import RemoteServer
from downpour.serving.service import Service
from downpour.wire import header_bytes, parsed
from tests.bad_bytes import Recorder, changed, payloads, play
from tests.bad_messages import BEGIN, LEADER, VERBS, WHO, bad_message, bad_verb
from tests.ctr_tables import some_pushes
from tests.one_shard import (
    DEPLOYMENT,
    FOREIGN,
    OWN,
    READS,
    WRITES,
    Stream,
    held,
    hosted,
    rows,
    streams,
)
from tests.processes import ServerProcess, started

if TYPE_CHECKING:
    from collections.abc import Iterator

    from downpour.remote.link import Ticket
    from downpour.serving.flight_server import FlightServer

KINDS = {"RefusedError", "TableError", "NonFiniteError", "SettingError", "ServerLostError"}
OTHER = {"client": 1, "incarnation": 101}  # beside WHO
NUMBERS = [
    "0", "-1", "1e999", "nan", "inf", "1e300", "2147483647", "4294967296", "99999999999",
    "9223372036854775807", "18446744073709551616", '"x"', "true", "",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_of_a_thousand_bad_messages_none_is_taken(seed: int) -> None:
    random = Random(seed)
    with hosted() as server:
        before, incarnation = held(server), server.service.incarnation
        both = streams(server)
        both[True].ask(WRITES["geo_join"])
        for number in range(2, 1002):
            is_write, bad = bad_message(random)
            data = bad.data(n=number, incarnation=incarnation)
            answer = both[is_write].give(bad.batch, data)
            assert answer.get("error") in KINDS, (str(bad), answer)
            if both[is_write].is_over:  # Flight lets the client hear so, and calls no more
                both[is_write] = Stream(server, is_write=is_write)
        assert held(server) == before
        assert "error" not in both[False].ask(READS["pull"])
        assert both[True].ask(WRITES["push"], n=2000) == {"step": 1, "n": 2000}
        assert server.service.num_refused == 1000


@pytest.mark.parametrize("seed", range(2))
def test_of_a_thousand_bad_verbs_of_rounds_none_is_taken(seed: int) -> None:
    random = Random(seed)
    with hosted() as server, closing(fl.FlightClient(server.address)) as client:

        def act(verb: str, body: bytes) -> dict[str, Any]:
            (answer,) = client.do_action(fl.Action(verb, body))
            return parsed(answer.body.to_pybytes())

        begin = {**BEGIN, **LEADER}, VERBS["enroll"], {**VERBS["enroll"], **OTHER}
        for verb, request in zip(("begin_federation", "enroll", "enroll"), begin, strict=True):
            assert act(verb, header_bytes(request)) == {"round": 1}
        assert act("open_round", header_bytes(VERBS["open_round"])) == {}
        before = held(server), heard(server)
        for _ in range(1000):
            verb, bad = bad_verb(random)
            assert act(verb, bad.data()).get("error") == "RefusedError", (verb, str(bad))
        assert (held(server), heard(server)) == before
        for verb in ("ask", "report", "client_beat", "watch_round", "close_round"):
            assert "error" not in act(verb, header_bytes(VERBS[verb]))


def heard(server: FlightServer) -> list[Any]:
    """Of the federation, but for times."""
    rounds = server.rounds.rounds
    clients = [(it.client, it.incarnation, it.state) for it in rounds.coordinate(7)]
    return [clients, rounds.watch(7, wait_s=0.0)]


@pytest.mark.filterwarnings("ignore:.*unicode_escape:DeprecationWarning")
@pytest.mark.parametrize("seed", range(2))
def test_tables_described_in_any_way_are_taken_or_refused(seed: int) -> None:
    random, message = Random(seed), {**DEPLOYMENT.message(), "version": 1, "shard": 0}
    taken = 0
    for _ in range(500):
        service = Service()
        try:
            service.configure({**message, "tables": changed_text(random, message["tables"])})
            taken += 1
        except RefusedError:
            assert not service.greeting()["has_plan"]
    assert 0 < taken < 250


def changed_text(random: Random, text: str) -> str:
    """A description with other numbers, lines or letters."""
    way = random.choice(["numbers", "numbers", "numbers", "cut", "line", "letter"])
    if way == "numbers":
        found = random.sample(list(re.finditer(r"(?<=: )-?[\d.]+$", text, re.M)), 2)
        for match in sorted(found, key=lambda it: -it.start()):
            text = text[: match.start()] + random.choice(NUMBERS) + text[match.end() :]
    elif way == "cut":
        text = text[: random.randrange(len(text))]
    elif way == "line":
        lines = text.split("\n")
        lines[random.randrange(len(lines))] = random.choice(lines)
        text = "\n".join(lines)
    else:
        place = random.randrange(len(text))
        text = text[:place] + chr(random.randrange(32, 127)) + text[place + 1 :]
    return text


# A server process, and what a client says to it byte for byte.

VOID = np.full((len(FOREIGN), 4), np.nan)
MANY = {"table": "plain", "lr": [0.1], "rank": 9, "at": 77777}


def bad_requests(remote: RemoteServer) -> Iterator[Ticket]:
    """Requests that are wrong in more than one way, so that no flip of bits makes them right."""
    for op in ("push", "stage", "set", "geo_add"):
        yield remote.begin_write(op, MANY, FOREIGN, VOID)
    for op in ("push_dense", "stage_dense", "restore_dense", "geo_add_dense"):
        fields = {"table": "dense", "lr": [0.1], "names": ["nowhere"], "rank": 9, "at": 77777}
        parts = {"parts": {"nowhere": 99}, "updates": {}, "size": 9, "step": 0}
        yield remote.begin_write(op, {**fields, **parts}, None, np.full(9, np.nan))
    rates = {"nowhere": [77777, [0.1]]}
    yield remote.begin_write("commit", {"at": 77777, "samples": {"0": 3}, "rates": rates})
    yield remote.begin_write("clear", {"table": "nowhere"})
    yield remote.reads.send({"op": "pull", "table": "plain", "create": True}, FOREIGN)
    yield remote.reads.send({"op": "geo_fetch", "table": "plain", "number": 77777})


def talk(remote: RemoteServer) -> None:
    """All that a client may say without changing a table."""
    for ticket in bad_requests(remote):
        with pytest.raises((RefusedError, TableError)):
            ticket.result()
    for read in (READS["pull"], READS["pull_dense"], READS["export_dense"]):
        remote.reads.send(read.header, read.keys).result()
    with pytest.raises(TableError, match="restore needs an empty table"):
        remote.restore("plain", remote.export("plain"))
    who = {"rank": 0, "incarnation": 7}
    join = {"run": "run", "num_workers": 1, "timeout_s": 1000.0, "on_loss": "continue"}
    remote.ask("join", {**who, **join})
    remote.ask("beat", {**who, "report": {"step": 3}})
    remote.ask("meet", {**who, "name": "epoch", "payload": "here", "wait_s": 0.0})
    remote.ask("form", {"cluster": "abc"})
    remote.ask("members", {})
    remote.ask("leave", who)
    remote.ask("begin_federation", {**BEGIN, **LEADER})
    for request in (WHO, OTHER):
        remote.ask("enroll", {**VERBS["enroll"], **request})
    for verb in ("clients", "open_round", "ask", "report", "client_beat", "coordinator_beat",
                 "watch_round", "close_round", "client_leave", "end_federation"):  # fmt: skip
        remote.ask(verb, VERBS[verb])
    remote.report()


def all_of(remote: RemoteServer) -> list[Any]:
    """What the tables hold, as values that compare."""
    sparse = [remote.export(name) for name in ("plain", "ctr")]
    dense = remote.export_dense("dense")
    rows = [(it.keys.tolist(), it.weights.tolist(), it.state.tolist(), it.step) for it in sparse]
    state = {name: values.tolist() for name, values in dense.state.items()}
    return [*rows, sparse[1].statistics.tolist(), dense.weights.tolist(), state, dense.step]


def memory_mb(process: ServerProcess) -> float:
    """What it has used at most; 0 where the system does not say so."""
    file = Path(f"/proc/{process._process.pid}/status")
    found = re.search(r"VmHWM:\s+(\d+)", file.read_text()) if file.exists() else None
    return int(found[1]) / 1024 if found else 0.0


def as_client(port: int, name: str) -> RemoteServer:
    return RemoteServer(
        Endpoint(f"127.0.0.1:{port}"), DEPLOYMENT, name, deadline_s=30.0, start_s=60.0
    )


def test_a_server_process_outlives_two_thousand_broken_conversations() -> None:
    random = Random(7)
    with started(1) as (process,), closing(as_client(process.port, "own")) as own:
        for op in ("set", "init_dense"):
            own.begin_write(op, WRITES[op].header, WRITES[op].keys, WRITES[op].values).result()
        ctr = {"table": "ctr", "lr": [0.1, 0.1]}
        own.begin_write("push", ctr, OWN, some_pushes(len(OWN))).result()
        with (
            Recorder(process.port) as recorder,
            closing(as_client(recorder.port, "recorded")) as recorded,
        ):
            talk(recorded)
        said = [bytes(it) for it in recorder.said if payloads(it)]
        before, used_mb = all_of(own), memory_mb(process)
        refused = own.report()["refused"]
        for _ in range(40):
            play(process.port, [changed(random, said) for _ in range(50)])
        assert all_of(own) == before
        assert own.report()["refused"] > refused + 500  # many came as far as to be read
        assert memory_mb(process) < used_mb + 200
        with closing(as_client(process.port, "fresh")) as fresh:
            push = fresh.begin_write("push", {"table": "plain", "lr": [0.1]}, OWN, rows())
            assert push.result().header["step"] == before[0][3] + 1
        assert "Traceback" not in process.log()
        process.terminate()
        assert process.exit_code() == 0
