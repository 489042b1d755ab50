"""Who tells of a dead process while the run's own thread is busy."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from downpour.engine import lookout
from downpour.engine.lookout import Lookout
from downpour.errors import ServerError
from tests.fault_runs import until

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "LOOK_S", 0.01)


def looks(after: int) -> tuple[Callable[[], None], threading.Semaphore]:
    """Finds a dead server at one look; and a semaphore that counts looks."""
    counted, number = threading.Semaphore(0), 0

    def look() -> None:
        nonlocal number
        number += 1
        counted.release()
        if number == after:
            raise ServerError("server 1 ended with signal SIGKILL")

    return look, counted


def test_what_the_run_does_not_notice_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "PATIENCE_S", 0.01)
    said: list[str] = []
    look, _ = looks(after=3)
    with Lookout(look, said.append):
        until(lambda: bool(said))
    assert said == [
        "server 1 ended with signal SIGKILL; the run ends once it has done what it is at"
    ]


def test_what_the_run_notices_is_its_own_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "PATIENCE_S", 60.0)
    said: list[str] = []
    look, counted = looks(after=1)
    with Lookout(look, said.append) as out:
        counted.acquire()
        out.noticed()
        thread = next(it for it in threading.enumerate() if it.name == "downpour lookout")
        thread.join()
    assert said == []


def test_it_ends_with_what_it_watches() -> None:
    look, counted = looks(after=-1)
    with Lookout(look, print):
        counted.acquire()
    until(lambda: all(it.name != "downpour lookout" for it in threading.enumerate()))
