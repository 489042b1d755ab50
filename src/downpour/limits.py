"""How much a server does and holds for its clients: all limits in one value."""

from __future__ import annotations

import contextlib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from downpour.errors import SettingError
from downpour.settings import is_number, refuse_unknown
from downpour.sizes import bytes_text

if TYPE_CHECKING:
    from collections.abc import Iterable

MESSAGE_BYTES = 256 << 20
MESSAGES_HELD = 8  # of the largest size, that a server has room for at least
LEAST_CONNECTION = 64 << 20
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
VALUE = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(UNITS)})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of one server. What goes beyond one is refused; 0 bytes mean the default.

    message_bytes: keys and values of one request, and one record batch of rows, which may always
        have 16 MiB; 256 MiB.
    connection_bytes: requests, answers and exports in progress on one connection; eight messages,
        and at least 64 MiB.
    held_bytes: the same on all connections, with what is kept between requests: staged pushes,
        meetings, reports, changes that geo workers have not fetched. A quarter of the machine's
        memory, and at least eight messages.
    table_bytes: rows and indices of all tables; nine tenths of the machine's memory.
    new_rows: rows that one request may create; 2^22.
    streams: streams and other calls in progress, and connections; each call has a thread.
    connection_streams: streams and other calls in progress on one connection.
    idle_s: seconds after which a connection is closed on which nothing moves. A client connects
        again with its next request.

    Raises SettingError.
    """

    message_bytes: int = MESSAGE_BYTES
    connection_bytes: int = 0
    held_bytes: int = 0
    table_bytes: int = 0
    new_rows: int = 1 << 22
    streams: int = 1024
    connection_streams: int = 256
    idle_s: float = 600.0

    def __post_init__(self) -> None:
        self._check("message_bytes")
        least, memory = MESSAGES_HELD * self.message_bytes, memory_bytes()
        defaults = {
            "connection_bytes": max(least, LEAST_CONNECTION),
            "held_bytes": max(memory // 4, least),
            "table_bytes": memory // 10 * 9,
        }
        for name, default in defaults.items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, default)
        for name in (*defaults, "new_rows", "streams", "connection_streams"):
            self._check(name)
        if self.held_bytes < least:
            raise SettingError(
                f"Limits.held_bytes must have room for {MESSAGES_HELD} messages of message_bytes, "
                f"{bytes_text(least)}, got {bytes_text(self.held_bytes)}"
            )
        if not (is_number(self.idle_s) and self.idle_s >= 0.1):
            raise SettingError(f"Limits.idle_s must be a number >= 0.1, got {self.idle_s!r}")

    def _check(self, name: str) -> None:
        value = getattr(self, name)
        if type(value) is not int or value < 1:
            raise SettingError(f"Limits.{name} must be an int >= 1, got {value!r}")

    @classmethod
    def of_texts(cls, texts: Iterable[str], **given: int) -> Limits:
        """As the command line has them: NAME=VALUE, sizes also as 1.5GiB. Raises SettingError."""
        values: dict[str, float] = dict(given)
        for text in texts:
            name, _, value = text.partition("=")
            refuse_unknown(cls, [name])
            values[name] = _number(name, value.strip(), is_whole=name != "idle_s")
        return cls(**values)  # type: ignore[arg-type]


def memory_bytes() -> int:
    """The memory of this machine, or of the container that this process is in."""
    limits: list[float] = []
    with contextlib.suppress(OSError, ValueError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):
        limits.append(int(CGROUP_LIMIT.read_text()))
    return int(min((it for it in limits if it > 0), default=1 << 40))


def _number(name: str, value: str, *, is_whole: bool) -> float:
    match = VALUE.fullmatch(value)
    if match is None or not math.isfinite(number := float(match[1]) * UNITS[match[2]]):
        raise SettingError(
            f"limit {name} must be a number, for bytes also with {', '.join(filter(None, UNITS))} "
            f"after it, got {value!r}"
        )
    if not is_whole:
        return number
    if not match[2] and not number.is_integer():
        raise SettingError(f"limit {name} must be a whole number, got {value!r}")
    return int(number)
