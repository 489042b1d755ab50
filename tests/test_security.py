"""Who may talk to a server: a token for every call, TLS, certificates of both ends, loopback."""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.flight as fl
import pytest

from downpour.errors import DownpourError, RefusedError, ServerLostError, SettingError
from downpour.remote.connect import connect
from downpour.remote.endpoint import Endpoint
from downpour.security import Security, is_loopback
from downpour.serving.flight_server import FlightServer
from downpour.serving.service import Service
from downpour.wire import SCHEMA, header_bytes, pack
from tests.certificates import Authority, make_authority
from tests.one_shard import serving
from tests.staged import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TOKEN = "correct horse battery staple"
WITH_TOKEN = Security(token=TOKEN)
COMMAND = fl.FlightDescriptor.for_command(b"read")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server() -> Iterator[FlightServer]:
    with serving(Service(), security=WITH_TOKEN) as started:
        yield started


def greeting(server: FlightServer, security: Security, scheme: str = "") -> dict[str, Any]:
    """What a client with this security hears of a server, or raises."""
    endpoint = Endpoint(f"{scheme}127.0.0.1:{server.port}", 0, security)
    with endpoint.connect(5.0) as connection:
        return endpoint.ask(connection, "stats", {}, 20.0)


# The token.


def exchange(client: fl.FlightClient, options: fl.FlightCallOptions) -> object:
    writer, reader = client.do_exchange(COMMAND, options)
    try:
        writer.begin(SCHEMA)
        writer.write_with_metadata(pack(None, None), header_bytes({"client": "one"}))
        return reader.read_chunk()
    finally:
        reader.cancel()
        with suppress(pa.ArrowException, OSError):
            writer.close()


def put(client: fl.FlightClient, options: fl.FlightCallOptions) -> None:
    writer, _ = client.do_put(COMMAND, SCHEMA, options)
    writer.close()


