"""What tests of faults do with tables, and how long it may take."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pytest

from downpour.cluster_report import ServerReport
from downpour.errors import ServerTimeoutError
from tests.geo_runs import DIM, TABLE, a_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from downpour.remote.client import RemoteClient

T = TypeVar("T")
DEADLINE_S = 1.0
MARGIN_S = 25.0  # for a machine that is busy; a deadline that is not kept lasts longer, or for ever
PLAN = a_plan()  # rows of 1 from which a gradient is subtracted
KEYS = np.arange(40)


def push(client: RemoteClient, keys: Any = KEYS, amount: float = 1.0) -> None:
    client.push(TABLE, keys, np.full((len(keys), DIM), amount), feature="item")


def rows(client: RemoteClient, keys: Any = KEYS) -> list[float]:
    """The first number of each row."""
    numbers: list[float] = client.pull(TABLE, keys, feature="item")[:, 0].tolist()
    return numbers


def reports(client: RemoteClient) -> list[ServerReport]:
    """What each server says of itself."""
    return [ServerReport.from_dict(server.report()) for server in client.remote]


@contextmanager
def within(seconds: float = DEADLINE_S) -> Iterator[None]:
    """What is in the block ends in this time, and a margin for busy machines."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds + MARGIN_S


def served(call: Callable[[], T]) -> T:
    """What a call gives, made again where a busy machine does not answer within the deadline."""
    while True:
        try:
            return call()
        except ServerTimeoutError:
            time.sleep(0.05)


def fails_in_time(call: Callable[[], object], kind: type[Exception], message: str) -> None:
    """A call raises this error within its deadline; on a busy machine it may first be another."""
    while True:
        with within(), pytest.raises((kind, ServerTimeoutError)) as raised:
            call()
        if isinstance(raised.value, kind) and re.search(message, str(raised.value)):
            return


def until(holds: Callable[[], bool]) -> None:
    """Look again and again; the test's own time limit ends a wait for nothing."""
    while not holds():
        time.sleep(0.01)
