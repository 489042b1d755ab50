"""A server on the network: Arrow Flight in front of a `Service`."""

from __future__ import annotations

import threading
import time
import weakref
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.flight as fl

from downpour import grpc_log
from downpour.errors import RefusedError, SettingError, TableError
from downpour.local_path import WRITE_ELSEWHERE, local_path
from downpour.security import Security, require_safe
from downpour.serving.busy import Busy
from downpour.serving.connections import Connections, peer_name
from downpour.serving.fields import text, texts
from downpour.serving.flight_stream import FlightStream
from downpour.serving.held import json_bytes
from downpour.serving.looks import keep_looking
from downpour.serving.member_verbs import MemberVerbs
from downpour.serving.refusals import LOG, CallCount, LoggedOnce, TokenCheck
from downpour.serving.round_verbs import RoundVerbs
from downpour.serving.runs import Runs
from downpour.serving.save_verbs import SaveVerbs
from downpour.serving.transfers import Reading, fill
from downpour.wire import SCHEMA, error_header, header_bytes, pack, parsed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import NoReturn

    from downpour.plan.specs import SparseTableSpec
    from downpour.serving.held import Peer
    from downpour.serving.hosted import Hosted
    from downpour.serving.service import Service

READ, WRITE = b"read", b"write"
WAITING = {"meet", "ask", "watch_round"}  # verbs whose callers mostly wait: nothing works for them
LARGE = {"hello", "meet"}  # verbs that bring tables, or what any worker has to tell the others
MAX_ACTION_BYTES = 64 << 20  # of these
MAX_SMALL_BYTES = 1 << 20  # of the others
MAX_ERROR = 1000  # characters of an error that ends a call
TICK_S = 0.25
CONNECTIONS_S = 0.05  # between two looks at what has arrived
ANSWER_S = 5.0  # how long a server that is to stop waits for the requests in progress
LOOK_S = 0.2  # between two looks at whether it is to stop
SHUTDOWN_S = 0.5  # and then for answers to be sent and streams to end
DISMISSED = object()  # who owns the writes of a client that takes part no more
NEVER = 1 << 62  # a number of connections that no client comes to

grpc_log.silence()


