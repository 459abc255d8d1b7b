"""Who may say what in CONTROL, on `control.…` and in a signed request: each step of the rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from executor.core import again, control, envelope, seal, subjects
from executor.core.access import Access, Binding, Party, of_key
from executor.core.envelope import Draft, Origin, Record
from executor.core.schedule import Schedule
from executor.core.seal import (
    COMMAND_MS,
    FRESH_MS,
    ExecutorKey,
    NotAuthenticError,
    Opener,
    by_id,
)
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from executor.model import Receipt, TaskId, TaskRequest
from tests.support import guests, speech

BOSS, ASKER, HOST, STRANGER = guests.OPERATOR, guests.AUTHOR, guests.HOST, guests.STRANGER
NOW: Final = 1_800_000_000_000
KEY: Final = "pause.acme.echo"
FIELDS: Final[dict[str, control.Value]] = {"at": NOW, "why": "because"}


def bound(role: str, key: SecretKey, *, tenant: str = "*", task: str = "*") -> Binding:
    """A role for one key."""
    who = frozenset({of_key(key.public)})
    return Binding(role, who, frozenset({tenant}), frozenset({task}))


ACCESS: Final = Access(bindings=(
    bound("operator", BOSS), bound("releaser", BOSS, tenant="acme"),
    bound("submitter", ASKER, task="echo"),
))  # fmt: skip
OPENER: Final = Opener(
    "dev",
    {HOST.public.key_id.hex(): ExecutorKey("host", HOST.public, ("acme",), not_after=NOW + 10**9)},
    frozenset({STRANGER.public.key_id.hex()}),
    by_id([Party("boss", BOSS.public, not_after=NOW + 10**9),
           Party("gone", STRANGER.public)]),
    by_id([Party("asker", ASKER.public)]),
    ACCESS,
)  # fmt: skip


def entry(
    key: str = KEY, fields: dict[str, control.Value] | None = None, *, signer: SecretKey = BOSS,
    at: int = NOW, typ: str = "", environment: str = "dev",
) -> bytes:  # fmt: skip
    """A value of CONTROL; no fields take it back."""
    typ = typ or key.split(".", maxsplit=1)[0]
    payload = control.encode(typ, key, environment, **fields) if fields else b""
    return seal.say(signer, environment, key, payload, at=at)


def said(value: bytes, key: str = KEY, *, at: int = NOW) -> str:
    """Why it is not believed; "" if it is."""
    try:
        OPENER.said(key, value, stored_at=at)
    except NotAuthenticError as error:
        return error.reason
    return ""


QUARANTINE: Final = f"quarantine.{'ab' * 32}.acme"
FOR_ALL: Final = "quarantine." + "ab" * 32
BREAKER: Final = f"breaker.module.acme.{'ab' * 32}"
OPENED: Final[dict[str, control.Value]] = {"until": NOW, "trips": 1, "by": "host"}
SHUT: Final[dict[str, control.Value]] = {"at": NOW, "code": "c", "task": "t", "by": "x"}
BEATS: Final[dict[str, control.Value]] = {"at": NOW, "report": "{}"}
USAGE: Final = "usage.host_1.acme"
SEEN: Final[dict[str, control.Value]] = {"at": NOW, "report": b""}
LIVE: Final[dict[str, control.Value]] = {"digest": "sha256:" + "ab" * 32, "version": "1"}
CANCEL: Final[dict[str, control.Value]] = {"until": NOW}


def test_what_may_be_said_is_believed() -> None:
    """An entry says its fields and who said it; with no payload it takes back."""
    found = OPENER.said(KEY, entry(fields=FIELDS), stored_at=NOW + 5)
    assert (found.fields, found.by, found.iat) == (FIELDS, BOSS.public.key_id.hex(), NOW)
    assert OPENER.said(KEY, entry(), stored_at=NOW).fields is None
    assert said(entry(BREAKER, OPENED, signer=HOST), BREAKER) == ""
    assert said(entry("status.host_1", BEATS, signer=HOST), "status.host_1") == ""
    assert said(entry(USAGE, SEEN, signer=HOST), USAGE) == ""
    assert said(entry(QUARANTINE, SHUT, signer=HOST), QUARANTINE) == ""
    assert said(entry(QUARANTINE, SHUT), QUARANTINE) == ""
    assert said(entry(QUARANTINE), QUARANTINE) == ""
    assert said(entry(FOR_ALL, SHUT), FOR_ALL) == ""
    assert said(entry("release.acme.echo", LIVE), "release.acme.echo") == ""
    cancel = "cancel.acme.echo.1"
    assert said(entry(cancel, CANCEL, signer=ASKER), cancel) == ""


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        (KEY, b"", "not a msgpack map"),
        (KEY, control.encode("pause", KEY, "dev", **FIELDS), "`aud`|`by`|`id`"),
        ("pause.acme.other", entry(fields=FIELDS), "another subject"),
        (KEY, entry(fields=FIELDS, environment="prod"), "another subject or environment"),
        (KEY, entry(fields=FIELDS, at=NOW - FRESH_MS - 1), "at another time"),
        (KEY, entry(fields=FIELDS, at=NOW + FRESH_MS + 1), "at another time"),
        (KEY, entry(fields=FIELDS, signer=STRANGER), "nobody who is listed"),
        (KEY, entry(fields=FIELDS, signer=guests.FORGER), "nobody who is listed"),
        (KEY, entry(fields=FIELDS, signer=HOST), "nobody who is listed"),
        (KEY, entry(fields=FIELDS, signer=ASKER), "may not"),
        ("release.zebra.echo", entry("release.zebra.echo", LIVE), "may not"),
        ("cancel.acme._.1", entry("cancel.acme._.1", CANCEL, signer=ASKER), "may not"),
        (BREAKER, entry(BREAKER, OPENED), "may not"),
        (QUARANTINE, entry(QUARANTINE, signer=HOST), "nobody who is listed"),
        ("status.other_1", entry("status.other_1", BEATS, signer=HOST), "of another name"),
        ("status.host", entry("status.host", BEATS, signer=HOST), "of another name"),
        ("usage.other_1.acme", entry("usage.other_1.acme", SEEN, signer=HOST), "of another name"),
        (FOR_ALL, entry(FOR_ALL, SHUT, signer=HOST), "may not speak for this tenant"),
        (f"{FOR_ALL}.zebra", entry(f"{FOR_ALL}.zebra", SHUT, signer=HOST),
         "may not speak for this tenant"),
        ("breaker.module.zebra.ab", entry("breaker.module.zebra.ab", OPENED, signer=HOST),
         "may not speak for this tenant"),
        (KEY, seal.seal(BOSS, [Draft("control", f"dev/{KEY}", "acme", b"")], at=NOW)[0],
         "another task id"),
        (KEY, seal.seal(BOSS, [Draft("result", f"dev/{KEY}", "echo", b"")], at=NOW)[0], "typ"),
        (KEY, seal.seal(BOSS, [Draft("control", f"dev/{KEY}", "echo", b"", 2)], at=NOW)[0],
         "of version 2"),
        (KEY, seal.seal(BOSS, [Draft("control", f"dev/{KEY}", "echo", b"\xc1")], at=NOW)[0],
         "not a msgpack map"),
        (KEY, seal.seal(BOSS, [Draft("control", f"dev/{KEY}", "echo", control.encode(
            "pause", "pause.acme.b", "dev", **FIELDS))], at=NOW)[0], "read from"),
    ],
)  # fmt: skip
def test_what_is_not_believed(key: str, value: bytes, why: str) -> None:
    """Each step of the rule alone: bytes, place, time, key, right, payload."""
    reason = said(value, key)
    assert reason
    assert any(part in reason for part in why.split("|")), reason


def test_a_key_counts_while_it_is_valid() -> None:
    """By the time of signing, which must be that of storing."""
    late = NOW + 10**9 + 1
    assert said(entry(fields=FIELDS, at=late), at=late) == "by a key that was not valid then"
    value = entry(BREAKER, OPENED, signer=HOST, at=late)
    assert said(value, BREAKER, at=late) == "by a key that had expired"
    young = replace(OPENER, executors={
        by: replace(key, not_before=NOW + 1) for by, key in OPENER.executors.items()
    })  # fmt: skip
    with pytest.raises(NotAuthenticError, match="not valid yet"):
        young.said(BREAKER, entry(BREAKER, OPENED, signer=HOST), stored_at=NOW)


# Commands and answers.

SUBJECT: Final = subjects.commands_of("acme")
ORDER: Final[dict[str, control.Value]] = {
    "verb": "retry", "tenant": "acme", "task": "_", "id": "a", "sequence": 0,
    "exp": NOW + COMMAND_MS,
}  # fmt: skip


def told(*, at: int = NOW, signer: SecretKey = BOSS, subject: str = SUBJECT,
         **changes: control.Value) -> bytes:  # fmt: skip
    """A command."""
    payload = control.encode("command", subject, "dev", **{**ORDER, **changes})
    return seal.tell(signer, "dev", subject, payload, nonce="n1", at=at)


def test_a_command_is_believed_of_an_operator() -> None:
    """It says its fields, its nonce and whose it is."""
    found = OPENER.command(SUBJECT, told(), now=NOW)
    assert (found.fields, found.nonce, found.party.name) == (ORDER, "n1", "boss")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"x", "not a msgpack map"),
        (told(subject="control.all"), "another subject"),
        (told(signer=ASKER), "nobody who is listed"),
        (told(signer=HOST), "nobody who is listed"),
        (told(at=NOW - FRESH_MS - 1), "at another time"),
        (told(exp=NOW - 1), "expired, or lasts too long"),
        (told(exp=NOW + COMMAND_MS + FRESH_MS + 1), "expired, or lasts too long"),
        (entry(SUBJECT, typ="pause"), "not a msgpack map"),
    ],
)
def test_what_is_no_command(body: bytes, why: str) -> None:
    """Another subject, another signer, another time: nothing."""
    with pytest.raises(NotAuthenticError) as caught:
        OPENER.command(SUBJECT, body, now=NOW)
    assert why in caught.value.reason


def answered(
    *, signer: SecretKey = HOST, nonce: str = "n1", tenant: str = "acme", name: str = "host"
) -> bytes:
    """An executor's answer."""
    subject = subjects.answers(name)
    payload = control.encode(
        "answer", subject, "dev", tenant=tenant, code="", detail="", task="echo", id="r1",
        sequence=7, duplicate=0,
    )  # fmt: skip
    return seal.tell(signer, "dev", subject, payload, nonce=nonce, at=NOW)


