"""A client whose pushes wait on the servers until it is decided who takes part in a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from downpour.given import checked_block
from downpour.remote.client import RemoteClient

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from downpour.client import Located
    from downpour.deployment import Deployment
    from downpour.federated.methods import FedAvg
    from downpour.remote.link import Ticket
    from downpour.remote.membership import Membership
    from downpour.remote.server import RemoteServer
    from downpour.transport import Floats


class StagingClient(RemoteClient):
    """Stages what member `rank` pushes for the step after `step`, the last that it knows of.

    Reads come after that step is committed. Who decides on it is a subclass's.

    weighs_equally: whether members count alike in a mean, and not by their samples. over_touched:
    see `serving.staging.Commit`.
    """

    is_alone = False
    restarts_steps = False
    weighs_equally = over_touched = False

    def __init__(
        self,
        deployment: Deployment,
        servers: Sequence[RemoteServer],
        membership: Membership | None = None,
        *,
        rank: int,
        start_s: float = 60.0,
    ) -> None:
        super().__init__(deployment, servers, membership, start_s=start_s)
        self.rank = rank
        self.step = self.after = max(server.greeting["committed"] for server in servers)
        self._staged: list[Ticket] = []
        self._tables: set[str] = set()  # that this one has pushed in the step

    def average_by(self, method: FedAvg) -> None:
        """Weigh members, and rows over them, as a method of federated training says."""
        self.weighs_equally = method.weighting == "equal"
        self.over_touched = method.rows_over == "touched"

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

    def commit(self, samples: Mapping[int, int], tables: Collection[str]) -> None:
        """Let all servers make the next step of these tables, with what these ranks have staged.

        samples: of each rank; who had none counts for nothing. `finish` waits for the answers.
        """
        step = self.step + 1
        rates = {table: self.next_step(table) for table in sorted(tables)}
        counts = {
            str(rank): min(1, number) if self.weighs_equally else number
            for rank, number in samples.items()
        }
        request = {
            "at": step,
            "samples": counts,
            "rates": {table: [at, list(lr)] for table, (at, lr) in rates.items()},
            "over_touched": self.over_touched,
        }
        self._staged = [server.begin_write("commit", request) for server in self.remote]
        self.steps |= {table: at for table, (at, _) in rates.items()}
        self.step = self.after = step
        self._tables.clear()

    @property
    def is_settled(self) -> bool:
        """Whether `finish` would not wait."""
        return all(ticket.is_done for ticket in self._staged)

    def finish(self) -> None:
        """Wait until the servers have all that was staged, or committed."""
        staged, self._staged = self._staged, []
        for ticket in staged:
            ticket.result()

    def report(self) -> dict[str, Any]:
        """See RemoteClient; its step is the last that was committed."""
        return {**super().report(), "step": self.step}

    def _stage(self, is_mean: bool) -> dict[str, Any]:
        return {"rank": self.rank, "at": self.step + 1, "mean": is_mean}
