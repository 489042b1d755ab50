"""Changes on a server: each worker hears of all that others did, and of nothing half-done."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from downpour import rules
from downpour.errors import NonFiniteError, RefusedError, TableError
from downpour.plan.plan import Plan
from downpour.remote.copies import RowsCopy
from downpour.server import Server
from downpour.serving import changes
from downpour.serving.changes import Changes, ChangeSet, packed, part_rows, unpacked
from downpour.tables import SparseTable
from tests.plans import ctr_table, dense_table, plain_table
from tests.staged import bits

TABLE, DENSE, DIM = "embedding", "dense.click", 4
FLOAT64 = np.dtype("float64")


def keys_of(*keys: int) -> Any:
    return np.array(keys, np.uint64)


def ones(num_rows: int) -> Any:
    return np.ones((num_rows, DIM))


def served(*clients: str, table: Any = None, **settings: Any) -> tuple[Server, Changes]:
    """A server whose geo workers are these clients, by rank."""
    table = table or plain_table(dtype="float64", **settings)
    dense = dense_table(rule=rules.Adam(0.1), dtype="float64")
    own = Server(Plan(sparse=(table,), dense=(dense,), programs={}))
    noted = Changes(own)
    for rank, client in enumerate(clients):
        noted.join(client, rank)
    return own, noted


def heard(noted: Changes, client: str, number: int = 1) -> list[int]:
    keys: list[int] = noted.fetch(client, TABLE, number)[0].tolist()
    return keys


# Sets of keys.


def test_a_part_has_each_key_once_and_goes_when_the_next_is_asked_for() -> None:
    own = ChangeSet()
    for keys in (keys_of(5, 3), keys_of(5, 9), keys_of()):
        own.note(keys)
    assert own.fetch(1, 10)[0].tolist() == [3, 5, 9]
    assert own.fetch(2, 10)[0].tolist() == []
    assert len(own) == 0


def test_a_part_that_is_asked_for_again_is_the_same_whatever_is_noted_meanwhile() -> None:
    own = ChangeSet()
    own.note(keys_of(1, 2))
    first, _ = own.fetch(1, 10)
    own.note(keys_of(3))
    again, has_more = own.fetch(1, 10)
    assert again.tolist() == first.tolist() == [1, 2]
    assert not has_more  # what came meanwhile is of the next exchange
    assert own.fetch(2, 10)[0].tolist() == [3]


@pytest.mark.parametrize("number", [-1, 0, 2, 5])
def test_parts_are_asked_for_in_their_order(number: int) -> None:
    own = ChangeSet()
    for at in range(1, 4):
        own.fetch(at, 10)
    own.note(keys_of(7))
    with pytest.raises(RefusedError, match=rf"part {number} of the changes .* after part 3"):
        own.fetch(number, 10)
    assert own.fetch(4, 10)[0].tolist() == [7]


def test_many_keys_come_in_parts_of_a_bounded_size() -> None:
    own = ChangeSet()
    own.note(np.arange(10, dtype=np.uint64))
    parts = [own.fetch(number, 4) for number in (1, 2, 3)]
    assert [part.tolist() for part, _ in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [has_more for _, has_more in parts] == [True, True, False]


def test_a_set_that_nobody_asks_for_is_no_larger_than_the_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(changes, "LEAST_NOTED", 16)
    own = ChangeSet()
    for seed in range(200):
        own.note(np.random.default_rng(seed).integers(0, 50, 10, np.uint64))
        assert len(own) <= 2 * 50 + 10


@given(st.lists(st.lists(st.integers(0, 20), max_size=6) | st.sampled_from(["next", "again"])))
def test_nothing_that_was_noted_is_lost_or_made_up(events: list[Any]) -> None:
    own, number, part = ChangeSet(), 0, keys_of()
    unheard: set[int] = set()
    for event in events:
        if event == "next" or (event == "again" and not number):
            number += 1
            part, _ = own.fetch(number, 3)
        elif event == "again":
            assert own.fetch(number, 3)[0].tolist() == part.tolist()
        else:
            own.note(keys_of(*event))
            unheard |= {*event}
        if isinstance(event, str):
            assert len(part) <= 3
            unheard -= {*part.tolist()}
    while unheard and number < 1000:
        number += 1
        keys = own.fetch(number, 3)[0].tolist()
        assert {*keys} <= {key for event in events if isinstance(event, list) for key in event}
        unheard -= {*keys}
    assert not unheard


# Adding.


def test_a_change_is_added_and_all_others_hear_of_it() -> None:
    own, noted = served("a", "b", "c")
    before = own.sparse[TABLE].pull(keys_of(1, 2), create=False)
    noted.add("a", TABLE, keys_of(1, 2), ones(2))
    assert np.array_equal(own.sparse[TABLE].pull(keys_of(1, 2)), before + 1.0)
    assert [heard(noted, client) for client in "abc"] == [[], [1, 2], [1, 2]]


def test_what_is_fetched_are_the_rows_as_of_now() -> None:
    own, noted = served("a", "b")
    noted.add("a", TABLE, keys_of(1), ones(1))
    first = noted.fetch("b", TABLE, 1)[1]
    noted.add("a", TABLE, keys_of(1), ones(1))
    keys, again, _ = noted.fetch("b", TABLE, 1)  # the answer was lost
    assert keys.tolist() == [1]
    assert np.array_equal(again, first + 1.0)
    assert np.array_equal(again, own.sparse[TABLE].pull(keys_of(1)))


def test_changes_of_one_key_are_summed() -> None:
    own, noted = served("a")
    before = own.sparse[TABLE].pull(keys_of(1, 2), create=False)
    noted.add("a", TABLE, keys_of(1, 2, 1), ones(3))
    assert np.array_equal(own.sparse[TABLE].pull(keys_of(1, 2)), before + np.array([[2.0], [1.0]]))


def test_the_state_of_the_rule_stays() -> None:
    own, noted = served("a", rule=rules.Adagrad(0.1))
    own.sparse[TABLE].push(keys_of(1), ones(1), step=1, lr=0.1)
    state = own.export(TABLE).state
    noted.add("a", TABLE, keys_of(1), ones(1))
    assert np.array_equal(own.export(TABLE).state, state)
    assert state.any()


def test_a_change_is_added_to_what_decay_has_left() -> None:
    own, noted = served("a", rule=rules.SGD(0.1, weight_decay=0.5))
    for step in (1, 2):
        own.sparse[TABLE].push(keys_of(step), ones(1), step=step, lr=0.1)
    before = own.sparse[TABLE].pull(keys_of(1))
    noted.add("a", TABLE, keys_of(1), ones(1))
    np.testing.assert_allclose(own.sparse[TABLE].pull(keys_of(1)), before + 1.0, rtol=1e-12)


def test_weights_stay_within_bounds_and_the_worker_hears_where_they_would_not() -> None:
    own, noted = served("a", "b", bounds=(-1.5, 1.5))
    noted.add("a", TABLE, keys_of(1), ones(1))
    noted.add("a", TABLE, keys_of(1, 2), ones(2))
    assert np.array_equal(own.sparse[TABLE].pull(keys_of(1)), np.full((1, DIM), 1.5))
    assert heard(noted, "a") == [1]
    assert heard(noted, "b") == [1, 2]


def test_statistics_keep_a_part_of_what_they_were() -> None:
    own, noted = served("a")
    own.init_dense(DENSE, np.arange(9.0))
    noted.add_dense("a", DENSE, np.ones(9), np.full(9, 0.5))
    noted.add_dense("a", DENSE, np.ones(9), None)
    assert np.array_equal(own.dense[DENSE].pull(), np.arange(9.0) / 2 + 2)


HUGE, BLOCK = np.finfo(np.float64).max, np.ones(9)
REFUSED: list[tuple[str, tuple[Any, ...], type[Exception], str]] = [
    ("add", ("a", TABLE, keys_of(1, 9), ones(2) * np.nan), NonFiniteError, "NaN or infinity"),
    ("add", ("a", TABLE, keys_of(9, 9), ones(2) * HUGE), NonFiniteError, "lead to NaN or inf"),
    ("add", ("z", TABLE, keys_of(9), ones(1)), RefusedError, "client z takes no part in geo"),
    ("add_dense", ("a", DENSE, BLOCK * np.nan, None), NonFiniteError, "NaN or infinity"),
    ("add_dense", ("a", DENSE, BLOCK * HUGE, BLOCK), NonFiniteError, "NaN or infinity"),
    ("add_dense", ("a", DENSE, BLOCK, BLOCK * 2), TableError, r"kept must be in \[0, 1\]"),
    ("add_dense", ("a", DENSE, BLOCK, BLOCK * np.nan), TableError, r"kept must be in \[0, 1\]"),
    ("add_dense", ("z", DENSE, BLOCK, None), RefusedError, "client z takes no part in geo"),
    ("fetch", ("z", TABLE, 1), RefusedError, "client z takes no part in geo"),
]


@pytest.mark.parametrize(("call", "arguments", "error", "message"), REFUSED)
def test_what_is_refused_changes_nothing(
    call: str, arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    own, noted = served("a", "b")
    own.init_dense(DENSE, np.full(9, HUGE))
    noted.add("a", TABLE, keys_of(1), ones(1))
    before = bits(own)
    with pytest.raises(error, match=message):
        getattr(noted, call)(*arguments)
    assert bits(own) == before
    assert heard(noted, "b") == [1]


def test_rows_that_count_take_no_changes() -> None:
    own, noted = served("a", table=ctr_table())
    before = bits(own)
    with pytest.raises(TableError, match="has CTR rows"):
        noted.add("a", TABLE, keys_of(1), np.ones((1, own.sparse[TABLE].dim), np.float32))
    assert bits(own) == before


# Who takes part.


def test_who_has_left_is_forgotten() -> None:
    _, noted = served("a", "b")
    noted.leave("b")
    noted.leave("b")
    noted.add("a", TABLE, keys_of(1), ones(1))
    assert noted.clients == ("a",)
    with pytest.raises(RefusedError, match="has left"):
        noted.fetch("b", TABLE, 1)


def test_a_rank_that_is_taken_again_forgets_who_died_there() -> None:
    _, noted = served("a", "b")
    noted.join("new", 1)
    noted.join("new", 1)
    noted.add("a", TABLE, keys_of(1), ones(1))
    assert noted.clients == ("a", "new")
    assert heard(noted, "new") == [1]
    with pytest.raises(RefusedError, match="another one has taken its rank"):
        noted.add("b", TABLE, keys_of(1), ones(1))


def test_joining_once_more_forgets_nothing() -> None:
    _, noted = served("a", "b")
    noted.add("a", TABLE, keys_of(1), ones(1))
    noted.join("b", 1)
    assert heard(noted, "b") == [1]


# On their way.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_keys_and_rows_travel_as_one(count: int, dtype: Any) -> None:
    keys = np.arange(count, dtype=np.uint64) + 2**63
    rows = np.random.default_rng(0).standard_normal((count, 3)).astype(dtype)
    values = np.concatenate([[0], packed(keys, rows)]).astype(np.uint8)[1:]  # not aligned
    back = unpacked(values, 3, np.dtype(dtype))
    assert np.array_equal(back[0], keys)
    assert np.array_equal(back[1], rows)


@pytest.mark.parametrize(
    ("dim", "rows"), [(1, 100_000), (16, 100_000), (1 << 12, 1023), (1 << 30, 1)]
)
def test_a_part_is_bounded_in_rows_and_bytes(dim: int, rows: int) -> None:
    assert part_rows(dim, FLOAT64) == rows


# Two copies and a server: what the exchange promises, without a network.


class Copy:
    """A worker's rows, trained by adding numbers."""

    def __init__(self, noted: Changes, own: Server, name: str, bounds: Any) -> None:
        self.noted, self.server, self.name, self.number = noted, own.sparse[TABLE], name, 0
        table = SparseTable(TABLE, plain_table(dtype="float64", bounds=bounds).accessor)
        self.table, self.copy = table, RowsCopy(table)

    def train(self, key: int, amount: float) -> None:
        keys = keys_of(key)
        if self.copy.find(keys)[0] < 0:
            self.copy.put(self.copy.make(keys), self.server.pull(keys))
        rows = self.copy.find(keys)
        self.table.update(rows, np.full((1, DIM), amount), step=1, lr=1.0)
        self.copy.touch(rows)

    def exchange(self) -> None:
        keys, deltas = self.copy.moved(2)
        self.copy.mark_sent(deltas)
        self.noted.add(self.name, TABLE, keys, deltas)
        self.number += 1
        self.copy.take(*self.noted.fetch(self.name, TABLE, self.number)[:2])

    def assert_base_is_the_servers(self) -> None:
        keys = self.table.export()[0]
        base = self.copy._base[self.copy.find(keys)]
        np.testing.assert_allclose(base, self.server.pull(keys, create=False), atol=1e-12)


STEPS = st.lists(
    st.tuples(st.integers(0, 1), st.none() | st.tuples(st.integers(0, 5), st.floats(-3, 3)))
)


@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)], ids=["free", "bounded"])
@given(steps=STEPS)
def test_after_an_exchange_a_worker_knows_what_servers_have(steps: Any, bounds: Any) -> None:
    own, noted = served("0", "1", bounds=bounds)
    copies = [Copy(noted, own, str(rank), bounds) for rank in range(2)]
    for rank, trained in steps:
        if trained is None:
            copies[rank].exchange()
            copies[rank].assert_base_is_the_servers()
        else:
            copies[rank].train(*trained)
    for copy in copies:
        copy.exchange()
        copy.assert_base_is_the_servers()
