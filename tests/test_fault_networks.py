"""What clients make of networks that break connections, forget them, or are slow."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from downpour.consistency import Async
from downpour.errors import RefusedError, ServerTimeoutError
from downpour.remote.connect import connect
from downpour.serving.sessions import Session
from tests.fault_runs import (
    DEADLINE_S,
    PLAN,
    fails_in_time,
    push,
    reports,
    rows,
    served,
    until,
)
from tests.geo_runs import DENSE, TABLE
from tests.processes import started
from tests.proxy import TO_CLIENT, TO_SERVER, Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from downpour.remote.client import RemoteClient


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    with started(2) as servers:
        yield [server.address for server in servers]


@pytest.fixture
def proxies(addresses: list[str]) -> Iterator[list[Proxy]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Proxy(address)) for address in addresses]


def through(proxies: list[Proxy], **settings: Any) -> RemoteClient:
    return connect(PLAN, [proxy.address for proxy in proxies], **settings)


def test_a_push_that_one_server_took_is_applied_once_on_both(
    addresses: list[str], proxies: list[Proxy]
) -> None:
    keys = np.arange(100, 140)  # that no other test pushes
    with connect(PLAN, addresses) as seer, through(proxies) as client:
        push(client, keys, 0.0)
        first, second = reports(seer)
        proxies[0].hold(TO_CLIENT)
        proxies[1].hold(TO_SERVER)
        thread = threading.Thread(target=push, args=(client, keys))
        thread.start()
        until(lambda: reports(seer)[0].push.count > first.push.count)
        assert sorted(set(rows(seer, keys))) == [0.0, 1.0]
        proxies[0].reset()
        proxies[0].recover()
        until(lambda: reports(seer)[0].duplicates == first.duplicates + 1)
        assert reports(seer)[1].push.count == second.push.count
        proxies[1].recover()
        thread.join()
        assert rows(seer, keys) == [0.0] * len(keys)
        assert client.report()["retries"] == 1


CALLS: dict[str, Callable[[Any], object]] = {
    "pull": rows,
    "push": push,
    "stats": lambda it: it.stats(),
    "export": lambda it: it.export(TABLE),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_connection_that_a_router_has_forgotten_is_made_again(
    call: str, proxies: list[Proxy]
) -> None:
    with through(proxies, deadline_s=DEADLINE_S) as client:
        do = partial(CALLS[call], client)
        served(do)
        proxies[1].silence()
        fails_in_time(do, ServerTimeoutError, rf"server 1 .* '{call}'")
        served(do)


def test_a_verb_is_asked_again_where_its_connection_broke(proxies: list[Proxy]) -> None:
    with through(proxies) as client:
        for _ in range(5):
            proxies[0].hold(TO_CLIENT)
            thread = threading.Thread(target=client.stats)
            thread.start()
            proxies[0].reset()
            proxies[0].recover()
            thread.join()


def test_a_client_that_was_stopped_itself_gives_its_requests_that_time(
    proxies: list[Proxy],
) -> None:
    with through(proxies, deadline_s=10.0) as client:
        server = client.remote[0]
        rows(client)
        proxies[0].hold(TO_CLIENT)
        ticket = server.begin_pull_dense(DENSE, after=0)
        now = time.monotonic()
        for later in (0.0, 100.0, 100.5):
            server.expire(now + later)
        assert not ticket.is_done
        proxies[0].recover()
        assert ticket.result().values.nbytes > 0


def test_a_stream_that_the_client_has_given_up_takes_nothing_over() -> None:
    session, old, new = Session("a client"), object(), object()
    session.take_over(new, 2)
    with pytest.raises(RefusedError, match=r"a client has a newer connection"):
        session.take_over(old, 1)
    with pytest.raises(RefusedError, match=r"newer connection; nothing was applied"):
        session.once(old, 1, 1, lambda: {"step": 1})
    assert session.once(new, 1, 1, lambda: {"step": 1}) == {"step": 1}


def test_a_slow_server_bounds_what_is_on_its_way(proxies: list[Proxy]) -> None:
    keys, most = np.arange(2000, 4000), 3
    with through(proxies, consistency=Async(max_in_flight=most)) as client:
        push(client, keys, 0.0)
        client.finish()
        for proxy in proxies:
            proxy.slow_down(400_000)  # 10 pushes a second
        for _ in range(12):
            push(client, keys)
            client.end_step(1)
            assert client.report()["in_flight"] <= most * len(proxies)
        client.finish()
        assert rows(client, keys) == [-11.0] * len(keys)
