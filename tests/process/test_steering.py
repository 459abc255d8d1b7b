"""What is said, commanded and asked under a signature, at a whole supervisor: once, by whom may."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from executor.core import again, control, envelope, seal, subjects
from executor.core.seal import FRESH_MS
from executor.core.signature import SecretKey
from executor.model import Digest, TaskRequest
from executor.supervisor import commands
from executor.supervisor.commands import Commands
from executor.supervisor.steering import Steering
from executor.telemetry import Telemetry
from tests.support import guests, speech
from tests.support.rig import TENANT, Rig, make_config

PAUSE = subjects.pause_key(TENANT, "echo")
WHY: dict[str, control.Value] = {"at": 1, "why": "because"}
ASKER = f"""[[submitter]]
name = "asker"
key = "{guests.AUTHOR.public.text}"
[[binding]]
role = "submitter"
who = ["asker"]
tasks = ["echo"]
why = "for tests"
[[tenant]]"""


def steering(rig: Rig) -> Steering:
    """What takes the entries of CONTROL for this rig."""
    return Steering(
        "test", rig.trust, rig.guards, rig.pipeline.cancelling, rig.pipeline.schedules,
        Telemetry(rig.journal), speech.now_ms,
    )  # fmt: skip


def reasons(rig: Rig) -> list[str]:
    """Why what was said was not believed, in order."""
    return [str(facts["reason"]) for facts in rig.journal.of("security-event")]


# Entries.


async def test_the_newest_word_counts() -> None:
    """A copy of an older entry, or of what was taken back, changes nothing and is an event."""
    async with Rig() as rig:
        at, heard = speech.now_ms(), steering(rig)
        first = speech.value("pause", PAUSE, WHY, at=at)
        heard.entry(PAUSE, first, at)
        heard.entry(PAUSE, first, at)  # told twice
        heard.entry(PAUSE, speech.value("pause", PAUSE, at=at + 1), at + 1)
        assert rig.guards.paused == {}
        heard.entry(PAUSE, first, at + 2)
        assert rig.guards.paused == {}
        assert reasons(rig) == ["older than what was said already"]
        # Whoever starts later has no memory: then its time tells.
        later = steering(rig)
        later.entry(PAUSE, first, at + FRESH_MS + 1)
        assert rig.guards.paused == {}
        assert reasons(rig)[1:] == ["signed at another time than it was stored"]


async def test_only_a_signature_takes_back() -> None:
    """A deletion that nobody signed leaves a task paused; of what was never said it is nothing."""
    async with Rig() as rig:
        at, heard = speech.now_ms(), steering(rig)
        heard.entry(PAUSE, None, at)
        assert reasons(rig) == []
        heard.entry(PAUSE, speech.value("pause", PAUSE, WHY, at=at), at)
        heard.entry(PAUSE, None, at)
        assert rig.guards.paused == {(TENANT, "echo"): "because"}
        assert reasons(rig) == ["removed by nobody"]
        heard.entry(PAUSE, speech.value("pause", PAUSE, at=at), at)
        heard.entry(PAUSE, None, at)  # the server dropped it when its time had come
        assert rig.guards.paused == {}
        assert len(reasons(rig)) == 1


async def test_what_was_said_is_judged_again() -> None:
    """An operator that is struck off has nothing to say any more; what an executor said stays."""
    async with Rig() as rig:
        at, heard = speech.now_ms(), steering(rig)
        digest = "quarantine." + "ab" * 32
        shut: dict[str, control.Value] = {"at": 1, "code": "c", "task": "t", "by": "x"}
        heard.entry(PAUSE, speech.value("pause", PAUSE, WHY, at=at), at)
        heard.entry(digest, speech.value("quarantine", digest, shut, signer=guests.HOST, at=at), at)
        cancel = subjects.cancel_key(TENANT, "echo", "x")
        heard.entry(cancel, speech.value("cancel", cancel, {"until": at + 10**6}, at=at), at)
        heard.judge_again()
        assert rig.guards.paused
        gone = f'revoked = ["{guests.OPERATOR.public.key_id.hex()}"]'
        rig.trust.replace(make_config(replaced=[("revoked = []", gone)]))
        heard.judge_again()
        assert rig.guards.paused == {}
        assert list(rig.guards.quarantined) == [(Digest("sha256:" + "ab" * 32), "*")]
        assert [facts["key"] for facts in rig.journal.of("no-longer-said")] == [PAUSE]
        assert len(rig.pipeline.cancelling.cancels._until) == 1


async def test_a_release_is_told_on() -> None:
    """Put in force and taken back; one that names no digest is an event."""
    async with Rig() as rig:
        told: list[object] = []
        at, heard = speech.now_ms(), steering(rig)
        heard.on_release = lambda name, live: told.append((name, live and live.digest))
        key = subjects.release_key(TENANT, "echo")
        digest = "sha256:" + "ab" * 32
        for fields in ({"digest": digest, "version": "1"}, {"digest": "x", "version": "1"}, None):
            heard.entry(key, speech.value("release", key, fields, at=at), at)
        assert told == [((TENANT, "echo"), digest), ((TENANT, "echo"), None)]
        assert rig.journal.security() == ["release-not-authentic"]


async def test_the_memory_of_entries_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a copy could not take the place of any more is forgotten; what stands is not."""
    monkeypatch.setattr("executor.supervisor.steering._HEARD_MAX", 10)
    async with Rig() as rig:
        at, heard = speech.now_ms(), steering(rig)
        heard.entry(PAUSE, speech.value("pause", PAUSE, WHY, at=at), at)
        for number in range(10):
            key = subjects.cancel_key(TENANT, "echo", str(number))
            heard.entry(key, speech.value("cancel", key, {"until": at}, at=at), at)
        assert len(heard._heard) == 11
        heard._room = 10
        heard.now_ms = lambda: at + 4 * FRESH_MS
        heard.entry(PAUSE, speech.value("pause", PAUSE, WHY, at=at), at)
        assert list(heard._heard) == [PAUSE]


