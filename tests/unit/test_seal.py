"""Sealing and opening: each step of the rule fails alone, and no changed byte changes a meaning."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from executor.core import envelope, seal, signature
from executor.core.envelope import Draft, Record, Sealed
from executor.core.seal import ExecutorKey, NotAuthenticError, Opener
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from executor.model import Receipt, StoredMessage

KEY, OTHER = SecretKey(bytes([1]) * 32), SecretKey(bytes([2]) * 32)
BY: Final = KEY.public.key_id.hex()
SUBJECT: Final = "result.acme.resize.1"
RECORD: Final = Record("resize", 1, 3, 10, 20, Receipt(fuel_used=7), output=b"done")
LISTED: Final = {
    BY: ExecutorKey("one", KEY.public),
    OTHER.public.key_id.hex(): ExecutorKey("two", OTHER.public),
}
OPENER: Final = Opener("dev", LISTED)


def draft(subject: str = SUBJECT, record: Record = RECORD, environment: str = "dev") -> Draft:
    """One outcome that is to be sealed."""
    kind, *_, task_id = subject.split(".")
    return Draft(kind, f"{environment}/{subject}", task_id, envelope.encode_record(record))


def sealed(count: int = 3, index: int = 1) -> bytes:
    """The result of task 1 in a batch of others."""
    drafts = [draft(f"result.acme.resize.x{n}") for n in range(count)]
    drafts[index] = draft()
    return seal.seal(KEY, drafts, at=1_000)[index]


BODY: Final = sealed()


def reason(
    body: bytes | Sealed = BODY, *, opener: Opener = OPENER, typ: str = "result",
    subject: str = SUBJECT, task_id: str = "1", tenant: str = "acme", stored_at: int = 1_000,
) -> str:  # fmt: skip
    """Why `body` is not believed, or "" if it is."""
    envelope_ = envelope.decode_sealed(body) if isinstance(body, bytes) else body
    try:
        opener.open(envelope_, typ=typ, subject=subject, task_id=task_id, tenant=tenant,
                    stored_at=stored_at)  # fmt: skip
    except NotAuthenticError as error:
        return error.reason
    return ""


def test_what_was_sealed_opens() -> None:
    """A record is believed where it belongs, directly and below `stored.`."""
    assert reason() == ""
    assert OPENER.record(SUBJECT, BODY, stored_at=1_000) == RECORD
    assert OPENER.record(f"stored.{SUBJECT}", BODY, stored_at=1_000) == RECORD


def test_a_stored_message_is_believed_or_not() -> None:
    """`believes` is yes for a record on its own subject, and no for anything else."""
    stored = StoredMessage(SUBJECT, 7, BODY, {}, 1_000)
    assert OPENER.believes(stored)
    assert not OPENER.believes(replace(stored, subject="result.acme.resize.2"))
    assert not OPENER.believes(replace(stored, body=b""))


@pytest.mark.parametrize("count", [1, 2, 33, 64])
def test_every_place_of_a_batch_opens(count: int) -> None:
    """Each body of a batch opens on its own, with one signature for all."""
    drafts = [draft(f"result.acme.resize.{n}") for n in range(count)]
    bodies = seal.seal(KEY, drafts, at=1)
    for number, body in enumerate(bodies):
        assert OPENER.record(f"result.acme.resize.{number}", body, stored_at=1) == RECORD
    assert len({envelope.decode_sealed(body).proof.signature for body in bodies}) == 1


def test_batches_are_bounded() -> None:
    """Nobody seals nothing, or more than 64 at once."""
    for drafts in ([], [draft()] * 65):
        with pytest.raises(ValueError, match="1 to 64 leaves"):
            seal.seal(KEY, drafts, at=1)


# Each step of the rule, alone.


def test_the_type_is_the_one_expected_here() -> None:
    """A result is no retry, even where its subject and id fit."""
    assert reason(typ="retry") == "typ 'result' where 'retry' is expected"


@pytest.mark.parametrize(
    "subject",
    ["result.acme.resize.2", "result.other.resize.1", "dead.acme.resize.1", f"stored.{SUBJECT}"],
)
def test_the_audience_is_the_subject_it_was_received_on(subject: str) -> None:
    """A record that was reflected onto another subject is not believed."""
    assert reason(subject=subject) == "made for another subject or environment"


def test_the_audience_is_this_environment() -> None:
    """A record of production is nothing in development, under the same keys."""
    other = Opener("prod", LISTED)
    assert reason(opener=other) == "made for another subject or environment"


def test_the_id_is_that_of_the_subject() -> None:
    """The id inside must be the one that was asked for."""
    assert reason(task_id="2") == "of another task id"


def test_the_key_is_listed() -> None:
    """A key that nobody listed signs nothing, however well it signs."""
    assert reason(opener=Opener("dev", {})) == "by no executor that is trusted"
    stranger = SecretKey(bytes([9]) * 32)
    assert reason(seal.seal(stranger, [draft()], at=1)[0]) == "by no executor that is trusted"


def test_the_key_is_not_revoked() -> None:
    """A listed key that is revoked signs nothing any more."""
    opener = Opener("dev", LISTED, revoked=frozenset({BY}))
    assert reason(opener=opener) == "by no executor that is trusted"


@pytest.mark.parametrize(
    ("not_after", "stored_at", "expired"),
    [(0, 2**53, False), (1_000, 1_000, False), (999, 1_000, True), (2_000, 2_001, True)],
)
def test_the_key_was_valid_when_the_record_was_stored(
    not_after: int, stored_at: int, *, expired: bool
) -> None:
    """The server's time of storage decides, not the time that the record claims."""
    opener = Opener("dev", {BY: ExecutorKey("one", KEY.public, not_after=not_after)})
    expected = "by a key that had expired" if expired else ""
    assert reason(opener=opener, stored_at=stored_at) == expected


