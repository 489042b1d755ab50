"""Signals: the first asks to stop, the second stops at once, and none of them is lost."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from downpour import stopping as module
from downpour.stopping import SIGNALS, StoppedAtOnce, Stopping, raising
from tests.fault_runs import until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Signals do the same before and after each test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    assert signal.set_wakeup_fd(-1) == -1


def wait_for_ever() -> None:
    threading.Event().wait()


def send_and_wait(number: int) -> None:
    signal.raise_signal(number)
    wait_for_ever()


def raise_on(thread: Any, number: int) -> None:
    """Send a signal to a thread of this process."""
    signal.pthread_kill(thread.ident, number)


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")]
)
def test_the_first_signal_asks_to_stop(number: int, name: str) -> None:
    said: list[str] = []
    with Stopping(said.append, after="round") as stopping:
        assert (stopping.requested, stopping.number) == (False, None)
        signal.raise_signal(number)
        assert (stopping.requested, stopping.number) == (True, number)
        until(lambda: bool(said))
    assert said == [
        "stopping after this round; what was trained is kept "
        f"({name} again: stop at once, without saving)"
    ]


@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("first", SIGNALS)
def test_the_second_signal_stops_at_once(
    first: int, second: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAME_S", 0.0)
    with Stopping(lambda _: None) as stopping:
        signal.raise_signal(first)
        with pytest.raises(StoppedAtOnce, match="stopped at once by") as raised:
            send_and_wait(second)
        stopping.settle()
    assert raised.value.number == second
    assert isinstance(raised.value, KeyboardInterrupt)


def test_two_signals_during_one_call_of_c_are_two() -> None:
    """Python calls a handler once for both: the main thread was not in Python meanwhile."""
    main, is_in_c = threading.main_thread(), threading.Event()

    def press_twice() -> None:
        is_in_c.wait()
        for _ in range(2):
            time.sleep(0.1)
            raise_on(main, signal.SIGINT)

    threading.Thread(target=press_twice).start()

    def compute_and_wait() -> None:
        is_in_c.set()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000)  # a second, without the interpreter
        wait_for_ever()

    with Stopping(lambda _: None) as stopping:
        with pytest.raises(StoppedAtOnce):
            compute_and_wait()
        stopping.settle()


def test_sigterm_that_comes_twice_within_a_moment_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout` sends it to the process and to its group."""
    monkeypatch.setattr(module, "SAME_S", 600.0)
    said: list[str] = []
    with Stopping(said.append) as stopping:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        until(lambda: bool(said))
        time.sleep(0.3)  # a second one would be raised here
    assert stopping.number == signal.SIGTERM


def test_what_was_swallowed_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.5)  # a busy machine swallows within it
    swallowed = 0
    with Stopping(lambda _: None) as stopping:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        while swallowed < 3:
            try:
                wait_for_ever()
            except StoppedAtOnce:
                swallowed += 1
        stopping.settle()
        time.sleep(0.7)  # and not any more


def test_others_who_wait_for_signals_are_told_as_well() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno())
    try:
        with Stopping(lambda _: None) as stopping:
            signal.raise_signal(signal.SIGTERM)
            assert ours.recv(1) == bytes([signal.SIGTERM])
        assert stopping.requested
        assert signal.set_wakeup_fd(-1) == theirs.fileno()
    finally:
        signal.set_wakeup_fd(-1)
        ours.close()
        theirs.close()


def test_outside_the_main_thread_it_can_be_asked() -> None:
    asked: list[Any] = []

    def run() -> None:
        with Stopping(asked.append) as stopping:
            stopping.request(signal.SIGTERM)
            asked.append(stopping.number)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert asked == [signal.SIGTERM]


def test_sigterm_is_raised_as_ctrl_c_is() -> None:
    with raising(hard=True), pytest.raises(StoppedAtOnce, match=r"^stopped by SIGTERM$") as raised:
        signal.raise_signal(signal.SIGTERM)
    assert raised.value.number == signal.SIGTERM


HANGING = """
import threading
from downpour.stopping import Stopping, raising

with raising(hard=True), Stopping(lambda text: print("heard", flush=True)):
    print("ready", flush=True)
    while True:
        try:
            threading.Event().wait()
        except BaseException:
            pass
"""


def test_a_command_that_swallows_all_is_ended_all_the_same() -> None:
    command = [sys.executable, "-c", HANGING]
    settings: Any = {"stdout": subprocess.PIPE, "text": True, "env": {**os.environ}}
    with subprocess.Popen(command, **settings) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "heard\n"
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
