"""Who may talk to servers, and how it is kept from others: a token, TLS, certificates of both."""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from downpour.errors import SettingError
from downpour.local_path import local_path

if TYPE_CHECKING:
    from pathlib import Path

LOG = logging.getLogger("downpour.security")
MIN_TOKEN = 16
OTHERS = 0o044  # permission of the group, and of all, to read
PROBE_S = 2.0
WANTS_CERTIFICATE = (
    "it takes clients with a certificate of its authority alone: give one (Security.certificate "
    "and key, --tls-certificate and --tls-key)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Security:
    """Settings of one end of a connection; files are PEM.

    token: what every request must bring; at least 16 characters, the same for all.
    certificate, key: this end's own. A server with them speaks TLS.
    token_file: where the token was read from.
    authority: the certificates that the other end's must be signed by. A server with it takes only
    clients that have one (mutual TLS); a client with it speaks TLS.
    """

    token: str | None = field(default=None, repr=False)
    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None
    token_file: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise SettingError(
                "Security.certificate and Security.key come together, got one of them"
            )
        if self.token is not None and len(self.token) < MIN_TOKEN:
            raise SettingError(
                f"Security.token must have at least {MIN_TOKEN} characters, got {len(self.token)}; "
                "make one with: python -c 'import secrets; print(secrets.token_hex(32))'"
            )
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise SettingError("Security.token must be printable ASCII, as it goes into a header")
        for name in ("certificate", "key", "authority"):
            path = getattr(self, name)
            if path is None:
                continue
            path = local_path(path, f"Security.{name}")
            object.__setattr__(self, name, path)
            if not path.is_file():
                raise SettingError(f"Security.{name}: there is no file {path}")
        self._check_files()

    @classmethod
    def of_files(
        cls,
        *,
        token_file: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        authority: Path | None = None,
    ) -> Security:
        """As the command line has it: the token is the text of a file, so that no `ps` shows it."""
        plain = cls(certificate=certificate, key=key, authority=authority)
        if key is not None:
            warn_of_readers(key, "key")
        if token_file is None:
            return plain
        if not token_file.is_file():
            raise SettingError(f"there is no token file {token_file}")
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError:
            raise SettingError(f"the token file {token_file} is no text") from None
        warn_of_readers(token_file, "token")
        return replace(plain, token=token, token_file=token_file)

    def _check_files(self) -> None:
        """Raise SettingError for files that TLS cannot take: gRPC would say little of them."""
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            if self.authority is not None:
                context.load_verify_locations(self.authority)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key, password="")
        except (OSError, ValueError) as error:  # of ssl too
            raise SettingError(
                f"Security.certificate {self.certificate}, Security.key {self.key} and "
                f"Security.authority {self.authority} must be PEM, the key that of the certificate "
                f"and without a passphrase: {error}"
            ) from None

    @property
    def serves_tls(self) -> bool:
        """Whether a server with it speaks TLS."""
        return self.certificate is not None

    @property
    def asks_tls(self) -> bool:
        """Whether a client with it speaks TLS."""
        return self.authority is not None


def warn_of_readers(path: Path, what: str) -> None:
    """Log a warning where others than the file's owner can read a secret."""
    mode = path.stat().st_mode & 0o777
    if mode & OTHERS:
        LOG.warning(
            "the %s file %s can be read by others (mode %03o), who can then do what you can; do: "
            "chmod 600 %s",
            *(what, path, mode, path),
        )


def require_safe(host: str, security: Security) -> None:
    """Refuse to listen where others can reach a server that has no token, or without the TLS that
    is meant. Raises SettingError.
    """
    if security.authority is not None and not security.serves_tls:
        raise SettingError(
            "a server with an authority takes clients with certificates, and needs its own: give "
            "it --tls-certificate and --tls-key"
        )
    if security.token is None and not is_loopback(host):
        raise SettingError(
            f"a server without a token listens on loopback only, got host {host!r}; give it a "
            "--token-file, and TLS (--tls-certificate, --tls-key) where the network is not yours"
        )


def is_loopback(host: str) -> bool:
    """Whether all addresses of a host are of this machine alone."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        raise SettingError(f"host {host!r} has no address; give an IP or a name") from None
    return all(ipaddress.ip_address(str(each).split("%")[0]).is_loopback for each in found)


def tls_fault(host: str, port: int, security: Security, *, asks_tls: bool) -> str | None:
    """Why a client gets no connection because of TLS, and what to do; None for other reasons.

    It looks by connections of its own, as all that gRPC says of most faults is "Socket closed".
    """
    # A server that is ending hangs up as well, but not twice.
    faults = {_probe(host, port, security, asks_tls) for _ in range(2)}
    return faults.pop() if len(faults) == 1 else None


def _probe(host: str, port: int, security: Security, asks_tls: bool) -> str | None:
    try:
        context = _context(security, asks_tls)
        plain = socket.create_connection((host, port), PROBE_S)
        with plain, context.wrap_socket(plain, server_hostname=host) as secured:
            if not asks_tls:
                return "it speaks TLS: give its authority (Security.authority, --tls-authority)"
            # A server speaks first, unless it has hung up for want of a certificate.
            return None if secured.recv(1) else WANTS_CERTIFICATE
    except ssl.SSLCertVerificationError as error:
        reason = error.verify_message.rstrip(".")
        return (
            f"its certificate does not hold, {reason}: give the authority that has signed it "
            "(Security.authority, --tls-authority), and the host that it is for"
        )
    except ssl.SSLError as error:
        if asks_tls and error.reason == "WRONG_VERSION_NUMBER":
            return "it speaks no TLS: start it with --tls-certificate and --tls-key, or ask without"
        return None
    except (OSError, ValueError):
        return None


def _context(security: Security, asks_tls: bool) -> ssl.SSLContext:
    """As gRPC connects; of a server that is asked without TLS nothing is believed."""
    if asks_tls:
        context = ssl.create_default_context(cafile=security.authority)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # gRPC takes plainer authorities
        if security.certificate is not None:
            context.load_cert_chain(security.certificate, security.key)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context
