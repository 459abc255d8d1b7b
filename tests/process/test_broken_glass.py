"""Sessions and broken glass at a whole supervisor: what counts there, until when, and what is said.

The clock is passed in: nothing here waits for an end.
"""

from __future__ import annotations

from typing import Final

from executor.core import approvals, control, seal, subjects
from executor.core.glass import MOST_MS, Opening
from executor.core.session import Session
from executor.core.signature import SecretKey
from executor.supervisor.commands import Commands
from executor.supervisor.steering import Steering
from executor.telemetry import Telemetry
from tests.support import guests, speech
from tests.support.rig import TENANT, Rig, make_config

LEA, ANN, BOB = guests.AUTHOR, guests.STRANGER, guests.FORGER
LEA_ID: Final = LEA.public.key_id.hex()
PAUSE: Final = subjects.pause_key(TENANT, "echo")
WHY: Final[dict[str, control.Value]] = {"at": 1, "why": "because"}
MINUTES: Final = 1_800_000
# Lea has no role at all; Ann and Bob may approve.
PEOPLE: Final = (
    "".join(
        f'[[operator]]\nname = "{name}"\nkey = "{key.public.text}"\n'
        for name, key in (("lea", LEA), ("ann", ANN), ("bob", BOB))
    )
    + '[[binding]]\nrole = "approver"\nwho = ["ann", "bob"]\nwhy = "for tests"\n[[tenant]]'
)
CONFIG: Final = make_config(tenants=[TENANT], replaced=[("[[tenant]]", PEOPLE)])


class Desk:
    """What an executor hears, under a clock that the test turns."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.now = rig, speech.now_ms()
        self.steering = Steering(
            "test", rig.trust, rig.guards, rig.pipeline.cancelling, rig.pipeline.schedules,
            Telemetry(rig.journal), lambda: self.now,
        )  # fmt: skip

    def hear(self, key: str, value: bytes | None) -> None:
        """An entry that is stored now."""
        self.steering.entry(key, value, self.now)

    def pauses(self, signer: seal.Signer = LEA) -> bool:
        """Whether that one's pause counts."""
        payload = control.encode("pause", PAUSE, "test", **WHY)
        self.now += 1
        self.hear(PAUSE, seal.say(signer, "test", PAUSE, payload, at=self.now))
        return self.paused

    @property
    def paused(self) -> bool:
        """Whether the task is held up."""
        return (TENANT, "echo") in self.rig.guards.paused

    def wanted(self, action: str = "pause", tenant: str = TENANT, task: str = "echo") -> Opening:
        """What Lea asks for."""
        return Opening("0af1", LEA_ID, action, tenant, task, "it floods", self.now + MINUTES)

    def opening(self, wanted: Opening, *by: SecretKey) -> bytes:
        """The entry that opens it, by Lea."""
        data = approvals.request("test", wanted)
        first, second = (
            approvals.approve(key, "test", wanted.id, data, at=self.now) for key in by or (ANN, BOB)
        )
        fields: dict[str, control.Value] = {"request": data, "first": first, "second": second}
        return speech.value(
            "break-glass", subjects.glass_key(wanted.id), fields, signer=LEA, at=self.now
        )

    def opens(self, wanted: Opening, *by: SecretKey) -> None:
        """Say it."""
        self.hear(subjects.glass_key(wanted.id), self.opening(wanted, *by))


async def test_an_opening_lets_and_ends() -> None:
    """Approved by two, it lets; at its end it and what stands by it are gone; each is an event."""
    async with Rig(CONFIG) as rig:
        desk = Desk(rig)
        assert not desk.pauses()
        desk.opens(wanted := desk.wanted())
        desk.opens(wanted)  # told twice
        assert desk.pauses()
        desk.now = wanted.exp
        desk.steering.look_at_clock()
        assert desk.paused
        desk.now += 1
        desk.steering.look_at_clock()
        assert not desk.paused
        assert not desk.pauses()
        desk.opens(wanted)  # a copy, when it is over
        assert not desk.pauses()
        assert rig.journal.security() == [
            "pause-not-authentic", "break-glass-opened", "break-glass-used", "break-glass-expired",
            "pause-not-authentic", "break-glass-not-authentic", "pause-not-authentic",
        ]  # fmt: skip
        (opened,) = [f for f in rig.journal.of("security-event")
                     if f["kind"] == "break-glass-opened"]  # fmt: skip
        assert (opened["action"], opened["task"], opened["approved"], opened["why"]) == (
            "pause", f"{TENANT}/echo", "ann,bob", "it floods",
        )  # fmt: skip


