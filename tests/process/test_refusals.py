"""Messages that never run: each ends in the one publication that its code asks for."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from executor.core import content, envelope, signature
from executor.core.seal import seal
from executor.errors import ExecutorError
from executor.model import TaskRequest
from tests.support import guests
from tests.support.rig import TENANT, Rig, make_config

NOW = 1_700_000_000_000


async def refused(rig: Rig, request: TaskRequest) -> str:
    """Deliver it; the code of its dead letter, after making sure that nothing ran."""
    rig.deliver(request)
    record = await rig.record(request)
    assert record.receipt.digest == ""
    return record.code


@pytest.mark.covers("message.expired")
async def test_expired() -> None:
    """A task that comes after its `expires_at` is a dead letter and never runs."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.now_ms = lambda: NOW
        assert await refused(rig, rig.request("echo", expires_at=NOW)) == "message.expired"
        assert (await rig.record(rig.ask("echo", expires_at=NOW + 60_000))).code == ""
        assert rig.pool.started == 1


async def test_not_before() -> None:
    """A task before its time becomes a schedule for that time; no attempt is counted."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.now_ms = lambda: NOW
        request = rig.ask("echo", b"x", not_before=NOW + 5_000)
        again = await rig.put_off()
        assert (again.attempt, again.crashes, again.history) == (1, 0, ())
        (schedule,) = rig.wire.published("later")
        assert schedule.schedule_at_ms == NOW + 5_000
        rig.now_ms = lambda: NOW + 5_000
        rig.retry(schedule)
        await rig.settle_down()
        assert rig.records()[request.id].output == b"x"


@pytest.mark.covers("message.deliveries-exhausted")
async def test_deliveries_exhausted() -> None:
    """A message handed over more than `deliveries_max` times is given up without running."""
    async with Rig(delivery__deliveries_max=4) as rig:
        rig.publish("echo", guests.ECHO)
        request = rig.request("echo", id="mine")
        rig.deliver(request, delivered=5)
        record = await rig.record(request)
        assert record.code == "message.deliveries-exhausted"
        assert rig.pool.started == 0
        other = rig.request("echo", id="other")
        rig.deliver(other, delivered=4)
        assert (await rig.record(other)).code == ""


@pytest.mark.covers("message.malformed", "message.version-unknown")
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "message.malformed"),
        (b"\xc1", "message.malformed"),
        (b"{}", "message.malformed"),
        (content.to_msgpack({"v": 1, "typ": "result"}), "message.malformed"),
        (content.to_msgpack({"v": 1, "typ": "task", "x": {}}), "message.malformed"),
        (content.to_msgpack({"v": 4, "typ": "task"}), "message.version-unknown"),
    ],
)
async def test_undecodable(body: bytes, code: str) -> None:
    """What cannot be decoded is recorded under its place in the stream, never under an id."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        delivery = rig.hand_over(body, f"task.{TENANT}.echo")
        await rig.settle_down()
        (outgoing,) = rig.wire.published()
        assert outgoing.subject == f"dead.{TENANT}.echo._{delivery.sequence}"
        record = rig.open(outgoing)
        assert record.code == code
        assert record.origin is not None
        assert record.origin.data == body


@pytest.mark.parametrize("subject", ["task.acme", "task.acme.a.b", "task.acme.*", "nonsense"])
async def test_a_subject_that_is_none(subject: str) -> None:
    """A message from a subject that nobody can ask on is malformed and recorded under `_`."""
    async with Rig() as rig:
        rig.hand_over(b"x", subject, tenant=TENANT)
        await rig.settle_down()
        (outgoing,) = rig.wire.published()
        assert outgoing.subject.startswith(f"dead.{TENANT}._._")
        assert rig.open(outgoing).code == "message.malformed"


