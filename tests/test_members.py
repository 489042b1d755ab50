"""The members of a run: who is in, who was lost, and whom a loss or an error stops."""

from __future__ import annotations

from typing import Any

import pytest

from downpour.errors import RefusedError, SettingError, WorkerLostError
from downpour.serving.members import CHIEF, Members
from tests.member_runs import TIMEOUT_S, Run, brought

# Who is in.


def test_a_member_is_running_from_its_join_on() -> None:
    run = Run(2, chief=True)
    run.clock.now += 3.0
    run.beat(1, step=7)
    chief, first, second = run.members.snapshot()
    assert (chief.rank, chief.incarnation, chief.state, chief.error) == (-1, 99, "running", None)
    assert (first.seen_s_ago, first.report) == (3.0, {})
    assert (second.seen_s_ago, second.report) == (0.0, {"step": 7})


def test_a_join_may_be_tried_again() -> None:
    run = Run(1)
    run.clock.now += 3.0
    run.join(0)
    assert [member.seen_s_ago for member in run.members.snapshot()] == [0.0]


@pytest.mark.parametrize("rank", [-2, 2, 1000])
def test_a_rank_of_no_run_is_refused(rank: int) -> None:
    with pytest.raises(RefusedError, match=rf"rank {rank} .* 0 to 1, its chief has -1"):
        Run(2).join(rank)


@pytest.mark.parametrize("rank", [CHIEF, 1])
def test_a_place_that_is_taken_is_refused_to_another(rank: int) -> None:
    run = Run(2, chief=True)
    with pytest.raises(RefusedError, match=rf"rank {rank} is taken by another running process"):
        run.members.join(rank, 7)
    assert run.states() == {-1: "running", 0: "running", 1: "running"}


@pytest.mark.parametrize("incarnation", [101, 7], ids=["itself", "another"])
@pytest.mark.parametrize("gone", ["lost", "left"])
def test_a_place_is_not_taken_again(gone: str, incarnation: int) -> None:
    run = Run(2, on_loss="continue")
    if gone == "lost":
        run.silence(1)
    else:
        run.leave(1)
    assert run.states()[1] == gone
    with pytest.raises(RefusedError, match=rf"rank 1 is not free.*{gone}.*start a new run"):
        run.members.join(1, incarnation)


@pytest.mark.parametrize("rank", [1, 5, CHIEF])
def test_who_has_not_joined_can_do_nothing(rank: int) -> None:
    run = Run(1)
    for call in (run.beat, run.leave, run.meet):
        with pytest.raises(RefusedError, match=r"no member of this run: it must join"):
            call(rank)
    with pytest.raises(RefusedError, match=r"worker 0 \(incarnation 7\) is no member"):
        run.members.beat(0, 7, {})


@pytest.mark.parametrize("on_loss", ["continue", "stop"])
def test_who_was_dropped_is_told_so(on_loss: str) -> None:
    run = Run(3, on_loss=on_loss)
    run.beat(1, step=7)
    run.clock.now += TIMEOUT_S
    run.beat(1, step=8)
    run.clock.now += TIMEOUT_S + 2.0  # only its own call finds out
    message = r"worker 1 was dropped at step 8 after 12\.0 s of silence: .* than 10 s.*new run"
    for call in (run.beat, run.leave, run.meet):
        with pytest.raises(WorkerLostError, match=message):
            call(1)


def test_silence_is_counted_from_the_last_call_of_any_kind() -> None:
    run = Run(1, chief=True)
    for call in (run.join, run.beat, run.meet, run.beat):
        run.clock.now += TIMEOUT_S
        assert run.states()[0] == "running"
        call(0)
        run.beat(CHIEF)
    run.clock.now += TIMEOUT_S + 0.1
    run.members.check()
    assert run.states() == {-1: "lost", 0: "lost"}