def test_an_answer_is_an_executors() -> None:
    """To this very command, by an executor of the tenant; another's answer is none of ours."""
    subject = subjects.answers("host")

    def answer(body: bytes, tenant: str = "acme", on: str = subject) -> object:
        return OPENER.answer(on, body, nonce="n1", tenant=tenant, now=NOW)

    found = answer(answered())
    assert isinstance(found, dict)
    assert found["id"] == "r1"
    assert answer(answered(nonce="n2")) is None
    for body, tenant, on in (
        (answered(signer=BOSS), "acme", subject), (answered(), "zebra", subject),
        (answered(), "acme", subjects.answers("other")), (b"", "acme", subject),
        (told(subject=subject, signer=HOST), "acme", subject),
        (answered(name="other"), "acme", subjects.answers("other")),
    ):  # fmt: skip
        with pytest.raises(NotAuthenticError):
            answer(body, tenant, on)


# Signed requests.

REQUEST: Final = TaskRequest("acme", "echo", TaskId("mine"), b"in", fresh=True, expires_at=NOW)


def asked(request: TaskRequest = REQUEST, *, signer: SecretKey = ASKER, at: int = NOW) -> bytes:
    """A request under a submitter's seal."""
    return seal.seal(signer, [seal.signed_draft(request, "dev")], at=at)[0]