CALLS: dict[str, Callable[[Any, Any], object]] = {
    "exchange": exchange,
    "action": lambda client, options: list(client.do_action(fl.Action("stats", b"{}"), options)),
    "get": lambda client, options: client.do_get(fl.Ticket(b"plain"), options).read_all(),
    "put": put,
    "list of actions": lambda client, options: client.list_actions(options),
    "list of flights": lambda client, options: list(client.list_flights(b"", options)),
    "info": lambda client, options: client.get_flight_info(COMMAND, options),
    "schema": lambda client, options: client.get_schema(COMMAND, options),
}
RIGHT = (b"authorization", f"Bearer {TOKEN}".encode())
HEADERS: dict[str, list[tuple[bytes, bytes]]] = {
    "no token": [],
    "a wrong one": [(b"authorization", b"Bearer correct horse battery stable")],
    "its beginning": [(b"authorization", RIGHT[1][:-1])],
    "it alone": [(b"authorization", TOKEN.encode())],
    "it for another scheme": [(b"authorization", b"Basic " + TOKEN.encode())],
    "it twice": [RIGHT, RIGHT],
    "it and a wrong one": [RIGHT, (b"authorization", b"Bearer x")],
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("call", CALLS)
def test_no_call_is_taken_without_the_token(call: str, name: str, server: FlightServer) -> None:
    with fl.FlightClient(server.address) as client:
        options = fl.FlightCallOptions(timeout=20.0, headers=HEADERS[name])
        # What get_schema raises is only an OSError.
        with pytest.raises((fl.FlightUnauthenticatedError, OSError), match="wrong or no token"):
            CALLS[call](client, options)


def test_with_the_token_a_client_is_served(server: FlightServer) -> None:
    with connect(plan(), [server.address], security=WITH_TOKEN) as client:
        assert client.stats()["plain"].rows == 0
    assert greeting(server, WITH_TOKEN)["report"]["shard"] == 0


@pytest.mark.parametrize(
    "security", [Security(), Security(token="another horse battery staple")], ids=["no", "wrong"]
)
def test_a_client_without_the_token_is_told_to_check_it(
    security: Security, server: FlightServer
) -> None:
    with pytest.raises(RefusedError, match=r"server 0 .* wrong or no token.*check the token"):
        connect(plan(), [server.address], security=security)


def test_the_token_is_in_no_text(server: FlightServer, caplog: pytest.LogCaptureFixture) -> None:
    texts = [repr(WITH_TOKEN), str(WITH_TOKEN), repr(Endpoint(server.address, 0, WITH_TOKEN))]
    with caplog.at_level(logging.DEBUG):
        for other in (Security(token=TOKEN + "?"), WITH_TOKEN):
            with suppress(DownpourError), connect(plan(), [server.address], security=other) as it:
                texts.append(repr(vars(it)))
        with pytest.raises(RefusedError) as caught:
            greeting(server, Security(token=TOKEN + "?"))
        texts += [str(caught.value), repr(caught.value.__context__), repr(vars(server))]
    assert len(texts) == 7
    assert not [text for text in [*texts, caplog.text] if TOKEN in text]


def test_calls_without_the_token_are_logged_once_and_as_they_double(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(Service(), security=WITH_TOKEN) as server, caplog.at_level(logging.WARNING):
        for _ in range(5):
            with suppress(RefusedError):
                greeting(server, Security())
        lines = [record.getMessage() for record in caplog.records]
        assert server.service.num_refused == 5
    assert [line.partition("count=")[2][0] for line in lines] == ["1", "2", "4"]


@pytest.mark.parametrize("token", ["", "too short", "x" * 15], ids=len)
def test_a_token_that_can_be_guessed_is_refused(token: str) -> None:
    with pytest.raises(SettingError, match=r"at least 16 characters, got \d+; make one with") as it:
        Security(token=token)
    assert not token or token not in str(it.value)


@pytest.mark.parametrize("token", ["new\nline and more text", "all but ASCII: \xe4", "\x00" * 16])
def test_a_token_goes_into_a_header(token: str) -> None:
    with pytest.raises(SettingError, match="must be printable ASCII"):
        Security(token=token)


def test_a_token_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    assert Security.of_files(token_file=file).token == TOKEN
    file.write_bytes(b"\xff\xfe" * 16)
    with pytest.raises(SettingError, match=r"the token file .*token is no text"):
        Security.of_files(token_file=file)
    with pytest.raises(SettingError, match="there is no token file"):
        Security.of_files(token_file=tmp_path / "nothing")


# Where a server listens.


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "2001:db8::1", "::ffff:0.0.0.0"])
def test_without_a_token_a_server_listens_on_loopback_alone(host: str) -> None:
    with pytest.raises(SettingError, match=r"loopback only, got host .* --token-file, and TLS"):
        FlightServer(Service(), host=host)


def test_a_name_of_this_machine_is_not_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolved(host: str, port: object, *more: object) -> list[Any]:
        return [(0, 0, 0, "", (address, 0)) for address in ("127.0.0.1", "192.0.2.7")]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    with pytest.raises(SettingError, match="loopback only, got host 'this-machine'"):
        FlightServer(Service(), host="this-machine")


def test_a_host_without_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unresolved(*given: object) -> list[Any]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    with pytest.raises(SettingError, match="host 'nowhere' has no address; give an IP or a name"):
        FlightServer(Service(), host="nowhere")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_is_of_this_machine_alone(host: str) -> None:
    assert is_loopback(host)


def test_with_a_token_a_server_may_listen_everywhere() -> None:
    with serving(Service(), host="0.0.0.0", security=WITH_TOKEN) as server:
        assert greeting(server, WITH_TOKEN)["stats"] == {}


def test_a_port_that_is_taken_is_refused(server: FlightServer) -> None:
    with pytest.raises(SettingError, match=rf"cannot listen at 127.0.0.1:{server.port}: the port"):
        FlightServer(Service(), port=server.port)


# TLS.


