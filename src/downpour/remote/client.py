"""Clients of servers in other processes: requests go to all of them at once."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from downpour.client import Client, Located
from downpour.errors import RefusedError, SettingError, WorkerLostError
from downpour.given import checked_block
from downpour.merged import merged_shrunk
from downpour.metrics.latency import Latency
from downpour.remote import saves
from downpour.remote.server import CLOSE_S, shrunk_of
from downpour.tables import partition

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from contextlib import AbstractContextManager

    from downpour.deployment import Deployment
    from downpour.remote.link import Ticket
    from downpour.remote.membership import Membership
    from downpour.remote.server import RemoteServer
    from downpour.transport import Floats, Keys, Shrunk, Transport

WATCH_S = 0.1  # seconds between two looks for requests that have waited too long


@dataclass(frozen=True, slots=True)
class RemoteKeys(Located):
    """Different keys of one table by server.

    `tickets` are those of a pull on its way, `seen` the step whose pushes it will see at least.
    """

    create: bool = True
    tickets: list[Ticket] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)


class RemoteClient(Client):
    """Reads and updates the tables of a plan on servers elsewhere; each push is acknowledged.

    What a step pushes is applied when its calls return. Consistencies of a run are subclasses.
    With a `membership` it is one of a run's workers, or its chief, and waits `start_s` seconds for
    the others to come. Every request ends within its deadline: with an answer, or with a
    ServerError that names the server.
    """

    is_embedded = False
    others_go_on = False  # whether other workers have batches with which this one has to keep step
    stops_together = False  # whether all workers stop after the same step
    asks_to_stop = False  # whether this worker was told to, which the others are to follow
    all_stop = False  # whether any of them was, as all have heard after the same step
    restarts_steps = True  # of a table that is cleared; else all workers go on counting alike

    def __init__(
        self,
        deployment: Deployment,
        servers: Sequence[RemoteServer],
        membership: Membership | None = None,
        *,
        start_s: float = 60.0,
    ) -> None:
        # Of the calls of Transport it has those that are made one server after the other.
        transports = cast("Sequence[Transport]", servers)
        super().__init__(deployment.plan, transports, sections=deployment.sections)
        self.remote = tuple(servers)
        self.membership, self.start_s = membership, start_s
        self.counted = {"steps": 0, "samples": 0, "epoch": 0}
        self.losses: dict[str, float] = {}
        self.phases_s: Mapping[str, float] = {}
        self.gradient_norms: Mapping[str, float] = {}
        self.staleness = Staleness()
        self.after = 0  # the committed step that reads come after
        self._dense: dict[str, list[Ticket]] = {}
        for server in servers:
            for table, step in server.greeting.get("steps", {}).items():
                self.steps[table] = max(self.steps[table], step)
        if membership is not None:
            membership.report = self.report
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._look, name="downpour watch", daemon=True)
        self._watch.start()

    def __exit__(self, *error: object) -> None:
        """Close it, or where an error was raised abandon it: the run stops for the others then."""
        match error:
            case _, WorkerLostError() | RefusedError(), _:  # the others know
                self.abandon(None)
            case _, BaseException() as raised, _:
                self.abandon(f"{type(raised).__name__}: {raised}")
            case _:
                self.close()

    def close(self) -> None:
        """Wait for what was pushed, leave the run and end the connections."""
        if self._closed.is_set():
            return
        try:
            self.finish()
        finally:
            self.abandon(None)

    def abandon(self, error: str | None) -> None:
        """End the connections, whatever is on its way; with an error the run stops for others."""
        if self._closed.is_set():
            return
        try:
            if self.membership is not None:
                self.membership.leave(error)
        finally:
            self._closed.set()
            self._watch.join(timeout=5.0)
            for server in self.remote:
                server.end()
            until = time.monotonic() + CLOSE_S
            for server in self.remote:
                server.close(until)

    def finish(self) -> None:
        """Wait until all that was pushed is applied."""

    def begin_epoch(self) -> None:
        """Tell that this worker begins to go through its batches."""

    # Sparse tables.

    def locate(self, table: str, keys: Keys, *, create: bool) -> RemoteKeys:
        """Group keys by server; rows are found, or made, where they are."""
        order, ends = self._by_server(keys)
        return RemoteKeys(table, keys, (), order, ends, create)

    def ask(self, located: Located) -> None:
        """Let the rows of located keys come, for `read`."""
        assert isinstance(located, RemoteKeys)
        if located.tickets:
            return
        table, create, until = located.table, located.create, self._until()
        located.tickets[:] = [
            server.begin_pull(table, keys, create=create, after=self.after, until=until)
            for server, keys in self._groups(located, located.keys)
        ]

    def read(self, located: Located) -> Floats:
        """The rows as of now, or as of `ask`, [n, pull_dim]."""
        assert isinstance(located, RemoteKeys)
        self.ask(located)
        self.staleness.add(self._staleness_of(located))
        return self._answered(located)

    def _answered(self, located: RemoteKeys) -> Floats:
        """Wait for the rows that were asked for, and take them."""
        accessor = self.plan.sparse_table(located.table).accessor
        dtype, dim = accessor.numpy_dtype, accessor.pull_dim
        tickets = tuple(located.tickets)
        located.tickets.clear()  # where one has failed, they are asked for again
        answers = [ticket.result() for ticket in tickets]
        if located.order is None:
            rows: Floats = answers[0].floats(dtype, (len(located.keys), dim))
            return rows
        out = np.empty((len(located.keys), dim), dtype)
        for i, answer in enumerate(answers):
            part = located.order[located.ends[i] : located.ends[i + 1]]
            out[part] = answer.floats(dtype, (len(part), dim))
        return out

    def _staleness_of(self, located: RemoteKeys) -> int:
        """The steps of this worker that asked rows may not have seen: all were acknowledged."""
        return 0

    def atomic(self) -> AbstractContextManager[None]:
        """Nothing: what was sent to servers counts there."""
        return nullcontext()

    def update(self, located: Located, pushes: Floats, *, is_mean: bool = True) -> None:
        """One step of the table's rules, on all servers, acknowledged."""
        self._settle(located.table, self._begin_update(located, pushes))

    def _begin_update(self, located: Located, pushes: Floats, step: int = 0) -> list[Ticket]:
        table = located.table
        header = {"table": table, "lr": list(self._take_step(table)), "s": step}
        groups, until = (self._groups(located, it) for it in (located.keys, pushes)), self._until()
        return [
            server.begin_write("push", header, keys, values, until=until)
            for (server, keys), (_, values) in zip(*groups, strict=True)
        ]

    def _take_step(self, table: str) -> tuple[float, ...]:
        """The learning rates of a table's next step; servers count it when they apply it."""
        return self.next_step(table)[1]

    def _settle(self, table: str, tickets: Sequence[Ticket]) -> None:
        """Wait for acknowledgements, and take over the step that servers have counted."""
        for ticket in tickets:
            step = ticket.result().header.get("step")
            if step is not None:  # a push that came twice is acknowledged without
                self.steps[table] = max(self.steps[table], step)

    def _until(self) -> float:
        """When what is sent now fails, on all servers: a write may wait for one of them."""
        return time.monotonic() + self.remote[0].deadline_s

    def _by_server(self, keys: Keys) -> tuple[Any, tuple[int, ...]]:
        if len(self.servers) == 1:
            return None, ()
        order, counts = partition(keys, len(self.servers))
        return order, (0, *np.cumsum(counts).tolist())

    def _groups(self, located: Located, rows: Any) -> list[tuple[RemoteServer, Any]]:
        """Each server with its part of what has a row a key."""
        if located.order is None:
            return [(self.remote[0], rows)]
        ordered = rows[located.order]
        ends = located.ends
        return [(server, ordered[ends[i] : ends[i + 1]]) for i, server in enumerate(self.remote)]

    # Dense tables.

    def ask_dense(self, table: str) -> None:
        """Let the values of a dense table come, for `pull_dense`."""
        if table not in self._dense:
            shares, until = self._layout(table).shares, self._until()
            self._dense[table] = [
                self.remote[share.server].begin_pull_dense(table, after=self.after, until=until)
                for share in shares
            ]

    def pull_dense(self, table: str) -> Floats:
        """The weights of a dense table as of now, or as of `ask_dense`, [size]."""
        self.ask_dense(table)
        layout = self._layout(table)
        dtype = np.dtype(layout.spec.dtype)
        out = np.empty(layout.spec.size, dtype)
        for share, ticket in zip(layout.shares, self._dense.pop(table), strict=True):
            share.put(ticket.result().floats(dtype, (share.size,)), out)
        return out

    def push_dense(
        self, table: str, grad: Floats, names: Collection[str], *, is_mean: bool = True
    ) -> None:
        """One step of the table's rule, on all servers that have a part of it, acknowledged."""
        self._settle(table, self._begin_push_dense(table, grad, names))

    def _begin_push_dense(
        self, table: str, grad: Floats, names: Collection[str], step: int = 0
    ) -> list[Ticket]:
        layout = self._layout(table)
        grad = checked_block(layout, "gradient", grad, names)
        lr = list(self._take_step(table))
        header = {"table": table, "lr": lr, "names": sorted(names), "s": step}
        until = self._until()
        return [
            # What is pushed must not change until it is acknowledged, and the worker goes on.
            self.remote[share.server].begin_write(
                "push_dense", header, None, share.take(grad).copy(), until=until
            )
            for share in layout.shares
        ]

    def init_dense(self, table: str, flat: Floats) -> bool:
        """Give a dense table its first weights; of a run's members the first one does."""
        if self.membership is not None and self.membership.rank != self._first_rank():
            return False
        return super().init_dense(table, flat)

    def begin(self) -> None:
        """Wait until all members of the run are here and dense tables have their first weights."""
        if self.membership is not None:
            self.membership.meet("begin", with_chief=True, limit_s=self.start_s)

    def _first_rank(self) -> int:
        assert self.membership is not None
        return -1 if self.membership.with_chief else 0

    # Whole tables, on all servers at once.

    def clear(self, table: str) -> None:
        """Forget all rows of a sparse table on all servers, once on each.

        Its steps and its decay begin anew there. Rows that were read before may be pushed to after.
        """
        name = self._spec(table).name
        for ticket in [server.begin_rebuild("clear", name) for server in self.remote]:
            ticket.result()
        if self.restarts_steps:
            self.steps[name] = 0

    def shrink(self, table: str) -> Shrunk:
        """See Client: once on each server, also where a connection breaks.

        After a ServerError one server may have shrunk and another not, so make it again only if a
        second day may pass for those. Pushes to the table wait meanwhile.
        """
        name = self._spec(table).name
        tickets = [server.begin_rebuild("shrink", name) for server in self.remote]
        return merged_shrunk([shrunk_of(ticket.result()) for ticket in tickets])

    def save(self, name: str) -> list[str]:
        """Let each server write its shard under its `--save-root`; the folders, as each has them.

        All that this client has pushed is in it. Each table is as of one moment: while others
        push, tables and servers may be some steps apart. Nothing has the name before all servers
        have written their shard. Raises RefusedError for a name that is no part of a path or that a
        whole save has, and then nothing is written.
        """
        self.finish()
        return saves.save(self.remote, name)

    def load(self, name: str) -> None:
        """Let each server fill itself from what it, or one before it, has saved under a name.

        All must be new and as many as saved, with the same plan; a run connects afterwards. Where
        one would refuse, none is filled. Raises RefusedError, SavedRunError for a save that is
        missing, damaged, or broken (its shards are of different saves), SettingError for a member
        of a run.
        """
        if self.membership is not None:
            raise SettingError(
                "load: the members of a run have counted steps already; load by a client that "
                "takes no part in it, connect(plan, servers), before they connect"
            )
        for steps in saves.load(self.remote, name):
            for table, step in steps.items():
                self.steps[table] = max(self.steps[table], step)

    # What it has seen.

    def look_at_steps(self) -> None:
        """Take over the steps that the servers have counted, for who pushes nothing himself."""
        for server in self.remote:
            for table, step in server.greet()["steps"].items():
                self.steps[table] = max(self.steps[table], step)

    def report(self) -> dict[str, Any]:
        """What a WorkerReport holds, of this moment."""
        links = [(server.reads, server.writes) for server in self.remote]
        pulls = sum((reads.latency for reads, _ in links), Latency())
        pushes = sum((writes.latency for _, writes in links), Latency())
        every = [link for pair in links for link in pair]
        return {
            "rank": self.membership.rank if self.membership else 0,
            **self.counted,
            "step": self.counted["steps"],
            "losses": dict(self.losses),
            "phases_s": dict(self.phases_s),
            "gradient_norms": dict(self.gradient_norms),
            "pull": pulls.as_dict(),
            "push": pushes.as_dict(),
            "bytes_sent": sum(link.bytes_sent for link in every),
            "bytes_received": sum(link.bytes_received for link in every),
            "retries": sum(link.retries for link in every),
            "in_flight": sum(writes.num_pending for _, writes in links),
            "staleness_sum": self.staleness.total,
            "staleness_count": self.staleness.count,
            "staleness_max": self.staleness.most,
        }

    def _look(self) -> None:
        """End requests at their deadlines, whoever waits for them."""
        while not self._closed.wait(WATCH_S):
            now = time.monotonic()
            for server in self.remote:
                server.expire(now)


class Staleness:
    """Of the rows that were read: how many of the worker's steps before they had not seen."""

    def __init__(self) -> None:
        self.total = self.count = self.most = 0
        self._lock = threading.Lock()  # a worker may read on several threads

    def add(self, steps: int) -> None:
        """Count a read."""
        with self._lock:
            self.total += steps
            self.count += 1
            self.most = max(self.most, steps)
