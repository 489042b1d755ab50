"""What a server remembers of each client, so that a push that comes twice is applied once."""

from __future__ import annotations

import threading
from itertools import islice
from typing import TYPE_CHECKING, Any

from downpour.errors import DownpourError, RefusedError, ServerError
from downpour.wire import cut

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_KEPT = 1000  # refusals, and answers, of a client
MAX_TEXTS = 50  # of the refusals: the last ones say why
FORGOTTEN = "it was refused before; the reason is no longer kept"
MAX_SESSIONS = 1 << 16  # of clients: beyond that those are forgotten that are longest gone
MAX_REFUSALS = 1 << 18  # kept of all clients, likewise


class Session:
    """One life of one client: the last push of it that was applied.

    A client sends its pushes one after the other on one stream, each with a number that rises.
    After a broken connection it sends again what was not acknowledged.
    """

    def __init__(self, client: str) -> None:
        self.client = client
        self.last = 0  # number of the last push that was taken or refused
        self.step = 0  # the client's own step, of the last push that was applied
        self.duplicates = 0
        self._lock = threading.Lock()
        self._owner: object = None
        self._connection = 0  # the owner's number
        self._refusals: dict[int, tuple[type[DownpourError], str]] = {}
        self._answers: dict[int, dict[str, Any]] = {}

    def take_over(self, owner: object, connection: int) -> int:
        """Make a stream the only one whose pushes count; the number of the last push before.

        Waits for a push of the stream before that is being applied. connection: rises with each
        one of the client. RefusedError for one that the client has given up: where this process
        was stopped, its greeting may be heard after that of the next one.
        """
        with self._lock:
            if connection < self._connection:
                raise RefusedError(f"client {self.client} has a newer connection than this one")
            self._owner, self._connection = owner, connection
            return self.last

    def end(self, owner: object) -> None:
        """A stream is over: it is not kept for its client's sake."""
        with self._lock:
            if self._owner is owner:
                self._owner = None

    @property
    def is_open(self) -> bool:
        """Whether a stream of its client is."""
        return self._owner is not None

    @property
    def num_refusals(self) -> int:
        """How many are kept."""
        return len(self._refusals)

    def once(
        self,
        owner: object,
        number: int,
        step: int,
        apply: Callable[[], dict[str, Any]],
        *,
        keeps_answer: bool = False,
    ) -> dict[str, Any]:
        """Apply a push unless it was applied before; returns its answer.

        Whatever it raises is noted: the same push, sent again, is not applied but raises the same
        error, as a ServerError if it is no DownpourError. keeps_answer: whether a push that was
        applied and comes again gets its first answer, not an empty one.
        """
        with self._lock:
            if owner is not self._owner:
                raise RefusedError(
                    f"client {self.client} has a newer connection; nothing was applied"
                )
            if number <= self.last:
                self.duplicates += 1
                if number in self._refusals:
                    kind, text = self._refusals[number]
                    raise kind(text)
                return self._answers.get(number, {})
            try:
                answer = apply()
            except BaseException as error:
                self._note(number, error)
                raise
            self.last, self.step = number, max(self.step, step)
            if keeps_answer:
                self._answers[number] = answer
                _drop_oldest(self._answers)
            return answer

    def _note(self, number: int, error: BaseException) -> None:
        self.last = number
        # Not the error itself: it would keep the frames that it came through, and their arrays.
        if isinstance(error, DownpourError):
            self._refusals[number] = type(error), cut(str(error))
        else:
            self._refusals[number] = ServerError, cut(f"{type(error).__name__}: {error}")
        _drop_oldest(self._refusals)
        for old in islice(reversed(self._refusals), MAX_TEXTS, MAX_TEXTS + 1):
            self._refusals[old] = self._refusals[old][0], FORGOTTEN


class Sessions:
    """The sessions of a server's clients, by their identity; it lives as long as the server.

    They are bounded: those that have no stream and are longest gone are forgotten first. A client
    that comes back after that is a new one, so that a push of it could be applied twice.
    """

    def __init__(self, most: int = MAX_SESSIONS, most_refusals: int = MAX_REFUSALS) -> None:
        self._most, self._most_refusals = most, most_refusals
        self._lock = threading.Lock()
        self._by_client: dict[str, Session] = {}  # who has come last is the last
        self._lost_duplicates = 0  # of those that were forgotten

    def of(self, client: str) -> Session:
        """The session of a client, made when it first comes."""
        with self._lock:
            session = self._by_client.pop(client, None)
            if session is None:
                self._forget()
                session = Session(client)
            self._by_client[client] = session
            return session

    def _forget(self) -> None:
        """Make room for another one."""
        if len(self._by_client) < self._most and len(self._by_client) % 256:
            return  # refusals are counted now and then
        kept = sum(it.num_refusals for it in self._by_client.values())
        for client, session in list(self._by_client.items()):
            if len(self._by_client) < self._most and kept <= self._most_refusals:
                return
            if not session.is_open:
                kept -= session.num_refusals
                self._lost_duplicates += session.duplicates
                del self._by_client[client]

    def step_of(self, client: str) -> int:
        """The own step of a client's last applied push; 0 where it has none."""
        session = self._by_client.get(client)
        return 0 if session is None else session.step

    @property
    def duplicates(self) -> int:
        """Pushes that came more than once."""
        with self._lock:
            kept = sum(session.duplicates for session in self._by_client.values())
            return self._lost_duplicates + kept


def _drop_oldest(kept: dict[int, Any]) -> None:
    if len(kept) > MAX_KEPT:
        del kept[next(iter(kept))]
