"""Broken glass: two others' word, and each step at which it is not enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import pytest

from executor.core import approvals, control, glass, seal, subjects
from executor.core.access import BUILT_IN, Access, Binding, Party, of_key
from executor.core.glass import MOST_MS, Glass, Opening
from executor.core.seal import FRESH_MS, NotAuthenticError, Opener, Said, Signer, by_id
from executor.core.session import Session
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from tests.support import guests

BOSS, ANN, BOB = guests.OPERATOR, guests.AUTHOR, guests.STRANGER
ANN2, FRESH = guests.FORGER, guests.HOST
NOW: Final = 1_800_000_000_000
MINUTES: Final = 1_800_000
WHO: Final = BOSS.public.key_id.hex()
WANTED: Final = Opening("0af1", WHO, "pause", "acme", "echo", "it floods", NOW + MINUTES)
KEY: Final = subjects.glass_key(WANTED.id)
PAUSE: Final = "pause.acme.echo"


def bound(role: str, *keys: SecretKey, tenant: str = "*", deny: bool = False) -> Binding:
    """A role for keys."""
    who = frozenset(of_key(key.public) for key in keys)
    return Binding(role, who, frozenset({tenant}), deny=deny)


def opener(*more: Binding, revoked: Sequence[SecretKey] = ()) -> Opener:
    """A policy where boss has no role, and three keys may approve for one tenant: two are Ann's."""
    return Opener(
        "dev", {}, frozenset(key.public.key_id.hex() for key in revoked),
        by_id([Party("boss", BOSS.public), Party("ann", ANN.public), Party("bob", BOB.public),
               Party("ann", ANN2.public)]),
        access=Access(bindings=(bound("approver", BOSS, ANN, BOB, ANN2, tenant="acme"), *more)),
    )  # fmt: skip


def asked(wanted: Opening = WANTED) -> bytes:
    """The request's bytes, also of one that no verb would make."""
    return control.encode(
        "request", subjects.glass_key(wanted.id), "dev", action=wanted.action, who=wanted.who,
        tenant=wanted.tenant, task=wanted.task, why=wanted.why, exp=wanted.exp,
    )  # fmt: skip


def approved(
    *keys: Signer, wanted: Opening = WANTED, at: int = NOW, environment: str = "dev"
) -> list[bytes]:
    """Their approvals."""
    data = asked(wanted)
    return [approvals.approve(key, environment, wanted.id, data, at=at) for key in keys]


def opens(
    given: Sequence[bytes], *, wanted: Opening = WANTED, by: SecretKey = BOSS, at: int = NOW,
    said_under: str = "", judge: Opener | None = None,
) -> Opening:  # fmt: skip
    """What the entry opens that `by` makes of these approvals."""
    key, judge = said_under or subjects.glass_key(wanted.id), judge or opener()
    fields: dict[str, control.Value] = {"request": asked(wanted)}
    fields |= dict(zip(("first", "second"), given, strict=False))
    payload = control.encode("break-glass", key, "dev", **{"first": b"", "second": b"", **fields})
    entry = seal.say(by, "dev", key, payload, at=at)
    return approvals.opening(judge, key, judge.said(key, entry, stored_at=at), at=at)


def reason(given: Sequence[bytes], **how: object) -> str:
    """Why it does not open."""
    with pytest.raises(NotAuthenticError) as caught:
        opens(given, **how)  # type: ignore[arg-type]  # one case each
    return caught.value.reason


def test_two_others_open() -> None:
    """For who asked, what they approved, until its end; and one of them in a session."""
    found = opens(approved(ANN, BOB))
    assert found == replace(WANTED, by=("ann", "bob"))
    made = seal.certify(BOB, "dev", FRESH.public, at=NOW, exp=NOW + MINUTES)
    held = Session(FRESH, BOB.public.key_id.hex(), made)
    assert opens(approved(ANN, held)).by == ("ann", "bob")
    judge = opener(revoked=[FRESH])
    assert reason(approved(ANN, held), judge=judge) == "in a session that is revoked"


@pytest.mark.covers("policy.approvals-missing")
@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([], "not a msgpack map"),
        (approved(ANN), "not a msgpack map"),
        (approved(ANN, ANN), "`ann` approved twice"),
        (approved(ANN, ANN2), "`ann` approved twice"),  # two keys of one person
        (approved(ANN, BOSS), "`boss` approves what it gets"),
        (approved(ANN, FRESH), "nobody who is listed"),
        (approved(ANN, BOB, environment="prod"), "another subject or environment"),
        (approved(ANN, BOB, wanted=replace(WANTED, action="retry")), "`ann` approved something"),
        (approved(ANN, BOB, wanted=replace(WANTED, id="other")), "another subject"),
        (approved(ANN, BOB, at=NOW - MOST_MS), "another time"),
        (approved(ANN, BOB, at=NOW + FRESH_MS + 1), "in the future"),
        (approved(ANN, BOB, at=NOW + 2 * MINUTES), "in the future"),
    ],
)
def test_what_is_not_enough(given: list[bytes], why: str) -> None:
    """One approval, one person twice, the receiver's own, a stranger's, of something else."""
    assert why in reason(given)


def test_who_may_approve() -> None:
    """One whose key is revoked does not count, nor one whom policy does not let approve there."""
    both = approved(ANN, BOB)
    assert reason(both, judge=opener(revoked=[BOB])) == "by nobody who is listed"
    denied = opener(bound("approver", BOB, deny=True))
    assert "`bob` may not approve" in reason(both, judge=denied)
    elsewhere = replace(WANTED, tenant="zebra")
    given = approved(ANN, BOB, wanted=elsewhere)
    assert "may not approve" in reason(given, wanted=elsewhere)