# Commands.


class Desk:
    """Commands at a rig, and what they answered."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.answers: list[tuple[str, bytes]] = []
        self.drained = 0
        self.commands = Commands(
            "test", "test", guests.HOST, rig.trust, rig.wire, rig.wire.find,
            Telemetry(rig.journal), speech.now_ms, lambda s, b: self.answers.append((s, b)),
            self._drain,
        )  # fmt: skip

    def _drain(self) -> None:
        self.drained += 1

    async def tell(
        self, verb: str, task_id: str = "", *, nonce: str = "n",
        changes: dict[str, control.Value] | None = None,
    ) -> dict[str, control.Value]:  # fmt: skip
        """Tell, and wait for the answer."""
        body = order(verb, task_id, guests.OPERATOR, nonce, changes or {})
        self.commands.receive(subjects.commands_all(), body)
        count = len(self.answers) + 1
        while len(self.answers) < count:
            assert self.commands._running, "it was not believed"
            await asyncio.gather(*self.commands._running)
        subject, body = self.answers[-1]
        found = self.rig.trust.opener().answer(
            subject, body, nonce=nonce, tenant=TENANT, now=speech.now_ms()
        )
        assert found is not None
        return found


def order(
    verb: str, task_id: str, signer: SecretKey, nonce: str, changes: dict[str, control.Value]
) -> bytes:
    """A command for all."""
    subject, now = subjects.commands_all(), speech.now_ms()
    fields: dict[str, control.Value] = {
        "verb": verb, "tenant": TENANT, "task": "_", "id": task_id, "sequence": 0,
        "exp": now + 10_000, **changes,
    }  # fmt: skip
    payload = control.encode("command", subject, "test", **fields)
    return seal.tell(signer, "test", subject, payload, nonce=nonce, at=now)


async def letter(rig: Rig, task_id: str = "old") -> int:
    """A task that ended as a dead letter; its sequence."""
    rig.publish("trap", guests.TRAP)
    assert (await rig.record(rig.ask("trap", b"in", id=task_id))).code == "guest.trap"
    return rig.wire.stored[subjects.dead(TENANT, "trap", task_id)].sequence


async def test_a_letter_is_asked_for_again() -> None:
    """Under its new id, through LATER, and it runs; asked twice it is the same message."""
    async with Rig() as rig:
        sequence = await letter(rig)
        rig.publish("trap", guests.ECHO, version="1.0.1")
        rig.pipeline.decide_again()
        desk = Desk(rig)
        first = await desk.tell("retry", "old", nonce="1")
        exact: dict[str, control.Value] = {"sequence": sequence, "task": "trap"}
        again_ = await desk.tell("retry", "old", nonce="2", changes=exact)
        new = again.retried_id("old", sequence)
        assert (first["code"], first["id"], again_["id"]) == ("", new, new)
        one, two = rig.wire.published("later")
        assert one.headers == two.headers == {"Nats-Msg-Id": f"{TENANT}.{new}"}
        assert one.subject == two.subject
        rig.retry(one)
        await rig.until(lambda: new in rig.records(), new)
        record = rig.records()[new]
        assert (record.output, record.attempt, record.history) == (b"in", 1, ())


async def test_a_letter_is_closed() -> None:
    """Marked as discarded under the executor's seal; then nobody asks for it again."""
    async with Rig() as rig:
        await letter(rig)
        desk = Desk(rig)
        assert (await desk.tell("discard", "old", nonce="1"))["code"] == ""
        assert rig.open(rig.wire.published("dead")[-1]).discarded_at
        for verb in ("discard", "retry"):
            refused = await desk.tell(verb, "old", nonce=verb)
            assert refused["code"] == "transport.publish-unconfirmed"
        assert len(rig.wire.published("dead")) == 2