async def test_the_end_needs_no_beat() -> None:
    """What comes between an end and the next look at the clock is refused all the same."""
    async with Rig(CONFIG) as rig:
        desk = Desk(rig)
        desk.opens(wanted := desk.wanted())
        desk.now = wanted.exp + 1
        assert not desk.pauses()
        assert rig.journal.security()[1:] == ["break-glass-expired", "pause-not-authentic"]


async def test_who_starts_later_ends_it_too() -> None:
    """An executor that starts after the end believes neither the opening nor what stood by it."""
    async with Rig(CONFIG) as rig:
        desk = Desk(rig)
        wanted, stored = desk.wanted(), desk.now
        entry = desk.opening(wanted)
        pause = speech.value("pause", PAUSE, WHY, signer=LEA, at=stored)
        desk.now = wanted.exp + 1
        desk.steering.entry(subjects.glass_key(wanted.id), entry, stored)
        desk.steering.entry(PAUSE, pause, stored)
        assert not desk.paused
        assert rig.trust.opener().glass.openings == {}


async def test_it_is_closed() -> None:
    """By any operator's word, for good, with what stood by it; a deletion closes nothing."""
    async with Rig(CONFIG) as rig:
        desk = Desk(rig)
        desk.opens(wanted := desk.wanted())
        assert desk.pauses()
        key = subjects.glass_key(wanted.id)
        desk.hear(key, None)
        assert desk.paused
        desk.now += 1
        desk.hear(key, speech.value("break-glass", key, signer=BOB, at=desk.now))
        assert not desk.paused
        desk.now += 1
        desk.opens(wanted)
        assert not desk.pauses()
        reasons = [str(f.get("reason", "")) for f in rig.journal.of("security-event")]
        assert "removed by nobody" in reasons
        assert "it was closed" in reasons


async def test_an_approver_who_is_struck_off() -> None:
    """An opening ends when one of its approvals counts no more; other changes leave it open."""
    async with Rig(CONFIG) as rig:
        desk = Desk(rig)
        desk.opens(desk.wanted())
        assert desk.pauses()
        rig.trust.replace(CONFIG)
        desk.steering.judge_again()
        assert desk.paused
        gone = ("revoked = []", f'revoked = ["{BOB.public.key_id.hex()}"]')
        rig.trust.replace(make_config(tenants=[TENANT], replaced=[("[[tenant]]", PEOPLE), gone]))
        desk.steering.judge_again()
        assert not desk.paused
        (closed,) = [f for f in rig.journal.of("security-event")
                     if f["kind"] == "break-glass-closed"]  # fmt: skip
        assert closed["why"] == "by nobody who is listed"


async def test_a_command_under_an_opening() -> None:
    """Looked at by the clock of now each time, and each use is told."""
    async with Rig(CONFIG) as rig:
        desk, drained = Desk(rig), list[str]()
        commands = Commands(
            "test", "host", guests.HOST, rig.trust, rig.wire, rig.wire.read,
            Telemetry(rig.journal), lambda: desk.now, lambda _s, _d: None,
            lambda: drained.append("x"),
        )  # fmt: skip
        subject = subjects.commands("host")

        async def drain() -> None:
            desk.now += 1
            payload = control.encode(
                "command", subject, "test", verb="drain", tenant="", task="_", id="", sequence=0,
                exp=desk.now + 1_000,
            )  # fmt: skip
            commands.receive(subject, seal.tell(
                LEA, "test", subject, payload, nonce=str(desk.now), at=desk.now
            ))  # fmt: skip
            for running in list(commands._running):
                await running

        await drain()
        assert drained == []
        desk.opens(wanted := desk.wanted("drain", "*", "*"))
        await drain()
        assert drained == ["x"]
        assert rig.journal.security() == ["break-glass-opened", "break-glass-used"]
        desk.now = wanted.exp
        await drain()
        assert drained == ["x"]


async def test_a_session_that_is_revoked() -> None:
    """What a session had said is taken back when its key id is revoked; its holder's words stay."""
    async with Rig(CONFIG) as rig:
        desk = Desk(rig)
        fresh = SecretKey(guests.seed("fresh"))
        made = seal.certify(guests.OPERATOR, "test", fresh.public, at=desk.now,
                            exp=desk.now + MOST_MS)  # fmt: skip
        held = Session(fresh, guests.OPERATOR.public.key_id.hex(), made)
        digest = "quarantine." + "ab" * 32
        shut: dict[str, control.Value] = {"at": 1, "code": "c", "task": "t", "by": "x"}
        desk.hear(digest, speech.value("quarantine", digest, shut, at=desk.now))
        assert desk.pauses(held)
        gone = ("revoked = []", f'revoked = ["{held.id}"]')
        rig.trust.replace(make_config(tenants=[TENANT], replaced=[("[[tenant]]", PEOPLE), gone]))
        desk.steering.judge_again()
        assert not desk.paused
        assert rig.guards.quarantined
        assert not desk.pauses(held)
