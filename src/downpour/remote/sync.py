"""The client of a worker in sync training."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from downpour.errors import DownpourError, TableError
from downpour.remote.staging import StagingClient

if TYPE_CHECKING:
    from collections.abc import Sequence

    from downpour.deployment import Deployment
    from downpour.remote.membership import Membership
    from downpour.remote.server import RemoteServer


class SyncClient(StagingClient):
    """One worker of sync training: it stages its pushes, and all workers commit them together.

    At the end of a step the workers meet, each with the samples of its batch. What they bring says
    who takes part, so all send servers the same commit. Reads of the next step come after it, and
    nothing is read ahead.
    """

    def __init__(
        self,
        deployment: Deployment,
        servers: Sequence[RemoteServer],
        membership: Membership,
        *,
        start_s: float = 60.0,
    ) -> None:
        super().__init__(deployment, servers, membership, rank=membership.rank, start_s=start_s)
        self._member = membership
        self._refusal: DownpourError | None = None  # of a step, with which the training ended

    stops_together = True

    def end_step(self, samples: int, *, goes_on: bool = True) -> float:
        """Commit the step with the other workers; this one's share of all samples.

        goes_on: whether this worker has another batch; `others_go_on` then says whether any has,
        and `all_stop` whether any was told to stop.
        """
        self.finish()
        brought = json.dumps(
            {
                "samples": samples,
                "tables": sorted(self._tables),
                "goes_on": goes_on,
                "stop": self.asks_to_stop or self._member.stop_reason is not None,
            }
        )
        met = self._member.meet(f"step {self.step + 1}", brought)
        parts = {rank: json.loads(text) for rank, text in sorted(met.items())}
        counts = {rank: part["samples"] for rank, part in parts.items()}
        self.commit(counts, {table for part in parts.values() for table in part["tables"]})
        self.all_stop = self.all_stop or any(part["stop"] for part in parts.values())
        self.others_go_on = not self.all_stop and any(part["goes_on"] for part in parts.values())
        total = sum(counts.values())
        return samples / total if total else 0.0

    def begin_epoch(self) -> None:
        """Keep step with the others until nobody has a batch."""
        self.others_go_on = not self.all_stop

    def finish(self) -> None:
        """Wait until the servers have all that was staged, or committed.

        Raises NonFiniteError or OutOfMemoryError if a server has refused the last step. Others may
        have applied their part of it, so all workers get the same error, and this one gets it again
        from then on.
        """
        if self._refusal is not None:
            raise self._refusal
        commits = [ticket for ticket in self._staged if ticket.header["op"] == "commit"]
        try:
            super().finish()
        except DownpourError as error:
            if isinstance(error, TableError):  # the others may have dropped this worker
                self._member.beat()
            self._refusal = next((it.error for it in commits if it.error is not None), None)
            raise
