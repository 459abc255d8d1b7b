"""The form of TUF metadata as we take it: bounds, one spelling, the environment in every file.

The library checks signatures over a re-serialisation; what is taken here is that serialisation
byte for byte, so that no byte on the wire is without a meaning. What is checked before any
signature can only refuse.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Final

from securesystemslib.signer import Key, Signature, Signer, SSlibKey
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata

from executor.core import subjects
from executor.core.signature import PublicKey, SecretKey
from executor.errors import ExecutorError
from executor.model import KIB

ROOT: Final = "root"
TARGETS: Final = "targets"
POLICY: Final = "policy"
RELEASES: Final = "releases"
SNAPSHOT: Final = "snapshot"
TIMESTAMP: Final = "timestamp"
ROLES: Final = (ROOT, TARGETS, POLICY, RELEASES, SNAPSHOT, TIMESTAMP)
DELEGATED: Final = {POLICY: ["policy/*"], RELEASES: ["releases/*/*"]}  # role → its only paths
ONLINE: Final = (SNAPSHOT, TIMESTAMP)

POLICY_TARGET: Final = "policy/policy.toml"
FIELD: Final = "x-executor"  # ours, inside what is signed
# A whole file travels as one message of NATS, 1 MiB at most with its headers. 512 KiB are some two
# thousand releases; the others have entries for a handful of keys and files.
BOUNDS: Final = {
    ROOT: 64 * KIB, TARGETS: 64 * KIB, POLICY: 64 * KIB, RELEASES: 512 * KIB, SNAPSHOT: 64 * KIB,
    TIMESTAMP: 16 * KIB,
}  # fmt: skip
POLICY_MAX: Final = 768 * KIB
RELEASE_MAX: Final = 4 * KIB
KEYS_MAX: Final = 16  # of a role
SIGNATURES_MAX: Final = 2 * KEYS_MAX  # a root's: by the old keys and the new
ROOTS_MAX: Final = 256  # rotations that one refresh follows, as many as the library would

_HEX: Final = re.compile(r"[0-9a-f]{64}\Z")
_SIGNATURE: Final = re.compile(r"[0-9a-f]{128}\Z")


def metadata_key(role: str, version: int | None) -> str:
    """Where a role's metadata stands in TRUST; only a timestamp has no version."""
    return f"md.{role}" if version is None else f"md.{role}.{version}"


def file_key(sha256: str) -> str:
    """Where a target stands in TRUST."""
    return f"target.{sha256}"


def invalid(why: str, /, *, hint: str = "", **facts: str | int) -> ExecutorError:
    """What is not as metadata must be."""
    return ExecutorError("trust.invalid", why, hint=hint, **facts)


def decode(data: bytes, most: int, what: str) -> dict[str, Any]:
    """JSON in its one spelling: no blank, no key twice, sorted. Errors  `trust.invalid`."""
    if len(data) > most:
        raise invalid(f"{what} has {len(data)} bytes, at most {most}")
    try:
        found = json.loads(data, parse_float=_refused, parse_constant=_refused)
        exact = isinstance(found, dict) and encode(found) == data
    except (ValueError, RecursionError):
        exact = False
    if not exact:
        raise invalid(f"{what} is not JSON in its one spelling")
    document: dict[str, Any] = found
    return document


def _refused(text: str) -> None:
    raise ValueError(text)


