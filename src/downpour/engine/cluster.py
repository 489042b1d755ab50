"""Cluster: how many servers and workers a run has, where they are, and how patient it is."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from downpour.errors import SettingError
from downpour.plan.sections import Sections
from downpour.remote.connect import connect
from downpour.remote.endpoint import Endpoint
from downpour.security import Security

if TYPE_CHECKING:
    from collections.abc import Sequence

    from downpour.consistency import Consistency
    from downpour.plan.plan import Plan
    from downpour.remote.client import RemoteClient


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """The processes of a run; a frozen value. Raises SettingError.

    servers, workers: how many of each are started on this machine.
    addresses: of servers that run already, in place of `servers`. Workers then are started
        elsewhere, by `downpour worker`, unless `starts_workers`.
    on_worker_loss: "stop" the run where a worker dies or hangs, or "continue" without it.
    deadline_s: of each request. worker_timeout_s: the silence after which a worker counts as lost.
    start_s: how long all may take to be there.
    security: of all connections. sections: how dense tables are split over servers.
    """

    servers: int = 1
    workers: int = 1
    addresses: tuple[str, ...] = ()
    starts_workers: bool = True
    on_worker_loss: Literal["stop", "continue"] = "stop"
    deadline_s: float = 30.0
    worker_timeout_s: float = 10.0
    start_s: float = 180.0
    security: Security = field(default_factory=Security)
    sections: Sections = field(default_factory=Sections)

    def __post_init__(self) -> None:
        for name in ("servers", "workers"):
            value: object = getattr(self, name)
            if type(value) is not int or value < 1:
                raise SettingError(f"Cluster.{name} must be an int >= 1, got {value!r}")
        if self.on_worker_loss not in ("stop", "continue"):
            raise SettingError(
                f"Cluster.on_worker_loss must be 'stop' or 'continue', got {self.on_worker_loss!r}"
            )
        for name in ("deadline_s", "worker_timeout_s", "start_s"):
            seconds: object = getattr(self, name)
            if type(seconds) not in (int, float) or not 0.0 < float(str(seconds)) < 1e6:
                raise SettingError(f"Cluster.{name} must be seconds > 0, got {seconds!r}")
        for i, address in enumerate(self.addresses):
            try:
                Endpoint(address, i)
            except SettingError as error:
                raise SettingError(f"Cluster.addresses: {error}") from None
        if len({*self.addresses}) < len(self.addresses):
            raise SettingError(f"Cluster.addresses must be different, got {self.addresses}")

    def secured(self) -> Cluster:
        """As it is, but servers that are started here have a token if they had none.

        Loopback is open to everybody on this machine. The processes of a run are told over a pipe.
        """
        if self.addresses or self.security.token is not None:
            return self
        return replace(self, security=replace(self.security, token=secrets.token_hex(32)))

    def connect(
        self,
        plan: Plan,
        addresses: Sequence[str],
        *,
        rank: int,
        run: str,
        with_chief: bool,
        consistency: Consistency | None = None,
        **more: Any,
    ) -> RemoteClient:
        """Join a run of this cluster as one of its members; see `downpour.connect`."""
        return connect(
            plan,
            addresses,
            consistency=consistency,
            rank=rank,
            num_workers=self.workers,
            run=run,
            with_chief=with_chief,
            on_worker_loss=self.on_worker_loss,
            deadline_s=self.deadline_s,
            start_s=self.start_s,
            worker_timeout_s=self.worker_timeout_s,
            security=self.security,
            sections=self.sections,
            **more,
        )
