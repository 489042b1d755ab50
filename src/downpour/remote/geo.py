"""The client of a worker in geo training."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from downpour.accessor import CtrAccessor
from downpour.client import Client, Located
from downpour.errors import DownpourError, SettingError, TableError
from downpour.remote.client import RemoteClient, RemoteKeys
from downpour.remote.copies import BlockCopy, RowsCopy
from downpour.server import Server
from downpour.serving.changes import part_rows, unpacked
from downpour.tables import SparseTable

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from contextlib import AbstractContextManager

    from downpour.deployment import Deployment
    from downpour.plan.plan import Plan
    from downpour.remote.link import Ticket
    from downpour.remote.membership import Membership
    from downpour.remote.server import RemoteServer
    from downpour.transport import Floats, Keys

ELSE = "take Sync, Async or HalfAsync"


def require_geo(plan: Plan) -> None:
    """Raise SettingError for a plan with a table that `Geo` cannot train."""
    for spec in plan.sparse:
        if isinstance(spec.accessor, CtrAccessor):
            raise SettingError(
                f"table {spec.name!r}: Geo cannot train rows of a CtrAccessor, as their show and "
                f"click would be averaged over the workers like weights; {ELSE}"
            )
        if spec.accessor.rule.weight_decay:
            raise SettingError(
                f"table {spec.name!r}: Geo cannot train a sparse table with weight_decay="
                f"{spec.accessor.rule.weight_decay}, as it moves all rows in every step and only "
                f"those that were pushed are exchanged; set batch_l2 in its place, or {ELSE}"
            )


@dataclass(frozen=True, slots=True)
class GeoKeys(RemoteKeys):
    """Different keys of one table with their rows in this worker.

    `waits_for` counts the fetches of new rows up to its own. `unknown` are those keys that are not
    here and are not to be made, at `places`: servers may have them.
    """

    waits_for: int = 0
    unknown: RemoteKeys | None = None
    places: Any = None


class GeoClient(RemoteClient):
    """One worker that trains on a copy of its own, and exchanges what has changed every `k_steps`.

    Reads and updates go to tables in this process, with the plan's rules and their state. A row
    that is not here yet comes from the servers. In an exchange, of every row that was updated since
    the last one and of every dense table,

        delta = (local - base) / num_workers;  base += delta;  server += delta
        local += server - base;  base = server

    where base is what the servers are known to have. What of local - base is not sent stays in the
    worker's own copy, and counts in the delta of the row's next update. Statistics of data-norm
    tables are sums and not means: each worker's part is added whole, and the decay of its steps
    is applied to the servers' sums as if it had made them there.

    A worker holds each of its rows twice, and the rules' state. Servers note for each worker the
    keys that others have changed, 8 bytes each, and send all those rows in an exchange, also ones
    that the worker does not have and passes over: what comes grows with what others touch, not with
    what the workers share. A worker that was lost stops nobody; means are still divided by the
    number of workers that the run began with, and what servers note for it stays until the next
    run, at most about 24 bytes a row of the table.

    A read may lack what others did since the last exchange: `staleness` counts the steps since.
    After an exchange that failed half-way each further one raises its error. Raises SettingError
    as `require_geo` does.
    """

    restarts_steps = False

    def __init__(
        self,
        deployment: Deployment,
        servers: Sequence[RemoteServer],
        membership: Membership,
        *,
        k_steps: int,
        start_s: float = 60.0,
    ) -> None:
        require_geo(deployment.plan)
        super().__init__(deployment, servers, membership, start_s=start_s)
        own = Server(self.plan)
        self.local = Client(self.plan, [own])
        self.steps = self.local.steps
        self._member, self._k_steps = membership, k_steps
        self._copies = {
            name: RowsCopy(table)
            for name, table in own.sparse.items()
            if isinstance(table, SparseTable)
        }
        self._blocks = {name: BlockCopy(table) for name, table in own.dense.items()}
        self._since = 0  # steps since the last exchange
        self._arriving: deque[tuple[RemoteKeys, Any]] = deque()  # of new rows, with their places
        self._num_asked = 0
        # The number of the last part of changes that was taken, by server and table.
        self._taken = {(i, name): 0 for i in range(len(servers)) for name in self._copies}
        self._has_begun = False
        self._failure: DownpourError | None = None

    def begin(self) -> None:
        """Wait for the others and for the first dense weights, and take those."""
        if self._has_begun:
            return
        rank = {"rank": self._member.rank}
        for ticket in [server.begin_write("geo_join", rank) for server in self.remote]:
            ticket.result()
        super().begin()  # others send changes only after it
        self._ask_blocks()
        for name, block in self._blocks.items():
            block.put(super().pull_dense(name))
        self._has_begun = True

    def close(self) -> None:
        """Exchange a last time, leave the run and end the connections."""
        if self._closed.is_set():
            return
        try:
            self.finish()
            if self._has_begun:
                for ticket in [server.begin_write("geo_leave", {}) for server in self.remote]:
                    ticket.result()
        finally:
            self.abandon(None)

    def finish(self) -> None:
        """Exchange: all that this worker has changed is on the servers then."""
        if self._has_begun:
            self._exchange()

    def end_step(self, samples: int, *, goes_on: bool = True) -> float:
        """Exchange where it is time; this worker's share of the step is all."""
        self._member.check()
        self._since += samples > 0
        if self._since >= self._k_steps:
            self._exchange()
        return 1.0

    # Sparse tables.

    def locate(self, table: str, keys: Keys, *, create: bool) -> RemoteKeys:
        """Find rows in this worker; those that are not here are on their way when it returns."""
        if create:
            self._require_begun()
        copy = self._copy(table)
        rows = copy.find(keys)
        new = np.flatnonzero(rows < 0)
        if not new.size:
            return GeoKeys(table, keys, (rows,), waits_for=self._num_asked)
        remote = super().locate(table, keys[new], create=create)
        super().ask(remote)
        if create:
            rows[new] = copy.make(keys[new])
            self._arriving.append((remote, rows[new]))
            self._num_asked += 1
            return GeoKeys(table, keys, (rows,), waits_for=self._num_asked)
        waits = self._num_asked
        return GeoKeys(table, keys, (rows,), waits_for=waits, unknown=remote, places=new)

    def ask(self, located: Located) -> None:
        """Nothing: what is not here was asked for by `locate`."""
        if not isinstance(located, GeoKeys):
            super().ask(located)

    def read(self, located: Located) -> Floats:
        """This worker's rows as of now, [n, pull_dim]."""
        if not isinstance(located, GeoKeys):
            return super().read(located)
        self._arrive(located.waits_for)
        self.staleness.add(self._since)
        out = self.local.read(located)
        if located.unknown is not None:
            out[located.places] = super().read(located.unknown)
        return out

    def update(self, located: Located, pushes: Floats, *, is_mean: bool = True) -> None:
        """One step of the table's rules in this worker."""
        assert isinstance(located, GeoKeys)
        self._arrive(located.waits_for)
        self.local.update(located, pushes)
        self._copies[located.table].touch(located.rows[0])

    def atomic(self) -> AbstractContextManager[None]:
        """Let the pushes of a block count together in this worker; see Client."""
        return self.local.atomic()

    def _arrive(self, upto: int) -> None:
        """Wait for the fetches of new rows up to one, in their order."""
        while self._num_asked - len(self._arriving) < upto:
            remote, rows = self._arriving[0]
            try:
                values = super().read(remote)
            except DownpourError:
                remote.tickets.clear()  # so that it is asked for again
                raise
            self._copies[remote.table].put(rows, values)
            self._arriving.popleft()

    # Dense tables.

    def ask_dense(self, table: str) -> None:
        """Nothing: dense values are here."""

    def pull_dense(self, table: str) -> Floats:
        """This worker's weights of a dense table, before `begin` those of the servers, [size]."""
        if self._has_begun:
            return self.local.pull_dense(table)
        super().ask_dense(table)
        return super().pull_dense(table)

    def push_dense(
        self, table: str, grad: Floats, names: Collection[str], *, is_mean: bool = True
    ) -> None:
        """One step of the table's rule in this worker."""
        self._require_begun()
        self.local.push_dense(table, grad, names)

    # The exchange.

    def _exchange(self) -> None:
        """Send what this worker has changed, and then take what others have."""
        self._member.check()
        if self._failure is not None:
            raise self._failure
        self._arrive(self._num_asked)
        share = self._member.num_workers
        changes = [(name, copy.moved(share)) for name, copy in self._copies.items()]
        blocks = [(name, block.moved(share)) for name, block in self._blocks.items()]
        try:
            tickets: list[Ticket] = []
            for name, (keys, deltas) in changes:
                tickets += self._send_rows(name, keys, deltas)
                self._copies[name].mark_sent(deltas)
            for name, moved in blocks:
                if moved is not None:
                    tickets += self._send_block(name, *moved)
                    self._blocks[name].mark_sent(*moved)
            for ticket in tickets:
                ticket.result()
        except DownpourError as error:
            self._failure = error  # nobody knows how much of it the servers have
            raise
        self._take_changes()  # after all is acknowledged: what servers have, has this worker's part
        self._since = 0

    def _send_rows(self, table: str, keys: Keys, deltas: Floats) -> list[Ticket]:
        order, ends = self._by_server(keys)
        located = RemoteKeys(table, keys, (), order, ends)
        groups = self._groups(located, keys), self._groups(located, deltas)
        most = part_rows(deltas.shape[1], deltas.dtype)
        return [
            server.begin_write(
                "geo_add", {"table": table}, own[at : at + most], values[at : at + most]
            )
            for (server, own), (_, values) in zip(*groups, strict=True)
            for at in range(0, len(own), most)
        ]

    def _send_block(self, table: str, deltas: Floats, keep: Floats | None) -> list[Ticket]:
        header = {"table": table, "keeps": keep is not None}
        parts = [deltas] if keep is None else [deltas, keep]
        return [
            self.remote[share.server].begin_write(
                "geo_add_dense", header, None, np.stack([share.take(part) for part in parts])
            )
            for share in self._layouts[table].shares
        ]

    def _take_changes(self) -> None:
        """Take all rows that others have changed, and all dense values."""
        self._ask_blocks()
        asked = [(at, self._ask_part(at)) for at in self._taken]
        while asked:
            at, ticket = asked.pop(0)
            answer = ticket.result()
            accessor = self._spec(at[1]).accessor
            keys, rows = unpacked(answer.values, accessor.pull_dim, accessor.numpy_dtype)
            self._copies[at[1]].take(keys, rows)
            self._taken[at] += 1
            if answer.header["more"]:
                asked.append((at, self._ask_part(at)))
        for name, block in self._blocks.items():
            block.take(super().pull_dense(name))

    def _ask_part(self, at: tuple[int, str]) -> Ticket:
        """The next part of a table's changes on a server; it says that those before have come."""
        i, table = at
        header = {"op": "geo_fetch", "table": table, "number": self._taken[at] + 1}
        return self.remote[i].reads.send(header)

    def _ask_blocks(self) -> None:
        self._dense.clear()  # what an exchange that failed has asked for is older than ours
        for name in self._blocks:
            super().ask_dense(name)

    def _require_begun(self) -> None:
        if not self._has_begun:
            raise TableError(
                "a Geo client trains once all workers are here; make its Worker first, or call "
                "begin()"
            )

    def _copy(self, table: str) -> RowsCopy:
        return self._copies[self._spec(table).name]
