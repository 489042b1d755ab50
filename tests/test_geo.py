"""Geo training over servers: copies that drift apart for k steps, and then exchange changes."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import downpour as dp
from downpour.consistency import Geo
from downpour.errors import WorkerLostError
from downpour.remote.connect import connect
from tests.geo_runs import (
    DENSE,
    DIM,
    NAMES,
    SIZE,
    START,
    TABLE,
    a_plan,
    add,
    add_dense,
    at_once,
    own_rows,
    served,
    served_rows,
    workers,
)
from tests.networks import Network, planned, random_batches
from tests.plans import dense_table

# One worker.


@pytest.mark.parametrize("num_servers", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 3, 100])
def test_one_worker_equals_embedded_training(num_servers: int, k: int) -> None:
    model = Network(dtype=torch.float64)
    plan = planned(model, sparse=dp.Adagrad(0.5), dense=dp.Adam(0.1), window=2)
    data, ps = random_batches(0, 7), dp.embedded(plan)
    with dp.Worker(plan, copy.deepcopy(model), ps) as worker:
        expected = [worker.step("click", batch).loss for batch in data]
    with served(num_servers) as servers:
        addresses = [server.address for server in servers]
        client = connect(plan, addresses, consistency=Geo(k_steps=k))
        with client, dp.Worker(plan, model, client) as worker:
            losses = []
            for batch, following in zip(data, [*data[1:], None], strict=True):
                if following is not None:
                    worker.prefetch("click", following)
                losses.append(worker.step("click", batch).loss)
        with connect(plan, addresses) as other:
            rows, block = other.export(TABLE), other.export_dense(DENSE).weights
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    assert np.array_equal(rows.keys, ps.export(TABLE).keys)
    np.testing.assert_allclose(rows.weights, ps.export(TABLE).weights, rtol=1e-12)
    np.testing.assert_allclose(block, ps.pull_dense(DENSE), rtol=1e-12)


def test_servers_hear_of_changes_every_k_steps() -> None:
    with workers(1, k=3) as (client, _):
        for step, expected in enumerate([1.0, 1.0, 4.0, 4.0, 4.0, 7.0], start=1):
            add(client, [1], 1.0)
            client.end_step(0)  # no step: there was no batch
            client.end_step(5)
            assert served_rows(client) == {1: expected}
            assert own_rows(client, [1]) == [1.0 + step]
        assert client.staleness.most == 2


def test_finish_sends_what_is_left_and_nothing_twice() -> None:
    with workers() as (client, _, servers):
        add(client, [1], 8.0)
        add_dense(client, 8.0)
        for _ in range(3):
            client.finish()
        assert served_rows(client) == {1: 5.0}
        assert np.array_equal(client.export_dense(DENSE).weights, START + 4.0)
        assert servers[0].service.report()["duplicates"] == 0


def test_closing_sends_all_and_leaves() -> None:
    plan = a_plan()
    with served(2) as servers:
        addresses = [server.address for server in servers]
        with connect(plan, addresses, consistency=Geo()) as client:
            client.begin()
            assert [len(it.service.hosted.changes.clients) for it in servers] == [1, 1]
            add(client, [1, 2], 8.0)
        with connect(plan, addresses) as other:
            assert np.array_equal(other.export(TABLE).weights, np.full((2, DIM), 9.0))
        assert [len(it.service.hosted.changes.clients) for it in servers] == [0, 0]


# Several workers.


def test_after_the_exchange_all_see_what_each_has_changed() -> None:
    with workers() as (one, two, _):
        for client in (one, two):
            add(client, [1, 2, 3], 0.0)
        add(one, [1], 8.0)
        add(two, [2], 8.0)
        for client in (one, two, one):
            client.finish()
        assert served_rows(one) == {1: 5.0, 2: 5.0, 3: 1.0}
        assert own_rows(one, [1, 2, 3]) == [9.0, 5.0, 1.0]
        assert own_rows(two, [1, 2, 3]) == [5.0, 9.0, 1.0]


def test_what_a_worker_has_not_sent_counts_with_the_rows_next_update() -> None:
    with workers() as (client, _, _):
        for amount, expected in ((8.0, 5.0), (0.0, 7.0), (0.0, 8.0)):
            add(client, [1], amount)
            client.finish()
            assert served_rows(client) == {1: expected}


def test_a_row_that_is_new_here_is_as_others_have_left_it() -> None:
    with workers() as (one, two, _):
        add(one, [1], 8.0)
        one.finish()
        add(two, [1, 2], 2.0)
        assert own_rows(two, [1, 2]) == [7.0, 3.0]


def test_unknown_rows_are_looked_up_at_the_servers_and_not_made() -> None:
    with workers() as (one, two, _):
        add(one, [1], 8.0)
        one.finish()
        add(two, [2], 2.0)
        assert own_rows(two, [9, 2, 1]) == [1.0, 3.0, 5.0]
        assert two.local.stats()[TABLE].rows == 1
        assert served_rows(two) == {1: 5.0, 2: 1.0}


def test_dense_values_move_by_a_share_of_what_each_worker_did() -> None:
    with workers() as (one, two, _):
        add_dense(one, 8.0)
        two.push_dense(DENSE, np.full(SIZE, -2.0), ["out.bias"])
        for client in (one, two, one):
            client.finish()
        bias = START == 0
        assert np.array_equal(one.export_dense(DENSE).weights, START + 4.0 + bias)
        assert np.array_equal(one.pull_dense(DENSE), START + 8.0 + bias)
        assert np.array_equal(two.pull_dense(DENSE), START + 4.0 + 2.0 * bias)


def test_statistics_are_sums_that_decay_with_the_steps_of_all() -> None:
    dense = dense_table(rule=dp.Summary(0.5), dtype="float64")
    expected = START
    with workers(plan=replace(a_plan(), dense=(dense,))) as (one, two, _):
        for client, amounts in ((one, (1.0, 2.0)), (two, (4.0,))):
            for amount in amounts:
                client.push_dense(DENSE, np.full(SIZE, amount), NAMES)
                expected = 0.5 * expected + amount
        for client in (one, two, one):
            client.finish()
        assert np.array_equal(one.export_dense(DENSE).weights, expected)
        assert np.array_equal(one.pull_dense(DENSE), expected)
        assert np.array_equal(two.pull_dense(DENSE), expected)


def test_rows_stay_within_their_bounds_for_all() -> None:
    with workers(plan=a_plan(bounds=(-2.0, 2.0))) as (one, two, _):
        for client in (one, two) * 8 + (one,):
            add(client, [1], 9.0)
            client.finish()
        rows = [*own_rows(one, [1]), *own_rows(two, [1]), served_rows(one)[1]]
        assert rows == pytest.approx([2.0, 2.0, 2.0], abs=0.02)
        assert max(rows) <= 2.0


def test_rows_that_are_set_on_servers_reach_all() -> None:
    with workers() as (one, two, _):
        add(two, [1], 0.0)
        one.set(TABLE, [1], np.full((1, DIM), 7.0), feature="item")
        two.finish()
        assert own_rows(two, [1]) == [7.0]


def test_a_worker_that_has_left_stops_nobody() -> None:
    with workers(k=1) as (one, two, _):
        two.abandon(None)  # without a word to the servers that keep changes for it
        add(one, [1], 8.0)
        one.end_step(1)
        assert served_rows(one) == {1: 5.0}


def test_a_worker_that_was_dropped_sends_nothing_more() -> None:
    with workers(k=1) as (one, two, _):
        add(two, [1], 8.0)
        two.membership.beats.failure = WorkerLostError("worker 1 was dropped")
        for call in (lambda: two.end_step(1), two.finish, two.close):
            with pytest.raises(WorkerLostError, match="worker 1 was dropped"):
                call()
        assert served_rows(one) == {1: 1.0}


def test_models_of_several_workers_meet_in_what_servers_have() -> None:
    model = Network(dtype=torch.float64)
    plan = planned(model, sparse=dp.Adagrad(0.2), dense=dp.Adam(0.01))
    with served(2) as servers:

        def train(rank: int) -> float:
            given: Any = {"consistency": Geo(k_steps=2), "rank": rank, "num_workers": 2}
            own = copy.deepcopy(model)
            client = connect(plan, [it.address for it in servers], **given)
            with client, dp.Worker(plan, own, client) as worker:
                losses = [worker.step("click", it).loss for it in random_batches(0, 4) * 10]
            return losses[-1] - losses[3]

        changes_of_loss = at_once([0, 1], train)
        with connect(plan, [it.address for it in servers]) as client:
            after = client.export_dense(DENSE).weights, client.export(TABLE).weights
    assert max(changes_of_loss) < -0.05
    assert all(np.isfinite(values).all() for values in after)
