"""The clients of a federation: who has enrolled, who takes part, and who fell silent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from downpour.errors import RefusedError

State: TypeAlias = Literal["running", "left", "lost", "failed"]


@dataclass(frozen=True, slots=True)
class ClientView:
    """A client that has enrolled, as of a moment.

    incarnation: tells a process from another one that took the same number.
    seen_s_ago: seconds since it last called.
    error: what it raised if it failed, how it was dropped if it was lost, else None.
    since_round: the first round that it can be sampled in.
    """

    client: int
    incarnation: int
    state: State
    seen_s_ago: float
    error: str | None
    since_round: int


@dataclass(slots=True)
class Life:
    """One process in a client's place, from an enrolment on."""

    incarnation: int
    seen: float
    since_round: int
    state: State = "running"
    error: str | None = None

    def why_gone(self) -> str:
        """Its state, with the error where there is one."""
        return self.state if self.error is None else f"{self.state}: {self.error}"


class Enrolled:
    """The newest process of each client; for one thread at a time.

    settings: a fingerprint of how clients train, which all must have alike. Times are in seconds,
    of a clock of the caller's. Who has not called for longer than `timeout_s` is silent.
    """

    def __init__(self, num_clients: int, *, settings: str, timeout_s: float) -> None:
        self._num_clients, self._settings, self._timeout_s = num_clients, settings, timeout_s
        self._lives: dict[int, Life] = {}
        self._first_silence = math.inf  # nobody is silent up to then, so nobody is looked at

    def enroll(
        self, client: int, incarnation: int, settings: str, *, now: float, next_round: int
    ) -> Life:
        """Take the place of a client; who runs in it keeps it, anybody else starts afresh.

        RefusedError if the number is not one of the federation or is taken, or the settings are
        others.
        """
        self._check(client, incarnation, settings)
        life = self._lives.get(client)
        if life is None or life.state != "running":
            life = self._lives[client] = Life(incarnation, now, next_round)
            self._first_silence = min(self._first_silence, now + self._timeout_s)
        life.seen = now
        return life

    def here(self, client: int, incarnation: int) -> Life:
        """The client that calls, if it was not lost. RefusedError for any other."""
        life = self._lives.get(client)
        if life is None or life.incarnation != incarnation:
            raise RefusedError(
                f"client {client} (incarnation {incarnation}) is not enrolled, or another process "
                "has taken its place: it must enroll before it asks, reports, beats or leaves"
            )
        if life.state == "lost":
            raise RefusedError(
                f"{life.error}. Its update counts no more: it may enroll anew, for later rounds"
            )
        return life

    def running(self, client: int, incarnation: int) -> Life:
        """The client that calls, if it takes part. RefusedError for any other."""
        life = self.here(client, incarnation)
        if life.state != "running":
            raise RefusedError(
                f"client {client} has left the federation: to take part again it must enroll anew"
            )
        return life

    def of(self, client: int) -> Life | None:
        """The newest process of a client; None if it has never enrolled."""
        return self._lives.get(client)

    def silent(self, now: float) -> dict[int, float]:
        """The running clients that have been silent for too long, and for how many seconds."""
        if now <= self._first_silence:
            return {}
        seen = {client: it.seen for client, it in self._lives.items() if it.state == "running"}
        silent = {
            client: now - at for client, at in sorted(seen.items()) if now - at > self._timeout_s
        }
        heard = [at for client, at in seen.items() if client not in silent]
        self._first_silence = min(heard, default=math.inf) + self._timeout_s
        return silent

    def move(self, paused_s: float) -> None:
        """Let a time in which nobody could be heard count for nobody's silence."""
        self._first_silence += paused_s
        for life in self._lives.values():
            life.seen += paused_s

    def views(self, now: float) -> tuple[ClientView, ...]:
        """All that have enrolled, also those that are gone, by number."""
        return tuple(
            ClientView(client, it.incarnation, it.state, now - it.seen, it.error, it.since_round)
            for client, it in sorted(self._lives.items())
        )

    def _check(self, client: int, incarnation: int, settings: str) -> None:
        """Refuse who cannot be the client of a number."""
        if not 0 <= client < self._num_clients:
            raise RefusedError(
                f"client {client} is none of this federation: its {self._num_clients} clients "
                f"have numbers 0 to {self._num_clients - 1}"
            )
        if settings != self._settings:
            raise RefusedError(
                f"client {client} has other settings than this federation, {settings!r:.80} and "
                f"not {self._settings!r:.80}: give all clients and the coordinator the same method"
            )
        life = self._lives.get(client)
        if life is not None and life.state == "running" and life.incarnation != incarnation:
            raise RefusedError(
                f"client {client} is taken by another running process: give each a number of its "
                f"own; if that one died, enroll again once it is lost, after {self._timeout_s:g} s "
                "of silence"
            )
