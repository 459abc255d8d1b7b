"""Every bit of every authenticated message, flipped in turn: nothing is accepted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from executor.core import approvals, control, envelope, seal, subjects
from executor.core.envelope import Draft, Origin, Record, Sealed
from executor.core.glass import Opening
from executor.core.schedule import Schedule
from executor.core.seal import NotAuthenticError
from executor.core.session import Session
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from executor.model import Receipt, TaskId, TaskRequest
from tests.support import guests, speech
from tests.support.rig import TENANT, make_config

NOW: Final = 1_800_000_000_000
BOSS, HOST, ASKER = guests.OPERATOR, guests.HOST, guests.AUTHOR
ANN, BOB = guests.STRANGER, guests.FORGER
OPENER: Final = make_config(tenants=[TENANT], replaced=[(
    "[[tenant]]", f"""[[submitter]]
name = "asker"
key = "{ASKER.public.text}"
[[binding]]
role = "submitter"
who = ["asker"]
why = "for tests"
[[operator]]
name = "ann"
key = "{ANN.public.text}"
[[operator]]
name = "bob"
key = "{BOB.public.text}"
[[binding]]
role = "approver"
who = ["ann", "bob"]
why = "for tests"
[[tenant]]""",
)]).opener()  # fmt: skip
SUBJECT: Final = subjects.task(TENANT, "echo")
REQUEST: Final = TaskRequest(
    TENANT, "echo", TaskId("mine"), b"input", expires_at=NOW + 1, attempts_max=2,
    limits=(("fuel", 1_000),),
)  # fmt: skip
PAUSE: Final = subjects.pause_key(TENANT, "echo")
COMMAND: Final = subjects.commands_of(TENANT)
ANSWER: Final = subjects.answers("test")
PLAIN: Final = envelope.encode_task(REQUEST, "test")


def sealed(draft: Draft) -> bytes:
    """Under the executor's key, the first of a batch of three."""
    others = [Draft("result", "test/x", str(number), b"") for number in range(2)]
    return seal.seal(HOST, [draft, *others], at=NOW)[0]


def record(code: str) -> bytes:
    """A result, or a dead letter."""
    typ = "dead" if code else "result"
    found = Record("echo", 1, 3, 1, 2, Receipt(), output=b"" if code else b"out", code=code)
    subject = f"{typ}.{TENANT}.echo.mine"
    return sealed(Draft(typ, f"test/{subject}", "mine", envelope.encode_record(found, 1)))


def opens_record(body: bytes) -> object:
    """On either subject of its id."""
    typ = envelope.decode_sealed(body).typ
    return OPENER.record(f"{typ}.{TENANT}.echo.mine", body, stored_at=NOW)


def arrives(body: bytes) -> Sealed:
    """What arrives among the tasks and is sealed."""
    found = envelope.decode_task(
        body, {}, TENANT, "echo", environment="test", raw_allowed=True, input_max=1_000
    )
    if not isinstance(found, Sealed):
        raise NotAuthenticError("a plain task: anybody may say it, so it proves nothing")
    return found


def opens_request(body: bytes) -> object:
    """A signed request."""
    found = arrives(body)
    if found.typ != "task":
        raise NotAuthenticError("no request")
    OPENER.request(found, tenant=TENANT, task="echo", stored_at=NOW)
    return envelope.decode_signed(found, TENANT, "echo", environment="test", input_max=1_000)


def opens_own(typ: str) -> Callable[[bytes], object]:
    """What an executor put there: a retry, or a firing."""

    def opens(body: bytes) -> object:
        found = arrives(body)
        OPENER.open(found, typ=typ, subject=SUBJECT, task_id=found.id, tenant=TENANT,
                    stored_at=NOW)  # fmt: skip
        if typ == "retry":
            return envelope.decode_retry(found, TENANT, "echo", environment="test", input_max=1_000)
        return found

    return opens


def command() -> bytes:
    """An operator's."""
    payload = control.encode(
        "command", COMMAND, "test", verb="retry", tenant=TENANT, task="_", id="mine", sequence=3,
        exp=NOW + 1_000,
    )  # fmt: skip
    return seal.tell(BOSS, "test", COMMAND, payload, nonce="0123456789abcdef", at=NOW)


