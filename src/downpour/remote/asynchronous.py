"""The client of a worker in async training."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from downpour.errors import DownpourError
from downpour.remote.client import RemoteClient, RemoteKeys

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Sequence

    from downpour.client import Located
    from downpour.deployment import Deployment
    from downpour.remote.link import Ticket
    from downpour.remote.membership import Membership
    from downpour.remote.server import RemoteServer
    from downpour.transport import Floats


class AsyncClient(RemoteClient):
    """One worker that pushes without waiting, and reads ahead as far as it may be stale.

    See `consistency.Async`. An error of a push that nobody waited for is raised by the next call.
    """

    def __init__(
        self,
        deployment: Deployment,
        servers: Sequence[RemoteServer],
        membership: Membership | None = None,
        *,
        max_in_flight: int,
        max_staleness: int,
        start_s: float = 60.0,
    ) -> None:
        self._max_in_flight, self._max_staleness = max_in_flight, max_staleness
        self._changed = threading.Condition(threading.RLock())  # of what follows
        self._ended = 0  # steps of this worker
        self._open: dict[int, int] = {}  # pushes that are not acknowledged, by step
        self._later: dict[Hashable, tuple[int, Callable[[], None]]] = {}  # asks that are too early
        self._sending: set[Hashable] = set()  # asks that are being sent
        self._error: DownpourError | None = None
        super().__init__(deployment, servers, membership, start_s=start_s)

    def ask(self, located: Located) -> None:
        """Let the rows of the step under way come as soon as they may be read for it."""
        self.ask_ahead(located, self._ended + 1)

    def ask_ahead(self, located: Located, step: int) -> None:
        """Let rows of a step come as soon as they may be read for it."""
        assert isinstance(located, RemoteKeys)
        if not located.tickets:
            ask = super().ask

            def send() -> None:
                if not located.tickets:
                    with self._changed:
                        located.seen[:] = [self._acked()]
                    ask(located)

            self._when_allowed(id(located), step, send)

    def read_ahead(self, located: Located, step: int) -> Floats | None:
        """The rows of a later step, if all have come and will be no staler than they may be."""
        assert isinstance(located, RemoteKeys)
        with self._changed:
            tickets = located.tickets
            if not tickets or any(not it.is_done or it.error is not None for it in tickets):
                return None
            staleness = max(0, step - 1 - located.seen[0])
        if staleness > self._max_staleness:
            return None
        self.staleness.add(staleness)
        return self._answered(located)

    def read(self, located: Located) -> Floats:
        """The rows as of `ask`; asked again where they would be staler than they may be."""
        assert isinstance(located, RemoteKeys)
        self.ask(located)
        self._now(id(located))
        if self._ended - located.seen[0] > self._max_staleness:
            located.tickets.clear()
            self.ask(located)
            self._now(id(located))
        return super().read(located)

    def _staleness_of(self, located: RemoteKeys) -> int:
        return max(0, self._ended - located.seen[0])

    def ask_dense(self, table: str) -> None:
        """Let dense values of the step under way come, as `ask` does rows."""
        if table not in self._dense:
            ask = super().ask_dense
            self._when_allowed(table, self._ended + 1, lambda: ask(table))

    def pull_dense(self, table: str) -> Floats:
        """The weights as of `ask_dense`, or as of now with all that this worker pushed, [size]."""
        with self._changed:
            is_asked = table in self._dense or table in self._later or table in self._sending
        if not is_asked:
            self.finish()
        self.ask_dense(table)
        self._now(table)
        return super().pull_dense(table)

    def update(self, located: Located, pushes: Floats, *, is_mean: bool = True) -> None:
        """Send a push; waits only while too many steps are on their way."""
        step = self._begin_push()
        self._watch_push(step, self._begin_update(located, pushes, step))

    def push_dense(
        self, table: str, grad: Floats, names: Collection[str], *, is_mean: bool = True
    ) -> None:
        """Send gradients, as `update` does."""
        step = self._begin_push()
        self._watch_push(step, self._begin_push_dense(table, grad, names, step))

    def end_step(self, samples: int, *, goes_on: bool = True) -> float:
        """Begin the next step; this worker's share of it is all."""
        with self._changed:
            self._ended += 1
        self._send_allowed()
        if self.membership is not None:  # here, and not between two pushes of one step
            self.membership.check()
        self._raise()
        return 1.0

    def finish(self) -> None:
        """Wait until all that was pushed is acknowledged."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open)
        self._raise()

    # Pushes on their way.

    def _begin_push(self) -> int:
        """Wait for room; the number of the step under way."""
        with self._changed:
            step = self._ended + 1
            self._changed.wait_for(
                lambda: self._error or len(self._open.keys() - {step}) < self._max_in_flight
            )
        self._raise()
        return step

    def _take_step(self, table: str) -> tuple[float, ...]:
        """Counted now, as the next push may go before this one is acknowledged."""
        with self._changed:
            self.steps[table], lr = self.next_step(table)
        return lr

    def _watch_push(self, step: int, tickets: Sequence[Ticket]) -> None:
        with self._changed:
            self._open[step] = self._open.get(step, 0) + len(tickets)
        for ticket in tickets:
            ticket.when_done(lambda done: self._acknowledged(step, done))

    def _acknowledged(self, step: int, ticket: Ticket) -> None:
        """On the thread that reads acknowledgements."""
        with self._changed:
            if ticket.error is not None:
                self._error = self._error or ticket.error
            elif (counted := ticket.result().header.get("step")) is not None:
                table = ticket.header["table"]
                self.steps[table] = max(self.steps[table], counted)
            self._open[step] -= 1
            if not self._open[step]:
                del self._open[step]
            self._changed.notify_all()
        if ticket.error is None:  # else it may be the watch that calls, and a write may wait for it
            self._send_allowed()

    # Reads that wait for them.

    def _acked(self) -> int:
        """The last step up to which all pushes are acknowledged."""
        return min(min(self._open, default=self._ended + 1) - 1, self._ended)

    def _may_read(self, step: int) -> bool:
        return step - 1 - self._acked() <= self._max_staleness

    def _when_allowed(self, key: Hashable, step: int, send: Callable[[], None]) -> None:
        with self._changed:
            if key in self._sending or (key in self._later and self._later[key][0] <= step):
                return
            self._later[key] = step, send
        self._send_allowed()

    def _send_allowed(self) -> None:
        """Send the asks that may be sent now; errors are the next call's.

        The lock is not held while it sends: a server that hangs must not hold up those who wait
        for another one.
        """
        while True:
            with self._changed:
                key = next((it for it in self._later if self._may_read(self._later[it][0])), None)
                if key is None:
                    return
                _, send = self._later.pop(key)
                self._sending.add(key)
            error: DownpourError | None = None
            try:
                send()
            except DownpourError as raised:
                error = raised
            with self._changed:
                self._error = self._error or error
                self._sending.discard(key)
                self._changed.notify_all()

    def _now(self, key: Hashable) -> None:
        """Wait until what was asked for is sent."""
        while True:
            self._send_allowed()
            with self._changed:
                self._changed.wait_for(lambda: self._error or not self._must_wait(key))
                if self._error is not None or not (key in self._later or key in self._sending):
                    break
        self._raise()

    def _must_wait(self, key: Hashable) -> bool:
        if key in self._later:
            return not self._may_read(self._later[key][0])
        return key in self._sending

    def _raise(self) -> None:
        """Raise what has failed since the last call, once."""
        with self._changed:
            error, self._error = self._error, None
        if error is not None:
            raise error
