"""Work on torch's threads: all of it is done once, and errors come back."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch

import downpour as dp
from downpour import team
from downpour.team import Chore, alongside, share, with_torch_threads

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def undecided() -> Iterator[None]:
    """Whether torch's threads are used is decided anew in the test, and after it."""
    team._openmp.cache_clear()
    yield
    team._openmp.cache_clear()


def parts_of(size: int) -> list[tuple[int, int]]:
    """The ranges that work on so many items is shared out in."""
    parts: list[tuple[int, int]] = []
    with with_torch_threads():
        share(lambda start, stop: parts.append((start, stop)), size, least=1)
    return sorted(parts)


@pytest.mark.usefixtures("undecided")
def test_threads_are_used_unless_they_are_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "linux":
        assert parts_of(8) == [(0, 4), (4, 8)]
    team._openmp.cache_clear()
    monkeypatch.setenv("DOWNPOUR_THREADS", "off")
    assert parts_of(8) == [(0, 8)]


@pytest.mark.usefixtures("undecided")
def test_a_choice_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOWNPOUR_THREADS", "4")
    with pytest.raises(dp.SettingError, match="must be one of torch, off, got '4'"):
        parts_of(8)


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize(
    ("fork", "level"),
    [
        (None, "INFO"),
        (lambda part, _, number, flags: None, "WARNING"),  # calls nothing
        (lambda part, _, number, flags: [part(None) for _ in range(3)], "WARNING"),  # too often
        (lambda part, _, number, flags: [part(None) for _ in range(2)], "WARNING"),  # on one thread
    ],
    ids=["no library", "no call", "too many calls", "one thread"],
)
def test_without_a_team_that_works_all_is_done_here_and_the_log_says_so_once(
    fork: Any, level: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(team, "_gnu_fork", lambda: fork)
    with caplog.at_level("INFO", "downpour.threads"):
        for _ in range(2):
            assert parts_of(8) == [(0, 8)]
    assert [record.levelname for record in caplog.records] == [level]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 100_001])
def test_every_item_is_done_once(size: int) -> None:
    done: list[tuple[int, int]] = []
    with with_torch_threads():
        share(lambda start, stop: done.append((start, stop)), size, least=4)
    places = [place for start, stop in sorted(done) for place in range(start, stop)]
    assert places == list(range(size))


def test_other_threads_and_small_work_stay_where_they_are() -> None:
    used: set[int] = set()

    def work(start: int, stop: int) -> None:
        used.add(threading.get_ident())

    share(work, 100_000, least=1)  # not the thread that computes with torch
    with with_torch_threads():
        share(work, 7, least=4)
    assert used == {threading.get_ident()}


def test_an_error_comes_back_after_all_have_ended() -> None:
    ended = []

    def work(start: int, stop: int) -> None:
        if start == 0:
            raise ValueError("of a part")
        ended.append(start)

    with with_torch_threads(), pytest.raises(ValueError, match="of a part"):
        share(work, 8, least=4)
    with with_torch_threads():
        share(lambda start, stop: ended.append(start), 8, least=4)  # and it goes on
    assert ended


def counting(done: list[int], stages: int) -> Generator[None, None, str]:
    for stage in range(stages):
        done.append(stage)
        yield
    return "result"


def test_a_chore_advances_alongside_and_gives_its_result() -> None:
    done: list[int] = []
    worked: list[int] = []
    first, second = Chore(counting(done, 2)), Chore(counting(done, 1))
    with with_torch_threads([first, second]):
        for number in range(3):
            alongside(lambda number=number: worked.append(number))  # type: ignore[misc]
    assert worked == [0, 1, 2]
    assert done == [0, 1]  # the third call found that no stage was left
    assert first.is_done
    assert not second.is_done
    assert first.result() == second.result() == "result"
    assert done == [0, 1, 0]


def test_alongside_without_torch_threads_only_works() -> None:
    done: list[int] = []
    worked: list[int] = []
    with with_torch_threads([Chore(counting(done, 1))]):
        pass
    alongside(lambda: worked.append(0))
    torch.set_num_threads(1)
    with with_torch_threads([Chore(counting(done, 1))]):
        alongside(lambda: worked.append(1))
    assert worked == [0, 1]
    assert not done


def test_what_a_chore_raises_waits_for_its_result() -> None:
    def failing() -> Generator[None, None, None]:
        raise ValueError("of a chore")
        yield

    chore = Chore(failing())
    with with_torch_threads([chore]):
        alongside(lambda: None)
    assert chore.is_done
    for _ in range(2):
        with pytest.raises(ValueError, match="of a chore"):
            chore.result()


def test_work_may_share_inside_alongside() -> None:
    done: list[tuple[int, int]] = []
    with with_torch_threads([Chore(counting([], 1))]):
        alongside(lambda: share(lambda start, stop: done.append((start, stop)), 8, least=4))
    assert sorted(place for start, stop in done for place in range(start, stop)) == [*range(8)]
