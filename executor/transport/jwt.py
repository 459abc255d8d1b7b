"""NATS keys and the JWTs of operator mode, as nats-server reads them (version 2 of its claims).

No library is maintained for it: the one on PyPI calls itself untested. Four kinds are needed, and
tests/nats has the server itself judge them. The only importer of `nkeys`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final

import nkeys

from executor.core.nats_roles import Rights
from executor.core.signature import PublicKey
from executor.errors import ExecutorError

OPERATOR: Final = nkeys.PREFIX_BYTE_OPERATOR
ACCOUNT: Final = nkeys.PREFIX_BYTE_ACCOUNT
USER: Final = nkeys.PREFIX_BYTE_USER
_PUBLIC: Final = re.compile(r"[A-Z2-7]{56}\Z")
_KEY_BYTES: Final = 32
_SEED: Final = re.compile(rb"S[UAO][A-Z2-7]{56}")
_HEADER: Final = {"typ": "JWT", "alg": "ed25519-nkey"}
_UNLIMITED: Final = -1
# Of an account that has streams; -1 is no bound: the streams have their own.
_STORES: Final = {"mem_storage": _UNLIMITED, "disk_storage": _UNLIMITED, "streams": _UNLIMITED,
                  "consumer": _UNLIMITED}  # fmt: skip
_NOTHING: Final = {"pub": {"deny": [">"]}, "sub": {"deny": [">"]}}

Claims = dict[str, Any]


class Key:
    """A key pair of NATS; `seed` is the secret."""

    def __init__(self, seed: bytes) -> None:
        self._pair = nkeys.from_seed(bytearray(seed))
        self.seed = seed
        self.public: str = self._pair.public_key.decode()

    @classmethod
    def generate(cls, kind: int) -> Key:
        """A new one, of an OPERATOR, ACCOUNT or USER."""
        return cls(bytes(nkeys.encode_seed(secrets.token_bytes(_KEY_BYTES), kind)))

    @classmethod
    def parse(cls, text: bytes, name: str) -> Key:
        """The seed in a file, also in a credentials file. Errors  `config.invalid`."""
        found = _SEED.search(text)
        try:
            return cls(found[0] if found else b"")
        except (nkeys.NkeysError, ValueError):
            raise ExecutorError(
                "config.invalid", f"`{name}` holds no seed of a NATS key",
                hint="it begins with SU; executor nats config makes one for each login",
            ) from None  # fmt: skip

    def sign(self, data: bytes) -> bytes:
        """64 bytes."""
        return bytes(self._pair.sign(data))


def verify(public: str, data: bytes, signature: bytes) -> bool:
    """Whether the user `public` signed `data`."""
    raw = base64.b32decode(public)[1:-2]
    return PublicKey(raw).verify(signature, data)


def is_user(public: str) -> bool:
    """Whether `public` is the public key of a user, unharmed: its last bytes are a checksum."""
    if not _PUBLIC.match(public) or not public.startswith("U"):
        return False
    raw = base64.b32decode(public)
    # CRC-16 with polynomial 0x1021 from 0, little-endian at the end: binascii's own.
    return binascii.crc_hqx(raw[:-2], 0).to_bytes(2, "little") == raw[-2:]


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _compact(value: Claims) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def encode(issuer: Key, subject: str, name: str, kind: str, nats: Claims, *, now: int,
           expires: int = 0) -> str:  # fmt: skip
    """A signed JWT; times in seconds, `expires` 0: never."""
    claims: Claims = {"iat": now, "iss": issuer.public, "name": name, "sub": subject,
                      "nats": {**nats, "type": kind, "version": 2}}  # fmt: skip
    if expires:
        claims["exp"] = expires
    claims["jti"] = base64.b32encode(hashlib.sha256(_compact(claims)).digest()).decode().rstrip("=")
    signed = f"{_b64(_compact(_HEADER))}.{_b64(_compact(claims))}"
    return f"{signed}.{_b64(issuer.sign(signed.encode()))}"


def operator(key: Key, signing: str, system: str, *, now: int) -> str:
    """The root: accounts and users count only where signing keys, never identities, signed them."""
    return encode(key, key.public, "executor", "operator", {
        "signing_keys": [signing], "system_account": system, "strict_signing_key_usage": True,
    }, now=now)  # fmt: skip


def scope(public: str, role: str, rights: Rights) -> Claims:
    """A signing key whose users have these rights and no others, whatever their JWT says."""
    return {
        "kind": "user_scope", "key": public, "role": role,
        "template": {
            "pub": {"allow": list(rights.publish), "deny": list(rights.denied)},
            "sub": {"allow": list(rights.subscribe)},
            "subs": _UNLIMITED, "data": _UNLIMITED, "payload": _UNLIMITED,
            "allowed_connection_types": ["STANDARD"],
        },
    }  # fmt: skip


def account(
    issuer: Key, public: str, name: str, *, now: int, scopes: Iterable[Claims],
    exports: Iterable[Claims] = (), imports: Iterable[Claims] = (),
    revoked: Mapping[str, int] | None = None, stores: bool = False,
) -> str:  # fmt: skip
    """An account; `revoked` users are refused that were issued up to that second."""
    return encode(issuer, public, name, "account", {
        "limits": {
            "subs": _UNLIMITED, "data": _UNLIMITED, "payload": _UNLIMITED, "conn": _UNLIMITED,
            "imports": _UNLIMITED, "exports": _UNLIMITED, "wildcards": True, "leaf": 0,
            **(_STORES if stores else {}),
        },
        # Every user has a scope; one that had none has nothing.
        "default_permissions": _NOTHING, "signing_keys": list(scopes), "exports": list(exports),
        "imports": list(imports), "revocations": dict(revoked or {}),
    }, now=now)  # fmt: skip


def activation(issuer: Key, importer: str, subject: str, kind: str, *, now: int) -> str:
    """Lets one account import what is exported to named accounts only."""
    return encode(issuer, importer, subject, "activation", {"subject": subject, "kind": kind},
                  now=now)  # fmt: skip


def user(issuer: Key, account_public: str, public: str, name: str, *, now: int,
         expires: int) -> str:  # fmt: skip
    """A user of a scoped signing key: it may say nothing of its rights itself."""
    return encode(issuer, public, name, "user", {"issuer_account": account_public}, now=now,
                  expires=expires)  # fmt: skip


def credentials(jwt: str, seed: bytes) -> bytes:
    """Both in one file, as every NATS client reads it."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n------END USER NKEY SEED------\n"
    ).encode()
