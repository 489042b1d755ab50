"""Staged pushes against plain numpy: whose count, and how much, whenever they arrived."""

from __future__ import annotations

import threading
import weakref
from itertools import chain, permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from downpour import rules
from downpour.plan.sections import Sections, split
from downpour.server import Server
from downpour.serving.merging import checked_block, checked_rows, merge_blocks, merge_rows
from downpour.serving.staging import Commit
from downpour.tables.pushes import PUSH_HEAD
from tests.ctr_tables import some_pushes
from tests.staged import (
    KEYS,
    PLAIN_DIM,
    RATES,
    SIZE,
    Staged,
    bits,
    block,
    close,
    commit,
    grads,
    one_of_each,
    plan,
    server,
    staged,
)

LR = {name: rates for name, (_, rates) in RATES.items()}
LINEAR = rules.SGD(0.1)  # where sums that cancel may differ by what is lost in rounding


def committed(
    calls: Any,
    samples: Any,
    dtype: str = "float64",
    rates: Any = RATES,
    own: Server | None = None,
) -> Server:
    own, staging = staged(calls, dtype, own)
    assert staging.commit(commit(samples, rates=rates))
    return own


def joint(rows: Any) -> dict[int, np.ndarray]:
    """The sum of gradients by key, one after the other."""
    summed: dict[int, np.ndarray] = {}
    for key, grad in rows:
        summed[key] = summed[key] + grad if key in summed else grad.copy()
    return summed


rows = st.lists(st.tuples(st.integers(0, 5), st.integers(-8, 8)), max_size=6)
calls = st.lists(st.tuples(st.integers(0, 3), rows, st.booleans()), max_size=8)


@given(calls=calls, samples=st.lists(st.integers(0, 50), min_size=3, max_size=3))
def test_a_commit_is_one_push_of_the_weighed_sum(calls: Any, samples: list[int]) -> None:
    members, expected, made = dict(enumerate(samples)), [], []
    for rank, given_rows, is_mean in calls:
        keys = KEYS[[place for place, _ in given_rows]]
        values = np.outer([value for _, value in given_rows], [1.0, 0.3, -2.0, 0.7])
        values = values.reshape(-1, PLAIN_DIM)
        made.append(Staged("plain", rank, values, keys, is_mean=is_mean))
        if rank in members and (samples[rank] or not is_mean):
            factor = samples[rank] / sum(samples) if is_mean else 1.0
            expected += [(rank, key, factor * grad) for key, grad in zip(keys, values, strict=True)]
    summed = joint((key, grad) for _, key, grad in sorted(expected, key=lambda it: it[0]))
    own, other = server(rule=LINEAR), server(rule=LINEAR)
    pushed = np.array([*summed.values()]).reshape(-1, PLAIN_DIM)
    other.sparse["plain"].push(np.array([*summed], np.uint64), pushed, step=1, lr=LR["plain"])
    close(committed(made, members, rates={"plain": RATES["plain"]}, own=own), other)


def test_means_of_workers_are_the_mean_of_all_samples() -> None:
    per_sample, samples = grads(12).reshape(12, 1, PLAIN_DIM), {0: 2, 1: 3, 2: 7}
    dense = np.stack([block(seed) for seed in range(12)])
    calls, start = [], 0
    for rank, count in samples.items():
        own = slice(start, start := start + count)
        calls.append(Staged("plain", rank, per_sample[own].mean(0), KEYS[:1]))
        calls.append(Staged("dense", rank, dense[own].mean(0)))
    whole = [Staged("plain", 0, per_sample.mean(0), KEYS[:1]), Staged("dense", 0, dense.mean(0))]
    close(committed(calls, samples), committed(whole, {0: 12}))


