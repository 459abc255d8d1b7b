"""A sandbox in an attacker's hands: every lie on socket and status page ends it, and the task."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import replace

import pytest

from executor.core import abi
from executor.core.frames import FRAME_MAX, Answer, Call, Compiled, Frame, Load, Ready, encode
from executor.core.layers import REQUIRED
from executor.model import PAYLOAD_MAX
from executor.supervisor import pool
from executor.supervisor.process import cpu_ticks
from tests.support import guests
from tests.support.puppet import Puppets, done
from tests.support.rig import OTHER, TENANT, Rig

SHORT = (("deadline_ms", 100),)


async def test_the_puppet_is_a_sandbox(puppets: Puppets) -> None:
    """The harmless twin: a sandbox that keeps the rules settles its task."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        request = rig.ask("echo", b"x")
        puppet = await puppets.ready()
        run = await puppet.run()
        puppet.show(run.seq)
        await puppet.send(done(run.seq, run.input))
        assert (await rig.record(request)).output == b"x"


ILLEGAL: dict[str, tuple[Frame | bytes, ...]] = {
    "junk": (b"\0\0\0\x01\xc1",),
    "a frame too large": ((FRAME_MAX + 1).to_bytes(4, "big"),),
    "a second Ready": (Ready((), ""),),
    "a frame of the supervisor": (Load(()),),
    "a frame of the compiler": (Compiled((), (), 0, 0, ""),),
    "the end of another attempt": (done(77),),
    "an end twice": (done(1), done(1)),
    "a code it may not claim": (done(1, code="module.unsigned"),),
    "a code of the supervisor": (done(1, code="limit.deadline-exceeded"),),
    "a call of another attempt": (Call(77, 0, "kv_get", b"k", b""),),
    "a call out of order": (Call(1, 1, "kv_get", b"k", b""),),
    "a call that is not mediated": (Call(1, 0, "log_write", b"", b""),),
    "an unknown call": (Call(1, 0, "open", b"", b""),),
    "an end inside a call": (Call(1, 0, "kv_get", b"gate", b""), done(1)),
    "two calls at once": (Call(1, 0, "kv_get", b"gate", b""), Call(1, 1, "kv_get", b"gate", b"")),
    "more output than allowed": (done(1, bytes(1025)),),
    "more fuel than allowed": (replace(done(1), fuel_used=2**53 - 1),),
    "more memory than allowed": (replace(done(1), memory_bytes=2**53 - 1),),
    "more host calls than allowed": (replace(done(1), host_calls=2**53 - 1),),
    "more bytes of log than allowed": (replace(done(1), logs=((1, "x" * 4096),) * 17),),
    "more dropped lines than calls": (replace(done(1), log_dropped=2**53 - 1),),
    "last calls of a result": (replace(done(1), last_calls=(("take", 0),)),),
    "a last call that is none": (replace(done(1, code="guest.trap"), last_calls=(("open", 0),)),),
    "too many last calls": (replace(done(1, code="guest.trap"), last_calls=(("take", 0),) * 9),),
}


@pytest.mark.covers("sandbox.protocol-violation")
@pytest.mark.parametrize("name", list(ILLEGAL))
async def test_illegal_frames(puppets: Puppets, name: str) -> None:
    """An illegal frame ends the process, costs its attempt a crash and is a security event."""
    async with Rig(limits__output_max_kib=1) as rig:
        rig.publish("hold", guests.HOLD)
        first, second = rig.ask("hold"), rig.ask("hold")
        puppet = await puppets.ready()
        run = await puppet.run()
        assert (run.seq, (await puppet.run()).seq) == (1, 2)
        puppet.show(run.seq)
        await puppet.send(*ILLEGAL[name])
        await puppet.ended.wait()
        await rig.put_off()
        blamed = rig.open_retry(rig.wire.published("later")[0])[0]
        # "an end twice" is one honest end, then a lie while the second attempt is the oldest.
        assert blamed.id == (second if name == "an end twice" else first).id
        assert (blamed.crashes, blamed.history[-1].code) == (1, "sandbox.protocol-violation")
        assert rig.journal.security() == ["illegal-frame"]
        if name != "an end twice":
            heir = await puppets.ready()
            run = await heir.run()
            await heir.send(done(run.seq, run.input))
        await rig.settle_down()


