"""Ctrl-C and SIGTERM: the first asks a run to stop after its step, the second stops it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_S = 0.1  # `timeout` sends SIGTERM twice, to the process and to its group: that is one
AGAIN_S = 1.0  # after which a second signal is raised again: something has swallowed it
GRACE_S = 2.0  # for a process of the command line to end after a second signal
SIGNALLED = 128  # and a signal's number: the exit status of what it has ended, as shells have it
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class StoppedAtOnce(KeyboardInterrupt):
    """A second signal has come, or a first one before a run was under way; `number` is its."""

    def __init__(self, number: int, how: str = "stopped at once") -> None:
        super().__init__(f"{how} by {NAMES[signal.Signals(number)]}")
        self.number = number


class Arrivals:
    """While entered, calls `heard` with the number of each SIGINT and SIGTERM as it arrives.

    Python runs a signal's handler in the main thread, once that comes back from whatever it does
    outside of Python, and then once for all signals of a kind that have arrived meanwhile. A
    wakeup file sees each of them at once; it is read on a thread of its own, which calls `heard`.
    Outside the main thread there is nothing to hear.
    """

    def __init__(self, heard: Callable[[int], None]) -> None:
        self._heard = heard
        self._last = (0, 0.0)  # the last signal, and when it came
        self._before = -1  # the wakeup file of somebody else, who is told as well
        self._is_main = False

    def __enter__(self) -> Self:
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            self._reading, self._writing = socket.socketpair()
            self._writing.setblocking(False)
            self._before = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._run, name="downpour signals", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_main:
            signal.set_wakeup_fd(self._before)
            self._writing.send(b"\0")
            self._thread.join()
            self._reading.close()
            self._writing.close()

    def _run(self) -> None:
        while True:
            for number in self._reading.recv(4096):
                if not number:  # the end
                    return
                if self._before >= 0:
                    with contextlib.suppress(OSError):
                        os.write(self._before, bytes([number]))
                if number in SIGNALS and not self._is_same(number):
                    self._heard(number)

    def _is_same(self, number: int) -> bool:
        last, at = self._last
        now = time.monotonic()
        self._last = number, now
        return number == signal.SIGTERM == last and now - at < SAME_S


@contextlib.contextmanager
def raising(*, hard: bool) -> Iterator[None]:
    """Let SIGTERM raise StoppedAtOnce, as Ctrl-C raises KeyboardInterrupt.

    hard: end the process itself where it is still there `GRACE_S` seconds after a second signal,
    as it hangs in something that Python cannot interrupt. Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    is_over = threading.Event()

    def end(status: int) -> None:
        if not is_over.wait(GRACE_S):
            os._exit(status)

    def heard(number: int) -> None:
        arrived.append(number)
        if hard and len(arrived) == 2:
            threading.Thread(target=end, args=(SIGNALLED + number,), daemon=True).start()

    def stop(number: int, frame: FrameType | None) -> None:
        raise StoppedAtOnce(number, "stopped")

    with Arrivals(heard):
        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            is_over.set()
            signal.signal(signal.SIGTERM, before)


class Stopping:
    """While entered, `requested` becomes true at the first SIGINT or SIGTERM.

    The second one raises StoppedAtOnce in the main thread, whatever it does, and again until
    `settle` is called. `number` is that of the last signal. say: told of the first one, on another
    thread, with what the run stops `after`. Outside the main thread no signal can be caught, and
    `request` alone asks to stop.
    """

    def __init__(self, say: Callable[[str], None], *, after: str = "step") -> None:
        self.requested = False
        self.number: int | None = None
        self._say, self._after = say, after
        self._count = 0
        self._raised_at = 0.0
        self._raises = False
        self._settled = threading.Event()
        self._killing = threading.Lock()
        self._before: dict[int, signal._HANDLER] = {}
        self._arrivals = Arrivals(self._heard)
        self._is_main = False

    def __enter__(self) -> Self:
        import pyarrow

        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            pyarrow.enable_signal_handlers(False)  # it would take signals for itself as it reads
            self._before = {it: signal.signal(it, self._on_signal) for it in SIGNALS}
            self._arrivals.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        import pyarrow

        if self._is_main:
            self.settle()
            self._arrivals.__exit__()
            pyarrow.enable_signal_handlers(True)

    def request(self, number: int) -> None:
        """Ask to stop, as a first signal does."""
        self.requested = True
        self.number = number if self.number is None else self.number

    def settle(self) -> None:
        """Let signals do what they did before: the run has ended."""
        self._settled.set()  # from here on nothing is raised
        with self._killing:
            while self._before:
                number, handler = self._before.popitem()
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, at some time after the signal."""
        self.request(number)
        if self._raises and not self._settled.is_set():
            self._raised_at = time.monotonic()
            raise StoppedAtOnce(self.number or number)

    def _heard(self, number: int) -> None:
        """As soon as the signal arrives, on another thread."""
        if self._settled.is_set():
            return
        self._count += 1
        if self._count == 1:
            self.request(number)
            with contextlib.suppress(Exception):  # whatever becomes of the terminal
                self._say(
                    f"stopping after this {self._after}; what was trained is kept "
                    f"({NAMES[signal.Signals(number)]} again: stop at once, without saving)"
                )
        elif not self._raises:
            self.number, self._raises = number, True
            threading.Thread(target=self._interrupt, name="downpour stop", daemon=True).start()

    def _interrupt(self) -> None:
        """Send the main thread signals, also where it waits, until it has answered one."""
        while not self._settled.wait(AGAIN_S / 10):
            with self._killing:
                is_late = time.monotonic() - self._raised_at > AGAIN_S
                if is_late and not self._settled.is_set():
                    main = threading.main_thread().ident or 0
                    signal.pthread_kill(main, self.number or signal.SIGINT)
