"""A session: a fresh key that speaks for an operator, for hours.

The operator's long-lived key signs once, a certificate: the session's public key and when it ends,
bound to the environment and to the id of the new key. Every message that the session signs brings
it along (300 bytes; an entry needs no other entry to be believed), says the *holder* as its author,
and is judged as the holder's. So a certificate that another operator makes for the same key fits no
message of the first.

The end is kept by whoever reads. That an idle session ends sooner is its client's promise alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from executor.core import control, envelope, subjects
from executor.core.envelope import Draft, Sealed
from executor.core.signature import PublicKey, SecretKey
from executor.errors import ExecutorError

# A working day with its overtime: a stolen session is worth nothing the next morning.
MOST_MS: Final = 12 * 3_600_000
_KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Session:
    """What signs for `holder`, a key id in hex, by a certificate."""

    key: SecretKey
    holder: str
    certificate: bytes

    @property
    def id(self) -> str:
        """What to revoke."""
        return self.key.public.key_id.hex()


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate as it was read; nothing in it is proved yet. Times in ms."""

    key: PublicKey
    exp: int
    sealed: Sealed

    @property
    def id(self) -> str:
        """The session's key id."""
        return self.key.key_id.hex()


def place(session_id: str) -> str:
    """What a certificate is bound to; no entry of CONTROL stands there."""
    return f"session.{session_id}"


def draft(environment: str, key: PublicKey, exp: int) -> Draft:
    """What an operator's key signs to make `key` speak for it until `exp`."""
    session_id = key.key_id.hex()
    where = place(session_id)
    payload = control.encode("session", where, environment, key=key.raw, exp=exp)
    return Draft("control", subjects.audience(environment, where), session_id, payload)


def read(data: bytes, environment: str) -> Certificate:
    """The certificate in `data`, unproved. Errors  `message.*`."""
    sealed = envelope.decode_sealed(data)
    fields = control.decode(sealed.payload, "session", place(sealed.id), environment)
    raw = fields["key"]
    if not isinstance(raw, bytes) or len(raw) != _KEY_BYTES:
        raise ExecutorError("message.malformed", "no key of a session")
    return Certificate(PublicKey(raw), int(fields["exp"]), sealed)
