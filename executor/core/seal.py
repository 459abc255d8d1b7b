"""Sealing and opening: whatever must not be said by just anybody is signed, and believed only then.

The rule of opening, in this order: bounded decode; `typ` is what this place expects; `aud` equals
the environment and the subject the message was *received* on; `id` equals that subject's token;
the key is listed, was valid when the record was stored, is not revoked and may speak for this
tenant, or do this; leaf and path give the root; the signature holds. Any failure means that there
is no record.

What steers (an entry of CONTROL, a command, a signed request) must have been signed when it was
stored, give or take `FRESH_MS`: a copy that is stored again later is nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from executor.core import control, envelope, session, signature, subjects
from executor.core.access import ANY, Access, Party, of_key
from executor.core.envelope import Draft, Record, Sealed
from executor.core.glass import Glass
from executor.core.session import Certificate, Session
from executor.core.signature import BatchVerifier, PublicKey, SecretKey
from executor.errors import ExecutorError
from executor.model import StoredMessage, TaskRequest

BATCH_MAX: Final = signature.BATCH_MAX
# Between signing and storing, either way: the clocks of people's machines are off by minutes.
FRESH_MS: Final = 300_000
COMMAND_MS: Final = 60_000  # how long a command may be carried out

# What an executor says of itself alone, under its own name.
_OF_ITSELF: Final = frozenset({"status", "usage"})

Signer = SecretKey | Session


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
class Said:
    """An entry of CONTROL that is believed; `fields` is None where it takes back what was said."""

    fields: dict[str, control.Value] | None
    by: str  # key id
    iat: int  # ms
    session: str = ""  # key id of the session that signed for `by`
    glass: str = ""  # the opening without which `by` might not say it


@dataclass(frozen=True, slots=True)
class Command:
    """A command that is believed to come from `party`; what it may do was not asked yet."""

    fields: dict[str, control.Value]
    nonce: str
    party: Party


def by_id(parties: Iterable[Party]) -> dict[str, Party]:
    """Parties by the ids of their keys, in hex."""
    return {party.key.key_id.hex(): party for party in parties}


@dataclass(frozen=True, slots=True)
class Opener:
    """Checks sealed envelopes for one environment against the keys that trust lists now.

    `operators`, `submitters`, `executors` are by key id, in hex.
    """

    environment: str
    executors: Mapping[str, ExecutorKey]
    revoked: frozenset[str] = frozenset()
    operators: Mapping[str, Party] = field(default_factory=dict)
    submitters: Mapping[str, Party] = field(default_factory=dict)
    access: Access = field(default_factory=Access)
    glass: Glass = field(default_factory=Glass)
    _verifier: BatchVerifier = field(default_factory=BatchVerifier)

    def open(self, sealed: Sealed, *, typ: str, subject: str, task_id: str, tenant: str,
             stored_at: int) -> None:  # fmt: skip
        """Return if `sealed` may be believed of an executor. Raises `NotAuthenticError`."""
        self._bound(sealed, typ, subject, task_id)
        if sealed.session:
            raise NotAuthenticError("an executor has no session")
        signer = self._executor(sealed.by, stored_at, tenant)
        self._proved(sealed, signer.key)

    def _bound(self, sealed: Sealed, typ: str, place: str, token: str) -> None:
        if sealed.typ != typ:
            raise NotAuthenticError(f"typ {sealed.typ!r} where {typ!r} is expected")
        if sealed.aud != subjects.audience(self.environment, place):
            raise NotAuthenticError("made for another subject or environment")
        if sealed.id != token:
            raise NotAuthenticError("of another task id")
        version = envelope.WITH_SESSION if sealed.session else control.VERSION
        if typ == "control" and sealed.version != version:
            raise NotAuthenticError(f"of version {sealed.version}")

    def _executor(self, by: str, at: int, tenant: str) -> ExecutorKey:
        """The executor's key, which may speak for `tenant` where that is not ""."""
        signer = self.executors.get(by)
        if signer is None or by in self.revoked:
            raise NotAuthenticError("by no executor that is trusted")
        if signer.not_after and at > signer.not_after:
            raise NotAuthenticError("by a key that had expired")
        if at < signer.not_before:
            raise NotAuthenticError("by a key that was not valid yet")
        if tenant and ANY not in signer.tenants and tenant not in signer.tenants:
            raise NotAuthenticError("by a key that may not speak for this tenant")
        return signer

    def _party(self, by: str, at: int, parties: Mapping[str, Party], session_id: str) -> Party:
        party = parties.get(by)
        if party is None or by in self.revoked:
            raise NotAuthenticError("by nobody who is listed")
        if not party.valid_at(at):
            raise NotAuthenticError("by a key that was not valid then")
        if session_id in self.revoked:
            raise NotAuthenticError("in a session that is revoked")
        if not session_id and party.needs_session(at):
            raise NotAuthenticError("by a key that may sign nothing but sessions")
        return party

    def _session(self, sealed: Sealed, at: int) -> Certificate | None:
        """The certificate that the message brings, if it holds at `at`: the reader's time, too.

        None for a message that its author's own key signed.
        """
        if not sealed.session:
            return None
        found = session.read(sealed.session, self.environment)
        holder = self.operators.get(sealed.by)
        if found.sealed.session or found.sealed.by != sealed.by or holder is None:
            raise NotAuthenticError("in a session of somebody else")
        self._bound(found.sealed, "control", session.place(found.id), found.id)
        begin = found.sealed.iat
        if not holder.valid_at(begin) or not begin <= sealed.iat <= found.exp or at > found.exp:
            raise NotAuthenticError("in a session that was not open then")
        if found.exp - begin > session.MOST_MS:
            raise NotAuthenticError("in a session that lasts too long")
        self._proved(found.sealed, holder.key)
        return found

    def _proved(self, sealed: Sealed, key: PublicKey) -> None:
        leaf = signature.leaf(
            sealed.typ, sealed.aud, sealed.id, sealed.by, sealed.iat, sealed.payload
        )
        if not self._verifier.verify(key, leaf, sealed.proof):
            raise NotAuthenticError("the signature does not hold")

    def said(self, key: str, data: bytes, *, stored_at: int) -> Said:
        """What an entry of CONTROL says. Raises `NotAuthenticError`."""
        if len(data) > control.ENTRY_MAX:
            raise NotAuthenticError("too large for an entry")
        try:
            sealed = envelope.decode_sealed(data)
            self._bound(sealed, "control", key, _last(key))
            _fresh(sealed, stored_at)
            held = self._session(sealed, stored_at)
            session_id = held.id if held else ""
            signer, glass = self.speaker(
                key, sealed.by, sealed.iat, session_id=session_id, removes=not sealed.payload
            )
            self._proved(sealed, held.key if held else signer)
            typ = key.partition(".")[0]
            fields = (
                control.decode(sealed.payload, typ, key, self.environment)
                if sealed.payload
                else None
            )
        except ExecutorError as error:
            raise NotAuthenticError(error.message) from error
        return Said(fields, sealed.by, sealed.iat, session_id, glass)

    def speaker(
        self, key: str, by: str, at: int, *, session_id: str = "", removes: bool = False
    ) -> tuple[PublicKey, str]:
        """The key `by` if it may say an entry, or take it back; and the opening it needs for that.

        What an executor put in quarantine only a person takes out of it. Raises
        `NotAuthenticError`.
        """
        typ, tenant, task = control.about(key)
        only_people = typ == "quarantine" and removes
        if by in self.executors and typ in control.EXECUTORS_OWN and not only_people:
            # What names no tenant is said of the executor; a quarantine then is for all tenants.
            said_of_itself = tenant == ANY and typ != "quarantine"
            signer = self._executor(by, at, "" if said_of_itself else tenant)
            if typ in _OF_ITSELF and not _is_life(key.split(".")[1], signer.name):
                raise NotAuthenticError("by an executor of another name")
            return signer.key, ""
        if typ == "break-glass":
            # What it opens two others approved (`core.approvals`); any operator may close it.
            return self._party(by, at, self.operators, session_id).key, ""
        listed = [parties for parties in (self.operators, self.submitters) if by in parties]
        # An operator whose time is over is not one again because it may submit as well.
        party, *_ = [
            self._party(by, at, parties, session_id) for parties in listed or [self.operators]
        ]
        return party.key, self.check(party, control.ACTIONS.get(typ, ""), tenant, task, at=at)

    def check(self, party: Party, action: str, tenant: str, task: str, *, at: int) -> str:
        """Raise `NotAuthenticError` unless the party may do this at `at`; "" if policy says so.

        Else returns the id of the opening that lets it.
        """
        decision = self.access.may(of_key(party.key), action, tenant, task)
        if decision.allowed:
            return ""
        who = party.key.key_id.hex()
        opening = "" if decision.denied else self.glass.opens(who, action, tenant, task, at)
        if not opening:
            raise NotAuthenticError(f"`{party.name}` may not: {decision.why}")
        return opening

    def approval(self, data: bytes, place: str, *, at: int) -> tuple[Party, int, control.Value]:
        """Who approved, when, and what (a SHA-256), in a statement bound to `place`.

        Whether that one may is not asked here. Raises `NotAuthenticError`.
        """
        try:
            sealed = envelope.decode_sealed(data)
            self._bound(sealed, "control", place, _last(place))
            held = self._session(sealed, sealed.iat)
            party = self._party(sealed.by, sealed.iat, self.operators, held.id if held else "")
            self._proved(sealed, held.key if held else party.key)
            fields = control.decode(sealed.payload, "approval", place, self.environment)
        except ExecutorError as error:
            raise NotAuthenticError(error.message) from error
        if sealed.iat > at + FRESH_MS:
            raise NotAuthenticError("approved in the future")
        return party, sealed.iat, fields["request"]

    def command(self, subject: str, data: bytes, *, now: int) -> Command:
        """The command in a message received on `subject`. Raises `NotAuthenticError`.

        That it is new, and what it may do, is for the receiver to see.
        """
        try:
            sealed = envelope.decode_sealed(data)
            self._bound(sealed, "control", subject, sealed.id)
            _fresh(sealed, now)
            held = self._session(sealed, now)
            party = self._party(sealed.by, sealed.iat, self.operators, held.id if held else "")
            self._proved(sealed, held.key if held else party.key)
            fields = control.decode(sealed.payload, "command", subject, self.environment)
        except ExecutorError as error:
            raise NotAuthenticError(error.message) from error
        if not now <= int(fields["exp"]) <= now + COMMAND_MS + FRESH_MS:
            raise NotAuthenticError("a command that has expired, or lasts too long")
        return Command(fields, sealed.id, party)

    def answer(
        self, subject: str, data: bytes, *, nonce: str, tenant: str, now: int
    ) -> dict[str, control.Value] | None:
        """An executor's answer to a command of ours, None for another's answer.

        Raises `NotAuthenticError`.
        """
        try:
            sealed = envelope.decode_sealed(data)
            if sealed.id != nonce:
                return None
            self.open(sealed, typ="control", subject=subject, task_id=nonce, tenant=tenant,
                      stored_at=now)  # fmt: skip
            if _last(subject) != self.executors[sealed.by].name:
                raise NotAuthenticError("by an executor of another name")
            fields = control.decode(sealed.payload, "answer", subject, self.environment)
        except ExecutorError as error:
            raise NotAuthenticError(error.message) from error
        return fields

    def request(self, sealed: Sealed, *, tenant: str, task: str, stored_at: int) -> Party:
        """The submitter that may ask for what it signed. Raises `NotAuthenticError`."""
        self._bound(sealed, "task", subjects.task(tenant, task), sealed.id)
        _fresh(sealed, stored_at)
        party = self._party(sealed.by, sealed.iat, self.submitters, "")
        self.check(party, "submit", tenant, task, at=stored_at)
        self._proved(sealed, party.key)
        return party

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


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _is_life(token: str, name: str) -> bool:
    return token == subjects.life(name, token.rpartition("_")[2])


