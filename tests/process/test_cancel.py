"""Cancelling: wherever a task is, it ends as `task.cancelled`, once, and nobody else with it."""

from __future__ import annotations

import asyncio

import pytest

from executor.core import control, subjects
from executor.core.frames import Call
from executor.core.subjects import ANY_TASK
from executor.errors import ExecutorError
from executor.model import Digest, Release
from executor.supervisor.cancels import CANCELS_MAX, Cancels
from tests.support import guests
from tests.support.puppet import Puppets, done
from tests.support.rig import OTHER, TENANT, Rig


def codes(rig: Rig) -> dict[str, str]:
    """Task id → how it ended."""
    return {task_id: record.code for task_id, record in rig.records().items()}


@pytest.mark.covers("task.cancelled")
async def test_a_running_task() -> None:
    """A spinning guest is killed; what waited behind it in the sandbox runs elsewhere."""
    async with Rig() as rig:
        rig.publish("spin", guests.SPIN)
        rig.publish("echo", guests.ECHO)
        running = rig.ask("spin")
        await rig.running()
        behind = [rig.ask("echo", b"x") for _ in range(3)]
        rig.pipeline.cancelling.cancel(TENANT, "spin", running.id)
        record = await rig.record(running)
        assert (record.code, record.attempt) == ("task.cancelled", 1)
        assert dict(record.facts)["ended"] == "cancelled"
        for request in behind:
            assert (await rig.record(request)).code == ""


async def test_a_task_that_waits_for_a_sandbox() -> None:
    """Queued behind another one it ends at once and never runs; the other one is not disturbed."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        first = rig.ask("hold", b"1")
        await rig.until(rig.buckets.at_gate)
        second = rig.ask("hold", b"2")
        async with asyncio.timeout(30):
            while rig.pool.statistics()["running"] < 2:  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0)
        rig.pipeline.cancelling.cancel(TENANT, ANY_TASK, second.id)
        assert (await rig.record(second)).code == "task.cancelled"
        rig.buckets.gate.set()
        assert (await rig.record(first)).output == b"1"
        await rig.settle_down()
        # The sandbox that had both is gone; a third task shows that whatever ran is over.
        third = rig.ask("hold", b"3")
        assert (await rig.record(third)).output == b"3"
        assert rig.pool.started == 2
        assert rig.buckets.asked == [(TENANT, "get", "own/gate")] * 2
        assert codes(rig) == {first.id: "", second.id: "task.cancelled", third.id: ""}


async def test_a_call_of_a_cancelled_task_does_not_act(puppets: Puppets) -> None:
    """A sandbox that runs what was cancelled, whatever its page shows, asks in vain and is ended.

    Neither that task nor those behind it pay for its end.
    """
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        first, second = rig.ask("hold", b"1"), rig.ask("hold", b"2")
        puppet = await puppets.ready()
        runs = [await puppet.run() for _ in range(2)]
        puppet.show(runs[0].seq)
        rig.pipeline.cancelling.cancel(TENANT, ANY_TASK, second.id)
        assert (await rig.record(second)).code == "task.cancelled"
        # The end of the first one waits in the sandbox when the second one asks.
        await puppet.send(
            done(runs[0].seq, b"1"), Call(runs[1].seq, 0, "kv_put", b"key", b"stolen")
        )
        await puppet.ended.wait()
        assert (await rig.record(first)).output == b"1"
        await rig.settle_down()
        assert rig.buckets.asked == []
        assert not rig.wire.published("later")
        assert [f["code"] for f in rig.journal.of("sandbox.died")] == []


async def test_a_cancelled_task_that_comes_next(puppets: Puppets) -> None:
    """Cancelled after it was sent and before it shows: its sandbox ends, others run elsewhere."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        first, second = rig.ask("echo", b"1"), rig.ask("echo", b"2")
        puppet = await puppets.ready()
        await puppet.run()
        rig.pipeline.cancelling.cancel(TENANT, ANY_TASK, first.id)
        await puppet.ended.wait()
        heir = await puppets.ready()
        run = await heir.run()
        assert run.input == b"2"
        await heir.send(done(run.seq, run.input))
        assert (await rig.record(second)).output == b"2"
        assert (await rig.record(first)).code == "task.cancelled"
        assert rig.journal.of("sandbox.died") == []


async def test_a_task_that_waits_for_its_retry() -> None:
    """It ends now, not when its retry comes due; the retry then finds the record."""
    async with Rig() as rig:
        rig.publish("retry", guests.RETRY)
        request = rig.ask("retry", attempts_max=3)
        again = await rig.put_off()
        assert again.attempt == 2
        schedule = rig.wire.published("later")[-1]
        rig.wire.put(schedule.subject, schedule.body)
        rig.pipeline.cancelling.cancel(TENANT, ANY_TASK, request.id)
        await rig.until(lambda: request.id in rig.records())
        record = rig.records()[request.id]
        assert (record.code, record.attempt) == ("task.cancelled", 2)
        assert [past.code for past in record.history] == ["guest.failed", "task.cancelled"]
        rig.retry(schedule)
        await rig.settle_down()
        assert len(rig.wire.published("dead")) >= 1
        assert codes(rig) == {request.id: "task.cancelled"}
        assert rig.wire.count("ack") == 2


