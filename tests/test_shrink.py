"""A day passes for CTR rows: what is counted fades, what is rare or old goes, the rest stays.

After Paddle's ctr_accessor.cc (a883f87f): show and click are multiplied by show_click_decay_rate;
then a row is deleted whose score 0.1 (show - click) + click is below delete_threshold, or whose
unseen_days are more than delete_after_unseen_days. There the save that a day ends with adds the day
to unseen_days, before the shrink.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import downpour as dp
from downpour.errors import TableError
from downpour.plan.plan import Plan
from downpour.server import Server
from downpour.tables import STATISTICS, CtrTable, ctr
from downpour.transport import Shrunk
from tests.ctr_tables import DIM, RULES, make_accessor, make_table, push_all, same_bits, some_keys
from tests.plans import ctr_table
from tests.staged import grads, plan

DAYS: Any = st.sampled_from([0, 1, 29, 30, 31, 2**31 - 1])
COUNTS: Any = st.sampled_from([0.0, 1.0, 8.0, 8.163265306122449, 9.0, 1e6])
NEVER_GOES = dp.Lifecycle(delete_threshold=0.0, delete_after_unseen_days=1e9)


def counted(*rows: tuple[float, float, int], **settings: Any) -> CtrTable:
    """A table whose keys 0, 1 ... have these shows, clicks and unseen_days."""
    table = make_table(**settings)
    statistics = np.zeros(len(rows), STATISTICS)
    for i, (show, click, unseen) in enumerate(rows):
        statistics[i] = (show, click, 0.5, unseen, i, i % 2)
    keys, width = np.arange(len(rows), dtype=np.uint64), table.accessor.state_dim
    weights = np.random.default_rng(0).standard_normal((len(rows), 1 + DIM))
    table.restore(keys, weights, np.ones((len(rows), width)), statistics, step=3)
    return table


def counts_of(table: CtrTable) -> list[tuple[int, float, float, int]]:
    """Key, show, click and unseen_days of each row."""
    keys, _, _, statistics = table.export()
    own = (statistics[name].tolist() for name in ("show", "click", "unseen_days"))
    return list(zip(keys.tolist(), *own, strict=True))


# By hand, with the defaults: 0.98, 0.8 and 30.


def test_rows_of_a_low_score_go() -> None:
    table, deleted = counted((10, 0, 0), (8, 0, 0), (1, 1, 0), (1, 0, 0), (0, 0, 0)).shrunk()
    # 0.1 * 9.8 = 0.98; 0.1 * 7.84 = 0.784; 0.98; 0.098; 0
    assert counts_of(table) == [(0, 9.8, 0.0, 1), (2, 0.98, 0.98, 1)]
    assert (deleted, len(table), table.step) == (3, 2, 3)


def test_rows_that_were_long_unseen_go() -> None:
    table, deleted = counted((100, 0, 29), (100, 0, 30)).shrunk()
    assert counts_of(table) == [(0, 98.0, 0.0, 30)]
    assert deleted == 1


def test_a_row_is_pushed_to_live_on() -> None:
    table = make_table(lifecycle=dp.Lifecycle(delete_after_unseen_days=2))
    key = np.array([7], np.uint64)
    table.push(key, np.array([[0, 1e3, 0, 1] + [0] * (1 + DIM)], np.float64), step=1, lr=0.1)
    for days in (1, 2):
        table, _ = table.shrunk()
        table.pull(key)  # does not count as seen
        assert counts_of(table)[0][3] == days
    assert len(table.shrunk()[0]) == 0
    table.push(key, np.zeros((1, 5 + DIM)), step=2, lr=0.1)
    assert len(table.shrunk()[0]) == 1


@pytest.mark.parametrize(
    ("lifecycle", "kept"),
    [
        (dp.Lifecycle(show_click_decay_rate=1.0), [0, 1]),
        (dp.Lifecycle(show_click_decay_rate=0.5), [0]),
        (dp.Lifecycle(show_click_decay_rate=0.0), []),
        (dp.Lifecycle(delete_threshold=0.0), [0, 1, 2]),
        (dp.Lifecycle(delete_threshold=1e9), []),
        (dp.Lifecycle(delete_after_unseen_days=0.0), []),
    ],
    ids=["no decay", "half", "all decays", "no threshold", "all below", "no days"],
)
def test_the_lifecycle_decides(lifecycle: dp.Lifecycle, kept: list[int]) -> None:
    table, deleted = counted((20, 0, 0), (8, 0, 0), (1, 0, 0), lifecycle=lifecycle).shrunk()
    assert [row[0] for row in counts_of(table)] == kept
    assert deleted == 3 - len(kept)


@given(st.lists(st.tuples(COUNTS, COUNTS, DAYS), max_size=30))
def test_rows_stay_as_they_would_one_by_one(rows: list[tuple[float, float, int]]) -> None:
    table = counted(*rows, embedx_threshold=1e30)
    expected = []
    for key, (show, click, unseen) in enumerate(rows):
        days, show, click = min(unseen + 1, 2**31 - 1), show * 0.98, click * 0.98
        if table.accessor.score(show, click) >= 0.8 and days <= 30:
            expected.append((key, show, click, days))
    shrunk, deleted = table.shrunk()
    assert counts_of(shrunk) == expected
    assert deleted == len(rows) - len(expected)


# What stays.


@pytest.mark.parametrize("rule", RULES)
def test_all_else_of_a_row_stays_bit_for_bit(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctr, "ROWS_AT_ONCE", 64)
    table = make_table(rule)
    push_all(table)
    keys, weights, state, statistics = table.export()
    shrunk, deleted = table.shrunk()
    is_kept = np.isin(keys, shrunk.export()[0])
    assert 0 < deleted == np.count_nonzero(~is_kept) < len(keys)
    for name, decay in (("show", 0.98), ("click", 0.98)):
        statistics[name] *= decay
    statistics["unseen_days"] += 1
    expected = [own[is_kept] for own in (keys, weights, state, statistics)]
    same_bits(shrunk.export(), expected)
    has_embedx = expected[3]["has_embedx"]
    assert shrunk.stats().embedx_rows == np.count_nonzero(has_embedx) > 0


@pytest.mark.parametrize("rule", RULES)
def test_training_goes_on_as_in_a_table_that_was_filled_with_what_stays(rule: str) -> None:
    table, other = make_table(rule), make_table(rule)
    push_all(table)
    shrunk, _ = table.shrunk()
    keys, weights, state, statistics = shrunk.export()
    other.restore(keys, weights, state, statistics, step=table.step)
    for own in (shrunk, other):
        push_all(own)
    same_bits(shrunk.export(), other.export())


def test_a_deleted_id_begins_again() -> None:
    table = make_table()
    push_all(table)
    shrunk, _ = table.shrunk()
    gone = np.setdiff1d(table.export()[0], shrunk.export()[0])
    np.testing.assert_array_equal(shrunk.pull(gone, create=False), make_table().pull(gone))


def test_memory_of_deleted_rows_is_given_back() -> None:
    server = Server(plan())
    keys = some_keys(300_000)
    server.locate("ctr", keys, create=True)
    before = server.sparse["ctr"].stats()
    old = weakref.ref(server.sparse["ctr"])
    assert server.shrink("ctr") == Shrunk(kept=0, deleted=len(np.unique(keys)))
    after = server.sparse["ctr"].stats()
    assert (after.rows, after.arena_bytes) == (0, 0)
    assert after.index_bytes < before.index_bytes / 100
    assert old() is None


# By a client.


def client_of(num_shards: int, *, lifecycle: dp.Lifecycle | None = None) -> dp.Client:
    """Of CTR rows, with 200 ids pushed."""
    settings = {} if lifecycle is None else {"lifecycle": lifecycle}
    table = ctr_table(embedx_dim=DIM, embedx_threshold=2.5, **settings)
    ps = dp.embedded(Plan(sparse=(table,), dense=(), programs={}), num_shards=num_shards)
    rng = np.random.default_rng(3)
    pushes = rng.standard_normal((200, 5 + DIM)).astype(np.float32)
    pushes[:, :4] = np.column_stack([np.zeros(200), rng.integers(0, 30, 200), np.zeros((200, 2))])
    ps.push("embedding", np.arange(200), pushes, feature="item")
    return ps


@pytest.mark.parametrize("num_shards", [2, 3])
def test_the_number_of_shards_changes_nothing(num_shards: int) -> None:
    one, many = client_of(1), client_of(num_shards)
    assert one.shrink("embedding") == many.shrink("embedding")
    first, second = one.export("embedding"), many.export("embedding")
    assert first.statistics is not None
    assert second.statistics is not None
    same_bits(
        (first.keys, first.weights, first.state, first.statistics),
        (second.keys, second.weights, second.state, second.statistics),
    )
    assert 0 < len(first.keys) < 200


@pytest.mark.parametrize("num_shards", [1, 2])
@pytest.mark.parametrize("change", ["shrink", "clear"])
def test_keys_that_were_found_before_are_found_anew(num_shards: int, change: str) -> None:
    ps, other = client_of(num_shards), client_of(num_shards)
    keys = np.concatenate([ps.export("embedding").keys, some_keys(5)])
    located = ps.locate("embedding", keys, create=True)  # as a prefetch does
    getattr(ps, change)("embedding")
    getattr(other, change)("embedding")
    expected = other.read(other.locate("embedding", keys, create=False))
    np.testing.assert_array_equal(ps.read(located), expected)
    pushes = np.ones((len(keys), 5 + DIM), np.float32)
    ps.update(located, pushes)
    other.update(other.locate("embedding", keys, create=True), pushes)
    first, second = ps.export("embedding"), other.export("embedding")
    same_bits((first.keys, first.weights), (second.keys, second.weights))


def test_other_rows_do_not_shrink() -> None:
    ps = dp.embedded(plan(), num_shards=2)
    ps.push("plain", [1, 2], grads(2), feature="user")
    with pytest.raises(TableError, match=r"'plain' cannot shrink: .* give it a CtrAccessor, or"):
        ps.shrink("plain")
    with pytest.raises(TableError, match=r"no sparse table 'dense'; the plan has: plain, ctr"):
        ps.shrink("dense")
    assert len(ps.export("plain").keys) == 2


def test_a_cleared_table_is_new() -> None:
    ps, new = dp.embedded(plan(), num_shards=2), dp.embedded(plan(), num_shards=2)
    for _ in range(3):
        ps.push("plain", [1, 2], grads(2), feature="user")
    ps.clear("plain")
    assert (ps.steps["plain"], ps.stats()["plain"].bytes) == (0, new.stats()["plain"].bytes)
    for each in (ps, new):
        each.push("plain", [2, 3], grads(2, seed=1), feature="user")
    mine, other = ps.export("plain"), new.export("plain")
    same_bits((mine.keys, mine.weights, mine.state), (other.keys, other.weights, other.state))
    assert (mine.step, mine.log_decay) == (other.step, other.log_decay)


def test_an_accessor_scores_numbers_and_arrays_alike() -> None:
    accessor = make_accessor(lifecycle=NEVER_GOES)
    shows, clicks = np.array([4.0, 7.0]), np.array([1.0, 7.0])
    assert accessor.score(shows, clicks).tolist() == [accessor.score(4, 1), accessor.score(7, 7)]
