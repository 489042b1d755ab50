"""One exchange with a client: its requests, checked and answered one after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow.flight as fl

from downpour.errors import RefusedError
from downpour.serving.answers import answer_bytes
from downpour.serving.fields import text, whole
from downpour.serving.held import json_bytes
from downpour.wire import error_header, header_of, message_of

if TYPE_CHECKING:
    import pyarrow as pa

    from downpour.serving.flight_server import FlightServer
    from downpour.serving.held import Peer
    from downpour.serving.sessions import Session
    from downpour.wire import Message

MAX_CLIENT = 256  # characters of a client's identity, which is kept for long
WORK_FACTOR = 3  # of a message while it is worked on: it, its different keys, sums of theirs
SPARE_BYTES = 2048  # of a message that are neither keys nor values


class FlightStream:
    """The state of one exchange: who the client is, once it has said so."""

    def __init__(self, server: FlightServer, peer: Peer, is_write: bool) -> None:
        self._server, self._peer, self._is_write = server, peer, is_write
        self._client: str | None = None
        self._session: Session | None = None
        self._answer_bytes = 0  # that are held for the last answer

    def answer(self, chunk: Any) -> tuple[dict[str, Any], Any, bool]:
        """Header and values of the answer to a chunk, and whether the stream ends with it."""
        self.sent()
        number: Any = None
        try:
            size, header_size = self._hear(chunk)
            asked = header_of(chunk)
            number = asked.get("n")
            message = message_of(chunk, asked, self._server.service.held.limits.message_bytes)
            self._server.bytes_received += message.keys.nbytes + message.values.nbytes
            needs = WORK_FACTOR * size + header_size
            header, values = self._handle(_compact(message, size), needs)
        except Exception as error:  # noqa: BLE001 (raised, it would end the stream untyped)
            self._server.refused(self._peer.name, error)
            is_over = number is None or self._client is None
            return {**error_header(error), "n": number}, None, is_over
        return {**header, "n": number}, values, False

    def sent(self) -> None:
        """The last answer was sent."""
        held = self._server.service.held
        if self._answer_bytes:
            held.moved(self._peer, sent=self._answer_bytes)
            held.give(self._answer_bytes, self._peer)
            self._answer_bytes = 0

    def end(self) -> None:
        """The stream is over."""
        self.sent()
        if self._session is not None:
            self._session.end(self)

    def _hear(self, chunk: Any) -> tuple[int, int]:
        """The bytes of a chunk's message, and of its header when it is parsed."""
        metadata = chunk.app_metadata
        head = b"" if metadata is None else metadata.to_pybytes()
        body = 0
        if isinstance(chunk, fl.FlightStreamChunk) and chunk.data is not None:
            body = received_bytes(chunk.data)
        self._server.service.held.moved(self._peer, heard=max(body, len(head)))
        return body, json_bytes(head)

    def _handle(self, message: Message, num_bytes: int) -> tuple[dict[str, Any], Any]:
        service = self._server.service
        service.held.take("this request", num_bytes, self._peer)
        try:
            if self._client is None:
                return self._hello(message.header), None
            service.require_same(message.header.get("incarnation") or 0)
            if self._is_write:
                return service.write(message, service.sessions.of(self._client), self), None
            self._take(answer_bytes(service.hosted, message))
            return service.read(message, self._client)
        finally:
            service.held.give(num_bytes, self._peer)

    def _take(self, num_bytes: int) -> None:
        self._server.service.held.take("the answer to this request", num_bytes, self._peer)
        self._answer_bytes = num_bytes

    def _hello(self, header: dict[str, Any]) -> dict[str, Any]:
        client = text(header, "client", most=MAX_CLIENT)
        service = self._server.service
        answer = service.greeting()
        if self._is_write:
            connection = whole(header, "connection", default=0)
            self._session = service.sessions.of(client)
            answer["last"] = self._session.take_over(self, connection)
        self._client = client
        return answer


def received_bytes(batch: pa.RecordBatch) -> int:
    """The size of the message in which a batch came from the network.

    What came compressed is refused: RefusedError. Values that did not are a part of the message's
    memory; those that did have memory of their own. Looks at the values of columns alone: offsets
    and masks cannot be much larger.
    """
    num_bytes = 0
    for column in batch.columns if batch.num_rows else ():
        values = column.buffers()[-1]
        if values is None or not values.size:
            continue
        whole = values.parent
        if whole is None:
            raise RefusedError(
                "a record batch must not be compressed: leave out the compression of its "
                "IpcWriteOptions"
            )
        while (outer := whole.parent) is not None:
            whole = outer
        num_bytes = max(num_bytes, whole.size)
    return num_bytes


def _compact(message: Message, size: int) -> Message:
    """The same, without the memory that came with it if much of that is neither keys nor values."""
    content = message.keys.nbytes + message.values.nbytes
    if size <= content + content // 4 + SPARE_BYTES:
        return message
    return replace(message, keys=message.keys.copy(), values=message.values.copy())