def test_who_has_left_may_say_so_again_and_no_more() -> None:
    run = Run(2)
    run.leave(1)
    run.leave(1, "of a second thought")
    assert run.states() == {0: "running", 1: "left"}
    for call in (run.beat, run.meet):
        with pytest.raises(RefusedError, match="worker 1 has left this run"):
            call(1)
    assert run.beat(0) is None


def test_beats_give_the_first_reason_to_stop_and_meetings_go_on() -> None:
    run = Run(2)
    assert run.beat(0) is None
    run.members.request_stop("Ctrl-C")
    run.members.request_stop("Ctrl-C again")
    assert [run.beat(0), run.beat(1)] == ["Ctrl-C", "Ctrl-C"]
    assert run.meet(0) is None
    assert run.meet(1) == brought(0, 1)


# What losses and errors do.


def test_a_lost_worker_stops_the_run() -> None:
    run = Run(3)
    run.beat(2, step=40)
    run.meet(0)
    run.silence(2)
    message = r"^worker 2 was .* step 40 after 12\.0 s .*: set on_worker_loss=\"continue\" to go on"
    for call in (run.beat, run.meet, run.meet):
        with pytest.raises(WorkerLostError, match=message):
            call(0)
    run.silence(1)  # what comes after it is not what stopped the run
    with pytest.raises(WorkerLostError, match=r"^worker 2 was"):
        run.beat(0)


def test_of_several_losses_at_once_the_longest_silence_is_named() -> None:
    run = Run(4)
    for rank in (1, 3, 0):
        run.clock.now += 1.0
        run.beat(rank)
    run.clock.now += TIMEOUT_S
    with pytest.raises(WorkerLostError, match=r"^worker 2 was dropped after 13\.0 s"):
        run.beat(0)


@pytest.mark.parametrize("on_loss", ["continue", "stop"])
def test_an_error_of_a_member_stops_the_run(on_loss: str) -> None:
    run = Run(2, chief=True, on_loss=on_loss)
    run.beat(1, step=7)
    run.leave(1, "DataError: part-3 is broken")
    assert run.states()[1] == "failed"
    for rank in (CHIEF, 0):
        with pytest.raises(WorkerLostError, match=r"worker 1 failed at step 7.*part-3 is broken"):
            run.beat(rank)
    run.leave(0)


@pytest.mark.parametrize("on_loss", ["continue", "stop"])
def test_a_lost_chief_stops_the_run(on_loss: str) -> None:
    run = Run(2, chief=True, on_loss=on_loss)
    run.silence(CHIEF)
    for call in (run.beat, run.meet):
        with pytest.raises(WorkerLostError, match=r"the chief was dropped.*without its chief"):
            call(0)


def test_a_chief_without_workers_is_told() -> None:
    run = Run(2, chief=True, on_loss="continue")
    run.silence(0)
    assert run.meet(CHIEF, chief=True) is None
    run.silence(1)
    for _ in range(2):
        with pytest.raises(WorkerLostError, match=r"all 2 workers are lost.*worker 1 was dropped"):
            run.meet(CHIEF, chief=True)


def test_a_run_that_has_stopped_takes_no_new_members() -> None:
    run = Run(1)
    run.leave(0, "out of memory")
    with pytest.raises(WorkerLostError, match=r"worker 0 failed.*out of memory"):
        run.join(CHIEF)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_workers": 0}, "num_workers must be 1 or more, got 0"),
        ({"timeout_s": 0.0}, r"timeout_s must be a finite .* above 0, got 0\.0"),
        ({"timeout_s": float("nan")}, "timeout_s must be .* got nan"),
        ({"timeout_s": float("inf")}, "timeout_s must be .* got inf"),
        ({"on_loss": "wait"}, r"on_loss must be \"continue\" or \"stop\", got 'wait'"),
    ],
    ids=["no-workers", "no-time", "nan", "forever", "wait"],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Members(**{"num_workers": 1, "timeout_s": 1.0, **settings})
