"""Every class of outcome through the real pipeline: what is published, and that the ack is last."""

from __future__ import annotations

import asyncio

import pytest

from executor.core import envelope, subjects
from executor.model import (
    Conflict,
    Refused,
    Stored,
    Unconfirmed,
)
from tests.support import guests
from tests.support.rig import TENANT, Rig

ORDER = ["publish", "stored", "ack", "completed"]


async def test_a_result() -> None:
    """A task that succeeds ends in one result under the host's key, then in an ack."""
    async with Rig() as rig:
        release = rig.publish("echo", guests.ECHO)
        request = rig.ask("echo", b"hello")
        record = await rig.record(request)
        assert (record.output, record.code, record.attempt) == (b"hello", "", 1)
        assert record.receipt.digest == release.digest
        assert record.receipt.containment == "full"
        assert record.receipt.fuel_used > 0
        assert [s.what for s in rig.wire.said] == ORDER


async def test_permanent_failures_are_dead_letters() -> None:
    """What would end the same way again is a dead letter at once, with its origin, then acked."""
    bodies = {
        "guest.trap": guests.TRAP, "guest.failed": guests.FAIL,
        "limit.output-too-large": guests.FLOOD, "limit.fuel-exhausted": guests.SPIN,
    }  # fmt: skip
    async with Rig() as rig:
        for code, body in bodies.items():
            name = code.replace(".", "-")
            rig.publish(name, body)
            request = rig.ask(name, b"in", limits=(("fuel", 10_000_000),))
            record = await rig.record(request)
            assert record.code == code
            assert record.origin is not None
            assert record.origin.data == envelope.encode_task(request, "test")
            assert [past.code for past in record.history] == [code]
        assert not rig.wire.published("later")
        assert [s.what for s in rig.wire.said] == ORDER * len(bodies)


async def test_transient_failures_are_scheduled_and_counted() -> None:
    """A guest that asks for a retry gets the next attempt when it asked; the last one is dead."""
    async with Rig() as rig:
        rig.publish("retry", guests.RETRY)
        rig.now_ms = lambda: 1_700_000_000_000
        request = rig.ask("retry", attempts_max=2)
        again = await rig.put_off()
        assert (again.attempt, again.crashes, again.input) == (2, 0, request.input)
        (schedule,) = rig.wire.published("later")
        assert schedule.schedule_at_ms == 1_700_000_000_007
        assert schedule.schedule_target == subjects.due(TENANT, "retry")
        assert not rig.records()
        rig.retry(schedule)
        await rig.until(rig.records)
        await rig.settle_down()
        record = rig.records()[request.id]
        assert (record.code, record.attempt, record.attempts_max) == ("guest.failed", 2, 2)
        assert [past.attempt for past in record.history] == [1, 2]


@pytest.mark.covers("limit.deadline-exceeded")
async def test_a_deadline_is_transient_and_hits_the_running_attempt_only() -> None:
    """The attempt past its deadline is put off with a back-off; what waited behind it succeeds."""
    async with Rig() as rig:
        rig.publish("spin", guests.SPIN)
        rig.publish("echo", guests.ECHO)
        await rig.admit_all()
        spin = rig.ask("spin", limits=(("deadline_ms", 150),))
        rest = [rig.ask("echo", str(n).encode()) for n in range(20)]
        for number, request in enumerate(rest):
            assert (await rig.record(request)).output == str(number).encode()
        again = await rig.put_off()
        assert (again.id, again.attempt, again.crashes) == (spin.id, 2, 0)
        assert again.history[-1].code == "limit.deadline-exceeded"


@pytest.mark.parametrize("kind", ["result", "dead"])
async def test_no_ack_before_the_answer(kind: str) -> None:
    """However long the server takes to confirm a record, the delivery is not acked before."""
    async with Rig() as rig:
        rig.publish("task", guests.ECHO if kind == "result" else guests.TRAP)
        rig.wire.answer = lambda _: None
        rig.ask("task")
        await rig.until(lambda: rig.wire.count("publish"))
        await _turns()
        assert [s.what for s in rig.wire.said] == ["publish"]
        rig.wire.release()
        assert [s.what for s in rig.wire.said] == ORDER
        assert rig.wire.published(kind)


