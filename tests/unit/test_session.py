"""Sessions of operators: whose word their messages are, and each step at which they are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from executor.cli.sessions import Folder, operator_key
from executor.core import control, envelope, seal, session
from executor.core.access import Access, Binding, Party, of_key
from executor.core.envelope import Draft
from executor.core.seal import FRESH_MS, ExecutorKey, NotAuthenticError, Opener, Signer, by_id
from executor.core.session import MOST_MS, Session
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from tests.support import guests
from tests.support.rig import make_config

BOSS, OTHER, HOST, FRESH = guests.OPERATOR, guests.AUTHOR, guests.HOST, guests.FORGER
NOW: Final = 1_800_000_000_000
HOUR: Final = 3_600_000
KEY: Final = "pause.acme.echo"
COMMAND: Final = "control.tenant.acme"
BOSS_ID: Final = BOSS.public.key_id.hex()
PARTIES: Final = [Party("boss", BOSS.public), Party("other", OTHER.public)]
OPENER: Final = Opener(
    "dev", {HOST.public.key_id.hex(): ExecutorKey("host", HOST.public)},
    operators=by_id(PARTIES),
    access=Access(bindings=(Binding("operator", frozenset({of_key(BOSS.public)})),)),
)  # fmt: skip


def begin(
    *, by: SecretKey = BOSS, at: int = NOW, exp: int = NOW + HOUR, holder: SecretKey = BOSS,
    environment: str = "dev", fresh: SecretKey = FRESH,
) -> Session:  # fmt: skip
    """A session, or what somebody passes off as one."""
    made = seal.certify(by, environment, fresh.public, at=at, exp=exp)
    return Session(fresh, holder.public.key_id.hex(), made)


def pause(key: Signer, *, at: int = NOW + 1) -> bytes:
    """An entry that holds a task up."""
    payload = control.encode("pause", KEY, "dev", at=1, why="because")
    return seal.say(key, "dev", KEY, payload, at=at)


def reason(value: bytes, *, opener: Opener = OPENER, at: int = NOW + 1) -> str:
    """Why an entry is not believed; "" if it is."""
    try:
        opener.said(KEY, value, stored_at=at)
    except NotAuthenticError as error:
        return error.reason
    return ""


def revoking(*names: str) -> Opener:
    """The same when these are struck off."""
    return replace(OPENER, revoked=frozenset(names))


def test_a_session_speaks_for_its_holder() -> None:
    """Entries and commands count as the holder's, and say by which session."""
    held = begin()
    found = OPENER.said(KEY, pause(held), stored_at=NOW + 1)
    assert (found.by, found.session) == (BOSS_ID, FRESH.public.key_id.hex())
    assert found.session == held.id
    payload = control.encode("command", COMMAND, "dev", verb="retry", tenant="acme", task="_",
                             id="x", sequence=0, exp=NOW + 1_000)  # fmt: skip
    told = seal.tell(held, "dev", COMMAND, payload, nonce="abc", at=NOW)
    assert OPENER.command(COMMAND, told, now=NOW).party.name == "boss"
    short = seal.tell(begin(exp=NOW), "dev", COMMAND, payload, nonce="abc", at=NOW)
    with pytest.raises(NotAuthenticError, match="not open then"):
        OPENER.command(COMMAND, short, now=NOW + 1)


def test_a_certificate_is_small() -> None:
    """A message brings its certificate along: that is cheaper than another entry to keep."""
    assert len(begin().certificate) < 400


