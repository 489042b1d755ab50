"""Geo training where answers are lost, calls fail, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import downpour as dp
from downpour.consistency import Geo
from downpour.errors import NonFiniteError, RefusedError, SettingError, TableError
from downpour.remote.client import RemoteClient
from downpour.remote.connect import connect
from downpour.serving import changes
from tests.geo_runs import (
    DENSE,
    DIM,
    START,
    TABLE,
    Lost,
    a_plan,
    add,
    add_dense,
    at_once,
    own_rows,
    served,
    served_rows,
    workers,
)
from tests.plans import ctr_table, plain_table, small_plan

# What is lost on the way.


def after(amounts: list[float]) -> tuple[float, float]:
    """What one of two workers sends and what it keeps of amounts, with an exchange after each."""
    sent = kept = 0.0
    for amount in amounts:
        half = (kept + amount) / 2
        sent, kept = sent + half, half
    return sent, kept


def test_every_change_counts_once_whatever_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "PART_ROWS", 3)
    keys, amounts = np.arange(20), [[1.0, 4.0, -2.0, 8.0], [3.0, 2.0, 2.0, 1.0]]
    with workers(k=1) as (*clients, servers):
        for server in servers:
            for op in ("geo_add", "geo_add_dense", "geo_fetch", "pull", "pull_dense"):
                server.service.faults[op] = [Lost(op) for _ in range(3)]

        def train(client: Any) -> None:
            for amount in amounts[client.membership.rank]:
                add(client, keys, amount)
                add_dense(client, amount)
                client.end_step(1)

        at_once(clients, train)
        at_once(clients, lambda client: client.finish())
        sent, kept = zip(*map(after, amounts), strict=True)
        assert served_rows(clients[0]) == dict.fromkeys(keys.tolist(), 1.0 + sum(sent))
        for client, own in zip(clients, kept, strict=True):
            assert own_rows(client, keys) == [1.0 + sum(sent) + own] * len(keys)
            assert np.array_equal(client.pull_dense(DENSE), START + sum(sent) + own)
        assert not any(faults for server in servers for faults in server.service.faults.values())
        assert sum(server.service.sessions.duplicates for server in servers) >= 6


def test_changes_that_were_fetched_in_vain_come_with_the_next_exchange() -> None:
    with workers(num_servers=1) as (one, two, (server,)):
        add(two, [1, 2], 0.0)
        for amount, refused in ((8.0, [TableError("not now")]), (2.0, [])):
            add(one, [1] if refused else [2], amount)
            one.finish()
            server.service.faults["geo_fetch"] = refused
            if refused:
                with pytest.raises(TableError, match="not now"):
                    two.finish()
        two.finish()
        two.finish()
        assert own_rows(two, [1, 2]) == [5.0, 2.0]


def test_a_new_row_that_was_fetched_in_vain_is_fetched_again() -> None:
    with workers(num_servers=1) as (one, two, (server,)):
        add(one, [1], 8.0)
        one.finish()
        server.service.faults["pull"] = [TableError("not now")]
        with pytest.raises(TableError, match="not now"):
            add(two, [1], 2.0)
        add(two, [1], 2.0)
        assert own_rows(two, [1]) == [7.0]


def test_an_exchange_of_which_nobody_knows_how_far_it_came_is_not_gone_on_with() -> None:
    with workers(num_servers=1, k=1) as (one, _, (server,)):
        add(one, [1], 8.0)
        server.service.faults["geo_add"] = [TableError("not now")]
        for call in (lambda: one.end_step(1), one.finish, one.close):
            with pytest.raises(TableError, match="not now"):
                call()


# What is refused.


def test_no_row_becomes_infinite_and_no_change_that_is_too_large_is_sent() -> None:
    with workers(1, k=1) as (client, _):
        add(client, [1, 2], 8.0)
        add(client, [2], -1.7e308)
        client.finish()
        served = served_rows(client)
        assert served == {1: 9.0, 2: -1.7e308}
        with pytest.raises(NonFiniteError, match=r"'embedding': this push would make the row of"):
            add(client, [1, 2], -1.7e308)
        assert own_rows(client, [1, 2]) == [9.0, -1.7e308]
        for _ in range(2):
            add(client, [2], 1.7e308)
        with pytest.raises(NonFiniteError, match=r"table 'embedding'.*NaN or infinity.*not.* sent"):
            client.finish()
        assert served_rows(client) == served
        client.abandon("its training has failed")


REFUSED = [
    (ctr_table(), r"table 'embedding': Geo cannot train rows of a CtrAccessor.* Sync, Async or"),
    (plain_table(rule=dp.SGD(0.1, weight_decay=0.5)), r"weight_decay=0.5.*batch_l2.* Sync, Async"),
]


@pytest.mark.parametrize(("table", "message"), REFUSED, ids=["ctr", "decay"])
def test_a_table_that_geo_cannot_train_is_refused_before_the_run(table: Any, message: str) -> None:
    with served(1) as (server,):
        with pytest.raises(SettingError, match=message):
            connect(small_plan(table), [server.address], consistency=Geo())
        with pytest.raises(RefusedError, match="no run has begun"):
            server.runs.members.snapshot()


def test_nothing_is_trained_before_the_run_has_begun() -> None:
    plan = a_plan()
    with served(1) as (server,), connect(plan, [server.address], consistency=Geo()) as client:
        client.init_dense(DENSE, START)
        assert np.array_equal(client.pull_dense(DENSE), START)
        assert client.pull(TABLE, [1], feature="item").tolist() == [[1.0] * DIM]
        for call in (lambda: add(client, [1], 1.0), lambda: add_dense(client, 1.0)):
            with pytest.raises(TableError, match=r"make its Worker first, or call begin\(\)"):
                call()


def test_the_chief_reads_what_servers_have() -> None:
    with served(1) as (server,):
        given: Any = {"consistency": Geo(), "rank": -1, "with_chief": True}
        with connect(a_plan(), [server.address], **given) as chief:
            assert type(chief) is RemoteClient
