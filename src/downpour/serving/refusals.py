"""What is refused: calls without the token at the door, and a log that nobody can flood."""

from __future__ import annotations

import hmac
import logging
import threading
from typing import TYPE_CHECKING, Any

import pyarrow.flight as fl

from downpour.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from downpour.serving.held import Held

LOG = logging.getLogger("downpour.server")


class TokenCheck(fl.ServerMiddlewareFactory):  # type: ignore[misc]
    """Refuses calls without the token, whatever they call."""

    def __init__(self, token: str, refused: Callable[[str, Exception], None]) -> None:
        self._expected, self._refused = f"Bearer {token}".encode(), refused

    def start_call(self, info: Any, headers: dict[str, list[str]]) -> None:
        """See ServerMiddlewareFactory."""
        given = [
            value
            for name, all_ in headers.items()
            if name.lower() == "authorization"
            for value in all_
        ]
        sent: object = given[0] if len(given) == 1 else ""
        data = sent if isinstance(sent, bytes) else str(sent).encode()
        if not hmac.compare_digest(data, self._expected):
            error = fl.FlightUnauthenticatedError("wrong or no token")
            self._refused("unknown", error)  # who calls is not known yet
            raise error


class CallCount(fl.ServerMiddlewareFactory):  # type: ignore[misc]
    """Counts calls from their very beginning, and refuses those beyond the limit.

    Flight has a thread for each, also for one of which no message has come. The client takes the
    server for one that cannot be reached just now, and tries again.
    """

    def __init__(self, held: Held, refused: Callable[[str, Exception], None]) -> None:
        self._held, self._refused = held, refused

    def start_call(self, info: Any, headers: dict[str, list[str]]) -> fl.ServerMiddleware:
        """See ServerMiddlewareFactory."""
        try:
            self._held.begin_call()
        except RefusedError as error:
            self._refused("unknown", error)
            raise fl.FlightUnavailableError(str(error)) from None
        return _Counted(self._held)


class _Counted(fl.ServerMiddleware):  # type: ignore[misc]
    """A call that was counted."""

    def __init__(self, held: Held) -> None:
        self._held = held

    def call_completed(self, exception: BaseException | None) -> None:
        """See ServerMiddleware."""
        self._held.end_call()


class LoggedOnce:
    """Logs the first refusal of a kind from a host, and then as their number doubles."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def log(self, peer: str, error: BaseException) -> None:
        """Note one."""
        host, kind = peer.rpartition(":")[0], type(error).__name__
        host = host or peer
        with self._lock:
            if len(self._counts) > 1000:
                self._counts.clear()
            count = self._counts[host, kind] = self._counts.get((host, kind), 0) + 1
        if count & (count - 1) == 0:
            LOG.warning(
                "event=refused peer=%s error=%s count=%d message=%r",
                peer,
                kind,
                count,
                str(error)[:300],
            )
