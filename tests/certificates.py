"""Certificates that tests make for themselves: an authority, and what it has signed."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from downpour.security import Security

if TYPE_CHECKING:
    from pathlib import Path

    Key = ec.EllipticCurvePrivateKey

DAY = datetime.timedelta(days=1)
HOSTS = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Authority:
    """An authority and its certificate's file; what it signs goes beside it."""

    name: str
    key: Key
    certificate: x509.Certificate
    folder: Path

    @property
    def file(self) -> Path:
        """What the other end is given to check certificates with."""
        return self.folder / f"{self.name}.pem"

    def sign(
        self,
        subject: str,
        *,
        hosts: tuple[str, ...] = HOSTS,
        is_over: bool = False,
        of: Authority | None = None,
    ) -> Security:
        """A certificate for hosts, and its key; with the authority `of` what others come with.

        is_over: its time is.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([_host(host) for host in hosts])
        start = _now() - (3 * DAY if is_over else DAY)
        request = _request(subject, key, self.certificate.subject, start)
        signed = request.add_extension(names, critical=False).sign(self.key, hashes.SHA256())
        certificate, own = self.folder / f"{subject}.pem", self.folder / f"{subject}.key"
        certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        own.write_bytes(_private(key))
        return Security(certificate=certificate, key=own, authority=None if of is None else of.file)


def make_authority(folder: Path, name: str = "authority") -> Authority:
    """A new authority, its certificate in folder/name.pem."""
    key = ec.generate_private_key(ec.SECP256R1())
    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = _request(name, key, own, _now() - DAY)
    basic = x509.BasicConstraints(ca=True, path_length=None)
    certificate = request.add_extension(basic, critical=True).sign(key, hashes.SHA256())
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return Authority(name, key, certificate, folder)


def _request(
    subject: str, key: Key, issuer: x509.Name, start: datetime.datetime
) -> x509.CertificateBuilder:
    """A certificate of two days, to be signed."""
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + 2 * DAY)
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