def opened(body: bytes, *, at: int = NOW, task: str = "echo") -> TaskRequest:
    """What it asks for, proved."""
    sealed = envelope.decode_task(
        body, {}, "acme", task, environment="dev", raw_allowed=True, input_max=100
    )
    assert isinstance(sealed, envelope.Sealed)
    OPENER.request(sealed, tenant="acme", task=task, stored_at=at)
    return envelope.decode_signed(sealed, "acme", task, environment="dev", input_max=100)


def test_a_signed_request_says_who_asks() -> None:
    """All that was signed comes out; `fresh` does not count, since the bytes can be repeated."""
    assert opened(asked()) == replace(REQUEST, fresh=False, by=ASKER.public.key_id.hex())
    assert envelope.decode_sealed(asked()).version == envelope.SIGNED


@pytest.mark.parametrize(
    ("body", "task", "why"),
    [
        (asked(at=NOW - FRESH_MS - 1), "echo", "at another time"),
        (asked(signer=BOSS), "echo", "nobody who is listed"),
        (asked(replace(REQUEST, task="other")), "other", "may not"),
        (asked(replace(REQUEST, task="other")), "echo", "another subject"),
    ],
)
def test_what_no_submitter_may_ask(body: bytes, task: str, why: str) -> None:
    """Another time, signer, task or subject than was signed."""
    with pytest.raises(NotAuthenticError) as caught:
        opened(body, task=task)
    assert why in caught.value.reason