@pytest.mark.parametrize(
    ("held", "why"),
    [
        (begin(by=HOST), "somebody else"),
        (begin(by=OTHER), "somebody else"),
        (begin(by=OTHER, holder=OTHER), "may not"),
        (begin(by=HOST, holder=HOST), "somebody else"),
        (begin(environment="prod"), "read from"),
        (begin(exp=NOW), "not open then"),
        (begin(at=NOW + 2), "not open then"),
        (begin(exp=NOW + MOST_MS + 1), "too long"),
        (replace(begin(), key=guests.STRANGER), "does not hold"),
        (replace(begin(), certificate=b"\xc1"), "not a msgpack map"),
        (replace(begin(), certificate=pause(BOSS)), "not a session"),
        (replace(begin(), certificate=begin().certificate[:-1] + b"\x00"), "does not hold"),
    ],
)
def test_what_is_no_session(held: Session, why: str) -> None:
    """A certificate of another key, holder, place, time, kind or signature opens nothing."""
    assert why in reason(pause(held))


def test_a_certificate_by_a_session_is_none() -> None:
    """A session makes no sessions, so that none outlives the first one's end."""
    first = begin()
    draft = session.draft("dev", guests.STRANGER.public, NOW + 2 * HOUR)
    (second,) = seal.seal(first, [draft], at=NOW)
    held = Session(guests.STRANGER, BOSS_ID, second)
    assert reason(pause(held)) == "in a session of somebody else"


def test_it_ends() -> None:
    """At its end, by its own time and by the reader's: a stolen key cannot date back."""
    held = begin()
    assert reason(pause(held, at=NOW + HOUR), at=NOW + HOUR) == ""
    for at, stored in ((NOW + HOUR + 1, NOW + HOUR + 1), (NOW + HOUR, NOW + HOUR + 1)):
        assert reason(pause(held, at=at), at=stored) == "in a session that was not open then"


def test_it_is_revoked() -> None:
    """By its own key id, or with its holder; what it had said is then no longer said."""
    held = begin()
    assert reason(pause(held), opener=revoking(held.id)) == "in a session that is revoked"
    assert reason(pause(held), opener=revoking(BOSS_ID)) == "by nobody who is listed"
    with pytest.raises(NotAuthenticError, match="revoked"):
        revoking(held.id).speaker(KEY, BOSS_ID, NOW, session_id=held.id)


def test_a_holder_that_was_not_valid_yet() -> None:
    """A key certifies nothing before or after its own time."""
    early = replace(OPENER, operators=by_id([Party("boss", BOSS.public, not_before=NOW + 1)]))
    assert reason(pause(begin()), opener=early) == "in a session that was not open then"


def test_sessions_alone() -> None:
    """From `sessions_from` on the long-lived key says nothing itself; what it said stays said."""
    party = Party("boss", BOSS.public, sessions_from=NOW)
    strict = replace(OPENER, operators=by_id([party]))
    assert reason(pause(BOSS), opener=strict) == "by a key that may sign nothing but sessions"
    assert reason(pause(BOSS, at=NOW - 1), opener=strict, at=NOW) == ""
    assert reason(pause(begin()), opener=strict) == ""
    # A second entry of the same key, as a submitter, opens no way around.
    both = replace(strict, submitters=by_id([Party("boss", BOSS.public)]))
    assert reason(pause(BOSS), opener=both) == "by a key that may sign nothing but sessions"


def test_a_session_is_for_what_steers() -> None:
    """It signs neither requests nor outcomes, and an executor's answer has none."""
    with pytest.raises(ValueError, match="what steers"):
        seal.seal(begin(), [Draft("task", "dev/task.acme.echo", "x", b"")], at=NOW)
    sealed = envelope.decode_sealed(pause(begin()))
    with pytest.raises(NotAuthenticError, match="no session"):
        OPENER.open(sealed, typ="control", subject=KEY, task_id="echo", tenant="", stored_at=NOW)


def test_an_older_host_refuses_it() -> None:
    """An envelope that brings a certificate is of version 2; no other one is."""
    sealed = envelope.decode_sealed(pause(begin()))
    assert sealed.version == envelope.WITH_SESSION
    plain = envelope.encode_sealed(replace(sealed, session=b""))
    assert reason(plain) == "of version 2"
    with pytest.raises(ExecutorError, match=r"message\.malformed"):
        envelope.decode_sealed(envelope.encode_sealed(replace(sealed, version=1)))


