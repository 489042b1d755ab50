"""The client of a worker in sync training."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from downpour.errors import TableError
from downpour.given import checked_block
from downpour.remote.client import RemoteClient

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from downpour.client import Located
    from downpour.deployment import Deployment
    from downpour.remote.link import Ticket
    from downpour.remote.membership import Membership
    from downpour.remote.server import RemoteServer
    from downpour.transport import Floats


class SyncClient(RemoteClient):
    """One worker of sync training: it stages its pushes, and all workers commit them together.

    At the end of a step the workers meet, each with the samples of its batch. What they bring says
    who takes part, so all send servers the same commit. Reads of the next step come after it, and
    nothing is read ahead.
    """

    is_alone = False
    restarts_steps = False
    step = 0  # the last that was committed

    def __init__(
        self,
        deployment: Deployment,
        servers: Sequence[RemoteServer],
        membership: Membership,
        *,
        start_s: float = 60.0,
    ) -> None:
        super().__init__(deployment, servers, membership, start_s=start_s)
        self._member = membership
        self.step = self.after = max(server.greeting["committed"] for server in servers)
        self._staged: list[Ticket] = []
        self._tables: set[str] = set()

    def update(self, located: Located, pushes: Floats, *, is_mean: bool = True) -> None:
        """Stage a push for the step under way."""
        self._tables.add(located.table)
        header = {"table": located.table, **self._stage(is_mean)}
        groups = self._groups(located, located.keys), self._groups(located, pushes)
        self._staged += [
            server.begin_write("stage", header, keys, values)
            for (server, keys), (_, values) in zip(*groups, strict=True)
            if len(keys)
        ]

    def push_dense(
        self, table: str, grad: Floats, names: Collection[str], *, is_mean: bool = True
    ) -> None:
        """Stage gradients for the step under way."""
        layout = self._layout(table)
        grad = checked_block(layout, "gradient", grad, names)
        self._tables.add(table)
        header = {"table": table, "names": sorted(names), **self._stage(is_mean)}
        self._staged += [
            self.remote[share.server].begin_write(
                "stage_dense", header, None, share.take(grad).copy()
            )
            for share in layout.shares
        ]

    def end_step(self, samples: int, *, goes_on: bool = True) -> float:
        """Commit the step with the other workers; this one's share of all samples.

        goes_on: whether this worker has another batch; `others_go_on` then says whether any has.
        """
        self._wait_staged()
        step = self.step + 1
        brought = json.dumps(
            {"samples": samples, "tables": sorted(self._tables), "goes_on": goes_on}
        )
        met = self._member.meet(f"step {step}", brought)
        parts = {rank: json.loads(text) for rank, text in sorted(met.items())}
        tables = sorted({table for part in parts.values() for table in part["tables"]})
        rates = {table: self.next_step(table) for table in tables}
        commit = {
            "at": step,
            "samples": {str(rank): part["samples"] for rank, part in parts.items()},
            "rates": {table: [at, list(lr)] for table, (at, lr) in rates.items()},
        }
        self._staged = [server.begin_write("commit", commit) for server in self.remote]
        self.steps |= {table: at for table, (at, _) in rates.items()}
        self.step = self.after = step
        self._tables.clear()
        self.others_go_on = any(part["goes_on"] for part in parts.values())
        total = sum(part["samples"] for part in parts.values())
        return samples / total if total else 0.0

    def report(self) -> dict[str, Any]:
        """See RemoteClient; its step is the last that was committed."""
        return {**super().report(), "step": self.step}

    def begin_epoch(self) -> None:
        """Keep step with the others until nobody has a batch."""
        self.others_go_on = True

    def finish(self) -> None:
        """Wait for the last commit."""
        self._wait_staged()

    def _stage(self, is_mean: bool) -> dict[str, Any]:
        return {"rank": self._member.rank, "at": self.step + 1, "mean": is_mean}

    def _wait_staged(self) -> None:
        staged, self._staged = self._staged, []
        try:
            for ticket in staged:
                ticket.result()
        except TableError:  # as the others have taken the step without this worker
            self._member.beat()
            raise