@pytest.mark.parametrize(
    ("verb", "task_id", "changes", "code"),
    [
        ("retry", "none", {}, "transport.outcome-pending"),
        ("retry", "no id", {}, "policy.task-unknown"),
        ("retry", "old", {"tenant": "stranger"}, "policy.task-unknown"),
        ("retry", "old", {"task": "no.task"}, "policy.task-unknown"),
        ("retry", "old", {"sequence": 1}, "transport.publish-unconfirmed"),
        ("retry", "good", {}, "message.malformed"),
        ("dance", "old", {}, "message.malformed"),
        ("drain", "", {}, ""),
    ],
)
async def test_what_becomes_of_a_command(
    verb: str, task_id: str, changes: dict[str, control.Value], code: str
) -> None:
    """What cannot be done is answered with its code, and nothing is published."""
    async with Rig() as rig:
        await letter(rig)
        rig.publish("echo", guests.ECHO)
        await rig.record(rig.ask("echo", b"x", id="good"))
        before, desk = len(rig.wire.published()), Desk(rig)
        if changes.get("tenant"):
            desk.commands.receive(
                subjects.commands_all(), order(verb, task_id, guests.OPERATOR, "n", changes)
            )
            await asyncio.gather(*desk.commands._running)
            assert rig.journal.of("command")[-1]["code"] == code
        else:
            assert (await desk.tell(verb, task_id, changes=changes))["code"] == code
        assert len(rig.wire.published()) == before
        assert desk.drained == (verb == "drain")


async def test_who_may_not_is_told_so() -> None:
    """An operator without the role is refused by the executor, whatever its command line said."""
    text = ("[[tenant]]", """[[binding]]
role = "operator"
who = ["boss"]
tasks = ["trap"]
deny = true
why = "not this one"
[[tenant]]""")  # fmt: skip
    async with Rig(make_config(replaced=[text])) as rig:
        await letter(rig)
        desk = Desk(rig)
        for number, task_id in enumerate(("old", "none")):
            found = await desk.tell("retry", task_id, nonce=str(number))
            assert found["code"] == "policy.action-denied"
        assert (await desk.tell("drain", nonce="d"))["code"] == "policy.action-denied"
        assert rig.wire.published("later") == []


async def test_a_command_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording of it, a stranger's, and what exceeds the memory of nonces do nothing."""
    monkeypatch.setattr(commands, "NONCES_MAX", 2)
    async with Rig() as rig:
        desk = Desk(rig)
        body = order("drain", "", guests.OPERATOR, "n", {})
        for data in (body, body, b"junk", order("drain", "", guests.STRANGER, "s", {})):
            desk.commands.receive(subjects.commands_all(), data)
        desk.commands.receive(subjects.commands("host"), body)  # reflected
        await asyncio.gather(*desk.commands._running)
        assert desk.drained == 1
        assert rig.journal.security() == ["command-not-authentic"] * 4
        await desk.tell("drain", nonce="2")
        full = order("drain", "", guests.OPERATOR, "3", {})
        desk.commands.receive(subjects.commands_all(), full)
        assert reasons(rig)[-1] == "more commands than can be remembered"
        mine = desk.commands._nonces[guests.OPERATOR.public.key_id.hex()]
        desk.commands._nonces = {"another": dict(mine)}
        await desk.tell("drain", nonce="5")  # another's flood is not one's own
        desk.commands._nonces[guests.OPERATOR.public.key_id.hex()] = dict.fromkeys(
            mine, speech.now_ms() - 1
        )
        await desk.tell("drain", nonce="4")
        assert desk.drained == 4