async def test_no_ack_before_the_schedule_is_stored() -> None:
    """A retry is stored before its delivery is acked: else the task would be lost between."""
    async with Rig() as rig:
        rig.publish("retry", guests.RETRY)
        rig.wire.answer = lambda _: None
        rig.ask("retry")
        await rig.until(lambda: rig.wire.published("later"))
        await _turns()
        assert rig.wire.count("ack") == 0
        rig.wire.release()
        assert rig.wire.count("ack") == 1


@pytest.mark.covers("transport.publish-unconfirmed")
@pytest.mark.parametrize("answer", [Refused(503, "no stream", temporary=True), Unconfirmed()])
async def test_what_is_not_confirmed_is_asked_again(answer: Refused | Unconfirmed) -> None:
    """While the lease is held the record is published until it is confirmed; then comes the ack."""
    async with Rig() as rig:
        answers = iter([answer] * 3)
        rig.wire.answer = lambda outgoing: next(answers, None) or rig.wire.store(outgoing)
        rig.publish("echo", guests.ECHO)
        request = rig.ask("echo", b"x")
        assert (await rig.record(request)).output == b"x"
        assert len(rig.journal.of("publish-unconfirmed")) == 3
        assert rig.wire.count("publish") == 4
        assert rig.wire.count("ack") == 1
        assert rig.buckets.asked == []


@pytest.mark.covers("transport.publish-unconfirmed")
@pytest.mark.parametrize("answer", [Refused(403, "not allowed"), Refused(413, "too large")])
async def test_what_is_refused_is_silence(answer: Refused) -> None:
    """Refused for good: neither ack nor nak, the lease lapses and the message comes again."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.wire.answer = lambda _: answer
        rig.ask("echo")
        await rig.settle_down()
        assert rig.wire.count("ack") == rig.wire.count("nak") == 0
        assert [f["subject"] for f in rig.journal.of("publish-unconfirmed")]


async def test_conflict_with_an_authentic_record() -> None:
    """A record that another executor published first is the outcome: ours is dropped, then ack."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        request = rig.request("echo")
        first = rig.forge("dead", request, key=guests.HOST)
        rig.wire.put(subjects.dead(TENANT, "echo", request.id), first)
        rig.deliver(request)
        await rig.settle_down()
        assert [s.what for s in rig.wire.said] == [
            "publish", "conflict", "read", "ack", "completed",
        ]  # fmt: skip
        assert list(rig.wire.stored) == [subjects.dead(TENANT, "echo", request.id)]
        assert rig.journal.security() == []


@pytest.mark.parametrize("kind", ["result", "dead"])
async def test_conflict_with_a_forged_record(kind: str) -> None:
    """A forged record is superseded with its own sequence, and is a security event."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        request = rig.request("echo", b"true")
        subject = f"{kind}.{TENANT}.echo.{request.id}"
        forged = rig.wire.put(subject, rig.forge(kind, request))
        rig.deliver(request)
        record = await rig.record(request)
        assert record.output == b"true"
        expected = [outgoing.expected_sequence for outgoing in rig.wire.published("result")]
        assert expected == [0, forged.sequence]
        assert rig.journal.security() == ["record-not-authentic"]


async def test_conflict_with_nothing_there() -> None:
    """A conflict whose cause is gone by the time we look is published again as the first."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        answers = [Conflict(), Conflict()]
        rig.wire.answer = lambda out: answers.pop() if answers else rig.wire.store(out)
        await rig.record(rig.ask("echo"))
        assert [out.expected_sequence for out in rig.wire.published("result")] == [0, 0, 0]


