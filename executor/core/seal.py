"""Sealing and opening: whatever only an executor may say is signed, and believed only if it is.

The rule of opening, in this order: bounded decode; `typ` is what this place expects; `aud` equals
the environment and the subject the message was *received* on; `id` equals that subject's token;
the key is listed, was valid when the record was stored, is not revoked and may speak for this
tenant; leaf and path give the root; the signature holds. Any failure means that there is no
record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from executor.core import envelope, signature, subjects
from executor.core.envelope import Draft, Record, Sealed
from executor.core.signature import BatchVerifier, PublicKey, SecretKey
from executor.errors import ExecutorError
from executor.model import StoredMessage

BATCH_MAX: Final = signature.BATCH_MAX


class NotAuthenticError(Exception):
    """The bytes prove nothing; `reason` is for a security event, never for a result."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class ExecutorKey:
    """A key that may speak as an executor: for which tenants ("*": all), and when (ms, 0: always).

    What was stored while the key was valid stays believed after it has expired.
    """

    name: str
    key: PublicKey
    tenants: tuple[str, ...] = ("*",)
    not_after: int = 0
    not_before: int = 0


@dataclass(frozen=True, slots=True)
class Opener:
    """Checks sealed envelopes for one environment against the keys that trust lists now."""

    environment: str
    executors: Mapping[str, ExecutorKey]  # by key id, in hex
    revoked: frozenset[str] = frozenset()
    _verifier: BatchVerifier = field(default_factory=BatchVerifier)

    def open(self, sealed: Sealed, *, typ: str, subject: str, task_id: str, tenant: str,
             stored_at: int) -> None:  # fmt: skip
        """Return if `sealed` may be believed. Raises `NotAuthenticError`."""
        if sealed.typ != typ:
            raise NotAuthenticError(f"typ {sealed.typ!r} where {typ!r} is expected")
        if sealed.aud != subjects.audience(self.environment, subject):
            raise NotAuthenticError("made for another subject or environment")
        if sealed.id != task_id:
            raise NotAuthenticError("of another task id")
        signer = self.executors.get(sealed.by)
        if signer is None or sealed.by in self.revoked:
            raise NotAuthenticError("by no executor that is trusted")
        if signer.not_after and stored_at > signer.not_after:
            raise NotAuthenticError("by a key that had expired")
        if stored_at < signer.not_before:
            raise NotAuthenticError("by a key that was not valid yet")
        if "*" not in signer.tenants and tenant not in signer.tenants:
            raise NotAuthenticError("by a key that may not speak for this tenant")
        leaf = signature.leaf(
            sealed.typ, sealed.aud, sealed.id, sealed.by, sealed.iat, sealed.payload
        )
        if not self._verifier.verify(signer.key, leaf, sealed.proof):
            raise NotAuthenticError("the signature does not hold")

    def record(self, subject: str, data: bytes, *, stored_at: int) -> Record:
        """The terminal record in a message read from `subject`. Raises `NotAuthenticError`."""
        parsed = subjects.parse_terminal(subject)
        if parsed is None:
            raise NotAuthenticError("not on a terminal subject")
        typ, tenant, name, task_id = parsed
        try:
            sealed = envelope.decode_sealed(data)
            self.open(
                sealed, typ=typ, subject=subject.removeprefix("stored."), task_id=task_id,
                tenant=tenant, stored_at=stored_at,
            )  # fmt: skip
            record = envelope.decode_record(typ, sealed.payload, sealed.version)
        except ExecutorError as error:
            raise NotAuthenticError(error.message) from error
        if record.task != name:
            raise NotAuthenticError("of another task")
        return record

    def believes(self, message: StoredMessage) -> bool:
        """Whether a stored message is an outcome."""
        try:
            self.record(message.subject, message.body, stored_at=message.stored_at_ms)
        except NotAuthenticError:
            return False
        return True


def seal(key: SecretKey, drafts: Sequence[Draft], *, at: int) -> list[bytes]:
    """The bodies of up to BATCH_MAX drafts, under one signature made at `at` (ms)."""
    by = key.public.key_id.hex()
    leaves = [signature.leaf(d.typ, d.aud, d.id, by, at, d.payload) for d in drafts]
    proofs = signature.sign_batch(key, leaves)
    return [
        envelope.encode_sealed(Sealed(d.typ, d.aud, d.id, by, at, d.payload, proof, d.version))
        for d, proof in zip(drafts, proofs, strict=True)
    ]