def encode(value: dict[str, Any]) -> bytes:
    """The one spelling: that of the library's compact form."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def read(data: bytes, role: str, environment: str) -> dict[str, Any]:
    """What a metadata file says is signed; nothing of it is verified yet.

    Errors  `trust.invalid`: too large, spelled in another way, of another role or environment.
    """
    what = f"the metadata of `{role}`"
    found = decode(data, BOUNDS[role], what)
    signed, signatures = found.get("signed"), found.get("signatures")
    if found.keys() != {"signed", "signatures"} or not isinstance(signed, dict):
        raise invalid(f"{what} is not metadata")
    if not isinstance(signatures, list) or len(signatures) > SIGNATURES_MAX:
        raise invalid(f"{what} has no list of at most {SIGNATURES_MAX} signatures")
    for one in signatures:
        if not isinstance(one, dict) or one.keys() != {"keyid", "sig"} or not (
            isinstance(one["keyid"], str) and _HEX.match(one["keyid"])
            and isinstance(one["sig"], str) and _SIGNATURE.match(one["sig"])
        ):  # fmt: skip
            raise invalid(f"{what} has a signature of another form")
    if signed.get("_type") != (TARGETS if role in DELEGATED else role):
        raise invalid(f"{what} is that of another role")
    of = signed.get(FIELD)
    made_for = of.get("environment") if isinstance(of, dict) else None
    if not isinstance(made_for, str) or not subjects.is_token(made_for):
        raise invalid(f"{what} names no environment")
    if made_for != environment:
        raise invalid(
            f"{what} is made for `{made_for}`, this is `{environment}`",
            hint="environments have roots of their own: use the root file and the bucket of "
            f"`{environment}`",
        )  # fmt: skip
    # The library parses dates in more spellings than it writes (`t` for `T`), and checks the
    # signature over what it would write: seen with a flipped byte that was accepted.
    try:
        again = Metadata[Any].from_bytes(data).to_bytes()
    except RepositoryError as error:
        raise mapped(error) from None
    if again != data:
        raise invalid(f"{what} is not spelled as it is signed")
    return signed


def check_key(key_id: str, key: Key) -> None:
    """Refuse another algorithm, and one key under two names, which would count twice.

    Errors  `trust.invalid`.
    """
    public = key.keyval.get("public", "")
    if key.keytype != "ed25519" or key.scheme != "ed25519" or not _HEX.match(public):
        raise invalid(f"the key `{key_id[:24]}` is not Ed25519")
    if key_id != tuf_key(PublicKey(bytes.fromhex(public))).keyid:
        raise invalid(f"`{key_id[:24]}` is not the name of its key")


def tuf_key(key: PublicKey) -> SSlibKey:
    """A public key as TUF writes it: named by the hash of itself."""
    kind, public = "ed25519", {"public": key.raw.hex()}
    named = encode({"keytype": kind, "keyval": public, "scheme": kind})
    return SSlibKey(hashlib.sha256(named).hexdigest(), kind, kind, public)


def key_id_of(key: Key) -> str:
    """The key id that the rest of the executor calls a key by."""
    return PublicKey(bytes.fromhex(key.keyval["public"])).key_id.hex()


class LocalSigner(Signer):
    """A secret key of ours, for the library."""

    def __init__(self, secret: SecretKey) -> None:
        self._secret = secret
        self._key = tuf_key(secret.public)

    @property
    def public_key(self) -> SSlibKey:
        """The public half."""
        return self._key

    @classmethod
    def from_priv_key_uri(cls, *_: object) -> LocalSigner:
        """Keys come from files that `executor keygen` made, never from an address."""
        raise ValueError("no address of a key")

    def sign(self, payload: bytes) -> Signature:
        """Sign what the library has serialised."""
        return Signature(self._key.keyid, self._secret.sign(payload).hex())


def mapped(error: Exception) -> ExecutorError:
    """The library's refusal under one of our codes; its text says which role and version."""
    said = str(error).partition("\n")[0][:200]
    match error:
        case UnsignedMetadataError():
            return ExecutorError("trust.threshold-unmet", said)
        case ExpiredMetadataError():
            return ExecutorError("trust.expired", said)
        case BadVersionNumberError():
            return ExecutorError("trust.rolled-back", said)
        case DownloadHTTPError():
            return ExecutorError("trust.missing", said,
                                 hint="put it there: executor trust push")  # fmt: skip
        case RepositoryError() | DownloadError():
            return invalid(said)
    raise error
