"""Leases, redeliveries, drain and stop: whose delivery it is, and what is given back."""

from __future__ import annotations

import asyncio

import pytest

from executor.core import content
from tests.support import guests
from tests.support.rig import Rig


async def test_leases_are_renewed() -> None:
    """A message in hand has its lease renewed well before it lapses, waiting or running."""
    async with Rig(delivery__ack_wait_ms=1_000) as rig:
        rig.publish("hold", guests.HOLD)
        for _ in range(3):
            rig.ask("hold")
        await rig.until(lambda: rig.wire.count("progress") >= 6, "two rounds of renewals")
        assert len(set(rig.wire.all("progress"))) == 3
        rig.buckets.gate.set()
        await rig.settle_down()
        assert rig.wire.count("ack") == 3


@pytest.mark.covers("transport.lease-lost")
async def test_a_lost_lease_is_silence() -> None:
    """Off line for longer than the lease: the attempt is ended, nothing published or answered."""
    async with Rig(delivery__ack_wait_ms=1_000) as rig:
        rig.publish("hold", guests.HOLD)
        rig.ask("hold")
        rig.ask("hold")
        await rig.until(rig.buckets.at_gate)
        (sandbox,) = rig.sandboxes()
        rig.pipeline.leases.connected = False
        await rig.settle_down()
        assert len(rig.journal.of("lease-lost")) == 2
        await rig.until(lambda: sandbox not in rig.sandboxes() or sandbox._cause)
        assert rig.wire.count("ack") == rig.wire.count("nak") == rig.wire.count("publish") == 0
        await sandbox._connecting
        async with asyncio.timeout(20):
            while sandbox in rig.sandboxes():  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0)
        assert rig.pool.statistics()["waiting"] == 0
        assert rig.buckets.at_gate() == 1, "what is no longer ours was run"


async def test_a_lost_lease_does_not_end_the_attempt_of_another() -> None:
    """Only the attempt whose lease was lost is ended; what runs in other sandboxes goes on."""
    async with Rig(sandbox__count=2) as rig:
        rig.publish("hold", guests.HOLD)
        await rig.admit_all()
        for _ in range(4):
            rig.ask("hold")
        await rig.until(lambda: rig.buckets.at_gate() == 2)
        jobs = list(rig.pipeline.leases)
        lost = next(job for job in jobs if rig.sandboxes()[0].runs(job))
        lost.lease_until = 0.0
        rig.pipeline.leases.renew()
        rig.buckets.gate.set()
        await rig.settle_down()
        kept = {job.request.id for job in jobs} - {lost.request.id}
        assert sorted(rig.acked()) == sorted(kept)


async def test_a_redelivery_of_a_held_message_is_adopted() -> None:
    """The message came back while we hold it: it runs once, and the newest lease is acked."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        request = rig.request("hold", b"x")
        first = rig.deliver(request, sequence=7)
        await rig.until(rig.buckets.at_gate)
        second = rig.deliver(request, sequence=7, delivered=2)
        assert rig.wire.count("completed") == 1
        rig.buckets.gate.set()
        await rig.settle_down()
        assert rig.wire.all("ack") == [second.lease] != [first.lease]
        assert rig.buckets.at_gate() == 1
        assert len(rig.wire.published()) == 1


async def test_the_same_sequence_of_two_tenants_is_two_messages() -> None:
    """Sequences count per stream: one tenant's message does not adopt another's."""
    async with Rig(sandbox__count=2) as rig:
        rig.publish("echo", guests.ECHO)
        rig.publish("zecho", guests.ECHO, tenant="zebra")
        rig.deliver(rig.request("echo"), sequence=7)
        rig.deliver(rig.request("zecho", tenant="zebra"), sequence=7)
        await rig.settle_down()
        assert len(rig.records()) == 2


async def test_drain() -> None:
    """What has not begun is given back at once, what lies in a sandbox too; what runs ends."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        rig.publish("spin", guests.SPIN)
        await rig.admit_all()
        running = rig.ask("hold", b"x")
        waiting = [rig.ask("spin") for _ in range(100)]
        await rig.until(rig.buckets.at_gate)
        assert rig.pool.statistics()["running"] > 1
        draining = asyncio.create_task(rig.pipeline.drain(60))
        await rig.until(lambda: rig.wire.count("nak") == len(waiting), "naks")
        rig.deliver(rig.request("hold"))
        assert rig.wire.count("nak") == len(waiting) + 1
        rig.buckets.gate.set()
        await rig.record(running)
        await draining
        assert rig.wire.count("nak") == len(waiting) + 1
        assert rig.acked() == [running.id]
        assert rig.alive() == []


async def test_drain_does_not_wait_when_there_is_nothing() -> None:
    """An idle host is gone at once, whatever its deadline."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        await rig.record(rig.ask("echo"))
        async with asyncio.timeout(5):
            await rig.pipeline.drain(3600)
        assert rig.alive() == []


async def test_drain_gives_back_what_is_being_admitted() -> None:
    """A message that waits for its module is given back, not held until the compiler is done."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        waiting = asyncio.Event()

        async def never(_: str) -> None:
            rig.changes.touch()
            await waiting.wait()

        rig.shelf.before_get = never
        rig.ask("echo")
        await rig.until(lambda: rig.shelf.gets)
        async with asyncio.timeout(5):
            await rig.pipeline.drain(3600)
        assert rig.wire.count("nak") == 1
        waiting.set()


async def test_a_retry_in_drain_is_stored_before_its_ack() -> None:
    """An attempt that fails while draining is scheduled like any other."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        rig.ask("hold", limits=(("deadline_ms", 300),))
        await rig.until(rig.buckets.at_gate)
        await rig.pipeline.drain(20)
        assert [s.what for s in rig.wire.said] == ["publish", "stored", "ack", "completed"]
        assert rig.wire.published("later")


async def test_stop() -> None:
    """Stop gives everything back at once, running or waiting, and leaves no process."""
    async with Rig(sandbox__count=2) as rig:
        rig.publish("spin", guests.SPIN)
        await rig.admit_all()
        for _ in range(50):
            rig.ask("spin")
        await rig.running()
        await rig.pipeline.stop()
        assert rig.wire.count("nak") == 50
        assert rig.wire.count("ack") == rig.wire.count("publish") == 0
        assert rig.alive() == []


async def test_stop_twice() -> None:
    """A second stop, or a stop in the middle of a drain, changes nothing and hangs nowhere."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        rig.ask("hold")
        await rig.until(rig.buckets.at_gate)
        draining = asyncio.create_task(rig.pipeline.drain(3600))
        await asyncio.sleep(0)
        draining.cancel()
        await asyncio.wait({draining})
        await rig.pipeline.stop()
        await rig.pipeline.stop()
        assert rig.wire.count("nak") == 1


async def test_a_record_in_flight_when_we_stop_is_found_later() -> None:
    """A result that was published but not confirmed is given back; the redelivery finds it."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.wire.answer = lambda _: None
        request = rig.ask("echo", b"x")
        await rig.until(lambda: rig.wire.count("publish"))
        await rig.pipeline.stop()
        assert rig.wire.count("nak") == 1
        rig.wire.release()
        assert rig.wire.count("ack") == 0
        assert rig.records()[request.id].output == b"x"


async def test_nothing_is_taken_while_stopped() -> None:
    """A message that arrives after the end is given back."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        await rig.pipeline.stop()
        rig.ask("echo")
        rig.hand_over(content.to_msgpack({}), "task.acme.echo")
        assert rig.wire.count("nak") == 2
