"""Async pushes: each counts once, all are waited for, and none is refused unheard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import downpour as dp
from downpour.consistency import Async
from downpour.remote.asynchronous import AsyncClient
from downpour.remote.connect import connect
from downpour.serving.service import Service
from tests.plans import dense_table, plain_table, small_plan
from tests.servers import Jittery, Slow, at_once, servers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


# Every push counts.


def whole_plan() -> dp.Plan:
    """Tables from which whole numbers are subtracted."""
    table = plain_table(rule=dp.SGD(1.0), dtype="float64", init=dp.Constant(0.0))
    return small_plan(table, dense=(dense_table(rule=dp.SGD(1.0), dtype="float64"),))


def worker_of(addresses: Sequence[str], rank: int = 0, num_workers: int = 1) -> Any:
    setting = Async(max_in_flight=3)
    return connect(whole_plan(), addresses, consistency=setting, rank=rank, num_workers=num_workers)


def push(ps: Any, keys: Sequence[int], grads: NDArray[np.floating]) -> None:
    """One step."""
    ps.update(ps.locate("embedding", np.array(keys, np.uint64), create=True), grads)
    ps.end_step(1)


@pytest.mark.parametrize("num_servers", [1, 3])
def test_what_two_workers_push_is_in_the_tables_exactly_once(num_servers: int) -> None:
    num_keys, rounds = 20, 30

    def work(rank: int, addresses: Sequence[str]) -> tuple[Any, Any]:
        rng, rows, block = np.random.default_rng(rank), np.zeros((num_keys, 4)), np.zeros(9)
        with worker_of(addresses, rank, num_workers=2) as ps:
            ps.init_dense("dense.click", block)
            ps.begin()
            for _ in range(rounds):
                keys = rng.choice(num_keys, 8, replace=False)
                grads, grad = (rng.integers(-9, 9, shape) * 1.0 for shape in ((8, 4), 9))
                ps.push_dense("dense.click", grad, ["out.bias", "out.weight"])
                push(ps, keys.tolist(), grads)
                rows[keys] += grads
                block += grad
        return rows, block

    with servers(num_servers, Jittery) as addresses:
        pushed = at_once([lambda rank=rank: work(rank, addresses) for rank in range(2)])  # type: ignore[misc]
        with connect(whole_plan(), addresses) as ps:
            state, dense = ps.export("embedding"), ps.export_dense("dense.click")
            greetings = [server.greeting["steps"] for server in ps.remote]
    assert np.array_equal(state.weights, -sum(rows for rows, _ in pushed)[state.keys.astype(int)])
    assert np.array_equal(dense.weights, -sum(block for _, block in pushed))
    assert all(set(steps.values()) == {2 * rounds} for steps in greetings)


@pytest.mark.parametrize("end", [AsyncClient.finish, AsyncClient.close])
def test_all_is_acknowledged_when_a_worker_has_finished(end: Callable[[Any], None]) -> None:
    service = Slow()
    with servers(1, lambda: service) as addresses, worker_of(addresses) as ps:
        for _ in range(5):
            push(ps, [1, 2], np.ones((2, 4)))
        end(ps)
        assert service.hosted.server.sparse["embedding"].step == 5


# Errors.


REFUSED = {
    "NaN": (np.full((2, 4), np.nan), dp.NonFiniteError, r"server 0 \(.*NaN"),
    "another width": (np.ones((2, 3)), dp.RefusedError, r"server 0 \(.*must have 64 bytes"),
}
CALLS: dict[str, Callable[[Any], Any]] = {
    "update": lambda ps: push(ps, [1], np.ones((1, 4))),
    "push_dense": lambda ps: ps.push_dense("dense.click", np.ones(9), ["out.bias"]),
    "end_step": lambda ps: ps.end_step(1),
    "finish": lambda ps: ps.finish(),
    "close": lambda ps: ps.close(),
}


def call_on(ps: Any, call: str) -> None:
    """Until it raises: the answer to a push may still be on its way."""
    while True:
        CALLS[call](ps)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_push_that_was_refused_is_raised_by_a_later_call_and_once(name: str, call: str) -> None:
    grads, error, message = REFUSED[name]
    with servers() as addresses:
        ps = worker_of(addresses)
        ps.update(ps.locate("embedding", np.array([1, 2], np.uint64), create=True), grads)
        with pytest.raises(error, match=message):
            call_on(ps, call)
        ps.close()
        with connect(whole_plan(), addresses) as other:
            assert not other.pull("embedding", [2], feature="user").any()


class Refusing(Service):
    """Refuses the tenth push of the first worker."""

    def write(self, message: Any, session: Any, owner: object) -> Any:
        if session.client.startswith("0-") and message.header["s"] == 10:
            raise dp.TableError("there is no room")
        return super().write(message, session, owner)


def test_a_push_that_was_refused_stops_the_other_workers() -> None:
    def work(rank: int) -> None:
        with worker_of(addresses, rank, num_workers=2) as ps:
            ps.begin()
            while True:
                push(ps, [rank], np.ones((1, 4)))

    with servers(1, Refusing) as addresses, pytest.raises(ExceptionGroup) as raised:
        at_once([lambda: work(0), lambda: work(1)])
    refused, stopped = raised.value.exceptions
    assert isinstance(refused, dp.TableError)
    assert isinstance(stopped, dp.WorkerLostError)
    assert "worker 0 failed" in str(stopped)
    assert "there is no room" in str(stopped)