async def test_commands_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes on top is dropped, to be asked again."""
    monkeypatch.setattr(commands, "_RUNNING_MAX", 1)
    async with Rig() as rig:
        desk = Desk(rig)
        for nonce in "ab":
            body = order("drain", "", guests.OPERATOR, nonce, {})
            desk.commands.receive(subjects.commands_all(), body)
        await asyncio.gather(*desk.commands._running)
        assert (desk.drained, len(rig.journal.of("command-dropped"))) == (1, 1)
        desk.commands.stop()


# Signed requests.


def signed(request: TaskRequest, *, signer: SecretKey = guests.AUTHOR, at: int = 0) -> bytes:
    """A request under a submitter's seal."""
    draft = seal.signed_draft(request, "test")
    return seal.seal(signer, [draft], at=at or speech.now_ms())[0]


@pytest.mark.covers("policy.submitter-denied")
async def test_only_who_signs_is_served() -> None:
    """Where a tenant demands it: unsigned, raw, foreign and stale requests end under their place.

    Whoever has not proved who it is must not end a task under an id that it claims.
    """
    demands = ("[[tenant]]", ASKER + "\nsigned_requests = true")
    async with Rig(make_config(tenants=[TENANT], replaced=[demands])) as rig:
        for task in ("echo", "other"):
            rig.publish(task, guests.ECHO)
        mine = rig.request("echo", b"x", id="mine")
        stale = signed(mine, at=speech.now_ms() - FRESH_MS - 1_000)
        elsewhere = signed(replace(mine, task="other"))
        refused = [
            (envelope.encode_task(mine, "test"), "echo", {}, "policy.submitter-denied"),
            (b"x", "echo", {"Task-Id": "mine"}, "policy.raw-body-refused"),
            (signed(mine, signer=guests.STRANGER), "echo", {}, "policy.submitter-denied"),
            (stale, "echo", {}, "policy.submitter-denied"),
            (elsewhere, "echo", {}, "policy.submitter-denied"),
            (elsewhere, "other", {}, "policy.submitter-denied"),  # not in its role's tasks
        ]  # fmt: skip
        for body, task, headers, code in refused:
            delivery = rig.hand_over(body, subjects.task(TENANT, task), headers=headers)
            await rig.settle_down()
            outgoing = rig.wire.published()[-1]
            assert outgoing.subject == f"dead.{TENANT}.{task}._{delivery.sequence}"
            assert rig.open(outgoing).code == code
        assert rig.journal.security() == ["task-not-authentic"] * 5
        rig.hand_over(signed(mine), subjects.task(TENANT, "echo"), id="mine")
        assert (await rig.record(mine)).output == b"x"


async def test_a_signed_request_is_proved_at_each_attempt() -> None:
    """Its retry holds it whole, signature and all; a submitter that was struck off gets no more."""
    async with Rig(make_config(replaced=[("[[tenant]]", ASKER.replace('["echo"]', '["*"]'))],
                               tenants=[TENANT])) as rig:  # fmt: skip
        rig.publish("retry", guests.RETRY)
        request = rig.request("retry", b"x", id="mine")
        rig.hand_over(signed(request), subjects.task(TENANT, "retry"), id="mine")
        await rig.until(lambda: rig.acked() == ["mine"])
        (waiting,) = rig.wire.published("later")
        rig.retry(waiting)
        await rig.until(lambda: rig.acked() == ["mine"] * 2)
        gone = f'revoked = ["{guests.AUTHOR.public.key_id.hex()}"]'
        rig.trust.replace(make_config(replaced=[("revoked = []", gone)]))
        delivery = rig.hand_over(rig.wire.published("later")[-1].body,
                                 subjects.task(TENANT, "retry"))  # fmt: skip
        await rig.settle_down()
        last = rig.wire.published()[-1]
        assert last.subject == f"dead.{TENANT}.retry._{delivery.sequence}"
        assert rig.open(last).code == "policy.submitter-denied"


