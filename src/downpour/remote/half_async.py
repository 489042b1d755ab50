"""The client of a worker in half-async training, and the clients of its threads."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import TYPE_CHECKING

from downpour.client import Client
from downpour.remote.client import RemoteClient
from downpour.serving.merging import (
    Push,
    RowPush,
    Weighed,
    by_samples,
    checked_block,
    merge_blocks,
    merge_rows,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from downpour.client import Located
    from downpour.deployment import Deployment
    from downpour.remote.link import Ticket
    from downpour.remote.membership import Membership
    from downpour.remote.server import RemoteServer
    from downpour.serving.merging import BlockPush
    from downpour.tables import Section
    from downpour.transport import Floats, Keys


class ReleasedError(Exception):
    """Raised in a thread that would wait for another one, which has failed."""


class HalfAsyncClient(RemoteClient):
    """One worker that trains on `threads` batches at a time: give it to a `ThreadedWorker`.

    All that its threads have pushed in a step is acknowledged before the next one reads. With a
    plain `Worker` it trains on one batch at a time, and each push is acknowledged.
    """

    def __init__(
        self,
        deployment: Deployment,
        servers: Sequence[RemoteServer],
        membership: Membership | None = None,
        *,
        threads: int,
        start_s: float = 60.0,
    ) -> None:
        super().__init__(deployment, servers, membership, start_s=start_s)
        self.threads = threads

    def forget_asked(self) -> None:
        """Let go of dense values that were asked for and not pulled, as a step has failed."""
        self._dense.clear()

    def end_step(self, samples: int, *, goes_on: bool = True) -> float:
        """Raise what stops the run, if anything does; this worker's share of its step is all."""
        if self.membership is not None:
            self.membership.check()
        return 1.0

    def push_all(
        self,
        rows: Mapping[str, tuple[Keys, Floats]],
        blocks: Mapping[str, tuple[Floats, Collection[str]]],
    ) -> None:
        """One step of the rules of each of these tables, all sent at once, and acknowledged.

        rows: of sparse tables, different keys [n] and pushes [n, push_dim]. blocks: of dense ones,
        gradients [size] and the names that have one.
        """
        for table in (*rows, *blocks):
            self.next_step(table)  # a schedule without a rate is found before anything is sent
        sent: list[tuple[str, list[Ticket]]] = []
        for table, (keys, pushes) in rows.items():
            located = self.locate(table, keys, create=True)
            sent.append((table, self._begin_update(located, pushes)))
        for table, (grad, names) in blocks.items():
            sent.append((table, self._begin_push_dense(table, grad, names)))
        for table, tickets in sent:
            self._settle(table, tickets)


class Threads:
    """The threads of one worker: where they wait for each other, and what they push as one.

    Every thread computes, waits until all have (`end_compute`), stages its pushes with its client,
    and waits again (`ThreadClient.end_step`). The last to come there merges what is staged, means
    weighted by samples and the threads in their order, and pushes it. Where a thread fails, the
    others are released with ReleasedError wherever they wait, and nothing of the step is pushed.
    """

    def __init__(self, client: HalfAsyncClient) -> None:
        self.client = client
        self.clients = [ThreadClient(self, place) for place in range(client.threads)]
        self._pulled: dict[str, Floats] = {}  # dense values of this step, by table
        self._pulling = threading.Lock()
        self._computed = threading.Barrier(client.threads)
        self._ended = threading.Barrier(client.threads, self._push)
        self._samples = 0  # of all threads, in the step that was pushed last
        self._failing = threading.Lock()
        self._error: BaseException | None = None

    def begin_step(self) -> None:
        """Begin anew, whatever became of the step before; no thread is in one."""
        self._error = None
        self._pulled.clear()
        self.client.forget_asked()
        for barrier in (self._computed, self._ended):
            barrier.reset()
        for client in self.clients:
            client.forget_staged()

    def end_compute(self) -> None:
        """Wait until all threads have computed their gradients."""
        self._wait(self._computed)

    def end_step(self) -> int:
        """Wait until all that the threads have staged is pushed; the samples of all."""
        self._wait(self._ended)
        return self._samples

    def fail(self, error: BaseException) -> None:
        """Release all who wait, or will: a thread does not come."""
        with self._failing:
            if self._error is None:
                self._error = error
        for barrier in (self._computed, self._ended):
            barrier.abort()

    def check(self) -> None:
        """Raise the first error of the step."""
        if self._error is not None:
            raise self._error

    def ask_dense(self, table: str) -> None:
        """Let the values of a dense table come, once for all threads."""
        with self._pulling:
            if table not in self._pulled:
                self.client.ask_dense(table)

    def pull_dense(self, table: str) -> Floats:
        """The weights of a dense table, [size]: one array for all threads, not to be changed."""
        with self._pulling:
            if table not in self._pulled:
                self._pulled[table] = self.client.pull_dense(table)
            return self._pulled[table]

    def _wait(self, barrier: threading.Barrier) -> None:
        try:
            barrier.wait()
        except threading.BrokenBarrierError:
            raise ReleasedError from None

    def _push(self) -> None:
        """Push what all have staged; on the thread that comes last, while the others wait."""
        client, plan = self.client, self.client.plan
        self._samples = sum(it.samples for it in self.clients)
        client.end_step(self._samples)
        rows = self._counted((it.samples, it.rows) for it in self.clients)
        blocks = self._counted((it.samples, it.blocks) for it in self.clients)
        client.push_all(
            {name: merge_rows(plan.sparse_table(name), it) for name, it in rows.items()},
            {name: merge_blocks(plan.dense_table(name), it) for name, it in blocks.items()},
        )
        for each in self.clients:
            each.forget_staged()

    def _counted(
        self, staged: Iterable[tuple[int, Mapping[str, Sequence[Push]]]]
    ) -> dict[str, Weighed[Push]]:
        """By table, what counts of the threads' pushes; each comes with its thread's samples."""
        by_table: dict[str, Weighed[Push]] = {}
        for samples, tables in staged:
            for table, pushes in tables.items():
                if counted := by_samples(pushes, samples, self._samples):
                    by_table.setdefault(table, []).extend(counted)
        return by_table


