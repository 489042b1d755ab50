"""Reading ahead changes nothing but when it is done."""

import threading
from collections.abc import Iterator

import pytest

from downpour.data.ahead import read_ahead


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "downpour-read"]


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_items_come_in_their_order(depth: int) -> None:
    assert list(read_ahead(range(100), depth)) == list(range(100))


def test_nothing_is_nothing() -> None:
    assert list(read_ahead([])) == []


def failing(good: int) -> Iterator[int]:
    yield from range(good)
    raise ZeroDivisionError("of the reader")


@pytest.mark.parametrize("good", [0, 1, 10])
def test_an_error_comes_after_the_items_before_it(good: int) -> None:
    ahead = read_ahead(failing(good))
    assert [next(ahead) for _ in range(good)] == list(range(good))
    with pytest.raises(ZeroDivisionError, match="of the reader"):
        next(ahead)


def test_it_reads_on_a_thread_and_only_a_little_ahead() -> None:
    read: list[str] = []

    def items() -> Iterator[int]:
        for number in range(100):
            read.append(threading.current_thread().name)
            yield number

    ahead = read_ahead(items(), depth=2)
    assert next(ahead) == 0
    ahead.close()
    assert set(read) == {"downpour-read"}
    assert len(read) <= 4  # the one given, two waiting, and one at the door


def test_closing_early_closes_the_reader_too() -> None:
    closed: list[bool] = []

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    ahead = read_ahead(items())
    next(ahead)
    ahead.close()
    assert closed == [True]


def take_and_fail(ahead: Iterator[int]) -> None:
    next(ahead)
    raise ZeroDivisionError("of the user")


def test_an_error_of_the_user_ends_the_thread() -> None:
    ahead = read_ahead(range(1000))
    with pytest.raises(ZeroDivisionError, match="of the user"):
        take_and_fail(ahead)
    ahead.close()


def test_what_was_not_begun_has_no_thread() -> None:
    read_ahead(failing(0)).close()