async def test_a_forger_that_never_stops_is_waited_out() -> None:
    """Somebody who forges anew under each look of ours gets silence, not an endless loop."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        request = rig.request("echo")

        def answer(_: object) -> Conflict:
            rig.wire.put(f"result.{TENANT}.echo.{request.id}", rig.forge("result", request))
            return Conflict()

        rig.wire.answer = answer
        rig.deliver(request)
        await rig.settle_down()
        assert rig.wire.count("publish") == 6
        assert rig.wire.count("ack") == rig.wire.count("nak") == 0


async def test_an_unreadable_incumbent_is_silence() -> None:
    """When what is in the way cannot be read, nothing is acked and nothing is written over it."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.wire.answer = lambda _: Conflict()
        rig.wire.reads_fail = "transport.permission-denied"
        rig.ask("echo")
        await rig.settle_down()
        assert [s.what for s in rig.wire.said] == ["publish", "conflict", "read", "completed"]


async def test_a_store_that_does_not_answer_is_asked_again() -> None:
    """While the lease is held the look goes on: no delivery is spent, nothing runs meanwhile."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        rig.buckets.gate.set()
        rig.wire.reads_fail = "transport.disconnected"
        request = rig.request("hold", b"x", id="mine")
        rig.deliver(request)
        await rig.until(lambda: len(rig.journal.of("outcome-unreadable")) == 2)
        assert (rig.buckets.at_gate(), rig.wire.count("nak"), rig.pipeline.held) == (0, 0, 1)
        rig.wire.reads_fail = ""
        assert (await rig.record(request)).code == ""


async def test_a_duplicate_of_a_settled_id_does_not_run() -> None:
    """An id of the submitter's own that is done already is acked: no attempt, no publish."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        rig.buckets.gate.set()
        request = rig.request("hold", b"x", id="mine")
        rig.deliver(request)
        await rig.record(request)
        rig.deliver(request)
        await rig.settle_down()
        assert rig.buckets.at_gate() == 1
        assert len(rig.wire.published()) == 1
        assert rig.wire.count("ack") == 2


async def test_a_redelivery_of_a_fresh_id_is_looked_up() -> None:
    """`fresh` spares the look-up on the first hand-over only."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        request = rig.ask("echo")
        await rig.record(request)
        assert rig.wire.count("read") == 0
        rig.deliver(request, delivered=2)
        await rig.settle_down()
        assert rig.wire.all("read") == [request.id]
        assert len(rig.wire.published()) == 1


async def test_a_look_up_that_finds_a_forgery_runs_the_task() -> None:
    """A forged record in front of a submitter's own id does not stop the task."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        request = rig.request("echo", b"true", id="mine")
        rig.wire.put(f"result.{TENANT}.echo.mine", rig.forge("result", request))
        rig.deliver(request)
        assert (await rig.record(request)).output == b"true"
        assert set(rig.journal.security()) == {"record-not-authentic"}


async def test_a_hundred_results_are_sealed_together() -> None:
    """What one turn of the loop settles carries one signature; every record proves itself."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        requests = [rig.ask("echo", str(n).encode()) for n in range(100)]
        await rig.settle_down()
        records = rig.records()
        assert [records[r.id].output for r in requests] == [r.input for r in requests]
        proofs = [envelope.decode_sealed(out.body).proof for out in rig.wire.published("result")]
        assert len({proof.signature for proof in proofs}) < 50


async def test_an_answer_after_the_lease_was_lost_changes_nothing() -> None:
    """A late confirmation of a delivery that is no longer ours is not followed by an ack."""
    async with Rig(delivery__ack_wait_ms=1_000) as rig:
        rig.publish("echo", guests.ECHO)
        rig.wire.answer = lambda _: None
        rig.ask("echo")
        await rig.until(lambda: rig.wire.count("publish"))
        rig.pipeline.leases.connected = False
        await rig.settle_down()
        rig.wire.release(Stored(1))
        assert rig.wire.count("ack") == 0


async def _turns(count: int = 20) -> None:
    """Give everything that is ready its turn."""
    for _ in range(count):
        await asyncio.sleep(0)