def test_tls_and_a_token_go_together(authority: Authority) -> None:
    own = authority.sign("both")
    secured = Security(certificate=own.certificate, key=own.key, token=TOKEN)
    with serving(Service(), security=secured) as server:
        assert server.address.startswith("grpc+tls://")
        asked = Security(authority=authority.file, token=TOKEN)
        with connect(plan(), [server.address], security=asked) as client:
            assert client.stats()["plain"].rows == 0
        with pytest.raises(RefusedError, match="check the token"):
            greeting(server, Security(authority=authority.file))


def test_with_an_authority_a_server_takes_its_clients_alone(
    authority: Authority, tmp_path: Path
) -> None:
    stranger = make_authority(tmp_path, "stranger").sign("client")
    others = Security(certificate=stranger.certificate, key=stranger.key, authority=authority.file)
    mutual = authority.sign("mutual", of=authority)
    with serving(Service(), security=mutual) as server:
        own = authority.sign("client", of=authority)
        with connect(plan(), [server.address], security=own) as client:
            assert client.stats()["plain"].rows == 0
        for without in (Security(authority=authority.file), others):
            with pytest.raises(RefusedError, match=r"clients with a certificate .* --tls-key"):
                greeting(server, without)


def test_a_client_takes_servers_of_its_authority_alone(
    authority: Authority, tmp_path: Path
) -> None:
    other = make_authority(tmp_path, "other")
    with serving(Service(), security=authority.sign("server")) as server:
        with pytest.raises(RefusedError, match=r"does not hold, unable to get .* --tls-authority"):
            connect(plan(), [server.address], security=Security(authority=other.file))
        with pytest.raises(RefusedError, match="its certificate does not hold"):
            greeting(server, Security(), scheme="grpc+tls://")


CERTIFICATES: dict[str, tuple[dict[str, Any], str]] = {
    "another host": ({"hosts": ("example.org",)}, "address mismatch"),
    "another time": ({"is_over": True}, "certificate has expired"),
}


@pytest.mark.parametrize("name", CERTIFICATES)
def test_a_certificate_for_something_else_does_not_hold(name: str, authority: Authority) -> None:
    settings, message = CERTIFICATES[name]
    own = authority.sign(name.replace(" ", "-"), **settings)
    told = pytest.raises(RefusedError, match=rf"does not hold, .*({message}).*: give the authority")
    with serving(Service(), security=own) as server, told:
        greeting(server, Security(authority=authority.file))


def test_one_end_that_speaks_tls_says_so_of_the_other(authority: Authority) -> None:
    told = pytest.raises(RefusedError, match=r"speaks TLS: give its authority .* --tls-authority")
    with serving(Service(), security=authority.sign("alone")) as server, told:
        greeting(server, Security())
    told = pytest.raises(RefusedError, match="speaks no TLS: start it with --tls-certificate")
    with serving(Service()) as server, told:
        greeting(server, Security(authority=authority.file))


def test_of_a_server_that_is_not_there_tls_is_not_the_reason(authority: Authority) -> None:
    with serving(Service(), security=authority.sign("gone")) as server:
        pass
    with pytest.raises(ServerLostError, match="cannot be reached"):
        greeting(server, Security(authority=authority.file))


def test_files_that_tls_cannot_take_are_refused(authority: Authority, tmp_path: Path) -> None:
    own, other = authority.sign("one"), authority.sign("two")
    for settings in (
        {"certificate": own.certificate, "key": other.key},
        {"certificate": own.key, "key": own.key},
        {"authority": own.key},
    ):
        with pytest.raises(SettingError, match="must be PEM, the key that of the certificate"):
            Security(**settings)
    with pytest.raises(SettingError, match=r"Security.certificate and Security.key come together"):
        Security(certificate=own.certificate)
    with pytest.raises(SettingError, match=r"Security\.authority: there is no file"):
        Security(authority=tmp_path / "nothing.pem")


def test_a_server_with_an_authority_needs_a_certificate(authority: Authority) -> None:
    with pytest.raises(SettingError, match="needs its own: give it --tls-certificate"):
        FlightServer(Service(), security=Security(authority=authority.file))