def test_only_who_asked_opens_it() -> None:
    """Another operator, or another id, makes nothing of the approvals."""
    both = approved(ANN, BOB)
    assert reason(both, by=BOB) == "approved for somebody else"
    assert "read from" in reason(both, said_under="break-glass.other")
    assert reason(both, judge=opener(revoked=[BOSS])) == "by nobody who is listed"
    with pytest.raises(NotAuthenticError, match="nothing that was approved"):
        approvals.opening(opener(), KEY, Said({"request": asked()}, WHO, NOW), at=NOW)


@pytest.mark.parametrize("lasts", [-1, MOST_MS + 1])
def test_its_time_is_bounded(lasts: int) -> None:
    """By who reads: not over, and not more than an hour after it was stored."""
    wanted = replace(WANTED, exp=NOW + lasts)
    given = approved(ANN, BOB, wanted=wanted)
    assert reason(given, wanted=wanted) == "over, or for too long"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        *(({"action": action}, "never broken open")
          for action in ("publish", "release", "change-policy", "approve", "submit", "read", "x")),
        ({"why": " "}, "reason"),
        ({"tenant": "*"}, "TENANT/TASK"),
        ({"task": "a b"}, "TENANT/TASK"),
        ({"action": "drain"}, "names no tenant"),
        ({"action": "quarantine", "tenant": "*"}, "names no tenant"),
    ],
)  # fmt: skip
def test_what_never_opens(change: dict[str, str], why: str) -> None:
    """Nothing that makes code run or widens authority, nor more than the action is about."""
    wanted = replace(WANTED, **change)  # type: ignore[arg-type]  # texts alone
    with pytest.raises(ExecutorError, match=rf"action-denied.*{why}"):
        approvals.request("dev", wanted)
    assert why in reason(approved(ANN, BOB, wanted=wanted), wanted=wanted)


def test_what_may_open() -> None:
    """What the role `operator` has; a part of it is about no tenant."""
    assert BUILT_IN["operator"] == glass.BREAKABLE
    for action in glass.BREAKABLE - glass.WHOLE:
        for task in ("echo", "*"):
            approvals.request("dev", replace(WANTED, action=action, task=task))
    for action in glass.WHOLE:
        approvals.request("dev", replace(WANTED, action=action, tenant="*", task="*"))
    assert approvals.read(asked(), WANTED.id, "dev") == WANTED
    with pytest.raises(ExecutorError, match="audience-mismatch"):
        approvals.read(asked(), WANTED.id, "prod")


# While it is open.


def pauses(judge: Opener, *, key: str = PAUSE, at: int = NOW) -> str:
    """By which opening boss's pause counts; why not, else."""
    payload = control.encode("pause", key, "dev", at=1, why="because")
    entry = seal.say(BOSS, "dev", key, payload, at=at)
    try:
        return judge.said(key, entry, stored_at=at).glass
    except NotAuthenticError as error:
        return error.reason


def test_it_lets_and_ends() -> None:
    """One action on one task, until its end to the millisecond; then nothing, whoever looks."""
    judge = opener()
    assert "may not" in pauses(judge)
    assert judge.glass.add(opens(approved(ANN, BOB))) == ""
    assert pauses(judge) == WANTED.id
    assert "may not" in pauses(judge, key="pause.acme.other")
    assert "may not" in pauses(judge, key="pause.zebra.echo")
    assert pauses(judge, at=WANTED.exp) == WANTED.id
    assert "may not" in pauses(judge, at=WANTED.exp + 1)
    (boss,) = [party for party in judge.operators.values() if party.name == "boss"]
    with pytest.raises(NotAuthenticError):
        judge.check(boss, "retry", "acme", "echo", at=NOW)
    with pytest.raises(NotAuthenticError):
        judge.check(boss, "pause", "acme", "*", at=NOW)
    assert judge.glass.sweep(WANTED.exp) == []
    assert [one.id for one in judge.glass.sweep(WANTED.exp + 1)] == [WANTED.id]
    assert "may not" in pauses(judge)


def test_a_denial_is_stronger() -> None:
    """What a binding takes away no approval gives."""
    judge = opener(bound("operator", BOSS, deny=True))
    judge.glass.add(opens(approved(ANN, BOB), judge=judge))
    assert "denied" in pauses(judge)


def test_what_policy_lets_needs_no_opening() -> None:
    """A use is one of the opening only where policy does not let it anyway."""
    judge = opener(bound("operator", BOSS))
    judge.glass.add(WANTED)
    assert pauses(judge) == ""


def test_closed_is_closed() -> None:
    """For as long as it could have lasted; and what is open at once is bounded."""
    ledger = Glass()
    assert ledger.add(WANTED) == ledger.add(WANTED) == ""
    assert ledger.close(WANTED.id, WANTED.exp) == WANTED
    assert ledger.close(WANTED.id, WANTED.exp) is None
    ledger.sweep(WANTED.exp)
    assert ledger.add(WANTED) == "it was closed"
    ledger.sweep(WANTED.exp + 1)
    assert ledger.add(WANTED) == ""
    for number in range(100):
        ledger.add(replace(WANTED, id=str(number)))
    assert len(ledger.openings) == 64
    assert ledger.add(replace(WANTED, id="more")) == "too much is open, or was"
    assert ledger.add(WANTED) == ""
