"""Changes of a server's tables from many sides at once: as if one had come after the other.

All of them are of all keys, and by whole numbers, so that at any time every row has one value in
all its places, and all rows have the same.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import downpour as dp
from downpour.deployment import Deployment
from downpour.serving.service import Service
from downpour.tables.read_write_lock import ReadWriteLock
from downpour.wire import Message
from tests.plans import dense_table, plain_table, small_plan
from tests.servers import LIMIT_S, at_once

if TYPE_CHECKING:
    from collections.abc import Callable

DIM, KEYS = 16, np.arange(3000, dtype=np.uint64)
TABLE, DENSE = "embedding", "dense.click"
NUM_COMMITS, NUM_PUSHES, NUM_SETS = 120, 60, 60
PUSHED, SET = 1000, 10**7  # by what a push changes a row, and of what it is set to a multiple


def subtracting() -> dp.Plan:
    """Tables from which a gradient is subtracted, exactly."""
    settings: dict[str, Any] = {"rule": dp.SGD(1.0), "init": dp.Constant(0.0), "dtype": "float64"}
    dense = dense_table(rule=dp.SGD(1.0), dtype="float64")
    return small_plan(plain_table(dim=DIM, **settings), dense=(dense,))


class Side:
    """A client of a service in this process, on one thread."""

    def __init__(self, service: Service, name: str) -> None:
        self._service, self._name = service, name
        self._session = service.sessions.of(name)
        self._session.take_over(self, 0)
        self._number = 0

    def write(self, op: str, value: float | None = None, **header: Any) -> dict[str, Any]:
        """A change of all keys by one value, or of a dense table where the header names it so."""
        self._number += 1
        given = {"op": op, "n": self._number, "table": TABLE, **header}
        is_dense = given["table"] == DENSE
        shape = self._service.hosted.server.dense[DENSE].size if is_dense else (len(KEYS), DIM)
        keys = KEYS[:0] if is_dense or value is None else KEYS
        values = np.empty(0) if value is None else np.full(shape, value)
        message = Message(given, keys, values.reshape(-1).view(np.uint8))
        return self._service.write(message, self._session, self)

    def read(self, op: str, table: str) -> np.ndarray:
        """All rows, or all weights of a dense table, as one line."""
        message = Message({"op": op, "table": table}, KEYS, np.empty(0, np.uint8))
        return self._service.read(message, self._name)[1].reshape(-1)

    def commit(self, step: int) -> None:
        """Subtract 1 from all, in a step of sync training of two workers."""
        names = ["out.bias", "out.weight"]
        for rank in (0, 1):
            self.write("stage", 1.0, rank=rank, at=step)
            self.write("stage_dense", 1.0, rank=rank, at=step, table=DENSE, names=names)
        rates = {TABLE: [step, [1.0]], DENSE: [step, [1.0]]}
        self.write("commit", at=step, samples={"0": 5, "1": 3}, rates=rates)


def service() -> Service:
    made = Service(Deployment(plan=subtracting(), num_shards=1), 0)
    made.hosted.server.init_dense(DENSE, np.zeros(9))
    made.hosted.server.locate(TABLE, KEYS, create=True)
    return made


def committing(side: Side) -> None:
    for step in range(1, NUM_COMMITS + 1):
        side.commit(step)


def pushing(side: Side) -> None:
    for _ in range(NUM_PUSHES):
        side.write("push", float(PUSHED), lr=[1.0])


def pushing_dense(side: Side) -> None:
    for _ in range(NUM_PUSHES):
        side.write(
            "push_dense", float(PUSHED), table=DENSE, lr=[1.0], names=["out.bias", "out.weight"]
        )


def setting(side: Side) -> None:
    for number in range(1, NUM_SETS + 1):
        side.write("set", float(number * SET))


def adding(side: Side) -> None:
    side.write("geo_join", rank=0)
    for _ in range(NUM_PUSHES):
        side.write("geo_add", float(-PUSHED))
        side.write("geo_add_dense", float(-PUSHED), table=DENSE, keeps=False)


def clearing(side: Side) -> None:
    for _ in range(NUM_SETS):
        side.write("clear")


def one_value(values: np.ndarray) -> float:
    if not values.size:  # of a table that was cleared: all rows are as new
        return 0.0
    assert (values == values[0]).all(), np.unique(values)
    return float(values[0])


def watched(made: Service, works: list[Callable[[Side], None]]) -> tuple[set[float], set[float]]:
    """Do all at once, and the values that rows and weights were seen to have meanwhile."""
    over, rows, weights = threading.Event(), set[float](), set[float]()

    def watch(side: Side) -> None:
        while not over.is_set():
            rows.add(one_value(side.read("pull", TABLE)))
            weights.add(one_value(side.read("pull_dense", DENSE)))
            rows.add(one_value(made.hosted.export(TABLE).weights.reshape(-1)))

    def work(call: Callable[[Side], None], side: Side) -> None:
        call(side)

    watching = threading.Thread(
        target=lambda: at_once([lambda: watch(Side(made, "watch")) for _ in range(2)])
    )
    failed: list[BaseException] = []
    before, threading.excepthook = threading.excepthook, lambda args: failed.append(args.exc_value)
    try:
        watching.start()
        sides = [Side(made, f"side {place}") for place in range(len(works))]
        at_once([lambda i=i: work(works[i], sides[i]) for i in range(len(works))])  # type: ignore[misc]
    finally:
        over.set()
        watching.join()
        threading.excepthook = before
    if failed:
        raise failed[0]
    return rows, weights


def test_of_commits_and_pushes_at_once_all_count() -> None:
    made = service()
    rows, weights = watched(made, [committing, pushing, pushing_dense, adding])
    side = Side(made, "last")
    expected = -NUM_COMMITS - 2 * PUSHED * NUM_PUSHES
    assert one_value(side.read("pull", TABLE)) == expected
    assert one_value(side.read("pull_dense", DENSE)) == expected
    for seen in (rows, weights):
        pushes, commits = np.divmod(-np.array(sorted(seen)), PUSHED)
        assert ((pushes >= 0) & (pushes <= 2 * NUM_PUSHES) & (commits <= NUM_COMMITS)).all()
        assert len(seen) > 1


@pytest.mark.parametrize("other", [setting, clearing], ids=lambda it: it.__name__)
def test_rows_that_are_set_or_cleared_beside_commits_are_of_a_serial_order(
    other: Callable[[Side], None],
) -> None:
    made = service()
    rows, _ = watched(made, [committing, pushing, other])
    rows.add(one_value(Side(made, "last").read("pull", TABLE)))
    sets, rest = np.divmod(-np.array(sorted(rows)), SET)
    sets, rest = -sets, rest  # a value is sets * SET - rest
    pushes, commits = np.divmod(rest, PUSHED)
    assert ((sets >= 0) & (sets <= NUM_SETS)).all()
    assert ((pushes <= NUM_PUSHES) & (commits <= NUM_COMMITS)).all()
    assert (sets == 0).all() or other is setting


def test_readers_share_a_lock() -> None:
    lock, both = ReadWriteLock(), threading.Barrier(2)

    def read() -> None:
        with lock.read():
            both.wait(LIMIT_S)

    at_once([read, read])


def test_neither_readers_nor_writers_starve() -> None:
    lock, value = ReadWriteLock(), [0, 0]
    counts = [0] * 4

    def is_over() -> bool:
        return min(counts) >= 50

    def read(place: int) -> None:
        while not is_over():
            with lock.read():
                assert value[0] == value[1]
                time.sleep(1e-4)
                assert value[0] == value[1]
            counts[place] += 1

    def write(place: int) -> None:
        while not is_over():
            with lock.write():
                value[0] += 1
                time.sleep(1e-4)
                value[1] += 1
            counts[place] += 1

    at_once([partial(read, 0), partial(read, 1), partial(write, 2), partial(write, 3)])


def test_a_lock_is_free_again_after_an_error() -> None:
    lock = ReadWriteLock()
    for enter in (lock.read, lock.write, lock.read):
        with pytest.raises(KeyError), enter():
            raise KeyError
    with lock.read(), lock.read():
        pass
