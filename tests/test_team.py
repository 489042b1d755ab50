"""Work on torch's threads: all of it is done once, and errors come back."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import torch

from downpour.team import share, with_torch_threads

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


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