async def test_a_task_whose_retry_is_on_its_way() -> None:
    """Cancelled between the attempt and the stream's word on its retry: it ends too."""
    async with Rig() as rig:
        rig.publish("retry", guests.RETRY)
        rig.wire.answer = lambda _: None
        request = rig.ask("retry", attempts_max=3)
        await rig.until(lambda: rig.wire.published("later"))
        rig.pipeline.cancelling.cancel(TENANT, "retry", request.id)
        rig.wire.answer = rig.wire.store
        rig.wire.release()
        await rig.until(lambda: codes(rig) == {request.id: "task.cancelled"})
        await rig.settle_down()


async def test_a_task_that_is_delivered_later() -> None:
    """Announced before it is delivered, it ends at its turn without a sandbox."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.pipeline.cancelling.cancel(TENANT, "echo", "mine")
        request = rig.ask("echo", id="mine")
        assert (await rig.record(request)).code == "task.cancelled"
        assert rig.pool.started == 0


async def test_nobody_else_is_cancelled() -> None:
    """Another id, another task with the same id, another tenant: all run."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.publish("other", guests.ECHO)
        rig.publish("echo", guests.ECHO, tenant=OTHER)
        rig.pipeline.cancelling.cancel(TENANT, "echo", "mine")
        for task, tenant, task_id in (
            ("echo", TENANT, "yours"), ("other", TENANT, "mine"), ("echo", OTHER, "mine"),
        ):  # fmt: skip
            request = rig.ask(task, b"x", tenant=tenant, id=task_id)
            await rig.settle_down()
            opened = [rig.open(out) for out in rig.wire.published("result")]
            assert (request.id, opened[-1].code) == (task_id, "")
        assert not rig.wire.published("dead")


async def test_a_task_that_has_ended_keeps_its_record() -> None:
    """A result that is stored stays the one outcome; a redelivery is a duplicate."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        request = rig.ask("echo", b"x", id="mine")
        assert (await rig.record(request)).output == b"x"
        rig.pipeline.cancelling.cancel(TENANT, "echo", "mine")
        rig.deliver(request, delivered=2)
        await rig.settle_down()
        assert [rig.open(out).output for out in rig.wire.published("result")] == [b"x"]
        assert list(rig.wire.stored) == [subjects.result(TENANT, "echo", "mine")]


async def test_a_cancellation_runs_out() -> None:
    """After its time the same id may run."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.pipeline.cancelling.cancel(TENANT, "echo", "mine", rig.pipeline.now_ms() - 1)
        assert (await rig.record(rig.ask("echo", b"x", id="mine"))).code == ""


async def test_an_unreadable_store_is_no_end() -> None:
    """When the schedules cannot be read, the task ends when its retry comes due."""
    async with Rig() as rig:
        rig.publish("retry", guests.RETRY)
        request = rig.ask("retry", attempts_max=3)
        await rig.put_off()
        rig.wire.reads_fail = "transport.disconnected"
        rig.pipeline.cancelling.cancel(TENANT, ANY_TASK, request.id)
        await rig.until(lambda: rig.journal.of("cancel-unread"))
        rig.wire.reads_fail = ""
        rig.retry(rig.wire.published("later")[-1])
        await rig.until(lambda: codes(rig) == {request.id: "task.cancelled"})


def test_the_memory_of_cancellations_is_bounded() -> None:
    """What was announced first is forgotten first; a withdrawn one at once."""
    cancels = Cancels()
    for number in range(CANCELS_MAX + 1):
        cancels.announce(TENANT, "echo", str(number), 10)
    assert len(cancels._until) == CANCELS_MAX
    cancels.withdraw(TENANT, "echo", "7")
    assert len(cancels._until) == CANCELS_MAX - 1


def cancelled(task_id: str, environment: str, *, until: int) -> bytes:
    """The value that cancels an id of `echo`."""
    key = subjects.cancel_key(TENANT, "echo", task_id)
    return control.encode("cancel", key, environment, until=until)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "message.malformed"),
        (cancelled("x", "prod", until=1),
         "message.audience-mismatch"),
        (cancelled("y", "test", until=1),
         "message.audience-mismatch"),
        (cancelled("x", "test", until=2**50), "message.malformed"),
    ],
)  # fmt: skip
def test_what_is_no_cancellation(data: bytes, code: str) -> None:
    """A value bound to another key, or none, cancels nothing."""
    key = subjects.cancel_key(TENANT, "echo", "x")
    with pytest.raises(ExecutorError) as caught:
        control.decode(data, "cancel", key, "test")
    assert caught.value.code == code


def test_a_release_is_no_cancellation() -> None:
    """The types of CONTROL's values do not mix."""
    from executor.core import release

    value = release.encode(Release(TENANT, "echo", Digest("sha256:" + "0" * 64), "1"), "test")
    with pytest.raises(ExecutorError):
        control.decode(value, "cancel", subjects.cancel_key(TENANT, "echo", "x"), "test")
