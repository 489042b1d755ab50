"""A stream to a server that stays up: it sends, hands out answers, reconnects and sends again."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.flight as fl

from downpour.errors import DownpourError, RefusedError, ServerLostError, ServerTimeoutError
from downpour.metrics.latency import Latency
from downpour.remote.endpoint import RETRY_S, nothing
from downpour.wire import SCHEMA, error_of, header_bytes, pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from downpour.remote.endpoint import Endpoint
    from downpour.wire import Message

MAX_ANSWER_BYTES = 1 << 40  # the server has bounded what was asked


class Ticket:
    """A request on its way: `result` waits for its answer, or raises what came of it."""

    __slots__ = (
        "_done",
        "_error",
        "_lock",
        "_message",
        "_on_done",
        "arrays",
        "deadline",
        "header",
        "sent_at",
        "times_sent",
    )

    def __init__(self, header: dict[str, Any], arrays: tuple[Any, Any], deadline: float) -> None:
        self.header, self.arrays, self.deadline = header, arrays, deadline
        self.sent_at = time.monotonic()
        self.times_sent = 0
        self._lock = threading.Lock()
        self._on_done: Callable[[Ticket], None] | None = None
        self._done = threading.Event()
        self._message: Message | None = None
        self._error: DownpourError | None = None

    @property
    def error(self) -> DownpourError | None:
        """What went wrong, None while nothing did."""
        return self._error

    @property
    def is_done(self) -> bool:
        """Whether it has been answered or has failed."""
        return self._done.is_set()

    def when_done(self, call: Callable[[Ticket], None]) -> None:
        """Call once it is done: on the thread that ends it, or now."""
        with self._lock:
            if not self.is_done:
                self._on_done = call
                return
        call(self)

    def finish(self, outcome: Message | DownpourError) -> None:
        """Note the answer, or the error; the arrays are let go."""
        if isinstance(outcome, DownpourError):
            self._error = outcome
        else:
            self._message = outcome
        with self._lock:
            self._done.set()
        self.arrays = (None, None)  # after it is done: who writes it looks in the other order
        if self._on_done is not None:
            self._on_done(self)

    def result(self) -> Message:
        """The answer. Raises what the server refused it with, or ServerError."""
        self._done.wait()  # the watch ends it at its deadline
        if self._error is not None:
            raise self._error
        assert self._message is not None
        return self._message


class Link:
    """Requests to one server over one stream, in order.

    kind: b"read" or b"write". hello: what the first message of each stream says of the client.
    incarnation: the server's; another one is another server. A write that was not acknowledged when
    the connection broke is sent again, with its number, on the next one. watch: called while the
    server is not reached; what it raises is the end.

    A thread reads answers; `expire`, called by a watch, ends what has waited too long.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        kind: bytes,
        hello: Mapping[str, Any],
        incarnation: int,
        deadline_s: float,
        watch: Callable[[], None] = nothing,
    ) -> None:
        self.endpoint, self.deadline_s = endpoint, deadline_s
        self._watch = watch
        self.latency = Latency()
        self.bytes_sent = self.bytes_received = self.retries = 0
        self._kind, self._hello, self._incarnation = kind, dict(hello), incarnation
        self._num_connections = 0
        self._fault: str | None = None  # why it is not connected, where a try has failed
        self._sending = threading.Lock()  # held while a message is written
        self._changed = threading.Condition()  # of what follows
        self._pending: OrderedDict[int, Ticket] = OrderedDict()
        self._last = 0
        self._stream: _Stream | None = None
        self._opening: _Stream | None = None
        self._fatal: DownpourError | None = None
        self._is_closed = False
        self._reader = threading.Thread(
            target=self._run, name=f"downpour {kind.decode()} {endpoint.number}", daemon=True
        )
        self._reader.start()

    @property
    def num_pending(self) -> int:
        """Requests without an answer."""
        return len(self._pending)

    def send(
        self,
        header: Mapping[str, Any],
        keys: NDArray[Any] | None = None,
        values: NDArray[Any] | None = None,
        *,
        until: float | None = None,
    ) -> Ticket:
        """Send a request; the arrays must not change until it is answered.

        Returns when it is written, which waits where the server does not keep up. `until`: of
        time.monotonic, when it fails; in `deadline_s` seconds unless told otherwise.
        """
        deadline = time.monotonic() + self.deadline_s if until is None else until
        with self._sending:
            with self._changed:
                if self._fatal is not None:
                    raise self._fatal
                if self._is_closed:
                    raise ServerLostError(f"the connection to {self.endpoint} is closed")
                self._last += 1
                numbered = {**header, "n": self._last, "incarnation": self._incarnation}
                ticket = Ticket(numbered, (keys, values), deadline)
                self._pending[self._last] = ticket
                stream = self._stream
                self._changed.notify_all()
            if stream is not None:
                self._write(stream, ticket)
        return ticket

    def expire(self, now: float) -> None:
        """Fail the requests whose deadline has passed, and the stream that they wait on."""
        with self._changed:
            late = [ticket for ticket in self._pending.values() if ticket.deadline <= now]
            if not late:
                return
            stream, opening = self._stream, self._opening
            self._stream = None
            for ticket in late:
                del self._pending[ticket.header["n"]]
        for each in (stream, opening):
            if each is not None:
                each.cancel()
        for ticket in late:
            ticket.finish(self._late(ticket))

    def postpone(self, seconds: float) -> None:
        """Give the requests on their way more time: this process was stopped for so long."""
        with self._changed:
            for ticket in self._pending.values():
                ticket.deadline += seconds

    def end(self) -> None:
        """Let the stream end, at once where requests are pending; `close` waits for it."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            stream = self._stream
            is_idle = not self._pending
            self._changed.notify_all()
        if is_idle and stream is not None:
            stream.finish()
        else:
            self._cancel()

    def close(self, until: float) -> None:
        """End the stream, by time.monotonic at the latest; what is pending fails."""
        self.end()
        self._reader.join(timeout=max(until - time.monotonic(), 0.0))
        if self._reader.is_alive():
            self._cancel()
            self._reader.join(timeout=0.1)
        self._fail_all(ServerLostError(f"the connection to {self.endpoint} was closed"))

    def _cancel(self) -> None:
        with self._changed:
            streams = self._stream, self._opening
        for each in streams:
            if each is not None:
                each.cancel()

    # The reader's thread.

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or bool(self._pending))
                if self._is_closed:
                    return
            try:
                stream = self._open()
            except DownpourError as error:
                self._end(error)
                return
            if stream is not None:
                self._read(stream)

    def _open(self) -> _Stream | None:
        """Connect, say hello, and send what is pending; None where it has to be tried again."""
        stream = _Stream(self.endpoint, self._kind, self.deadline_s)
        with self._changed:
            if self._is_closed:
                return None
            self._opening = stream
        self._num_connections += 1
        try:
            answer = stream.hello({**self._hello, "connection": self._num_connections})
        except (pa.ArrowException, OSError, StopIteration) as error:
            is_late = stream.is_cancelled
            stream.cancel()
            stream.drop()
            if isinstance(error, RefusedError):
                raise
            if isinstance(error, fl.FlightUnauthenticatedError):
                raise self.endpoint.typed(error, self._kind.decode(), self.deadline_s) from None
            if not is_late:
                self._fault = " ".join(str(error).split())[:300]
            self._watch()
            time.sleep(RETRY_S)
            return None
        if answer["incarnation"] != self._incarnation:
            stream.cancel()
            stream.drop()
            raise ServerLostError(
                f"{self.endpoint} has come back without its tables (incarnation "
                f"{answer['incarnation']}, it was {self._incarnation}); load a saved run into new "
                "servers"
            )
        with self._sending:
            with self._changed:
                self._opening, self._fault = None, None
                again = list(self._pending.values())
                self._stream = stream
            for ticket in again:
                self.retries += ticket.times_sent > 0
                self._write(stream, ticket)
        return stream

    def _read(self, stream: _Stream) -> None:
        try:
            while True:
                message = unpack(stream.reader.read_chunk(), MAX_ANSWER_BYTES)
                self._answered(message)
        except (pa.ArrowException, OSError, StopIteration):
            stream.cancel()
            with self._changed:
                if self._stream is stream:
                    self._stream = None
            with self._sending:  # nobody writes to it now
                stream.drop()

    def _answered(self, message: Message) -> None:
        with self._changed:
            ticket = self._pending.pop(message.header.get("n", 0), None)
        if ticket is None:  # it had expired
            return
        self.latency.add(time.monotonic() - ticket.sent_at)
        self.bytes_received += message.values.nbytes
        if "error" in message.header:
            ticket.finish(error_of(message.header, str(self.endpoint)))
        else:
            ticket.finish(message)

    def _write(self, stream: _Stream, ticket: Ticket) -> None:
        """Write a message; a stream that is broken is seen by the reader, which sends it again."""
        keys, values = ticket.arrays
        if ticket.is_done:  # too late: it has no arrays any more
            return
        ticket.times_sent += 1
        with contextlib.suppress(pa.ArrowException, OSError):
            stream.writer.write_with_metadata(pack(keys, values), header_bytes(ticket.header))
            self.bytes_sent += sum(it.nbytes for it in (keys, values) if it is not None)

    def _late(self, ticket: Ticket) -> DownpourError:
        what = f"{ticket.header.get('op')!r}"
        if ticket.header.get("table"):
            what += f" of table {ticket.header['table']!r}"
        limit = f"{self.deadline_s:g} s"
        if self._fault is None:  # it takes connections
            return ServerTimeoutError(
                f"{self.endpoint} did not answer {what} within {limit}: it hangs or is overloaded"
            )
        return ServerLostError(
            f"{self.endpoint} could not be reached for {what} within {limit}, it is down or the "
            f"network to it is: {self._fault}"
        )

    def _end(self, error: DownpourError) -> None:
        with self._changed:
            self._fatal = error
        self._fail_all(error)

    def _fail_all(self, error: DownpourError) -> None:
        with self._changed:
            pending = list(self._pending.values())
            self._pending.clear()
        for ticket in pending:
            ticket.finish(error)


class _Stream:
    """One exchange with a server, from its connection to its end."""

    def __init__(self, endpoint: Endpoint, kind: bytes, timeout_s: float) -> None:
        self._endpoint, self._kind, self._timeout_s = endpoint, kind, timeout_s
        self._connection: Any = None
        self.writer: Any = None
        self.reader: Any = None
        self.is_cancelled = False

    def hello(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Open the stream and introduce the client; what the server answers."""
        self._connection = self._endpoint.connect(self._timeout_s)
        descriptor = fl.FlightDescriptor.for_command(self._kind)
        self.writer, self.reader = self._connection.do_exchange(
            descriptor, self._endpoint.options()
        )
        if self.is_cancelled:
            self.reader.cancel()
        self.writer.begin(SCHEMA)
        self.writer.write_with_metadata(pack(None, None), header_bytes(said))
        answer = unpack(self.reader.read_chunk(), MAX_ANSWER_BYTES).header
        if "error" in answer:
            raise error_of(answer, str(self._endpoint))
        return answer

    def cancel(self) -> None:
        """Break it off from any thread: whoever reads or writes gets an error."""
        self.is_cancelled = True
        if self.reader is not None:
            self.reader.cancel()

    def finish(self) -> None:
        """Tell the server that no more comes; the reader sees its end."""
        if self.writer is not None:
            with contextlib.suppress(pa.ArrowException, OSError):
                self.writer.done_writing()

    def drop(self) -> None:
        """Free what it holds, once nobody reads or writes; its error was seen."""
        for end in (self.writer, self._connection):
            if end is not None:
                with contextlib.suppress(pa.ArrowException, OSError):
                    end.close()
