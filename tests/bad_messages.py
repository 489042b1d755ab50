"""Messages that no server may take: requests that are right, spoiled in one way or another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from downpour.wire import SCHEMA, header_bytes, pack
from tests.one_shard import FOREIGN, GOOD, OWN, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

INF, NAN = float("inf"), float("nan")
JUNK: list[Any] = [
    None, True, False, -1, -INF, INF, NAN, 0.5, 2**53, 10**400, -(10**400), "", "x", "-1", "\ud800",
    "\x00\n\x1b", "x" * 1000, [], [[]], [None], ["x", "x"], [0.1] * 3, [INF], {}, {"x": 1},
    {"0": -1}, {"": {}}, [[[[[[[[[]]]]]]]]],
]  # fmt: skip
# What of it a field may have all the same.
TEXTS = ["x", "-1", "\ud800", "\x00\n\x1b", "x" * 1000]
TAKEN: dict[str, list[Any]] = {
    "create": [True, False], "mean": [True, False], "keeps": [True, False], "names": [[]],
    "samples": [{}], "rates": [{}], "rank": [-1], "wait_s": [0.5, 2**53], "error": [None, *TEXTS],
    "reason": TEXTS, "losses": [{}, {"x": 1}, {"0": -1}], "tables": [[]],
}  # fmt: skip
OPTIONAL = {"s", "create", "mean", "error"}


# The verbs of a federation as they should be, once its first round is open with clients 0 and 1. A
# second coordinator's beginning is none.
LEADER, WHO = {"incarnation": 7}, {"client": 0, "incarnation": 100}
BEGIN = {"num_clients": 2, "settings": "FedAvg()", "timeout_s": 1000.0}
REPORT = {"samples": 9, "steps": 3, "losses": {"click": 0.5}, "tables": ["plain"]}
VERBS: dict[str, dict[str, Any]] = {
    "enroll": {**WHO, "settings": "FedAvg()"},
    "ask": {**WHO, "wait_s": 0.0},
    "report": {**WHO, "round": 1, "report": {**REPORT, "bytes_sent": 9, "bytes_received": 9}},
    "client_beat": WHO,
    "client_leave": {**WHO, "error": "DataError: no file"},
    "begin_federation": {**BEGIN, "incarnation": 8},
    "clients": LEADER,
    "coordinator_beat": LEADER,
    "open_round": {**LEADER, "round": 1, "sampled": [0, 1], "deadline_s": 500.0},
    "watch_round": {**LEADER, "wait_s": 0.0},
    "close_round": {**LEADER, "round": 1},
    "end_federation": {**LEADER, "reason": "all rounds are done"},
}


@dataclass
class Bad:
    """A message and how it was spoiled: its header, what is done to its bytes, and its batch."""

    made: str
    header: dict[str, Any]
    batch: Any
    change: Callable[[bytes], bytes] = bytes

    def __str__(self) -> str:
        return f"{self.header.get('op')!r:.40} with {self.made}"

    def data(self, **own: Any) -> bytes:
        """The header's bytes; own: what every request has, if it has nothing else there."""
        return self.change(header_bytes({**own, **self.header}))


def bad_message(random: Random) -> tuple[bool, Bad]:
    """Whether it is for a stream of writes, and a request that was right, spoiled."""
    op = random.choice(sorted(GOOD))
    good = GOOD[op]
    ways = [_with_junk, _without, _elsewhere, _broken_header, _broken_batch]
    ways += [_other_keys, _cut_rows] if good.keys is not None and good.values is not None else []
    ways += [_not_finite] if good.values is not None and op != "init_dense" else []
    while True:
        bad = random.choice(ways)(random, good)
        if bad is not None:
            return good.is_write, bad


def bad_verb(random: Random) -> tuple[str, Bad]:
    """A verb of a federation with a request that was right, spoiled, or whose report is."""
    verb = random.choice(sorted(VERBS))
    request = VERBS[verb]
    is_report = verb == "report" and random.random() < 0.8
    good = Request(request["report"] if is_report else request, is_write=False)
    ways = [_with_junk, _without] if is_report else [_with_junk, _without, _broken_header]
    while True:
        bad = random.choice(ways)(random, good)
        if bad is not None:
            if is_report:
                bad.header = {**request, "report": bad.header}
            return verb, bad


def _of(made: str, asked: Request, **changed: Any) -> Bad:
    return Bad(made, {**asked.header, **changed}, pack(asked.keys, asked.values))