def test_a_key_of_another_length() -> None:
    """A certificate of what is no key is refused as malformed."""
    place = session.place("ab")
    for raw in (b"", bytes(31)):
        payload = control.encode("session", place, "dev", key=raw, exp=1)
        (made,) = seal.seal(BOSS, [Draft("control", f"dev/{place}", "ab", payload)], at=NOW)
        with pytest.raises(ExecutorError, match="no key of a session"):
            session.read(made, "dev")


# The folder.


def refused(folder: Folder, now: int) -> str:
    """Why no session signs now."""
    with pytest.raises(ExecutorError) as caught:
        folder.use(now=now)
    assert caught.value.code == "policy.session-expired"
    return caught.value.detail


@pytest.mark.covers("policy.session-expired")
def test_the_end_destroys_the_key(tmp_path: Path) -> None:
    """Idle or over, by a clock that is passed in: the key is gone, and no other one steps in."""
    minute = 60_000
    folder = Folder(tmp_path / "session", "dev")
    assert folder.use(now=NOW) is None
    made = folder.start(BOSS, now=NOW, hours=1, idle_ms=30 * minute)
    key = tmp_path / "session" / "session.key"
    assert (key.stat().st_mode & 0o777, made.exp) == (0o600, NOW + HOUR)
    held = folder.use(now=NOW + 30 * minute)
    assert held is not None
    assert reason(pause(held)) == ""
    assert folder.use(now=NOW + 60 * minute) is not None  # each use begins the time anew
    assert refused(folder, NOW + HOUR + 1) == "it ended at 2027-01-15T09:00:00.000Z"
    assert not key.exists()
    assert "it ended" in refused(folder, NOW)

    folder.start(BOSS, now=NOW, hours=12, idle_ms=30 * minute)
    assert refused(folder, NOW + 30 * minute + 1) == "it was idle for more than 30 minutes"
    assert not key.exists()
    folder.start(BOSS, now=NOW, hours=12, idle_ms=30 * minute)
    assert "idle" in refused(folder, NOW - FRESH_MS * 10)  # a clock that was set back
    assert folder.end()
    assert not folder.end()
    assert folder.use(now=NOW) is None


def test_a_folder_that_somebody_changed(tmp_path: Path) -> None:
    """Another environment, a key that is gone, a file that is none: nothing signs."""
    folder = Folder(tmp_path, "dev")
    folder.start(BOSS, now=NOW, hours=1, idle_ms=HOUR)
    assert refused(replace(folder, environment="prod"), NOW) == (
        "it was begun for another environment"
    )
    folder.start(BOSS, now=NOW, hours=1, idle_ms=HOUR)
    (tmp_path / "session.key").unlink()
    assert refused(folder, NOW) == "its key is gone"
    (tmp_path / "session.json").write_text("[]")
    with pytest.raises(ExecutorError, match=r"config\.invalid.*damaged"):
        folder.use(now=NOW)


def test_policy_asks_for_one(tmp_path: Path) -> None:
    """Where policy lets an operator's key sign sessions alone, no verb signs with it."""
    (tmp_path / "operator.key").write_bytes(BOSS.pem())
    (tmp_path / "operator.key").chmod(0o600)
    asked = ('name = "boss"\n', 'name = "boss"\nsessions_from = 2020-01-01\n')
    config = make_config(replaced=[asked]).with_values(keys__operator_file="operator.key")
    config = replace(config, folder=tmp_path)
    with pytest.raises(ExecutorError, match=r"session-expired.*asks `boss` for one"):
        operator_key(config)
    with pytest.raises(ExecutorError, match="sessions_from"):
        make_config(replaced=[('name = "boss"\n', 'name = "boss"\nsessions_from = true\n')])
    assert isinstance(operator_key(replace(make_config().with_values(
        keys__operator_file="operator.key"), folder=tmp_path)), SecretKey)  # fmt: skip