class ThreadClient(Client):
    """What the thread at `place` of a worker reads by, and stages its pushes with."""

    is_embedded = False
    is_alone = False

    def __init__(self, threads: Threads, place: int) -> None:
        client = threads.client
        super().__init__(client.plan, client.servers)
        self._layouts, self.steps = client._layouts, client.steps
        self.threads, self._client, self._is_first = threads, client, place == 0
        self.samples = 0
        self.rows: dict[str, list[RowPush]] = defaultdict(list)
        self.blocks: dict[str, list[BlockPush]] = defaultdict(list)

    def forget_staged(self) -> None:
        """Begin a step with nothing to push."""
        self.rows.clear()
        self.blocks.clear()

    def init_dense(self, table: str, flat: Floats) -> bool:
        """Give a dense table its first weights; the first thread does."""
        return self._is_first and self._client.init_dense(table, flat)

    def begin(self) -> None:
        """Wait for the other workers of the run; the first thread does."""
        if self._is_first:
            self._client.begin()

    def locate(self, table: str, keys: Keys, *, create: bool) -> Located:
        """Group keys by server."""
        return self._client.locate(table, keys, create=create)

    def ask(self, located: Located) -> None:
        """Let the rows of located keys come."""
        self._client.ask(located)

    def read(self, located: Located) -> Floats:
        """The rows as of `ask`, [n, pull_dim]."""
        return self._client.read(located)

    def ask_dense(self, table: str) -> None:
        """Let the values of a dense table come, for all threads."""
        self.threads.ask_dense(table)

    def pull_dense(self, table: str) -> Floats:
        """The weights of a dense table as all threads have them in this step, [size]."""
        return self.threads.pull_dense(table)

    def update(self, located: Located, pushes: Floats, *, is_mean: bool = True) -> None:
        """Stage a push for the step under way; it must not change before the step ends."""
        self.rows[located.table].append(RowPush(located.keys, pushes, is_mean))

    def push_dense(
        self, table: str, grad: Floats, names: Collection[str], *, is_mean: bool = True
    ) -> None:
        """Stage gradients for the step under way; they must not change before it ends."""
        spec = self.plan.dense_table(table)
        push = checked_block(spec, grad, names, _named(spec.sections, names), is_mean=is_mean)
        self.blocks[table].append(push)

    def end_step(self, samples: int, *, goes_on: bool = True) -> float:
        """Wait until what all threads have staged is pushed; this one's share of the samples."""
        self.samples = samples
        total = self.threads.end_step()
        return samples / total if total else 0.0


def _named(sections: Iterable[Section], names: Collection[str]) -> list[Section]:
    return [section for section in sections if section.name in names]