def _fresh(sealed: Sealed, at: int) -> None:
    if abs(at - sealed.iat) > FRESH_MS:
        raise NotAuthenticError("signed at another time than it was stored")


def signed_draft(request: TaskRequest, environment: str) -> Draft:
    """What a submitter seals to ask for `request` in its own name."""
    aud = subjects.audience(environment, subjects.task(request.tenant, request.task))
    return Draft(
        "task", aud, request.id, envelope.encode_task(request, environment), envelope.SIGNED
    )


def statement(environment: str, key: str, payload: bytes) -> Draft:
    """What is sealed to say an entry of CONTROL; with no payload it takes the entry back."""
    return Draft("control", subjects.audience(environment, key), _last(key), payload)


def certify(key: SecretKey, environment: str, public: PublicKey, *, at: int, exp: int) -> bytes:
    """The certificate with which `public` speaks for `key` until `exp`."""
    return seal(key, [session.draft(environment, public, exp)], at=at)[0]


def speaks_for(key: Signer) -> str:
    """The key id that what it signs is said to be by."""
    return key.holder if isinstance(key, Session) else key.public.key_id.hex()


def say(key: Signer, environment: str, place: str, payload: bytes, *, at: int) -> bytes:
    """The value under a key of CONTROL, signed at `at` (ms)."""
    return seal(key, [statement(environment, place, payload)], at=at)[0]