SIGNER = ASKER.replace(guests.AUTHOR.public.text, guests.STRANGER.public.text).replace(
    '["echo"]', '["*"]')  # fmt: skip
DENIED = """[[binding]]
role = "submitter"
who = ["asker"]
deny = true
why = "not now"
[[tenant]]"""


@pytest.mark.parametrize("end", ["revoked", "denied"])
async def test_a_signed_request_that_waits_is_judged_again(end: str) -> None:
    """It is in hand when its submitter's key is revoked, or denied: it does not run."""
    begin = ("[[tenant]]", SIGNER)
    async with Rig(make_config(replaced=[begin], tenants=[TENANT])) as rig:
        rig.publish("hold", guests.HOLD)
        rig.publish("echo", guests.ECHO)
        await rig.admit_all()
        held = rig.ask("hold")
        await rig.until(rig.buckets.at_gate)
        waiting = [rig.request("echo", b"x", id=f"w{number}") for number in range(150)]
        for request in waiting:
            body = signed(request, signer=guests.STRANGER)
            rig.hand_over(body, subjects.task(TENANT, "echo"), id=request.id)
        await rig.until(lambda: rig.pool.statistics()["waiting"] > 50)
        gone = ("revoked = []", f'revoked = ["{guests.STRANGER.public.key_id.hex()}"]')
        denied = ("[[tenant]]", DENIED)
        rig.trust.replace(make_config(
            replaced=[begin, gone if end == "revoked" else denied], tenants=[TENANT]
        ))  # fmt: skip
        rig.pipeline.decide_again()
        codes = {(await rig.record(waiting[-1])).code}
        rig.buckets.gate.set()
        await rig.record(held)
        assert codes == {"policy.submitter-denied"}


async def test_who_signs_may_what_its_tenant_may_not() -> None:
    """A tenant whose token may only read: what a listed submitter signs is taken, nothing else."""
    only = ("[[tenant]]", SIGNER + '\nroles = ["reader"]')
    async with Rig(make_config(replaced=[only], tenants=[TENANT])) as rig:
        rig.publish("echo", guests.ECHO)
        request = rig.request("echo", b"x", id="mine")
        body = signed(request, signer=guests.STRANGER)
        rig.hand_over(body, subjects.task(TENANT, "echo"), id="mine")
        assert (await rig.record(request)).output == b"x"
        plain = rig.ask("echo")
        await rig.until(lambda: len(rig.acked()) == 2)
        # Under its place in the stream: nobody occupies an id by claiming it.
        (_, refused) = rig.records().items()
        assert refused[0].startswith("_")
        assert refused[0] != plain.id
        assert refused[1].code == "policy.submitter-denied"


async def test_a_repeated_request_has_the_same_outcome() -> None:
    """A copy of a signed request finds the outcome: it runs once, though it said `fresh`."""
    async with Rig(make_config(replaced=[("[[tenant]]", ASKER)], tenants=[TENANT])) as rig:
        rig.publish("echo", guests.ECHO)
        request = rig.request("echo", b"x", id="mine", fresh=True)
        body = signed(request)
        rig.hand_over(body, subjects.task(TENANT, "echo"), id="mine")
        await rig.record(request)
        rig.hand_over(body, subjects.task(TENANT, "echo"), id="mine")
        await rig.settle_down()
        assert len(rig.wire.published()) == 1
        assert rig.acked() == ["mine"] * 2


async def test_an_unsigned_letter_is_not_smuggled_in() -> None:
    """Asking again for what was refused as unsigned does not make it signed."""
    demands = ("[[tenant]]", ASKER + "\nsigned_requests = true")
    async with Rig(make_config(tenants=[TENANT], replaced=[demands])) as rig:
        rig.publish("echo", guests.ECHO)
        body = envelope.encode_task(rig.request("echo", b"x", id="mine"), "test")
        delivery = rig.hand_over(body, subjects.task(TENANT, "echo"))
        await rig.settle_down()
        found = await Desk(rig).tell("retry", f"_{delivery.sequence}")
        assert found["code"] == "policy.submitter-denied"