@pytest.mark.covers("message.audience-mismatch")
@pytest.mark.parametrize("aud", ["task.zebra.echo", "task.acme.other", "prod"])
async def test_a_message_made_for_another_place(aud: str) -> None:
    """An envelope copied to another tenant, task or environment does not run there."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        request = rig.request("echo", id="copied")
        if aud == "prod":
            body = envelope.encode_task(request, "prod")
        else:
            _, tenant, task = aud.split(".")
            body = envelope.encode_task(replace(request, tenant=tenant, task=task), "test")
        delivery = rig.hand_over(body, f"task.{TENANT}.echo")
        await rig.settle_down()
        (outgoing,) = rig.wire.published()
        assert outgoing.subject.endswith(f"._{delivery.sequence}")
        assert rig.open(outgoing).code == "message.audience-mismatch"


@pytest.mark.covers("message.too-large")
async def test_oversized() -> None:
    """Input above the limit, and a message above every limit, are dead letters, not crashes."""
    async with Rig(limits__input_max_kib=1) as rig:
        rig.publish("echo", guests.ECHO)
        fits = rig.ask("echo", bytes(1024))
        assert (await rig.record(fits)).code == ""
        rig.hand_over(
            envelope.encode_task(rig.request("echo", bytes(1025)), "test"), f"task.{TENANT}.echo"
        )
        await rig.settle_down()
        large = rig.hand_over(bytes(envelope.RETRY_MAX + 1), f"task.{TENANT}.echo")
        await rig.settle_down()
        codes = [rig.open(out).code for out in rig.wire.published("dead")]
        assert codes == ["message.too-large"] * 2
        origin = rig.open(rig.wire.published("dead")[-1]).origin
        assert origin is not None
        assert not origin.whole
        assert (origin.size, len(origin.data)) == (len(large.data), envelope.PREFIX_MAX)
        assert origin.sha256


@pytest.mark.covers("policy.raw-body-refused")
async def test_raw_bodies() -> None:
    """A raw body with a `Task-Id` runs where the tenant takes them, and is refused elsewhere."""
    closed = ('name = "zebra"\nceiling', 'name = "zebra"\nraw_bodies = false\nceiling')
    async with Rig(make_config(replaced=[closed])) as rig:
        for tenant in ("acme", "zebra"):
            rig.publish("echo", guests.ECHO, tenant=tenant)
            rig.hand_over(b"raw", f"task.{tenant}.echo", id="mine", headers={"Task-Id": "mine"})
            await rig.settle_down()
        first, second = rig.wire.published()
        assert first.subject == "result.acme.echo.mine"
        assert rig.open(first).output == b"raw"
        assert second.subject.startswith("dead.zebra.echo._")
        assert rig.open(second).code == "policy.raw-body-refused"


@pytest.mark.parametrize(
    "headers",
    [
        {"Task-Id": "_1"}, {"Task-Id": "a.b"}, {"Task-Id": ""}, {"Task-Id": "x" * 65},
        {"Task-Id": "fine", "Content-Type": "\udcff\x00"},
        {"Task-Id": "fine", "traceparent": "\udcff\ud800"},
    ],
)  # fmt: skip
async def test_raw_headers_are_the_submitters(headers: dict[str, str]) -> None:
    """No header of a raw message, however bad, keeps the message from its one record."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.hand_over(b"raw", f"task.{TENANT}.echo", id=headers["Task-Id"], headers=headers)
        rig.hand_over(b"raw", f"task.{TENANT}.echo", id="next", headers={"Task-Id": "next"})
        await rig.until(lambda: rig.wire.count("completed") == 2)
        assert len(rig.wire.published()) == rig.wire.count("ack") == 2


async def test_a_forged_retry() -> None:
    """An attempt number counts only under an executor's seal; a forged one is an event too."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        request = rig.request("echo", id="mine")
        origin = envelope.Origin(f"task.{TENANT}.echo", envelope.encode_task(request, "test"))
        payload = envelope.encode_retry(replace(request, attempt=1), origin)
        honest = envelope.Draft("retry", f"test/task.{TENANT}.echo", request.id, payload)
        others = [
            (seal(guests.FORGER, [honest], at=NOW)[0], "message.malformed"),
            (seal(guests.HOST, [replace(honest, aud="test/task.zebra.echo")], at=NOW)[0],
             "message.malformed"),
            (seal(guests.HOST, [replace(honest, id="other")], at=NOW)[0],
             "message.audience-mismatch"),
        ]  # fmt: skip
        for body, code in others:
            before = len(rig.wire.published())
            delivery = rig.hand_over(body, f"task.{TENANT}.echo")
            await rig.settle_down()
            (outgoing,) = rig.wire.published()[before:]
            assert outgoing.subject == f"dead.{TENANT}.echo._{delivery.sequence}"
            assert rig.open(outgoing).code == code
        assert rig.journal.security() == ["retry-not-authentic"] * 2 + ["task-not-authentic"]
        rig.hand_over(seal(guests.HOST, [honest], at=NOW)[0], f"task.{TENANT}.echo", id="mine")
        assert (await rig.record(request)).code == ""


@pytest.mark.covers("policy.task-unknown")
async def test_unknown_task() -> None:
    """A task that nobody released is a dead letter that names what is released."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        request = rig.ask("missing")
        record = await rig.record(request)
        assert record.code == "policy.task-unknown"
        assert "echo" in record.hint


@pytest.mark.covers("module.not-found", "module.digest-mismatch")
async def test_modules_that_may_come_yet() -> None:
    """Missing or damaged bytes are retried: a copy may lag; the next attempt finds them mended."""
    async with Rig() as rig:
        release = rig.publish("echo", guests.ECHO)
        module = rig.shelf.stored.pop(release.digest)
        request = rig.ask("echo", b"x", id="first")
        again = await rig.put_off()
        assert (again.attempt, again.history[-1].code) == (2, "module.not-found")
        rig.registry.forget()
        rig.shelf.stored[release.digest] = module[:-1] + bytes([module[-1] ^ 1])
        rig.retry(rig.wire.published("later")[-1])
        again = await rig.put_off(2)
        assert (again.attempt, again.history[-1].code) == (3, "module.digest-mismatch")
        rig.registry.forget()
        rig.shelf.stored[release.digest] = module
        rig.retry(rig.wire.published("later")[-1])
        await rig.settle_down()
        record = rig.records()[request.id]
        assert (record.code, record.output, record.attempt) == ("", b"x", 3)


