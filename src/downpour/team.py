"""Work shared with the threads that torch computes on.

torch's OpenMP threads stay awake for some milliseconds after each of its operations, so that a
thread of our own would have to fight them for the cores. `share` gives them the work instead.

DOWNPOUR_THREADS=off in the environment turns that off: all is done on the thread that calls, as it
is where torch was built with another OpenMP than GNU's. Results are the same to the bit.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import sys
import threading
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from downpour.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

T = TypeVar("T")

LOG = logging.getLogger("downpour.threads")
SETTING = "DOWNPOUR_THREADS"
CHOICES = ("torch", "off")
LEAST = 4096  # items a thread: below, waking others costs more than they do
_Part = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_local = threading.local()


class Chore(Generic[T]):
    """Work in stages, to be done any time until its result is needed; one thread at a time.

    The generator yields after each stage and returns the result. What it raises is raised by
    `result`.
    """

    def __init__(self, stages: Generator[None, None, T]) -> None:
        self._stages = stages
        self._result: list[T] = []
        self._error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self._result) or self._error is not None

    def advance(self) -> None:
        """Do the next stage."""
        try:
            next(self._stages)
        except StopIteration as end:
            self._result.append(end.value)
        except BaseException as error:  # noqa: BLE001 (raised again by `result`)
            self._error = error

    def result(self) -> T:
        """Do what is left."""
        while not self.is_done:
            self.advance()
        if self._error is not None:
            raise self._error
        return self._result[0]


@contextmanager
def with_torch_threads(chores: Sequence[Chore[Any]] = ()) -> Iterator[None]:
    """Let `share` and `alongside` use torch's threads in calls from this thread.

    Only for the thread that computes with torch: OpenMP would start a team of its own for another.
    """
    before = _state()
    _local.active, _local.chores = True, chores
    try:
        yield
    finally:
        _local.active, _local.chores = before


def alongside(work: Callable[[], None]) -> None:
    """Call work, and meanwhile do a stage of a chore if there is one."""
    chore = next((chore for chore in _state()[1] if not chore.is_done), None)
    if chore is None or _num_threads() == 1 or _openmp() is None:
        work()
        return
    calls = work, chore.advance

    def call(start: int, stop: int) -> None:
        for place in range(start, stop):
            calls[place]()

    share(call, 2, least=1)


def share(work: Callable[[int, int], None], size: int, least: int = LEAST) -> None:
    """Call work(start, stop) for consecutive ranges that make up range(size), at the same time.

    One call here with everything where there are no threads of torch, or less than two times
    `least`. What work raises is raised here, after all calls have ended. It should spend its time
    without the GIL.
    """
    num_parts = min(_num_threads(), size // least)
    fork = _openmp() if num_parts > 1 else None
    if fork is None:
        work(0, size)
        return
    bounds = [size * part // num_parts for part in range(num_parts + 1)]
    taken, errors = itertools.count(), list[BaseException]()

    def take(_: object) -> None:
        # OpenMP may grant fewer threads than were asked for: each takes parts while there are any.
        while (part := next(taken)) < num_parts:
            try:
                work(bounds[part], bounds[part + 1])
            except BaseException as error:  # noqa: BLE001 (raised again below)
                errors.append(error)

    fork(_Part(take), None, num_parts, 0)
    if errors:
        raise errors[0]


def _state() -> tuple[bool, Sequence[Chore[Any]]]:
    return getattr(_local, "active", False), getattr(_local, "chores", ())


def _num_threads() -> int:
    torch: Any = sys.modules.get("torch")
    return torch.get_num_threads() if torch and _state()[0] else 1


@cache
def _openmp() -> Callable[..., None] | None:
    """GNU OpenMP's call that forks a team, from the very library that torch has loaded.

    None where there is none, as on macOS, where it does not do what it should, and where it is
    turned off; one line in the log says which. Raises SettingError for a DOWNPOUR_THREADS that is
    none of its choices.
    """
    chosen = os.environ.get(SETTING) or CHOICES[0]
    if chosen not in CHOICES:
        raise SettingError(f"{SETTING} must be one of {', '.join(CHOICES)}, got {chosen!r}")
    if chosen == "off":
        LOG.info("event=no_threads why=%s=off", SETTING)
        return None
    fork = _gnu_fork()
    if fork is None:
        LOG.info("event=no_threads why=torch has no GNU OpenMP")
    elif not _forks(fork):
        LOG.warning("event=no_threads why=the team of torch's OpenMP does not do its work")
        fork = None
    return fork


def _gnu_fork() -> Callable[..., None] | None:
    torch: Any = sys.modules["torch"]
    folder = Path(torch.__file__).parent
    for path in (*folder.glob("lib/libgomp*.so*"), *folder.parent.glob("torch.libs/libgomp*.so*")):
        try:
            library = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_NOLOAD)
            fork = library.GOMP_parallel
        except (OSError, AttributeError):
            continue
        fork.argtypes = (_Part, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        fork.restype = None
        return fork
    return None


def _forks(fork: Callable[..., None]) -> bool:
    """Whether a team of two calls what it is given, at least once and at most twice."""
    calls: list[int] = []
    fork(_Part(lambda _: calls.append(threading.get_ident())), None, 2, 0)
    return len(calls) in (1, 2) and len({*calls}) == len(calls)