@pytest.mark.parametrize(
    ("tenants", "allowed"), [(("*",), True), (("x", "acme"), True), (("x",), False), ((), False)]
)
def test_the_key_may_speak_for_the_tenant(tenants: tuple[str, ...], *, allowed: bool) -> None:
    """A key of one tenant's executor says nothing about another's tasks."""
    opener = Opener("dev", {BY: ExecutorKey("one", KEY.public, tenants)})
    expected = "" if allowed else "by a key that may not speak for this tenant"
    assert reason(opener=opener) == expected


def changed(**changes: object) -> Sealed:
    """The sealed result with some of the fields that the leaf covers changed."""
    return replace(envelope.decode_sealed(BODY), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "at"),
    [
        (changed(payload=envelope.encode_record(replace(RECORD, output=b"else"))), {}),
        (changed(iat=1_001), {}),
        (changed(by=OTHER.public.key_id.hex()), {}),
        (changed(typ="dead"), {"typ": "dead"}),
        (changed(id="2"), {"task_id": "2"}),
        (changed(aud="dev/result.acme.resize.2"), {"subject": "result.acme.resize.2"}),
    ],
    ids=["payload", "iat", "by", "typ", "id", "aud"],
)
def test_the_leaf_covers_every_field(body: Sealed, at: dict[str, str]) -> None:
    """A field that was changed to fit its new place still breaks the proof."""
    arguments = {"typ": "result", "subject": SUBJECT, "task_id": "1"} | at
    assert reason(body, **arguments) == "the signature does not hold"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"path": b""}, {"path": bytes(64)}, {"index": 0}, {"index": 2}, {"index": 3},
        {"count": 2}, {"count": 4}, {"count": 0}, {"count": 65}, {"count": 2**53 - 1},
        {"signature": bytes(64)}, {"signature": b""}, {"signature": bytes(65)},
    ],
    ids=str,
)  # fmt: skip
def test_the_proof_is_exact(changes: dict[str, object]) -> None:
    """Another path, index, count or signature proves nothing."""
    proof = replace(envelope.decode_sealed(BODY).proof, **changes)  # type: ignore[arg-type]
    assert reason(changed(proof=proof)) == "the signature does not hold"


def test_a_signature_is_not_remembered_for_another_key() -> None:
    """A batch that held once is no credit for a body under another key."""
    opener = Opener("dev", LISTED)
    assert reason(opener=opener) == ""
    mine = changed(by=OTHER.public.key_id.hex())
    assert reason(mine, opener=opener) == "the signature does not hold"


# Records.


@pytest.mark.parametrize(
    ("subject", "body", "why"),
    [
        ("task.acme.resize.1", BODY, "not on a terminal subject"),
        ("result.acme.resize", BODY, "not on a terminal subject"),
        (SUBJECT, b"", "the body is not a msgpack map"),
        (SUBJECT, BODY + b"\0", "the body is not a msgpack map"),
        (SUBJECT, BODY.replace(b"\xa1v\x01", b"\xa1v\x02"), "version this host cannot read"),
        ("dead.acme.resize.1", BODY, "typ 'result' where 'dead' is expected"),
        (
            SUBJECT,
            seal.seal(KEY, [replace(draft(), payload=b"?")], at=1)[0],
            "the body is not a msgpack map",
        ),
        (
            SUBJECT,
            seal.seal(KEY, [draft(record=replace(RECORD, task="other"))], at=1)[0],
            "of another task",
        ),
        (
            SUBJECT,
            seal.seal(KEY, [draft(record=replace(RECORD, code="guest.trap"))], at=1)[0],
            "a `result` that is none",
        ),
    ],
    ids=[
        "task subject", "short subject", "empty", "trailing byte", "version", "other kind",
        "payload", "other task", "dead letter as result",
    ],
)  # fmt: skip
def test_a_record_that_proves_nothing_says_why(subject: str, body: bytes, why: str) -> None:
    """Whatever is wrong with a record, the reader gets one exception and a reason."""
    with pytest.raises(NotAuthenticError) as caught:
        OPENER.record(subject, body, stored_at=1)
    assert why in caught.value.reason


def test_no_changed_byte_opens_with_another_meaning() -> None:
    """A sealed result with any one byte changed is refused, or says the same as before."""
    opened = 0
    for place in range(len(BODY)):
        for mask in (0x01, 0x20, 0x80, 0xFF):
            body = bytearray(BODY)
            body[place] ^= mask
            try:
                record = OPENER.record(SUBJECT, bytes(body), stored_at=1_000)
            except NotAuthenticError:
                continue
            opened += 1
            assert record == RECORD
    assert opened == 0


def test_every_leaf_has_its_own_bytes() -> None:
    """Moving a character from one field into the next gives another leaf."""
    one = signature.leaf("result", "dev/a", "1", "k", 1, b"x")
    assert one != signature.leaf("resul", "tdev/a", "1", "k", 1, b"x")
    assert one != signature.leaf("result", "dev/a1", "", "k", 1, b"x")
    assert one != signature.leaf("result", "dev/a", "1k", "", 1, b"x")


def test_only_our_errors_become_reasons() -> None:
    """A refusal of the decoder is the cause that a reader can look up."""
    with pytest.raises(NotAuthenticError) as caught:
        OPENER.record(SUBJECT, b"", stored_at=1)
    assert isinstance(caught.value.__cause__, ExecutorError)