def test_a_signature_is_never_looked_past() -> None:
    """Without its version a signed task is malformed; what it holds must be a task of its id."""
    sealed = envelope.decode_sealed(asked())
    inner = envelope.encode_task(REQUEST, "dev")
    for changed, code in (
        (replace(sealed, version=2), "message.malformed"),
        (replace(sealed, version=4), "message.version-unknown"),
        (replace(sealed, typ="dead"), "message.version-unknown"),
    ):
        with pytest.raises(ExecutorError) as caught:
            envelope.decode_task(
                envelope.encode_sealed(changed), {}, "acme", "echo", environment="dev",
                raw_allowed=True, input_max=100,
            )  # fmt: skip
        assert caught.value.code == code
    for id_, payload in (("other", inner), ("mine", asked()), ("mine", b"")):
        (body,) = seal.seal(ASKER, [Draft("task", "dev/task.acme.echo", id_, payload, 3)], at=NOW)
        with pytest.raises(ExecutorError, match=r"message\.malformed"):
            opened(body)


# Dead letters that are asked for again.


def letter(body: bytes, **fields: object) -> Record:
    """A dead letter of a message."""
    origin = Origin("task.acme.echo", body, (), len(body))
    return replace(
        Record("echo", 3, 3, NOW, NOW + 1, Receipt(), code="guest.trap", origin=origin),
        **fields,  # type: ignore[arg-type]  # the names are the record's
    )


def retried(record: Record) -> TaskRequest:
    """What an executor reads of the retry of it."""
    request = again.retry_of(record, "acme", "old", 7, "dev")
    assert record.origin is not None
    draft = Draft("retry", "dev/task.acme.echo", request.id,
                  envelope.encode_retry(request, record.origin),
                  envelope.retry_version(request))  # fmt: skip
    (body,) = seal.seal(HOST, [draft], at=NOW)
    sealed = envelope.decode_sealed(body)
    assert sealed.version == 3

    def opens(first: envelope.Sealed, _origin: Origin, _at: int) -> TaskRequest:
        return envelope.decode_signed(first, "acme", "echo", environment="dev", input_max=100)

    found, origin = envelope.decode_retry(
        sealed, "acme", "echo", environment="dev", input_max=100, opened=opens
    )
    assert origin == record.origin
    assert found == request
    return found


