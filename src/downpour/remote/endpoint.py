"""Where a server is, and one call to it: connections, verbs with a deadline, typed errors."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.flight as fl

from downpour import grpc_log
from downpour.errors import (
    DownpourError,
    RefusedError,
    ServerError,
    ServerLostError,
    ServerTimeoutError,
    SettingError,
)
from downpour.security import Security, tls_fault
from downpour.wire import error_of, parsed

if TYPE_CHECKING:
    from collections.abc import Mapping

ADDRESS = re.compile(
    r"(?:(grpc|grpc\+tcp|grpc\+tls)://)?(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})"
)
RETRY_S = 0.1  # between two tries to connect

grpc_log.silence()


def nothing() -> None:
    """There is nothing to watch."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a server and how to talk to it; raises SettingError for a malformed one.

    `number` is its place among the servers, from 0.
    """

    address: str
    number: int = 0
    security: Security = field(default_factory=Security)

    def __post_init__(self) -> None:
        match = ADDRESS.fullmatch(self.address)
        if match is None or not 0 < int(match[3]) < 2**16:
            raise SettingError(
                f"a server's address must be HOST:PORT, grpc://HOST:PORT or grpc+tls://HOST:PORT, "
                f"got {self.address!r}"
            )

    def __str__(self) -> str:
        return f"server {self.number} ({self.address})"

    @property
    def location(self) -> str:
        """The address as Flight takes it."""
        _, host, port = self._parts
        return f"grpc+{'tls' if self.asks_tls else 'tcp'}://{host}:{port}"

    @property
    def asks_tls(self) -> bool:
        """Whether it is asked by TLS."""
        scheme = self._parts[0]
        return scheme == "grpc+tls" or (scheme is None and self.security.asks_tls)

    def connect(self, timeout_s: float) -> fl.FlightClient:
        """A new connection, of its own TCP; it is made at the first call.

        timeout_s: that of its calls. A server that hangs is to end one of them, and not the try to
        connect, which looks as if nobody were there.
        """
        milliseconds = int((timeout_s + 2.0) * 1000)
        options: list[tuple[str, int]] = [
            ("grpc.use_local_subchannel_pool", 1),  # else a broken connection is shared
            ("grpc.min_reconnect_backoff_ms", milliseconds),  # how long one try may take
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        own = self.security
        tls: dict[str, bytes] = {}
        if own.authority is not None:
            tls["tls_root_certs"] = own.authority.read_bytes()
        if own.certificate is not None and own.key is not None and self.asks_tls:
            tls |= {"cert_chain": own.certificate.read_bytes(), "private_key": own.key.read_bytes()}
        return fl.FlightClient(self.location, generic_options=options, **tls)

    def options(self, timeout_s: float | None = None) -> fl.FlightCallOptions:
        """Of a call: its deadline and the token."""
        token = self.security.token
        headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
        return fl.FlightCallOptions(timeout=timeout_s, headers=headers)

    def ask(
        self,
        connection: fl.FlightClient,
        verb: str,
        request: Mapping[str, Any],
        timeout_s: float,
        *,
        name: str | None = None,
        is_known: bool = False,
    ) -> dict[str, Any]:
        """Call a verb and give its answer, or the error in it; raises ServerError.

        name: of the request in errors. is_known: the server was reached before, so that TLS is no
        reason if it is not now.
        """
        try:
            action = fl.Action(verb, json.dumps(request).encode())
            results = list(connection.do_action(action, self.options(timeout_s)))
        except (pa.ArrowException, OSError) as error:
            raise self.typed(error, name or repr(verb), timeout_s, is_known=is_known) from None
        answer: dict[str, Any] = json.loads(results[0].body.to_pybytes())
        return answer

    def typed(
        self, error: BaseException, request: str, timeout_s: float, *, is_known: bool = True
    ) -> DownpourError:
        """What an error of Flight means: that of the server where it has told, else ServerError.

        RefusedError where token or TLS do not fit.
        """
        told = getattr(error, "extra_info", None)
        if told:
            return error_of(parsed(told), str(self))
        text = " ".join(str(error).split())[:300]
        match error:
            case fl.FlightTimedOutError():
                return ServerTimeoutError(
                    f"{self} did not answer {request} within {timeout_s:.3g} s: it hangs or is "
                    "overloaded"
                )
            case fl.FlightUnauthenticatedError() | fl.FlightUnauthorizedError():
                return RefusedError(f"{self} refused {request}: {text}; check the token")
            case fl.FlightUnavailableError():
                _, host, port = self._parts
                own = self.security
                fault = None
                if not is_known:
                    fault = tls_fault(host.strip("[]"), int(port), own, asks_tls=self.asks_tls)
                if fault is not None:
                    return RefusedError(f"{self} takes no connection for {request}: {fault}")
                return ServerLostError(f"{self} cannot be reached for {request}: {text}")
        return ServerError(f"{self} failed at {request}: {text}")

    @property
    def _parts(self) -> tuple[str | None, str, str]:
        """Scheme, host and port."""
        match = ADDRESS.fullmatch(self.address)
        assert match is not None
        return match[1], match[2], match[3]
