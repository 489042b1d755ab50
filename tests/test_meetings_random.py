"""Meetings of members that join, leave and are lost in any order, one at a time and on threads."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given, settings
from hypothesis import strategies as st

from downpour.serving.members import CHIEF
from tests.member_runs import Run, brought

RANKS = [CHIEF, 0, 1, 2]
ACTIONS = ["meet"] * 10 + ["join", "leave", "lose"]
LONG_S = 100.0  # for who is woken up before
NUM_MEETINGS = 5


class Twin:
    """What a run should do, told by sets of ranks alone; the chief is at every meeting."""

    def __init__(self, late: set[int]) -> None:
        self.late = set(late)
        self.running = set(RANKS) - late
        self.lost: set[int] = set()
        self.came: dict[str, set[int]] = defaultdict(set)
        self.decided: dict[str, set[int]] = {}

    def act(self, action: str, rank: int, meeting: str) -> None:
        if action == "join":
            self.late.remove(rank)
            self.running.add(rank)
        elif action == "meet":
            self.came[meeting].add(rank)
        else:
            self.running.remove(rank)
            self.lost |= {rank} if action == "lose" else set()
        for name, came in self.came.items():
            if name not in self.decided and not self.late and self.running <= came:
                self.decided[name] = set(came)

    def can(self, action: str, rank: int) -> bool:
        if action == "lose" and rank == CHIEF:
            return False  # stops the run
        return rank in (self.late if action == "join" else self.running)


def act(run: Run, action: str, rank: int, meeting: str) -> dict[int, bytes] | None:
    if action == "meet":
        return run.meet(rank, meeting, chief=True)
    calls = {"join": run.join, "leave": run.leave, "lose": run.silence}
    calls[action](rank)
    return None


@given(
    late=st.sets(st.sampled_from(RANKS), max_size=2),
    actions=st.lists(st.tuples(st.sampled_from(ACTIONS), st.sampled_from(RANKS)), min_size=20),
)
@settings(max_examples=200)
def test_a_meeting_is_of_all_that_came_before_nobody_was_missing(
    late: set[int], actions: list[tuple[str, int]]
) -> None:
    run, twin = Run(3, chief=True, late=late, on_loss="continue"), Twin(late)
    been = dict.fromkeys(RANKS, 0)
    for action, rank in actions:
        if not twin.can(action, rank):
            continue
        meeting = f"meeting {been[rank]}"
        twin.act(action, rank, meeting)
        if len(twin.lost) == 3:
            break
        answer = act(run, action, rank, meeting)
        if action == "meet" and meeting in twin.decided:
            assert answer == brought(*twin.decided[meeting], name=meeting)
            been[rank] += 1
        else:
            assert answer is None


@given(
    died_at=st.dictionaries(
        st.integers(0, 3), st.integers(0, NUM_MEETINGS - 1), min_size=1, max_size=3
    )
)
@settings(max_examples=30)
def test_those_who_live_meet_on_without_the_dead(died_at: dict[int, int]) -> None:
    run = Run(4, on_loss="continue")

    def work(rank: int) -> list[dict[int, bytes] | None]:
        number = died_at.get(rank, NUM_MEETINGS)
        home = [run.meet(rank, str(number), wait_s=LONG_S) for number in range(number)]
        if rank not in died_at:
            run.leave(rank)
        return home

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(work, rank) for rank in range(4)]
        for rank in sorted(died_at, key=lambda rank: died_at[rank]):
            workers[rank].result()
            run.silence(rank)
    for rank, worker in enumerate(workers):
        assert worker.result() == [
            brought(
                *(it for it in range(4) if died_at.get(it, NUM_MEETINGS) > number), name=str(number)
            )
            for number in range(died_at.get(rank, NUM_MEETINGS))
        ]


@given(order=st.permutations(range(6)))
@settings(max_examples=20)
def test_members_that_come_on_threads_of_their_own_meet(order: list[int]) -> None:
    run = Run(6, late=range(6))

    def work(rank: int) -> list[dict[int, bytes] | None]:
        run.join(rank)
        return [run.meet(rank, str(number), wait_s=LONG_S) for number in range(NUM_MEETINGS)]

    with ThreadPoolExecutor(6) as pool:
        homes = list(pool.map(work, order))
    assert homes == [[brought(*range(6), name=str(it)) for it in range(NUM_MEETINGS)]] * 6