@pytest.mark.parametrize("body", [envelope.encode_task(REQUEST, "dev"), asked()])
def test_a_letter_is_asked_for_under_a_new_id(body: bytes) -> None:
    """The same request without its times, a first attempt, bound to the id that it came from."""
    found = retried(letter(body))
    assert found.id == again.retried_id("old", 7) != again.retried_id("old", 8)
    assert (found.of, found.attempt, found.expires_at, found.input) == ("mine", 1, 0, b"in")
    assert found.submitted_at == NOW
    # A retry of the retry keeps what it is of.
    assert envelope.retry_version(replace(found, attempt=2)) == 3
    assert envelope.retry_version(replace(found, of="")) == 1


def test_what_cannot_be_asked_for_again() -> None:
    """A letter that has not kept its message whole, or was no task."""
    retry = seal.seal(HOST, [Draft("retry", "dev/task.acme.echo", "a", b"")], at=NOW)[0]
    whole = letter(b"x")
    assert whole.origin is not None
    for record, code in (
        (replace(whole, origin=None), "message.too-large"),
        (replace(whole, origin=replace(whole.origin, size=9)), "message.too-large"),
        (letter(retry), "message.malformed"),
        (letter(b"\xc1"), "message.malformed"),
    ):
        with pytest.raises(ExecutorError) as caught:
            again.request_of(record, "acme", "old", "dev")
        assert caught.value.code == code


def test_a_firing_is_asked_for_again() -> None:
    """Of a schedule's firing: its input, under the id of the firing."""
    said = Schedule("@every 1s", input=b"tick", at=NOW)
    (body,) = seal.seal(HOST, [Draft("schedule", "dev/task.acme.echo", "s", said.payload())],
                        at=NOW)  # fmt: skip
    found = again.retry_of(letter(body), "acme", "old", 7, "dev")
    assert found.input == b"tick"
    assert found.of.startswith("s")


def test_where_a_key_names_whom() -> None:
    """Type, tenant and task; "*" where it names none or means all."""
    assert control.about("pause.acme.echo") == ("pause", "acme", "echo")
    assert control.about("cancel.acme._.1") == ("cancel", "acme", "*")
    assert control.about("breaker.module.acme.ab") == ("breaker", "acme", "*")
    assert control.about("quarantine.ab") == ("quarantine", "*", "*")
    assert control.about("quarantine.ab.acme") == ("quarantine", "acme", "*")
    assert control.about("release") == ("release", "*", "*")
    assert (subjects.commands_all(), subjects.commands("x")) == ("control.all", "control.x")


def test_a_time_that_is_over_in_one_table_is_over() -> None:
    """Who may also submit, without an end, is no operator beyond the end of that."""
    over = by_id([Party("boss", BOSS.public, not_after=NOW - 1)])
    still = by_id([Party("boss", BOSS.public)])
    for operators, submitters in ((over, still), (still, over)):
        opener = replace(OPENER, operators=operators, submitters=submitters)
        with pytest.raises(NotAuthenticError, match="not valid then"):
            opener.said(KEY, entry(fields=FIELDS), stored_at=NOW)
    opener = replace(OPENER, operators=still, submitters=still)
    assert opener.said(KEY, entry(fields=FIELDS), stored_at=NOW).fields == FIELDS


def test_no_entry_is_larger_than_the_bound() -> None:
    """What stores and readers refuse is little more than the largest that anybody may say."""
    sizes = sorted(map(len, speech.largest().values()))
    assert sizes[-1] <= control.ENTRY_MAX < sizes[-1] + 2048
    fields: dict[str, control.Value] = {"code": "x" * 8_192, "task": "x" * 8_192, "at": NOW}
    padded = entry(QUARANTINE, fields | {"by": "x" * 8_192}, signer=HOST)
    assert said(padded, QUARANTINE) == ""
    assert said(padded.ljust(control.ENTRY_MAX + 1), QUARANTINE) == "too large for an entry"