def answer() -> bytes:
    """An executor's."""
    payload = control.encode(
        "answer", ANSWER, "test", tenant=TENANT, code="", detail="", task="echo", id="r",
        sequence=3, duplicate=0,
    )  # fmt: skip
    return seal.tell(HOST, "test", ANSWER, payload, nonce="0123456789abcdef", at=NOW)


def opens_answer(body: bytes) -> object:
    """An answer to what was asked; to something else it is none."""
    found = OPENER.answer(ANSWER, body, nonce="0123456789abcdef", tenant=TENANT, now=NOW)
    if found is None:
        raise NotAuthenticError("to another command")
    return found


def held() -> bytes:
    """An entry that a session signed."""
    exp, fresh = NOW + 1_000, SecretKey(guests.seed("fresh"))
    made = seal.certify(BOSS, "test", fresh.public, at=NOW, exp=exp)
    payload = control.encode("pause", PAUSE, "test", at=NOW, why="because")
    key = Session(fresh, BOSS.public.key_id.hex(), made)
    return seal.say(key, "test", PAUSE, payload, at=NOW)


WANTED: Final = Opening("0af1", BOSS.public.key_id.hex(), "drain", "*", "*", "why", NOW + 1_000)
GLASS: Final = subjects.glass_key(WANTED.id)


def broken() -> bytes:
    """An opening with its approvals."""
    data = approvals.request("test", WANTED)
    first, second = (approvals.approve(k, "test", WANTED.id, data, at=NOW) for k in (ANN, BOB))
    return speech.value(
        "break-glass", GLASS, {"request": data, "first": first, "second": second}, at=NOW
    )


def opens_glass(body: bytes) -> object:
    """All of it: the entry, the request, both approvals."""
    return approvals.opening(OPENER, GLASS, OPENER.said(GLASS, body, stored_at=NOW), at=NOW)


AGAIN: Final = envelope.encode_retry(REQUEST, Origin(SUBJECT, PLAIN, (), len(PLAIN)))
FIRED: Final = Schedule("@every 1s", input=b"tick", at=NOW).payload()
KINDS: Final[dict[str, tuple[bytes, Callable[[bytes], object]]]] = {
    "signed request": (
        seal.seal(ASKER, [seal.signed_draft(REQUEST, "test")], at=NOW)[0], opens_request,
    ),
    "result": (record(""), opens_record),
    "dead letter": (record("guest.trap"), opens_record),
    "retry": (sealed(Draft("retry", f"test/{SUBJECT}", "mine", AGAIN)), opens_own("retry")),
    "firing": (sealed(Draft("schedule", f"test/{SUBJECT}", "s", FIRED)), opens_own("schedule")),
    "entry of CONTROL": (
        speech.value("pause", PAUSE, {"at": NOW, "why": "because"}, at=NOW),
        lambda body: OPENER.said(PAUSE, body, stored_at=NOW),
    ),
    "entry in a session": (held(), lambda body: OPENER.said(PAUSE, body, stored_at=NOW)),
    "opening": (broken(), opens_glass),
    "removal": (
        speech.value("pause", PAUSE, at=NOW), lambda body: OPENER.said(PAUSE, body, stored_at=NOW),
    ),
    "command": (command(), lambda body: OPENER.command(COMMAND, body, now=NOW)),
    "answer": (answer(), opens_answer),
}  # fmt: skip


ENTRIES: Final = {"entry of CONTROL", "entry in a session", "removal"}


@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_is_believed(kind: str) -> None:
    """A message with any one bit changed, every bit in turn, says nothing; as it was, it does."""
    good, opens = KINDS[kind]
    assert opens(good)
    accepted = []
    for place in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[place] ^= 1 << bit
            try:
                opens(bytes(bad))
            except (NotAuthenticError, ExecutorError):
                continue
            accepted.append((place, bit))
    assert accepted == []


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_taken_for_another_kind(kind: str) -> None:
    """A message of one kind opens as no other."""
    good, _ = KINDS[kind]
    alike = {"result", "dead letter"} if kind in {"result", "dead letter"} else {kind}
    if kind in ENTRIES:
        alike = ENTRIES
    for other in KINDS.keys() - alike:
        with pytest.raises((NotAuthenticError, ExecutorError)):
            KINDS[other][1](good)