@pytest.mark.parametrize("is_mean", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("samples", [{0: 3}, {0: 3, 1: 0}])
def test_one_worker_is_bit_for_bit_a_direct_update(samples: Any, dtype: str, is_mean: bool) -> None:
    calls = one_of_each(0, dtype, is_mean=is_mean)
    calls[0].values[0] = -0.0
    direct = server(dtype)
    for call in calls:
        if call.keys is None:
            names = call.names
            direct.push_dense("dense", call.values, step=1, lr=LR["dense"][0], names=names)
        else:
            places = direct.locate(call.table, call.keys, create=True)
            direct.update(call.table, places, call.values, step=1, lr=LR[call.table])
    assert bits(committed(calls, samples, dtype)) == bits(direct)


def test_the_share_of_samples_is_applied_in_the_dtype_of_the_table() -> None:
    calls, third = one_of_each(1, "float32"), np.float32(1 / 3)
    weighed = one_of_each(1, "float32")
    for call in weighed:
        gradients = call.values[:, PUSH_HEAD:] if call.table == "ctr" else call.values
        np.multiply(gradients, third, out=gradients)
    own = committed(calls, {0: 2, 1: 1}, "float32")
    assert bits(own) == bits(committed(weighed, {1: 1}, "float32"))


def test_repeated_keys_of_one_push_are_summed_as_a_table_sums_them() -> None:
    keys, direct = KEYS[[0, 1, 0, 2, 1, 0]], server("float32")
    plain, ctr = grads(6, dtype="float32"), some_pushes(6, dtype="float32")
    direct.sparse["plain"].push(keys, plain, step=1, lr=LR["plain"])
    direct.sparse["ctr"].push(keys, ctr, step=1, lr=LR["ctr"])
    calls = [Staged("plain", 0, plain, keys), Staged("ctr", 0, ctr, keys)]
    assert bits(committed(calls, {0: 1}, "float32")) == bits(direct)


def test_pushes_of_one_worker_are_merged_in_the_order_of_staging() -> None:
    values = [np.full((1, PLAIN_DIM), value) for value in (1e17, 1.0, -1e17)]  # 0 in this order
    calls = [Staged("plain", 0, value, KEYS[:1]) for value in values]
    assert bits(committed(calls, {0: 1})) == bits(
        committed([Staged("plain", 0, np.zeros((1, PLAIN_DIM)), KEYS[:1])], {0: 1})
    )


def test_a_push_that_is_alone_and_counts_whole_is_not_copied() -> None:
    own, keys, dense = server(), KEYS[:2], block()
    push = checked_rows(own.sparse["ctr"], keys, some_pushes(2), is_mean=True)
    merged_keys, merged = merge_rows(own.sparse["ctr"], [(push, 1.0)])
    assert merged_keys is keys
    assert merged is push.pushes
    table = own.dense["dense"]
    sections = [*table.sections.values()]
    alone = checked_block(table, dense, ("bias", "weight"), sections, is_mean=False)
    assert merge_blocks(table, [(alone, 1.0)])[0] is dense


def test_no_order_of_arrival_changes_a_bit() -> None:
    samples, by_rank = {0: 3, 1: 5, 2: 1}, [one_of_each(rank, "float32") for rank in range(3)]
    first = bits(committed(chain(*by_rank), samples, "float32"))
    for order in permutations(by_rank):
        assert bits(committed(chain(*order), samples, "float32")) == first
        turns = [call for turn in zip(*order, strict=True) for call in turn]
        assert bits(committed(turns, samples, "float32")) == first


def test_workers_may_stage_from_many_threads_at_once() -> None:
    samples = {rank: rank + 1 for rank in range(8)}
    by_rank = [[*one_of_each(rank, "float32"), *one_of_each(rank, "float32")] for rank in samples]
    own, staging = staged([], "float32")
    start = threading.Barrier(len(samples))

    def stage(calls: list[Staged]) -> None:
        start.wait()
        for call in calls:
            call.on(staging)

    threads = [threading.Thread(target=stage, args=(calls,)) for calls in by_rank]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    staging.commit(commit(samples))
    assert bits(own) == bits(committed(chain(*by_rank), samples, "float32"))


def test_of_ctr_pushes_only_gradients_are_weighed() -> None:
    first, second = some_pushes(2, 1), some_pushes(2, 2)
    first[:, 0], second[:, 0] = (3, 4), (5, 6)
    calls = [Staged("ctr", 1, second, KEYS[[1, 2]]), Staged("ctr", 0, first, KEYS[[0, 1]])]
    whole = np.zeros((3, first.shape[1]))
    for place, pushes, factor in [(slice(0, 2), first, 0.25), (slice(1, 3), second, 0.75)]:
        whole[place, :PUSH_HEAD] += pushes[:, :PUSH_HEAD]
        whole[place, PUSH_HEAD:] += factor * pushes[:, PUSH_HEAD:]
    whole[:, 0] = 3, 5, 6  # the slot is that of the last worker
    other = committed([Staged("ctr", 0, whole, KEYS[:3])], {0: 1})
    close(committed(calls, {0: 10, 1: 30}), other)


def test_sums_count_as_they_are_beside_means() -> None:
    sums, means = [grads(2, 1), block(1)], [grads(2, 2), block(2)]
    calls = [
        Staged("plain", 0, sums[0], KEYS[:2], is_mean=False),
        Staged("plain", 0, means[0], KEYS[:2]),
        Staged("dense", 1, sums[1], is_mean=False),
        Staged("dense", 1, means[1]),
    ]
    whole = [
        Staged("plain", 0, sums[0] + 0.2 * means[0], KEYS[:2]),
        Staged("dense", 0, sums[1] + 0.8 * means[1]),
    ]
    close(committed(calls, {0: 1, 1: 4}), committed(whole, {0: 1}))


def test_a_dense_step_has_the_parameters_that_any_worker_reached() -> None:
    bias, weight = block(1), block(2)
    bias[1:] = np.nan  # what a push holds for others is not read
    calls = [
        Staged("dense", 0, bias, names=("bias", "bias")),
        Staged("dense", 1, weight, names=("weight",)),
    ]
    whole = np.concatenate([0.25 * bias[:1], 0.75 * weight[1:]])
    close(committed(calls, {0: 1, 1: 3}), committed([Staged("dense", 0, whole)], {0: 1}))
    alone = committed(calls, {0: 1}).dense["dense"]
    assert alone.steps == {"bias": 1, "weight": 0}


@pytest.mark.parametrize("num_shards", [2, 3])
def test_servers_with_parts_of_a_dense_table_step_as_one_does(num_shards: int) -> None:
    calls = [Staged("dense", 0, block(0)), Staged("dense", 1, block(1), names=("weight",))]
    whole = committed(calls, {0: 1, 1: 2}).dense["dense"].pull()
    sections = Sections(min_size=1)
    parts = split(plan().dense[0], num_shards, sections)
    for shard in range(num_shards):
        places = np.concatenate([np.arange(SIZE)[it.span] for it in parts if it.server == shard])
        shares = [Staged("dense", it.rank, it.values[places], names=it.names) for it in calls]
        own = Server(plan(), shard=shard, num_shards=num_shards, sections=sections)
        committed(shares, {0: 1, 1: 2}, own=own)
        assert np.array_equal(own.dense["dense"].pull(), whole[places])


@given(
    touched=st.lists(st.sets(st.integers(0, 5)), min_size=1, max_size=4),
    samples=st.lists(st.integers(1, 50), min_size=4, max_size=4),
)
def test_a_mean_over_touched_is_over_those_that_pushed_the_row(
    touched: list[set[int]], samples: list[int]
) -> None:
    members = dict(enumerate(samples[: len(touched)]))
    pushes = {rank: grads(len(own), rank) for rank, own in enumerate(touched)}
    made = [Staged("plain", rank, pushes[rank], KEYS[sorted(touched[rank])]) for rank in members]
    expected = {}
    for place in sorted(set().union(*touched)):
        have = [rank for rank in members if place in touched[rank]]
        rows = [pushes[rank][sorted(touched[rank]).index(place)] for rank in have]
        expected[KEYS[place]] = np.average(rows, axis=0, weights=[samples[rank] for rank in have])
    own, other = server(rule=LINEAR), server(rule=LINEAR)
    _, staging = staged(made, own=own)
    rates = {"plain": RATES["plain"]}
    staging.commit(Commit(step=1, samples=members, rates=rates, over_touched=True))
    keys, means = np.array([*expected], np.uint64), np.array([*expected.values()])
    other.sparse["plain"].push(keys, means.reshape(-1, PLAIN_DIM), step=1, lr=LR["plain"])
    close(own, other)


def test_what_others_staged_is_thrown_away() -> None:
    calls = [*one_of_each(0), *one_of_each(1)]
    assert bits(committed(calls, {1: 5})) == bits(committed(one_of_each(1), {1: 5}))
    own, staging = staged(calls)
    staging.discard(0)
    staging.discard(7)
    staging.commit(commit({0: 0, 1: 5}))
    assert bits(own) == bits(committed(one_of_each(1), {1: 5}))


def test_a_mean_over_no_samples_counts_for_nothing() -> None:
    calls = [*one_of_each(0), *one_of_each(1)]
    assert bits(committed(calls, {0: 0, 1: 5})) == bits(committed(one_of_each(1), {1: 5}))
    own, before = committed(calls, {0: 0, 1: 0}, rates={}), bits(server())
    assert bits(own) == before
    sums = one_of_each(0, is_mean=False)
    assert bits(committed(sums, {0: 0})) == bits(committed(one_of_each(0), {0: 1}))


def test_a_step_without_pushes_passes_for_rows_and_leaves_dense_tables() -> None:
    own, other = committed([], {0: 4, 1: 2}), server()
    other.sparse["plain"].push(KEYS[:0], grads(0), step=1, lr=LR["plain"])
    other.sparse["ctr"].push(KEYS[:0], some_pushes(0), step=1, lr=LR["ctr"])
    assert bits(own) == bits(other)
    assert own.sparse["plain"].log_decay < 0.0
    assert own.dense["dense"].step == 0


def test_tables_have_steps_of_their_own() -> None:
    own, staging = staged([])
    for step, rates in enumerate([{"ctr": RATES["ctr"]}, RATES, {}], start=1):
        assert staging.commit(commit({0: 1}, step, rates))
    assert (own.sparse["plain"].step, own.sparse["ctr"].step, staging.committed) == (1, 1, 3)


def test_a_step_is_committed_once() -> None:
    own, staging = staged(one_of_each(0))
    assert staging.committed == 0
    assert staging.commit(commit({0: 1}))
    after = bits(own)
    assert not staging.commit(commit({0: 1}))
    assert bits(own) == after
    assert staging.committed == 1
    for call in one_of_each(0):
        call.on(staging, step=2)
    assert staging.commit(commit({0: 1}, step=2))
    assert not staging.commit(commit({0: 1}))
    assert bits(own) != after


@pytest.mark.parametrize("ends", ["commit", "discard"])
def test_nothing_is_kept_of_a_step_that_is_over(ends: str) -> None:
    _, staging = staged([])
    values, dense = grads(2), block()
    kept = [weakref.ref(values), weakref.ref(dense)]
    Staged("plain", 0, values, KEYS[:2]).on(staging)
    Staged("dense", 0, dense).on(staging)
    del values, dense
    assert all(it() is not None for it in kept)  # and so it was not copied
    if ends == "commit":
        staging.commit(commit({1: 1}))
    else:
        staging.discard(0)
    assert all(it() is None for it in kept)