async def test_a_flood_of_refused_tasks_asks_the_store_once() -> None:
    """A refusal that may pass is kept for a moment, so that a flood does not become reads."""
    async with Rig() as rig:
        release = rig.publish("echo", guests.ECHO)
        del rig.shelf.stored[release.digest]
        for _ in range(50):
            rig.ask("echo")
        await rig.settle_down()
        assert len(rig.shelf.gets) == 1


@pytest.mark.covers("policy.capability-denied")
async def test_a_missing_grant_names_itself() -> None:
    """A module that wants what is not granted is refused with the line that would allow it."""
    closed = ('kv = { prefix = "own/", mode = "write" }\n\n[[tenant]]', "\n[[tenant]]")
    async with Rig(make_config(replaced=[closed])) as rig:
        rig.publish("hold", guests.HOLD)
        request = rig.ask("hold")
        record = await rig.record(request)
        assert record.code == "policy.capability-denied"
        assert "kv = {" in record.hint
        assert rig.pool.started == 0


@pytest.mark.covers("limit.memory-exceeded")
async def test_a_module_that_starts_too_large() -> None:
    """Memory above the cap at the start is refused before anything runs."""
    lower = ('name = "zebra"\nceiling = {', 'name = "zebra"\nceiling = { memory_max_mib = 1,')
    # The rig's guests start with nine pages, 576 KiB: a ceiling of 1 MiB lets them in.
    async with Rig(make_config(replaced=[lower])) as rig:
        rig.publish("echo", guests.ECHO, tenant="zebra")
        assert (await rig.record(rig.ask("echo", tenant="zebra"))).code == ""
        wide = guests.described(
            guests.assemble(guests.ECHO, '(memory (export "memory") 17)'), "wide"
        )
        rig.store(signature.sign_module(wide, guests.AUTHOR), "wide", tenant="zebra")
        request = rig.ask("wide", tenant="zebra")
        assert (await rig.record(request)).code == "limit.memory-exceeded"


@pytest.mark.covers("internal.bug")
async def test_our_own_mistake() -> None:
    """A failure inside the supervisor costs the one message, as `internal.bug`, and no other."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)

        async def break_down(digest: str) -> None:
            raise LookupError(digest)

        rig.shelf.before_get = break_down
        first = rig.ask("echo")
        assert (await rig.record(first)).code == "internal.bug"
        assert rig.journal.of("bug")
        rig.shelf.before_get = None
        assert (await rig.record(rig.ask("echo"))).code == ""


async def test_a_mistake_on_the_direct_path() -> None:
    """An exception while a delivery is taken settles that delivery; the next one is served."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        await rig.record(rig.ask("echo"))
        honest = rig.shelf.release
        rig.shelf.release = lambda _tenant, _task: 1 // 0  # type: ignore[method-assign,assignment,return-value]
        broken = rig.ask("echo")
        rig.shelf.release = honest  # type: ignore[method-assign]
        assert (await rig.record(broken)).code == "internal.bug"
        assert (await rig.record(rig.ask("echo"))).code == ""


async def test_an_unreadable_record_is_no_leave_to_run() -> None:
    """When it cannot be read whether an id is done, the task does not run: the lease lapses."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        rig.wire.reads_fail = "transport.permission-denied"
        rig.deliver(rig.request("hold", id="mine"))
        await rig.settle_down()
        assert rig.wire.count("ack") == rig.wire.count("nak") == rig.wire.count("publish") == 0
        assert rig.buckets.at_gate() == 0


async def test_systemic_refusals_wait_until_they_expire() -> None:
    """A systemic failure puts the task off without an attempt, and ends it once it has expired."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.now_ms = lambda: NOW

        async def unavailable(_: str) -> None:
            await asyncio.sleep(0)
            raise ExecutorError("trust.expired")

        rig.shelf.before_get = unavailable
        request = rig.ask("echo", expires_at=NOW + 1)
        again = await rig.put_off()
        assert (again.attempt, again.crashes) == (1, 0)
        # Not in five seconds: it will not run any more, and is to end when it expires.
        assert rig.wire.published("later")[0].schedule_at_ms == NOW + 1
        assert again.not_before == NOW + 5_000
        rig.now_ms = lambda: NOW + 5_000
        rig.retry(rig.wire.published("later")[0])
        await rig.settle_down()
        assert rig.records()[request.id].code == "message.expired"