class FlightServer(fl.FlightServerBase):  # type: ignore[misc]
    """Serves a `Service` at `host`:`port` (0: any free one, see `port`) until `stop`.

    It keeps to the limits of the service. save_root: the folder of the saves that clients ask for;
    None takes none. Raises SettingError for a host that others can reach, without a token, and for
    a `save_root` that is a file.
    """

    def __init__(
        self,
        service: Service,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        security: Security | None = None,
        save_root: Path | None = None,
    ) -> None:
        security = security or Security()
        require_safe(host, security)
        if save_root is not None:
            save_root = local_path(save_root, "save_root", WRITE_ELSEWHERE)
        if save_root is not None and save_root.exists() and not save_root.is_dir():
            raise SettingError(f"the folder for saves, {save_root}, is a file; name a folder")
        tls: dict[str, Any] = {}
        if security.certificate is not None and security.key is not None:
            tls["tls_certificates"] = [
                (security.certificate.read_bytes(), security.key.read_bytes())
            ]
        if security.authority is not None:
            tls |= {"verify_client": True, "root_certificates": security.authority.read_bytes()}
        scheme = "grpc+tls" if security.serves_tls else "grpc+tcp"
        token = security.token
        self.service, self.host, self.held = service, host, service.held
        # In this order: a call without the token takes no place.
        middleware = {} if token is None else {"token": TokenCheck(token, self.refused)}
        middleware |= {"calls": CallCount(self.held, self.refused)}
        self.saves = SaveVerbs(service, None if save_root is None else save_root.resolve())
        self.runs = Runs(self.held)
        self.members = MemberVerbs(self.runs)
        self.rounds = RoundVerbs(lambda: service.hosted.staging.committed, self.held)
        self.stopped = threading.Event()
        self.bytes_sent = self.bytes_received = 0
        self._refusals = LoggedOnce()
        self._busy = Busy()
        name = f"[{host}]" if ":" in host else host
        try:
            super().__init__(f"{scheme}://{name}:{port}", middleware=middleware, **tls)
        except pa.ArrowException:
            raise SettingError(
                f"a server cannot listen at {name}:{port}: the port is taken, or the host is none "
                "of this machine's; give another --port or --host"
            ) from None
        self.address = f"{scheme}://{name}:{self.port}"
        self._connections = Connections(self.held, self.port)
        for call, about, every_s in (
            (self._look_for_lost, "members", TICK_S),
            (self._connections.look, "connections", CONNECTIONS_S),
        ):
            keep_looking(call, about, every_s=every_s, until=self.stopped)

    def stop(self) -> None:
        """End once the requests in progress are answered."""
        self.stopped.set()

    def end(self) -> bool:
        """End what serves once the requests in progress are answered, or have taken too long.

        False where streams of clients are still open: Flight would wait for them for ever, and
        they end with the process.
        """
        self.stopped.set()
        self._busy.wait_idle(ANSWER_S)
        ending = threading.Thread(target=self.shutdown, name="downpour shutdown", daemon=True)
        ending.start()
        ending.join(SHUTDOWN_S)
        return not ending.is_alive()

    # What Flight calls, each call on a thread of its own.

    def do_exchange(
        self,
        context: Any,
        descriptor: fl.FlightDescriptor,
        reader: fl.MetadataRecordBatchReader,
        writer: fl.MetadataRecordBatchWriter,
    ) -> None:
        """One stream of reads or writes of one client: a request, its answer, the next."""
        if descriptor.command not in (READ, WRITE):
            self._refuse(context, RefusedError("a stream is of reads or of writes, say which"))
        with self._call_of(context) as peer:
            try:
                writer.begin(SCHEMA)
            except pa.ArrowException as error:
                self._refuse(context, RefusedError(f"no answer can be written: {error}"))
            stream = FlightStream(self, peer, descriptor.command == WRITE)
            try:
                while not self.stopped.is_set() and self._answer(context, stream, reader, writer):
                    pass
            finally:
                stream.end()

    def _answer(self, context: Any, stream: FlightStream, reader: Any, writer: Any) -> bool:
        """Answer the next request of a stream; False where that was the last."""
        try:
            chunk = reader.read_chunk()
        except StopIteration:
            return False
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, MemoryError):
                self._refuse(context, RefusedError(f"a message cannot be decoded: {error}"))
            if not isinstance(error, (fl.FlightCancelledError, fl.FlightUnavailableError)):
                self.refused(context.peer(), error)
            return False
        with self._busy:
            header, values, is_over = stream.answer(chunk)
            if values is not None:
                self.bytes_sent += values.nbytes
            writer.write_with_metadata(pack(None, values), header_bytes(header))
            stream.sent()
        return not is_over

    def do_action(self, context: Any, action: fl.Action) -> Iterator[fl.Result]:
        """A verb: JSON in, JSON out; errors are in the answer."""
        with self._call_of(context) as peer:
            if action.type in WAITING:
                yield from self._act(context, action, peer)
            else:
                with self._busy:
                    yield from self._act(context, action, peer)

    def _act(self, context: Any, action: fl.Action, peer: Peer) -> Iterator[fl.Result]:
        try:
            with self.held.working(peer):
                answer = self._called(action, peer)
        except Exception as error:  # noqa: BLE001 (a handler that raises would end the call untyped)
            self.refused(context.peer(), error)
            answer = error_header(error)
        yield fl.Result(header_bytes(answer))

    def _called(self, action: fl.Action, peer: Peer) -> dict[str, Any]:
        """What a verb answers."""
        size = 0 if action.body is None else action.body.size
        most = MAX_ACTION_BYTES if action.type in LARGE else MAX_SMALL_BYTES
        self.held.moved(peer, heard=size)
        if size > most:
            raise RefusedError(f"an action may have {most} bytes")
        verb = self._verbs().get(action.type)
        if verb is None:
            raise RefusedError(
                f"no action {action.type!r:.80}; there are: {', '.join(self._verbs())}"
            )
        body = action.body.to_pybytes() if size else b"{}"
        with self.held.holding("this request", json_bytes(body), peer):
            request = parsed(body)
            self.service.require_same(request.get("server"))
            return verb(request)

    def list_actions(self, context: Any) -> list[tuple[str, str]]:
        """The verbs, each with what it does."""
        return [(name, (verb.__doc__ or "").strip()) for name, verb in self._verbs().items()]

    def do_get(self, context: Any, ticket: fl.Ticket) -> fl.RecordBatchStream:
        """All rows of this shard of a sparse table: a ticket is the table's name."""
        with ExitStack() as its:
            peer = its.enter_context(self._call_of(context))
            try:
                hosted, spec = self._table(ticket.ticket)
                reading = Reading(hosted, spec, self.held, peer, its)
            except Exception as error:  # noqa: BLE001 (Flight would send its traceback)
                self._refuse(context, error)
            its.enter_context(self._busy)
            # Flight lets go of it however the call ends, also where it has not begun to read.
            weakref.finalize(reading, its.pop_all().close)
        return fl.GeneratorStream(reading.schema, reading)

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Rows of this shard into an empty sparse table, as `do_get` gave them."""
        with self._call_of(context) as peer, self._busy:
            try:
                hosted, spec = self._table(descriptor.command)
                fill(hosted, spec, reader, self.held, peer)
            except Exception as error:  # noqa: BLE001 (as above)
                self._refuse(context, error)

    @contextmanager
    def _call_of(self, context: Any) -> Iterator[Peer]:
        """The connection of a call. The call ends with an error where it is one too many."""
        with ExitStack() as its:
            try:
                peer = its.enter_context(self.held.call_of(peer_name(context.peer())))
            except RefusedError as error:
                self._refuse(context, error)
            yield peer

    def _table(self, name: bytes | None) -> tuple[Hosted, SparseTableSpec]:
        """What is hosted, and of it the sparse table of a name. TableError if there is none."""
        hosted = self.service.hosted
        said = (name or b"").decode(errors="replace")
        if said not in hosted.server.sparse:
            known = ", ".join(hosted.server.sparse) or "none"
            raise TableError(f"no sparse table {said!r:.80} here; there are: {known}")
        return hosted, hosted.deployment.plan.sparse_table(said)

    def _refuse(self, context: Any, error: Exception) -> NoReturn:
        """End a call that has no answer to put an error into; the client reads it all the same."""
        self.refused(context.peer(), error)
        header = error_header(error)
        text = header["message"] = header["message"][:MAX_ERROR]
        raise fl.FlightServerError(text, extra_info=header_bytes(header)) from None

    # Verbs.

    def _verbs(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        return {
            "hello": self.service.configure,
            "form": self._form,
            "stats": self._stats,
            **self.members.verbs(),
            "dismiss": self._dismiss,
            **self.rounds.verbs(),
            **self.saves.verbs(),
            "stop": self._stop,
        }

    def _form(self, request: dict[str, Any]) -> dict[str, Any]:
        """Give the server its cluster unless it has one."""
        return {"cluster": self.service.form(text(request, "cluster"))}

    def _stats(self, request: dict[str, Any]) -> dict[str, Any]:
        """Rows, bytes, latencies and counts of this server, a ServerReport."""
        sizes = {"bytes_sent": self.bytes_sent, "bytes_received": self.bytes_received}
        report = {**self.service.report(), **sizes, "address": self.address}
        return {"report": report, "stats": self.service.stats()}

    def _dismiss(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take no more writes of these clients, once the one under way of each is applied."""
        for client in texts(request, "clients"):
            self.service.sessions.of(client).take_over(DISMISSED, NEVER)
        return {}

    def _stop(self, request: dict[str, Any]) -> dict[str, Any]:
        """End this server."""
        self.stop()
        return {}

    def _look_for_lost(self) -> None:
        """Look for members and clients that have fallen silent."""
        self.runs.check()
        self.rounds.check()

    def refused(self, peer: str, error: BaseException) -> None:
        """Count and log a request that was refused; each kind from a peer once."""
        self.service.note_refusal()
        self._refusals.log(peer, error)


def serve(server: FlightServer, is_asked: Callable[[], bool] = lambda: False) -> bool:
    """Wait until the server is to stop, and end it, as `FlightServer.end` says.

    is_asked: whether it is to; looked at a few times a second.
    """
    started = time.monotonic()
    while not (server.stopped.wait(LOOK_S) or is_asked()):
        pass
    has_ended = server.end()
    LOG.info("event=stopped address=%s uptime_s=%.1f", server.address, time.monotonic() - started)
    return has_ended