async def test_bytes_of_calls_are_bounded_here(puppets: Puppets) -> None:
    """A sandbox that does not count what it sends is stopped at the limit: the rest never acts."""
    async with Rig(limits__call_max_mib=1) as rig:
        rig.publish("probe", guests.KV)
        rig.ask("probe")
        puppet = await puppets.ready()
        run = await puppet.run()
        half = bytes(run.call_bytes // 2)
        for ordinal in range(2):
            await puppet.send(Call(run.seq, ordinal, "kv_put", b"big", half))
            assert (await puppet.answer()).status == 0
        await puppet.send(Call(run.seq, 2, "kv_put", b"big", b"x"))
        await puppet.ended.wait()
        assert (await rig.put_off()).history[-1].code == "sandbox.protocol-violation"
        assert len(rig.buckets.asked) == 2


async def test_answers_that_nobody_reads(puppets: Puppets) -> None:
    """A sandbox that asks on without reading is ended: one answer is all that is held for it."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        await rig.buckets.kv(TENANT).put("own/big", bytes(PAYLOAD_MAX))
        rig.ask("hold")
        puppet = await puppets.ready()
        run = await puppet.run()
        with contextlib.suppress(OSError):
            for ordinal in range(run.mediated_calls):
                asked = len(rig.buckets.asked)
                await puppet.send(Call(run.seq, ordinal, "kv_get", b"big", b""))
                await rig.until(lambda asked=asked: (
                    len(rig.buckets.asked) > asked or rig.journal.of("sandbox.died")
                ))  # fmt: skip
        await puppet.ended.wait()
        assert (await rig.put_off()).history[-1].code == "sandbox.protocol-violation"
        assert [f["detail"] for f in rig.journal.of("sandbox.died")] == ["it left an answer unread"]
        gets = [key for _, function, key in rig.buckets.asked if function == "get"]
        assert gets == ["own/big"]


async def test_answers_that_are_read(puppets: Puppets) -> None:
    """The harmless twin: as many large answers, each one read before the next call."""
    async with Rig(limits__call_max_mib=64) as rig:
        rig.publish("hold", guests.HOLD)
        await rig.buckets.kv(TENANT).put("own/big", bytes(PAYLOAD_MAX))
        request = rig.ask("hold")
        puppet = await puppets.ready()
        run = await puppet.run()
        for ordinal in range(run.mediated_calls):
            await puppet.send(Call(run.seq, ordinal, "kv_get", b"big", b""))
            assert (await puppet.answer()).status == PAYLOAD_MAX
        await puppet.send(done(run.seq))
        assert (await rig.record(request)).code == ""


async def test_times_are_at_most_what_went_by(puppets: Puppets) -> None:
    """A sandbox cannot put more time into a signed receipt than its attempt was away."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        request = rig.ask("echo")
        began = time.monotonic()
        puppet = await puppets.ready()
        run = await puppet.run()
        await puppet.send(replace(done(run.seq), guest_us=2**53 - 1, host_us=2**53 - 1))
        receipt = (await rig.record(request)).receipt
        assert receipt.guest_us + receipt.host_us <= (time.monotonic() - began) * 1e6


async def test_the_second_violation_is_a_dead_letter(puppets: Puppets) -> None:
    """A task whose sandboxes break the protocol twice is given up."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        request = rig.ask("echo")
        for count in range(2):
            puppet = await puppets.ready()
            await puppet.run()
            await puppet.send(b"\0\0\0\x01\xc1")
            if count == 0:
                await rig.put_off()
                rig.retry(rig.wire.published("later")[0])
        await rig.until(rig.records)
        await rig.settle_down()
        assert rig.records()[request.id].code == "sandbox.protocol-violation"


async def test_what_a_condemned_sandbox_says_is_not_believed(puppets: Puppets) -> None:
    """After an illegal frame, even a well-formed end in the same write counts for nothing."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.ask("echo")
        puppet = await puppets.ready()
        run = await puppet.run()
        await puppet.send(encode(done(77)) + encode(done(run.seq, b"forged")))
        assert (await rig.put_off()).crashes == 1
        assert not rig.records()


async def test_an_ungranted_call_is_denied_by_the_mediator(puppets: Puppets) -> None:
    """A sandbox asks for what its module was never granted: the mediator refuses it itself."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        request = rig.ask("echo")
        puppet = await puppets.ready()
        run = await puppet.run()
        await puppet.send(Call(run.seq, 0, "kv_put", b"stolen", b"x"))
        assert await puppet.answer() == Answer(run.seq, 0, abi.DENIED, b"not granted")
        await puppet.send(done(run.seq))
        await rig.record(request)
        assert rig.buckets.asked == []


async def test_the_deadline_is_kept_by_the_page(puppets: Puppets) -> None:
    """The harmless twin of the lies below: the page names the attempt, the deadline ends it."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        request = rig.ask("echo", limits=SHORT, attempts_max=1)
        puppet = await puppets.ready()
        puppet.show((await puppet.run()).seq)
        assert (await rig.record(request)).code == "limit.deadline-exceeded"
        await puppet.ended.wait()


@pytest.mark.parametrize("lie", ["idle", "another", "future", "always now", "far future"])
async def test_lies_on_the_status_page(puppets: Puppets, lie: str) -> None:
    """Whatever the page claims, an attempt that gives no sign of an end is killed by silence."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.ask("echo", limits=SHORT)
        puppet = await puppets.ready()
        run = await puppet.run()
        liar = None
        if lie == "another":
            puppet.show(run.seq + 50)
        elif lie == "future":
            puppet.show(run.seq, started_s=time.monotonic() + 3600)
        elif lie == "far future":
            puppet.page[0:16] = run.seq.to_bytes(8, "little") + b"\xff" * 8
        elif lie == "always now":
            liar = asyncio.create_task(_always_now(puppet.show, run.seq, puppet.ended))
        await puppet.ended.wait()
        again = await rig.put_off()
        assert (again.crashes, again.history[-1].code) == (1, "sandbox.protocol-violation")
        assert [f["detail"] for f in rig.journal.of("sandbox.died")] == ["no sign of life"]
        if liar is not None:
            await liar


async def _always_now(show: object, seq: int, until: asyncio.Event) -> None:
    assert callable(show)
    while not until.is_set():
        show(seq)
        await asyncio.sleep(0)


async def test_bytes_are_no_sign_of_life(puppets: Puppets) -> None:
    """A sandbox that drips half a frame for ever is as silent as one that says nothing."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.ask("echo", limits=SHORT)
        puppet = await puppets.ready()
        await puppet.run()
        await puppet.send((100_000).to_bytes(4, "big"))

        async def drip() -> None:
            while not puppet.ended.is_set():
                await puppet.send(b"\0")
                for _ in range(50):
                    await asyncio.sleep(0)

        dripping = asyncio.create_task(drip())
        await puppet.ended.wait()
        await asyncio.gather(dripping, return_exceptions=True)
        assert (await rig.put_off()).history[-1].code == "sandbox.protocol-violation"


async def test_a_crash_with_an_idle_page_is_not_free_for_ever(puppets: Puppets) -> None:
    """A sandbox that hides who ran before it dies runs the task again only a few times."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.ask("echo")

        async def hide_and_die() -> None:
            while True:
                puppet = await puppets.ready()
                await puppet.run()
                puppet.show(0)
                puppet.child.kill()

        attack = asyncio.create_task(hide_and_die())
        again = await rig.put_off()
        assert (again.crashes, again.history[-1].code) == (1, "sandbox.killed")
        assert puppets.count <= 4
        attack.cancel()


async def test_a_deadline_kill_with_an_idle_page_is_not_free_for_ever(puppets: Puppets) -> None:
    """A sandbox that clears its page just before each kill cannot run for ever either."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.ask("echo", limits=SHORT)

        async def dodge() -> None:
            while True:
                puppet = await puppets.ready()
                run = await puppet.run()
                puppet.show(run.seq)
                (sandbox,) = rig.sandboxes()
                while sandbox._cause is None:  # noqa: ASYNC110 - no event tells of it
                    await asyncio.sleep(0)
                puppet.show(0)

        attack = asyncio.create_task(dodge())
        again = await rig.put_off()
        assert again.history[-1].code == "limit.deadline-exceeded"
        assert puppets.count <= 4
        attack.cancel()


async def test_a_start_before_it_was_sent(puppets: Puppets) -> None:
    """A page with a start that cannot be is a lie of what runs; whom it names does not pay."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        hostile, innocent = rig.ask("echo", b"1", limits=SHORT), rig.ask("echo", b"2", limits=SHORT)
        puppet = await puppets.ready()
        await puppet.run()
        puppet.show((await puppet.run()).seq, started_s=1.0)
        await puppet.ended.wait()
        again = await rig.put_off()
        assert (again.id, again.history[-1].code) == (hostile.id, "sandbox.protocol-violation")
        heir = await puppets.ready()
        run = await heir.run()
        await heir.send(done(run.seq, run.input))
        assert (await rig.record(innocent)).output == b"2"


@pytest.mark.parametrize("end", ["deadline", "crash"])
async def test_nobody_is_blamed_on_the_word_of_the_page(puppets: Puppets, end: str) -> None:
    """Where the page names another than the one in turn, each runs alone; then guilt is plain."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        hostile, innocent = rig.ask("echo", b"1", limits=SHORT), rig.ask("echo", b"2", limits=SHORT)
        puppet = await puppets.ready()
        runs = [await puppet.run() for _ in range(2)]
        for attempt in range(2):
            puppet.show(runs[-1].seq)
            if end == "crash":
                puppet.child.kill()
            await puppet.ended.wait()
            if attempt == 0:
                assert not rig.wire.published("later")
                puppet = await puppets.ready()
                runs = [await puppet.run()]
                assert runs[0].input == b"1"
                assert rig.pool.statistics() | {"running": 1, "waiting": 1} == rig.pool.statistics()
        again = await rig.put_off()
        assert again.id == hostile.id
        code = {"deadline": "limit.deadline-exceeded", "crash": "sandbox.killed"}[end]
        assert again.history[-1].code == code
        heir = await puppets.ready()
        run = await heir.run()
        await heir.send(done(run.seq, run.input))
        assert (await rig.record(innocent)).output == b"2"


async def test_a_sandbox_that_works_for_itself(
    puppets: Puppets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPU time of a sandbox without work is somebody else's work: it ends, and nobody pays."""
    monkeypatch.setattr(pool, "IDLE_LOOK_S", 0.05)
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        request = rig.ask("echo", b"x")
        puppet = await puppets.ready()
        run = await puppet.run()
        await puppet.send(done(run.seq, run.input))
        await rig.record(request)
        # This process takes its place in /proc, and works while it waits.
        monkeypatch.setattr(puppet.child, "pid", os.getpid())
        async with asyncio.timeout(30):
            while not puppet.ended.is_set():
                sum(range(10_000))
                await asyncio.sleep(0)
        await rig.until(lambda: rig.journal.of("sandbox.died"))
        assert rig.journal.of("sandbox.died")[0]["code"] == "sandbox.protocol-violation"
        assert rig.journal.security() == ["illegal-frame"]
        assert not rig.wire.published("later")


async def test_an_idle_sandbox_is_left_alone() -> None:
    """The harmless twin: a sandbox that sleeps until there is work stays, however often we look."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        await rig.record(rig.ask("echo", b"x"))
        (sandbox,) = rig.sandboxes()
        before = cpu_ticks(os.getpid())
        while cpu_ticks(os.getpid()) < before + 20:
            sandbox.check_idle()
        assert sandbox._idle is not None
        assert sandbox._cause is None
        assert (await rig.record(rig.ask("echo", b"y"))).output == b"y"
        assert rig.pool.started == 1


async def test_an_end_that_arrives_with_the_kill_counts(puppets: Puppets) -> None:
    """An attempt whose result was on its way when the deadline fell has ended: it is a result."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        first, second = rig.ask("echo", b"1", limits=SHORT), rig.ask("echo", b"2")
        puppet = await puppets.ready()
        run = await puppet.run()
        puppet.show(run.seq)
        (sandbox,) = rig.sandboxes()
        puppet.socket.send(encode(done(run.seq, run.input)))
        sandbox.kill("limit.deadline-exceeded", "100 ms", guilty=run.seq)
        assert (await rig.record(first)).output == b"1"
        heir = await puppets.ready()
        run = await heir.run()
        await heir.send(done(run.seq, run.input))
        assert (await rig.record(second)).output == b"2"
        assert not rig.wire.published("later")


async def test_a_socket_that_closes_while_the_process_lives(puppets: Puppets) -> None:
    """A sandbox that hangs up and lives on is ended; its attempt is told of a crash."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.ask("echo")
        puppet = await puppets.ready()
        puppet.show((await puppet.run()).seq)
        puppet.socket.shutdown(2)
        await puppet.ended.wait()
        assert (await rig.put_off()).history[-1].code == "sandbox.crashed"
        assert [f["detail"] for f in rig.journal.of("sandbox.died")] == ["it closed its socket"]


async def test_two_tenants_never_share_a_sandbox(puppets: Puppets) -> None:
    """With one slot, the tenants' attempts go to different processes, one after the other."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.publish("zecho", guests.ECHO, tenant=OTHER)
        for tenant, task in (("acme", "echo"), (OTHER, "zecho"), ("acme", "echo")):
            request = rig.ask(task, tenant.encode(), tenant=tenant)
            puppet = await puppets.ready()
            run = await puppet.run()
            assert run.input == tenant.encode()
            await puppet.send(done(run.seq, run.input))
            await rig.record(request)
        assert puppets.count == 3


@pytest.mark.covers("sandbox.containment-missing")
async def test_a_missing_layer(puppets: Puppets) -> None:
    """A sandbox that lacks a layer is given nothing to run; its tasks are put off, uncounted."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.ask("echo")

        async def weak() -> None:
            while True:
                await (await puppets.next()).ready(("rlimits",))

        starting = asyncio.create_task(weak())
        again = await rig.put_off()
        starting.cancel()
        assert (again.attempt, again.crashes) == (1, 0)
        events = rig.journal.of("sandbox.start-failed")
        assert {e["code"] for e in events} == {"sandbox.containment-missing"}
        assert "no-new-privs" in str(events[0]["detail"])


async def test_best_effort_says_so(puppets: Puppets) -> None:
    """Where the operator accepts a weaker jail, tasks run and every receipt names what lacks."""
    async with Rig(sandbox__containment="best-effort") as rig:
        rig.publish("echo", guests.ECHO)
        request = rig.ask("echo")
        puppet = await puppets.next()
        await puppet.ready(("rlimits",))
        await puppet.send(done((await puppet.run()).seq))
        containment = (await rig.record(request)).receipt.containment
        assert containment.startswith("weakened: no ")
        assert "seccomp" in containment
        assert rig.journal.of("sandbox.weakened")


async def test_a_claim_without_the_kernels_word(
    puppets: Puppets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that claims a layer that the kernel denies is not believed."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.ask("echo")
        puppet = await puppets.next()
        await puppet.started.wait()
        # This process has no filter: what the kernel says of it is what a liar's status says.
        monkeypatch.setattr(puppet.child, "pid", os.getpid())
        await puppet.next()
        await puppet.send(Ready(tuple(sorted(REQUIRED)), "puppet"))
        await puppet.ended.wait()
        await rig.until(lambda: rig.journal.of("sandbox.start-failed"))
        assert rig.journal.of("sandbox.start-failed")[0]["code"] == "sandbox.containment-missing"
        await rig.pipeline.drain(0.01)
        assert rig.wire.count("nak") == 1
