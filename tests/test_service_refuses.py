"""What a server refuses of the requests on its streams, and that it then changes nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from downpour.serving.fields import MAX_NAMES
from downpour.serving.service import Service
from downpour.wire import header_bytes
from tests.ctr_tables import some_pushes
from tests.one_shard import (
    DEPLOYMENT,
    FOREIGN,
    GOOD,
    NEW,
    OWN,
    PARTS,
    RATES,
    READS,
    SIZE,
    WRITES,
    Request,
    Stream,
    held,
    hosted,
    rows,
    serving,
    streams,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from downpour.serving.flight_server import FlightServer


NAN, INF = float("nan"), float("inf")
PUSH, DENSE = WRITES["push"], WRITES["push_dense"]
STAGE, COMMIT, RESTORE = WRITES["stage"], WRITES["commit"], WRITES["restore_dense"]
ADD, ADD_DENSE, PULL = WRITES["geo_add"], WRITES["geo_add_dense"], READS["pull"]
MIXED = np.concatenate([OWN[1:], FOREIGN[:1]])


@pytest.fixture(scope="module")
def server() -> Iterator[FlightServer]:
    with hosted() as started:
        yield started


def having(values: np.ndarray, value: float, place: Any = -1) -> np.ndarray:
    changed = values.copy()
    changed[place] = value
    return changed


def commit(table: str, rates: Any) -> Request:
    return COMMIT.but(rates={**RATES, table: rates})


BAD: dict[str, tuple[Request, str, str]] = {
    # Tables and operations.
    "no operation": (PUSH.but("op"), "RefusedError", "'op' must be a text"),
    "an unknown one": (PUSH.but(op="drop"), "RefusedError", "no request 'drop'; there are: push"),
    "one that is no text": (PUSH.but(op=["push"]), "RefusedError", "'op' must be a text"),
    "a read as a write": (PUSH.but(op="pull"), "RefusedError", "no request 'pull'"),
    "a write as a read": (PULL.but(op="push"), "RefusedError", "no request 'push'"),
    "an unknown table": (PUSH.but(table="rows"), "TableError", "no table 'rows' here.* plain, ctr"),
    "no table": (PUSH.but("table"), "TableError", "no table None here"),
    "a table that is no text": (PUSH.but(table=["plain"]), "TableError", r"no table \['plain'\]"),
    "a long name": (PUSH.but(table="x" * 10**5), "TableError", "no table 'xxxx.{0,100} here;"),
    "a dense table to a sparse push": (PUSH.but(table="dense"), "TableError", "'dense' here"),
    "a sparse table to a dense push": (DENSE.but(table="plain"), "TableError", "are: dense"),
    # Keys and values.
    "rows too narrow": (PUSH.but(values=rows(3)), "RefusedError", r"384 bytes of .* got 288"),
    "rows of float32": (PUSH.but(values=rows().astype("f4")), "RefusedError", "got 192"),
    "no rows": (PUSH.but(values=None), "RefusedError", "384 bytes of values, got 0"),
    "no keys": (PUSH.but(keys=None), "RefusedError", "0 bytes of values, got 384"),
    "rows of another table": (PUSH.but(values=some_pushes(12)), "RefusedError", "got 768"),
    "NaN": (PUSH.but(values=having(rows(), NAN)), "NonFiniteError", "first in row 11; nothing"),
    "infinity": (PUSH.but(values=having(rows(), -INF)), "NonFiniteError", "'plain': gradients"),
    "foreign keys": (PUSH.but(keys=FOREIGN), "TableError", r"belongs to shard 1, this is shard 0"),
    "one foreign key": (PUSH.but(keys=MIXED), "TableError", f"key {FOREIGN[0]} belongs"),
    "repeats that overflow": (
        PUSH.but(keys=OWN[[0] * 12], values=np.full((12, 4), 1e308)), "NonFiniteError", "summed",
    ),
    "a negative show": (
        PUSH.but(table="ctr", lr=[0.1, 0.1], values=having(some_pushes(12), -1.0, (3, 1))),
        "TableError", "show",
    ),
    "rows to set too wide": (WRITES["set"].but(values=rows(5)), "RefusedError", "got 480"),
    "NaN to set": (WRITES["set"].but(values=having(rows(), NAN)), "NonFiniteError", "weights"),
    "foreign keys to set": (WRITES["set"].but(keys=FOREIGN), "TableError", "belongs to shard 1"),
    "foreign keys to pull": (PULL.but(keys=FOREIGN, create=True), "TableError", "to shard 1"),
    "to create perhaps": (PULL.but(keys=NEW, create=1), "RefusedError", "'create' must be true"),
    # Rates and the client's steps.
    "no rates": (PUSH.but("lr"), "RefusedError", "must be a list of one or two, got None"),
    "an empty list of rates": (PUSH.but(lr=[]), "RefusedError", r"one or two, got \[\]"),
    "three rates": (PUSH.but(lr=[0.1] * 3), "RefusedError", "list of one or two"),
    "a million rates": (PUSH.but(lr=[1] * 10**5), "RefusedError", r"list of .* got \[1, 1"),
    "a rate as a number": (PUSH.but(lr=0.1), "RefusedError", "list of one or two, got 0.1"),
    "two rates for one rule": (PUSH.but(lr=[0.1, 0.1]), "TableError", "lr must be a number"),
    "one rate for two": (
        PUSH.but(table="ctr", lr=[0.1], values=some_pushes(12)), "TableError", "number or two",
    ),
    "two rates for a dense table": (DENSE.but(lr=[0.1, 0.1]), "TableError", "one number"),
    "a decay to nothing": (PUSH.but(lr=[2.0]), "SettingError", r"2.0 \* 0.5"),
    "a step below 0": (PUSH.but(s=-1), "RefusedError", "'s' must be a whole number >= 0, got -1"),
    "half a step": (PUSH.but(s=1.5), "RefusedError", "'s' must be a whole number"),
    "a true step": (PUSH.but(s=True), "RefusedError", "'s' must be .* got True"),
    "a step beyond JSON": (PUSH.but(s=2**53), "RefusedError", "'s' must be a whole number"),
    # Dense tables.
    "a gradient too long": (DENSE.but(values=np.ones(SIZE + 1)), "RefusedError", "must have 8 by"),
    "unknown names": (DENSE.but(names=["scale"]), "TableError", "no section 'scale'"),
    "names twice": (DENSE.but(names=["bias"] * 2), "RefusedError", "all different, got 2, 1 of"),
    "names as a text": (DENSE.but(names="bias"), "RefusedError", "'names' must be a list of texts"),
    "names that are none": (DENSE.but(names=["bias", 3]), "RefusedError", "list of texts"),
    "too many names": (
        DENSE.but(names=[f"{i}" for i in range(MAX_NAMES + 1)]), "RefusedError", "at most 65536",
    ),
    "a first weight too few": (
        WRITES["init_dense"].but(values=np.ones(SIZE - 1)), "RefusedError", "must have 8 bytes",
    ),
    "another size": (RESTORE.but(size=SIZE + 1), "RefusedError", "bytes of values"),
    "a size below 0": (RESTORE.but(size=-1), "RefusedError", "'size' must be a whole number >= 0"),
    "no parts": (RESTORE.but("parts"), "RefusedError", "comes with its size, parts and updates"),
    "parts as a list": (RESTORE.but(parts=[*PARTS]), "RefusedError", "comes with its size, parts"),
    "parts below 0": (
        RESTORE.but(parts={**PARTS, "x": 9, "y": -9}), "RefusedError", "'y' must be a whole",
    ),
    "parts beyond memory": (
        RESTORE.but(parts=dict.fromkeys(map(str, range(2048)), 2**53 - 1)), "RefusedError", "got",
    ),
    "other parts": (
        RESTORE.but(parts={f"{k}?": v for k, v in PARTS.items()}), "TableError", "state of",
    ),
    "no counts of updates": (RESTORE.but(updates={}), "TableError", "with its update count"),
    "fewer updates than none": (
        RESTORE.but(updates=dict.fromkeys(PARTS, -1)), "RefusedError", "must be a whole number",
    ),
    "a restored step below 0": (RESTORE.but(step=-1), "RefusedError", "'step' must be"),
    "NaN in a state": (
        RESTORE.but(values=having(RESTORE.values, NAN)), "NonFiniteError", "weights or the state",
    ),
    "to clear a dense table": (WRITES["clear"].but(table="dense"), "TableError", "no table 'den"),
    "to shrink a plain table": (WRITES["shrink"].but(table="plain"), "TableError", "'plain'"),
    # Sync training.
    "a later step": (STAGE.but(at=2), "TableError", "step 2 cannot be staged.* next one is 1"),
    "no step": (STAGE.but("at"), "RefusedError", "'at' must be a whole number"),
    "a rank below 0": (STAGE.but(rank=-1), "RefusedError", "'rank' must be a whole number >= 0"),
    "a rank as a text": (STAGE.but(rank="0"), "RefusedError", "'rank' must be a whole number"),
    "a mean perhaps": (STAGE.but(mean="no"), "RefusedError", "'mean' must be true or false"),
    "staged foreign keys": (STAGE.but(keys=FOREIGN), "TableError", "belongs to shard 1"),
    "staged NaN": (STAGE.but(values=having(rows(), NAN)), "NonFiniteError", "nothing was applied"),
    "staged for no name": (WRITES["stage_dense"].but(names=["x"]), "TableError", "section 'x'"),
    "a commit of step 0": (COMMIT.but(at=0), "RefusedError", "'at' must be .* >= 1, got 0"),
    "a commit too early": (COMMIT.but(at=5), "TableError", "next one is 1; nothing was changed"),
    "samples as a list": (COMMIT.but(samples=[3]), "RefusedError", "samples by rank and rates"),
    "samples of no rank": (COMMIT.but(samples={"x": 1}), "RefusedError", "by rank.* got 'x'"),
    "samples of the chief": (COMMIT.but(samples={"-1": 1}), "RefusedError", "got '-1'"),
    "samples of a rank twice": (COMMIT.but(samples={"1": 1, "01": 2}), "RefusedError", "got '01'"),
    "samples of a huge rank": (COMMIT.but(samples={"9" * 5000: 1}), "RefusedError", "by rank"),
    "samples below 0": (COMMIT.but(samples={"0": -1}), "RefusedError", "'0' must be a whole"),
    "half a sample": (COMMIT.but(samples={"0": 1.5}), "RefusedError", "'0' must be a whole"),
    "rates as a list": (COMMIT.but(rates=[0.1]), "RefusedError", "samples by rank and rates"),
    "a step alone": (commit("plain", [1]), "RefusedError", r"\[step, rates\] of table 'plain'"),
    "rates as a text": (commit("plain", "ab"), "RefusedError", r"\[step, rates\] of table 'plain'"),
    "rates by name": (commit("plain", {"a": 1, "b": 2}), "RefusedError", r"\[step, rates\]"),
    "a table's step 0": (commit("ctr", [0, [0.1, 0.1]]), "RefusedError", "'step' must be .* >= 1"),
    "a rate that is NaN": (commit("dense", [1, [NAN]]), "RefusedError", "'lr' must be a finite"),
    "rates of no table": (commit("rows", [1, [0.1]]), "TableError", "no table 'rows' to commit"),
    "one rate too many": (commit("dense", [1, [0.1, 0.1]]), "TableError", "of 1 rules"),
    "a committed decay": (commit("plain", [1, [2.0]]), "SettingError", "must be < 1, got 2.0"),
    "after a step never": (PULL.but(after=9, wait_s=0.0), "ServerTimeoutError", "step 9 was not"),
    "after a step below 0": (PULL.but(after=-1), "RefusedError", "'after' must be a whole number"),
    "to wait for ever": (PULL.but(after=9, wait_s=INF), "RefusedError", "'wait_s' must be a fin"),
    "to wait how long": (PULL.but(after=9), "RefusedError", "'wait_s' must be .* got None"),
    # Geo training.
    "a rank of geo as a text": (WRITES["geo_join"].but(rank="0"), "RefusedError", "'rank' must"),
    "changes too narrow": (ADD.but(values=rows(3)), "RefusedError", "384 bytes of values"),
    "changes of foreign keys": (ADD.but(keys=FOREIGN), "TableError", "belongs to shard 1"),
    "changes to NaN": (ADD.but(values=having(rows(), NAN)), "NonFiniteError", "NaN or infinity"),
    "changes to infinity": (
        ADD.but(keys=OWN[[0] * 12], values=np.full((12, 4), 1e308)), "NonFiniteError", "infinity",
    ),
    "changes to CTR rows": (ADD.but(table="ctr"), "TableError", "no changes can be added"),
    "keeps perhaps": (ADD_DENSE.but(keeps=2), "RefusedError", "'keeps' must be true or false"),
    "keeps more than all": (ADD_DENSE.but(values=np.full((2, SIZE), 2.0)), "TableError", r"\[0, 1"),
    "keeps NaN": (ADD_DENSE.but(values=np.full((2, SIZE), NAN)), "TableError", r"in \[0, 1\]"),
    "changes to all but what is kept": (ADD_DENSE.but(keeps=False), "RefusedError", "bytes"),
    "a part out of turn": (READS["geo_fetch"].but(number=9), "RefusedError", "9 of the changes"),
    "a part below 0": (READS["geo_fetch"].but(number=-1), "RefusedError", "'number' must be"),
}  # fmt: skip


@pytest.mark.parametrize("op", GOOD)
def test_a_request_as_it_should_be_is_answered(op: str) -> None:
    with hosted() as server:
        both = streams(server)
        if op.startswith("geo"):
            both[True].ask(WRITES["geo_join"])
        assert "error" not in both[GOOD[op].is_write].ask(GOOD[op])


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_and_changes_nothing(name: str, server: FlightServer) -> None:
    asked, kind, message = BAD[name]
    before = held(server)
    both = streams(server, client=name)
    both[True].ask(WRITES["geo_join"])
    answer = both[asked.is_write].ask(asked)
    assert answer["error"] == kind, answer
    assert re.search(message, answer["message"])
    assert len(answer["message"]) < 1000
    assert held(server) == before
    assert "error" not in both[False].ask(PULL)


RAW = {
    "NaN": "NaN", "infinity": "Infinity", "1e999": "1e999", "-1e999": "-1e999", "-1": "-1",
    "a huge number": "9" * 400, "true": "true", "null": "null", "a text": '"0.1"',
    "a list": "[0.1]", "an object": "{}",
}  # fmt: skip


@pytest.mark.parametrize("name", RAW)
def test_a_rate_is_a_finite_number(name: str, server: FlightServer) -> None:
    before = held(server)
    stream = Stream(server, is_write=True, client=f"rate {name}")
    own = {**PUSH.header, "n": 1, "incarnation": server.service.incarnation, "lr": ["@"]}
    header = header_bytes(own).replace(b'"@"', RAW[name].encode())
    answer = stream.say(header, PUSH.keys, PUSH.values)
    assert answer["error"] == "RefusedError"
    assert "'lr' must be a finite number >= 0, got " in answer["message"]
    assert held(server) == before


def test_nothing_of_a_request_to_a_server_without_tables_is_done() -> None:
    with serving(Service()) as server:
        for request in GOOD.values():
            answer = Stream(server, is_write=request.is_write).ask(request)
            assert answer["error"] == "RefusedError"
            assert "no tables yet: connect with a plan first" in answer["message"]


def test_first_weights_that_are_nan_are_not_taken() -> None:
    with serving(Service(DEPLOYMENT, 0)) as server:
        stream = Stream(server, is_write=True)
        first = WRITES["init_dense"]
        answer = stream.ask(first.but(values=np.full(SIZE, NAN)))
        assert answer["error"] == "NonFiniteError"
        assert stream.ask(first)["taken"]
