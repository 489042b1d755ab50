"""Rounds of clients that come, train and go in any order, one at a time and on threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downpour.errors import RefusedError, RoundClosedError, WorkerLostError
from downpour.serving.one_round import Task
from tests.round_runs import DEADLINE_S, FIRST, LONG_S, Federation, report

if TYPE_CHECKING:
    from downpour.serving.one_round import RoundView

    Action: TypeAlias = tuple[str, int, int, set[int]]

CLIENTS = range(4)
ACTIONS = [
    *["open", "close"] * 3,
    *["report"] * 6,
    *["ask", "repeat", "enroll", "replace", "leave", "fail", "lose", "late"],
]
NUM_ROUNDS = 5

actions = st.lists(
    st.tuples(
        st.sampled_from(ACTIONS),
        st.sampled_from(CLIENTS),
        st.sampled_from([0] * 8 + [-2, -1, 1]),
        st.sets(st.sampled_from(CLIENTS), min_size=1),
    ),
    min_size=20,
    max_size=100,
)


class Story:
    """Does what it is told, and holds what comes of it to what was promised."""

    def __init__(self) -> None:
        self.federation = Federation(len(CLIENTS))
        self.lives = dict.fromkeys(CLIENTS, 100)
        self.number = FIRST - 1  # of the last round that was opened
        self.counted: dict[int, dict[int, dict[str, Any]]] = {}  # reports, by round and client
        self.closed: dict[int, RoundView] = {}
        self.num_reports = 0

    def act(self, action: Action) -> None:
        name, client, shift, sampled = action
        federation, life = self.federation, self.lives[client]
        with suppress(RefusedError):
            if name == "open":
                self.open(self.number + 1 + shift, sampled)
            elif name == "close":
                self.close(self.number + shift)
            elif name == "report":
                self.report(client, self.number + shift)
            elif name == "repeat":
                self.repeat(client, self.number + shift)
            elif name == "ask":
                self.ask(client)
            elif name == "enroll":
                federation.enroll(client, life=life)
            elif name == "replace":
                federation.enroll(client, life=life + 100)
                self.lives[client] += 100
            elif name in ("leave", "fail"):
                federation.leave(client, "an error" if name == "fail" else None, life=life)
            elif name == "lose":
                federation.lose(client)
            else:
                federation.pass_time(DEADLINE_S)

    def open(self, number: int, sampled: set[int]) -> None:
        is_again = number == self.number
        self.federation.open(*sampled, number=number)
        if not is_again:
            assert number == self.number + 1
            assert self.number < FIRST or self.number in self.closed
            self.number, self.counted[number] = number, {}

    def close(self, number: int) -> None:
        view = self.federation.close(number)
        assert sorted([*view.reports, *view.dropped]) == list(view.sampled)
        assert view.reports == self.counted[number]
        assert view == self.closed.setdefault(number, view)
        assert self.number - number < 2

    def report(self, client: int, number: int) -> None:
        self.num_reports += 1
        before = self.federation.watch()
        self.federation.report(client, number, life=self.lives[client], at=self.num_reports)
        assert number == self.number not in self.closed
        assert client in {*before.sampled} - {*before.reports, *before.dropped}
        self.counted[number][client] = report(client, number, at=self.num_reports)

    def repeat(self, client: int, number: int) -> None:
        """Changes nothing: `close` would find out."""
        counted = self.counted.get(number, {}).get(client)
        if counted is not None:
            with suppress(RoundClosedError):  # also where it counts: it is no longer kept
                self.federation.report(client, number, life=self.lives[client], at=counted["at"])

    def ask(self, client: int) -> None:
        task = self.federation.ask(client, life=self.lives[client])
        if self.number < FIRST:
            assert task is None
            return
        view = self.federation.watch()
        is_due = client in {*view.sampled} - {*view.reports, *view.dropped}
        if isinstance(task, Task):
            assert is_due
            assert task.round == self.number
        else:
            assert task is None
            assert not is_due or self.is_late()

    def is_late(self) -> bool:
        given = self.federation.rounds._round
        return given is not None and self.federation.clock.now >= given.deadline


@given(actions=actions)
@settings(max_examples=200)
def test_each_sampled_client_counts_once_or_not_at_all(actions: list[Action]) -> None:
    story = Story()
    for action in actions:
        story.act(action)
    if story.number >= FIRST:
        story.close(story.number)


@given(actions=actions)
@settings(max_examples=50)
def test_nobody_waits_for_a_coordinator_that_is_lost(actions: list[Action]) -> None:
    story = Story()
    for action in actions:
        story.act(action)
    federation = story.federation
    federation.lose_coordinator()
    for client in CLIENTS:
        for call in (
            lambda client=client: federation.ask(client, wait_s=LONG_S),
            lambda client=client: federation.report(client, story.number),
            lambda client=client: federation.enroll(client, life=900),
        ):
            with pytest.raises(WorkerLostError, match="the coordinator was dropped"):
                call()
    with pytest.raises(WorkerLostError, match="the coordinator was dropped"):
        federation.watch(wait_s=LONG_S)


@given(dies_in=st.dictionaries(st.sampled_from(CLIENTS[1:]), st.integers(FIRST, FIRST + 4)))
@settings(max_examples=30)
def test_rounds_go_on_with_those_who_live(dies_in: dict[int, int]) -> None:
    federation = Federation(len(CLIENTS))

    def train(client: int) -> str:
        while isinstance(task := federation.ask(client, wait_s=LONG_S), Task):
            if task.round == dies_in.get(client):
                return "died"
            federation.report(client, task.round)
        return str(task)

    def lead(number: int) -> RoundView:
        running = [it.client for it in federation.clients() if it.state == "running"]
        federation.open(*running, number=number, deadline_s=LONG_S)
        dying = [client for client in running if dies_in.get(client) == number]
        for client in dying:
            assert clients[client].result() == "died"
        if dying:
            federation.lose(*dying)
        view = federation.watch(wait_s=LONG_S)
        assert federation.close(number).dropped == view.dropped  # nobody was late
        return view

    with ThreadPoolExecutor(len(CLIENTS)) as pool:
        clients = [pool.submit(train, client) for client in CLIENTS]
        views = [lead(number) for number in range(FIRST, FIRST + NUM_ROUNDS)]
        federation.end("done")
    for view in views:
        living = {it for it in CLIENTS if dies_in.get(it, FIRST + NUM_ROUNDS) > view.number}
        assert view.reports == {client: report(client, view.number) for client in living}
        assert set(view.dropped) == {it for it in CLIENTS if dies_in.get(it) == view.number}
    assert [it.result() for it in clients] == [
        "died" if client in dies_in else "done" for client in CLIENTS
    ]


@given(closes_after=st.integers(0, len(CLIENTS)))
@settings(max_examples=50)
def test_a_report_that_meets_the_close_counts_or_is_told_that_it_does_not(
    closes_after: int,
) -> None:
    federation = Federation(len(CLIENTS))
    federation.open(*CLIENTS)

    def train(client: int) -> bool:
        try:
            federation.report(client)
        except RoundClosedError:
            return False
        return True

    with ThreadPoolExecutor(len(CLIENTS)) as pool:
        counts = [pool.submit(train, client) for client in CLIENTS]
        for count in counts[:closes_after]:
            count.result()
        view = federation.close()
    assert set(view.reports) == {client for client in CLIENTS if counts[client].result()}
    assert set(view.dropped) == set(CLIENTS) - set(view.reports)
    assert federation.close() == view