def tell(
    key: Signer, environment: str, subject: str, payload: bytes, *, nonce: str, at: int
) -> bytes:
    """A command, or the answer to one, on a subject of `control.…`."""
    draft = Draft("control", subjects.audience(environment, subject), nonce, payload)
    return seal(key, [draft], at=at)[0]


def seal(key: Signer, drafts: Sequence[Draft], *, at: int) -> list[bytes]:
    """The bodies of up to BATCH_MAX drafts, under one signature made at `at` (ms).

    A session signs what steers, nothing else.
    """
    if isinstance(key, Session):
        if any(draft.typ != "control" for draft in drafts):
            raise ValueError("a session signs what steers")
        drafts = [replace(draft, version=envelope.WITH_SESSION) for draft in drafts]
        hand, by, certificate = key.key, key.holder, key.certificate
    else:
        hand, by, certificate = key, key.public.key_id.hex(), b""
    leaves = [signature.leaf(d.typ, d.aud, d.id, by, at, d.payload) for d in drafts]
    proofs = signature.sign_batch(hand, leaves)
    return [
        envelope.encode_sealed(
            Sealed(d.typ, d.aud, d.id, by, at, d.payload, proof, d.version, certificate)
        )
        for d, proof in zip(drafts, proofs, strict=True)
    ]