def _with_junk(random: Random, good: Request) -> Bad | None:
    """A field that is something else."""
    fields = [*good.header, *(["n"] if good.is_write else [])]
    name, value = random.choice(fields), random.choice(JUNK)
    if repr(value) in map(repr, TAKEN.get(name, [])):
        return None
    return _of(f"{name} = {value!r:.40}", good, **{name: value})


def _without(random: Random, good: Request) -> Bad | None:
    """A field that is missing."""
    name = random.choice([*good.header])
    if name in OPTIONAL:
        return None
    return Bad(f"no {name}", good.but(name).header, pack(good.keys, good.values))


def _elsewhere(random: Random, good: Request) -> Bad:
    """A request to another server, or for something that none has."""
    changed = random.choice([{"incarnation": random.choice(JUNK)}, {"op": "drop"}])
    return _of(f"{changed!r:.60}", good, **changed)


def _other_keys(random: Random, good: Request) -> Bad:
    """Some keys are of another shard."""
    keys = good.keys.copy()
    keys[random.sample(range(len(keys)), random.randint(1, 12))] = random.choice(FOREIGN)
    return Bad("foreign keys", good.header, pack(keys, good.values))


def _cut_rows(random: Random, good: Request) -> Bad:
    """Fewer or more bytes than the rows of these keys have."""
    data = good.values.tobytes()
    size = random.choice([0, 1, 7, len(data) - 1, len(data) - 8, len(data) + 8, 2 * len(data)])
    values = np.frombuffer((data * 2)[:size], np.uint8)
    return Bad(f"{size} bytes", good.header, pack(good.keys, values))


def _not_finite(random: Random, good: Request) -> Bad:
    """All values are NaN or infinite."""
    value = random.choice([NAN, INF, -INF])
    return Bad(f"all {value}", good.header, pack(good.keys, np.full_like(good.values, value)))


def _broken_header(random: Random, good: Request) -> Bad:
    """Bytes that are no JSON object."""

    def cut(data: bytes) -> bytes:
        return data[: random.randrange(len(data))]

    def prefixed(data: bytes) -> bytes:
        return random.choice([b"}", b"[", b"x", b"\xff", b"{", b'"', b"0"]) + data

    def deep(data: bytes) -> bytes:
        depth = random.choice([20, 500, 900, 2000, 100_000])
        return data[:-1] + b',"x":' + b"[" * depth + b"]" * depth + b"}"

    def noise(data: bytes) -> bytes:
        return random.randbytes(len(data))

    def listed(data: bytes) -> bytes:
        return b"[" + data + b"]"

    change = random.choice([cut, prefixed, deep, noise, listed])
    return Bad(change.__name__, good.header, pack(good.keys, good.values), change)


def _broken_batch(random: Random, good: Request) -> Bad:
    """A record batch that is no message, or whose offsets lead out of its buffers."""
    name = random.choice(sorted(BATCHES))
    return Bad(name, good.header, BATCHES[name](random))


def _unchecked(keys: Sequence[int], values: Sequence[int]) -> pa.RecordBatch:
    """Columns of 64 bytes between offsets that are written when Arrow has checked them."""
    places = [np.zeros(2, np.int64) for _ in range(2)]
    buffers = [[None, pa.py_buffer(place), pa.py_buffer(bytes(64))] for place in places]
    columns = [pa.Array.from_buffers(pa.large_binary(), 1, it) for it in buffers]
    batch = pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
    places[0][:], places[1][:] = keys, values
    return batch


def _offsets(random: Random) -> list[int]:
    far = [2**31, 2**40, 2**62, 2**63 - 1, -(2**63), -1, -8, 65, 72]
    return random.choice([[0, random.choice(far)], [random.choice(far), 64], [64, 0]])


BATCHES: dict[str, Callable[[Random], Any]] = {
    "no batch": lambda random: None,
    "nulls": lambda random: pa.RecordBatch.from_pydict(
        {"keys": [None], "values": [random.choice([None, b""])]}, schema=SCHEMA
    ),
    "rows": lambda random: pa.RecordBatch.from_pydict(
        dict.fromkeys(SCHEMA.names, [OWN.tobytes()] * random.choice([0, 2, 9])), schema=SCHEMA
    ),
    "numbers": lambda random: pa.record_batch({"keys": OWN, "values": OWN}),
    "odd keys": lambda random: pack(np.zeros(random.choice([1, 7, 9, 95]), np.uint8), None),
    "offsets of keys": lambda random: _unchecked(_offsets(random), [0, 0]),
    "offsets of values": lambda random: _unchecked([0, 64], _offsets(random)),
}
