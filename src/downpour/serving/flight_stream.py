"""One exchange with a client: its requests, checked and answered one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from downpour.serving.fields import text, whole
from downpour.wire import error_header, header_of, message_of

if TYPE_CHECKING:
    from downpour.serving.flight_server import FlightServer

MAX_CLIENT = 256  # characters of a client's identity, which is kept for good


class FlightStream:
    """The state of one exchange: who the client is, once it has said so."""

    def __init__(self, server: FlightServer, peer: str, is_write: bool) -> None:
        self._server, self._peer, self._is_write = server, peer, is_write
        self._client: str | None = None

    def answer(self, chunk: Any) -> tuple[dict[str, Any], Any, bool]:
        """Header and values of the answer to a chunk, and whether the stream ends with it."""
        number: Any = None
        try:
            asked = header_of(chunk)
            number = asked.get("n")
            message = message_of(chunk, asked, self._server.max_message_bytes)
            self._server.bytes_received += message.keys.nbytes + message.values.nbytes
            header, values = self._handle(message)
        except Exception as error:  # noqa: BLE001 (raised, it would end the stream untyped)
            self._server.refused(self._peer, error)
            is_over = number is None or self._client is None
            return {**error_header(error), "n": number}, None, is_over
        return {**header, "n": number}, values, False

    def _handle(self, message: Any) -> tuple[dict[str, Any], Any]:
        service = self._server.service
        if self._client is None:
            return self._hello(message.header), None
        service.require_same(message.header.get("incarnation") or 0)
        if self._is_write:
            return service.write(message, service.sessions.of(self._client), self), None
        return service.read(message, self._client)

    def _hello(self, header: dict[str, Any]) -> dict[str, Any]:
        client = text(header, "client", most=MAX_CLIENT)
        service = self._server.service
        answer = service.greeting()
        if self._is_write:
            connection = whole(header, "connection", default=0)
            answer["last"] = service.sessions.of(client).take_over(self, connection)
        self._client = client
        return answer
