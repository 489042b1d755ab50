"""A server on the network: Arrow Flight in front of a `Service`."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.flight as fl

from downpour import grpc_log
from downpour.errors import RefusedError, SettingError, TableError
from downpour.local_path import WRITE_ELSEWHERE, local_path
from downpour.row_batches import check_columns, read_rows, row_batches, rows_schema
from downpour.security import Security, require_safe
from downpour.serving.busy import Busy
from downpour.serving.fields import flag, number, text, texts, whole
from downpour.serving.flight_stream import FlightStream
from downpour.serving.members import CHIEF
from downpour.serving.refusals import LOG, LoggedOnce, TokenCheck
from downpour.serving.round_verbs import RoundVerbs
from downpour.serving.runs import Runs
from downpour.serving.save_verbs import SaveVerbs
from downpour.tables import dedup
from downpour.wire import SCHEMA, error_header, header_bytes, pack, parsed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import NoReturn

    from downpour.plan.specs import SparseTableSpec
    from downpour.serving.hosted import Hosted
    from downpour.serving.service import Service

READ, WRITE = b"read", b"write"
WAITING = {"meet", "ask", "watch_round"}  # verbs whose callers mostly wait: nothing works for them
MAX_ACTION_BYTES = 64 << 20
ANY_TEXT = "surrogatepass"  # JSON has texts that are no UTF-8
MAX_ERROR = 1000  # characters of an error that ends a call
TICK_S = 0.25
ANSWER_S = 5.0  # how long a server that is to stop waits for the requests in progress
LOOK_S = 0.2  # between two looks at whether it is to stop
SHUTDOWN_S = 0.5  # and then for answers to be sent and streams to end
DISMISSED = object()  # who owns the writes of a client that takes part no more
NEVER = 1 << 62  # a number of connections that no client comes to

grpc_log.silence()


class FlightServer(fl.FlightServerBase):  # type: ignore[misc]
    """Serves a `Service` at `host`:`port` (0: any free one, see `port`) until `stop`.

    max_message_bytes: of keys and values of one message, at most. save_root: the folder of the
    saves that clients ask for; None takes none. Raises SettingError for a host that others can
    reach, without a token, and for a `save_root` that is a file.
    """

    def __init__(
        self,
        service: Service,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        security: Security | None = None,
        max_message_bytes: int = 256 << 20,
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
        middleware = {} if token is None else {"token": TokenCheck(token, self.refused)}
        self.service, self.host = service, host
        self.max_message_bytes = max_message_bytes
        self.saves = SaveVerbs(service, None if save_root is None else save_root.resolve())
        self.runs, self.rounds = Runs(), RoundVerbs(lambda: service.hosted.staging.committed)
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
        self._ticker = threading.Thread(target=self._tick, name="downpour members", daemon=True)
        self._ticker.start()

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
        writer.begin(SCHEMA)
        stream = FlightStream(self, context.peer(), descriptor.command == WRITE)
        while not self.stopped.is_set():
            try:
                chunk = reader.read_chunk()
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as error:
                if not isinstance(error, (fl.FlightCancelledError, fl.FlightUnavailableError)):
                    self.refused(context.peer(), error)
                return
            with self._busy:
                header, values, is_over = stream.answer(chunk)
                if values is not None:
                    self.bytes_sent += values.nbytes
                writer.write_with_metadata(pack(None, values), header_bytes(header))
            if is_over:
                return

    def do_action(self, context: Any, action: fl.Action) -> Iterator[fl.Result]:
        """A verb: JSON in, JSON out; errors are in the answer."""
        if action.type in WAITING:
            yield self._act(context, action)
        else:
            with self._busy:
                yield self._act(context, action)

    def _act(self, context: Any, action: fl.Action) -> fl.Result:
        try:
            if action.body is not None and action.body.size > MAX_ACTION_BYTES:
                raise RefusedError(f"an action may have {MAX_ACTION_BYTES} bytes")
            if action.type not in self._verbs():
                raise RefusedError(
                    f"no action {action.type!r:.80}; there are: {', '.join(self._verbs())}"
                )
            body = action.body.to_pybytes() if action.body is not None else b""
            request = parsed(body or b"{}")
            self.service.require_same(request.get("server"))
            answer = self._verbs()[action.type](request)
        except Exception as error:  # noqa: BLE001 (a handler that raises would end the call untyped)
            self.refused(context.peer(), error)
            answer = error_header(error)
        return fl.Result(header_bytes(answer))

    def list_actions(self, context: Any) -> list[tuple[str, str]]:
        """The verbs, each with what it does."""
        return [(name, (verb.__doc__ or "").strip()) for name, verb in self._verbs().items()]

    def do_get(self, context: Any, ticket: fl.Ticket) -> fl.RecordBatchStream:
        """All rows of this shard of a sparse table as of now: a ticket is the table's name."""
        try:
            hosted, spec = self._table(ticket.ticket)
            state = hosted.export(spec.name)
        except Exception as error:  # noqa: BLE001 (Flight would send its traceback)
            self._refuse(context, error)
        return fl.GeneratorStream(rows_schema(spec, state), self._busily(row_batches(spec, state)))

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Rows of this shard into an empty sparse table, as `do_get` gave them."""
        with self._busy:
            self._put(context, descriptor, reader)

    def _put(self, context: Any, descriptor: Any, reader: Any) -> None:
        try:
            hosted, spec = self._table(descriptor.command)
            check_columns(spec, reader.schema)
            rows = reader.read_all()
            rows.validate(full=True)  # what comes over the wire may lead out of its buffers
            state = read_rows(spec, rows)
            if len(dedup(state.keys)[0]) < len(state.keys):
                raise TableError(f"table {spec.name!r}: rows to be restored must differ in key")
            hosted.restore(spec.name, state)
        except pa.ArrowException as error:
            self._refuse(context, RefusedError(f"these rows are malformed: {error}"))
        except Exception as error:  # noqa: BLE001 (as above)
            self._refuse(context, error)

    def _busily(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with self._busy:
            yield from batches

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
            "join": self._join,
            "beat": self._beat,
            "leave": self._leave,
            "meet": self._meet,
            "members": self._list_members,
            "halt": self._halt,
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

    def _join(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make a worker or the chief a member of the run, the first one says of which."""
        self.runs.join(
            text(request, "run"),
            *_who(request),
            num_workers=whole(request, "num_workers"),
            timeout_s=number(request, "timeout_s"),
            on_loss=text(request, "on_loss"),
        )
        return {}

    def _beat(self, request: dict[str, Any]) -> dict[str, Any]:
        """Hear that a member lives, and what it reports; tell it whether to stop."""
        report = request.get("report")
        if not isinstance(report, dict):
            raise RefusedError("a beat brings a report, a JSON object")
        return {"stop": self.runs.members.beat(*_who(request), report)}

    def _leave(self, request: dict[str, Any]) -> dict[str, Any]:
        """Let a member go: it has finished, or failed with an error."""
        error = None if request.get("error") is None else text(request, "error")
        self.runs.members.leave(*_who(request), error)
        return {}

    def _meet(self, request: dict[str, Any]) -> dict[str, Any]:
        """A barrier with an exchange; `not_yet` where it has to be asked again."""
        payload = request.get("payload", "")
        if not isinstance(payload, str):
            raise RefusedError("what is brought to a meeting must be a text")
        met = self.runs.members.meet(
            text(request, "name"),
            *_who(request),
            payload.encode(errors=ANY_TEXT),
            with_chief=flag(request, "with_chief"),
            wait_s=min(number(request, "wait_s"), 60.0),
        )
        if met is None:
            return {"not_yet": True}
        brought = {str(rank): data.decode(errors=ANY_TEXT) for rank, data in met.items()}
        return {"payloads": brought}

    def _list_members(self, request: dict[str, Any]) -> dict[str, Any]:
        """The members of the run with their last reports."""
        return {"members": [_member(it) for it in self.runs.members.snapshot()]}

    def _halt(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ask the workers of the run to stop after their step."""
        self.runs.members.request_stop(text(request, "reason"))
        return {}

    def _dismiss(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take no more writes of these clients, once the one under way of each is applied."""
        for client in texts(request, "clients"):
            self.service.sessions.of(client).take_over(DISMISSED, NEVER)
        return {}

    def _stop(self, request: dict[str, Any]) -> dict[str, Any]:
        """End this server."""
        self.stop()
        return {}

    def _tick(self) -> None:
        """Look for members and clients that have fallen silent."""
        while not self.stopped.wait(TICK_S):
            try:
                self.runs.check()
                self.rounds.check()
            except Exception:  # noqa: BLE001 (members that are lost must be found whatever it was)
                LOG.exception("event=failed at=members")  # and look again

    def refused(self, peer: str, error: BaseException) -> None:
        """Count and log a request that was refused; each kind from a peer once."""
        self.service.note_refusal()
        self._refusals.log(peer, error)


def _who(request: dict[str, Any]) -> tuple[int, int]:
    return whole(request, "rank", least=CHIEF), whole(request, "incarnation")


def _member(member: Any) -> dict[str, Any]:
    return {
        "rank": member.rank,
        "incarnation": member.incarnation,
        "state": member.state,
        "seen_s_ago": member.seen_s_ago,
        "report": member.report,
        "error": member.error,
    }


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
