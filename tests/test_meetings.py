"""Meetings of members: everyone takes the same home, and nobody waits for who is gone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

import pytest

from downpour.errors import RefusedError, WorkerLostError
from downpour.serving.members import CHIEF, KEPT
from tests.member_runs import TIMEOUT_S, Run, brought

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    Waiting: TypeAlias = Future[dict[int, bytes] | None]

LONG_S = 100.0  # for who is woken up before


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def wait_at(pool: ThreadPoolExecutor, run: Run, rank: int, *, chief: bool = False) -> Waiting:
    """Let a member wait at a meeting on a thread; it is there when this returns."""
    run.clock.now += 1.0
    waiting = pool.submit(run.meet, rank, chief=chief, wait_s=LONG_S)
    while {it.rank: it.seen_s_ago for it in run.members.snapshot()}[rank]:
        assert not waiting.done()
    return waiting


# A meeting is complete.


def test_everyone_gets_what_everyone_brought(pool: ThreadPoolExecutor) -> None:
    run = Run(3)
    waiting = [wait_at(pool, run, rank) for rank in (2, 0)]
    answer = run.meet(1)
    assert answer == brought(0, 1, 2)
    assert list(answer) == [0, 1, 2]
    assert [it.result() for it in waiting] == [answer, answer]


@pytest.mark.parametrize("chief", [True, False], ids=["with-chief", "workers-only"])
def test_the_chief_is_waited_for_where_it_belongs(chief: bool) -> None:
    run = Run(2, chief=True)
    run.meet(0, chief=chief)
    answer = run.meet(1, chief=chief)
    if chief:
        assert answer is None
        assert run.meet(CHIEF, chief=True) == run.meet(1, chief=True) == brought(-1, 0, 1)
    else:
        assert answer == brought(0, 1)


def test_no_meeting_completes_before_all_have_joined() -> None:
    run = Run(2, chief=True, late=[1])
    for chief in (True, False):
        assert run.meet(0, f"chief {chief}", chief=chief) is None
    assert run.meet(CHIEF, "chief True", chief=True) is None
    run.join(1)
    assert run.meet(0, "chief False") is None
    assert run.meet(1, "chief False") == brought(0, 1, name="chief False")
    assert run.meet(1, "chief True", chief=True) == brought(-1, 0, 1, name="chief True")


def test_a_chief_that_has_not_joined_is_waited_for() -> None:
    run = Run(1)
    assert run.meet(0, chief=True) is None
    run.join(CHIEF)
    assert run.meet(0, chief=True) is None
    assert run.meet(CHIEF, chief=True) == brought(-1, 0)


def test_meetings_of_other_names_are_apart() -> None:
    run = Run(2)
    run.meet(0, "a")
    run.meet(1, "b")
    assert run.meet(0, "b") == brought(0, 1, name="b")
    assert run.meet(1, "a") == brought(0, 1, name="a")


# Who asks again.


def test_who_asks_again_while_it_still_waits_is_answered_twice(pool: ThreadPoolExecutor) -> None:
    run = Run(2)
    waiting = [wait_at(pool, run, 0) for _ in range(2)]
    assert run.meet(1) == brought(0, 1)
    assert [it.result() for it in waiting] == [brought(0, 1)] * 2


def test_asking_again_gives_the_same_answer_also_long_after() -> None:
    run = Run(2)
    assert [run.meet(0), run.meet(0, wait_s=0.01)] == [None, None]
    answer = run.meet(1)
    for number in range(KEPT - 1):
        for rank in (0, 1):
            run.meet(rank, f"step {number}")
    assert run.meet(0) == run.meet(1) == answer == brought(0, 1)


def test_an_answer_waits_for_who_is_slow() -> None:
    run = Run(2, chief=True)
    for number in range(3 * KEPT):
        run.meet(0, f"step {number}")
        run.meet(1, f"step {number}")  # and rank 0 never asks again
    assert run.meet(0, "step 0") == brought(0, 1, name="step 0")


def test_the_chief_can_ask_again_after_any_number_of_meetings_without_it() -> None:
    run = Run(1, chief=True)
    run.meet(0, chief=True)
    answer = run.meet(CHIEF, chief=True)
    assert run.meet(0, chief=True) == answer
    for number in range(2 * KEPT):
        run.meet(0, f"step {number}")
    assert run.meet(CHIEF, chief=True) == answer == brought(-1, 0)


@pytest.mark.parametrize("other", ["fetched", "left", "lost"])
def test_a_meeting_is_forgotten_when_nobody_will_ask_for_it(other: str) -> None:
    run = Run(2, on_loss="continue")
    run.meet(1)
    run.meet(0)
    if other == "left":
        run.leave(1)
    elif other == "lost":
        run.silence(1)
    else:
        run.meet(1)
    for number in range(KEPT):
        assert "epoch" in run.members._decided
        for rank in (0, 1) if other == "fetched" else (0,):
            run.meet(rank, f"step {number}")
    assert "epoch" not in run.members._decided


def test_what_was_taken_home_is_ones_own() -> None:
    run = Run(1)
    answer = run.meet(0)
    assert answer is not None
    answer.clear()
    assert run.meet(0) == brought(0)


def test_another_payload_is_refused_and_the_first_stays() -> None:
    run = Run(2)
    run.meet(0)
    with pytest.raises(RefusedError, match=r"'epoch': worker 0 came again with another payload"):
        run.members.meet("epoch", 0, 100, b"other", with_chief=False, wait_s=0.0)
    assert run.meet(1) == brought(0, 1)


def test_a_meeting_has_one_group() -> None:
    run = Run(2, chief=True)
    with pytest.raises(RefusedError, match="'epoch': the chief came to a meeting without"):
        run.meet(CHIEF)
    run.meet(0, chief=True)
    with pytest.raises(RefusedError, match=r"'epoch': worker 1 came with with_chief=False"):
        run.meet(1)


# Who is gone.


def test_who_has_left_is_not_waited_for(pool: ThreadPoolExecutor) -> None:
    run = Run(3)
    waiting = [wait_at(pool, run, rank) for rank in (0, 1)]
    run.leave(2)
    assert [it.result() for it in waiting] == [brought(0, 1)] * 2


@pytest.mark.parametrize("gone", ["left", "lost"])
def test_who_came_before_it_was_gone_counts(gone: str) -> None:
    run = Run(3, on_loss="continue")
    run.meet(2)
    if gone == "left":
        run.leave(2)
    else:
        run.silence(2)
    assert run.meet(0) is None
    assert run.meet(1) == run.meet(0) == brought(0, 1, 2)
    assert run.meet(0, "next") is None
    assert run.meet(1, "next") == brought(0, 1, name="next")


def test_a_loss_wakes_up_who_waits_at_once(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("downpour.serving.members.POLL_S", LONG_S)
    run = Run(3, on_loss="continue")
    waiting = [wait_at(pool, run, rank) for rank in (0, 1)]
    run.silence(2)
    assert [it.result() for it in waiting] == [brought(0, 1)] * 2


@pytest.mark.parametrize("on_loss", ["continue", "stop"])
def test_who_waits_sees_by_itself_that_another_is_lost(
    on_loss: str, pool: ThreadPoolExecutor
) -> None:
    run = Run(2, on_loss=on_loss)
    waiting = wait_at(pool, run, 0)
    run.clock.now += TIMEOUT_S
    if on_loss == "continue":
        assert waiting.result() == brought(0)
    else:
        with pytest.raises(WorkerLostError, match=r"worker 1 was dropped after 11\.0 s"):
            waiting.result()


def test_waiting_is_no_sign_of_life(pool: ThreadPoolExecutor) -> None:
    run = Run(2, on_loss="continue")
    waiting = wait_at(pool, run, 0)
    run.silence(0)
    with pytest.raises(WorkerLostError, match=r"worker 0 was dropped after 12\.0 s"):
        waiting.result()
    assert run.meet(1) == brought(0, 1)


@pytest.mark.parametrize("what", ["loss", "error", "chief", "workers"])
def test_who_waits_is_told_when_the_run_stops(
    what: str, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("downpour.serving.members.POLL_S", LONG_S)
    run = Run(2, chief=True, on_loss="stop" if what == "loss" else "continue")
    waiting = wait_at(pool, run, CHIEF if what == "workers" else 0, chief=True)
    if what == "error":
        run.leave(1, "out of memory")
    else:
        run.silence(*{"loss": [1], "chief": [CHIEF], "workers": [0, 1]}[what])
    with pytest.raises(WorkerLostError, match=r"worker 1|the chief was|all 2 workers are lost"):
        waiting.result()
