"""The run that a server's members are in, one after the other."""

from __future__ import annotations

import contextlib
import threading
from typing import get_args

from downpour.errors import DownpourError, RefusedError
from downpour.serving.held import Account, Held
from downpour.serving.members import Members, OnLoss

MAX_WORKERS = 1 << 16


class Runs:
    """Lets members join the run under way, or begin the next where the last is over."""

    def __init__(self, held: Held | None = None) -> None:
        self._held = held
        self._lock = threading.Lock()
        self._members: Members | None = None
        self._name = ""

    @property
    def members(self) -> Members:
        """Those of the run. RefusedError before one has begun."""
        if self._members is None:
            raise RefusedError("no run has begun on this server: join first")
        return self._members

    def join(
        self,
        name: str,
        rank: int,
        incarnation: int,
        *,
        num_workers: int,
        timeout_s: float,
        on_loss: str,
    ) -> None:
        """Take a rank in run `name`; the first to come says how many workers it has.

        Raises RefusedError while another run is under way here.
        """
        is_right = 1 <= num_workers <= MAX_WORKERS and timeout_s > 0
        if not (is_right and on_loss in get_args(OnLoss)):
            raise RefusedError(
                f"a run has num_workers in [1, {MAX_WORKERS}], timeout_s > 0 and on_loss "
                f"'continue' or 'stop', got {num_workers}, {timeout_s}, {on_loss!r:.80}"
            )
        with self._lock:
            members = self._members
            if members is None or members.is_over:
                mode: OnLoss = "stop" if on_loss == "stop" else "continue"
                account = Account(self._held, "a run's meetings and reports")
                members = Members(num_workers, timeout_s=timeout_s, on_loss=mode, account=account)
                members.is_watched = True
            elif (self._name, members.num_workers) != (name, num_workers):
                raise RefusedError(
                    f"these servers are in run {self._name!r:.80} of {members.num_workers} "
                    f"workers, got run {name!r:.80} of {num_workers}; wait for its end, or start "
                    "others"
                )
            members.join(rank, incarnation)
            if self._members not in (None, members):
                self._members.end()
            self._members, self._name = members, name

    def check(self) -> None:
        """Drop members that have fallen silent."""
        if self._members is not None:
            with contextlib.suppress(DownpourError):
                self._members.check()
