"""A certificate authority of one's own, for a single operator: the server's and each login's.

Keys are of P-256, mode 0600. What is there is kept until a month before its end. A team brings its
own certificates under the same names.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from executor.cli.base import read_file, write_file
from executor.cli.modules import write_secret
from executor.errors import ExecutorError

_CA_DAYS: Final = 3650
_DAYS: Final = 365
_RENEW: Final = dt.timedelta(days=30)
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")


class Authority:
    """`tls/ca.pem` and `tls/ca.key` in a folder; made the first time. Errors  `config.*`."""

    def __init__(self, folder: Path, now: dt.datetime) -> None:
        self._folder, self._now = folder, now
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "ca.pem").exists():
            self._make(folder / "ca", "executor CA", ca=True)
        try:
            self._certificate = x509.load_pem_x509_certificate(read_file(folder / "ca.pem"))
            key = serialization.load_pem_private_key(read_file(folder / "ca.key"), None)
        except ValueError as error:
            raise ExecutorError("config.invalid", f"`{folder}`: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ExecutorError("config.invalid", f"`{folder / 'ca.key'}` is no key of P-256")
        self._key = key

    def server(self, *hosts: str) -> bool:
        """The server's certificate for these hosts and loopback; whether it was made now."""
        return self._renewed(self._folder / "server", "executor nats-server",
                             tuple(dict.fromkeys((*_LOCAL, *hosts))))  # fmt: skip

    def client(self, base: Path) -> bool:
        """A login's certificate, `base`.pem and `base`.key; whether it was made now."""
        return self._renewed(base, base.name, ())

    def _renewed(self, base: Path, name: str, hosts: tuple[str, ...]) -> bool:
        pem = base.with_name(f"{base.name}.pem")
        if pem.exists():
            there = x509.load_pem_x509_certificate(read_file(pem))
            if there.not_valid_after_utc - self._now > _RENEW:
                return False
            base.with_name(f"{base.name}.key").unlink(missing_ok=True)
        self._make(base, name, hosts=hosts)
        return True

    def _make(
        self, base: Path, name: str, *, ca: bool = False, hosts: tuple[str, ...] = ()
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if ca else self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - dt.timedelta(minutes=5))
            .not_valid_after(self._now + dt.timedelta(days=_CA_DAYS if ca else _DAYS))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None),
                           critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
                           critical=False)
        )  # fmt: skip
        issuer = key.public_key() if ca else self._key.public_key()
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False
        )
        builder = builder.add_extension(_usage(ca=ca), critical=True)
        if not ca:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if hosts:
            names = x509.SubjectAlternativeName([_host(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(key if ca else self._key, hashes.SHA256())
        write_secret(base.with_name(f"{base.name}.key"), key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ))  # fmt: skip
        write_file(base.with_name(f"{base.name}.pem"),
                   certificate.public_bytes(serialization.Encoding.PEM))  # fmt: skip


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
