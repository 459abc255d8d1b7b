"""Sandboxes that die: who is blamed, what runs again, and that everything ends."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.support import guests
from tests.support.rig import OTHER, Rig


async def held(rig: Rig, count: int = 1) -> None:
    """Wait until so many guests have stopped at the gate."""
    await rig.until(lambda: rig.buckets.at_gate() >= count, "a guest at the gate")


@pytest.mark.covers("sandbox.killed")
async def test_killed_from_outside() -> None:
    """SIGKILL in mid-run: again at once with crashes + 1; the second time it is dead."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        request = rig.ask("hold", b"x")
        await held(rig)
        await rig.kill(signal.SIGKILL)
        again = await rig.put_off()
        assert (again.attempt, again.crashes) == (1, 1)
        (schedule,) = rig.wire.published("later")
        assert schedule.schedule_at_ms <= rig.pipeline.now_ms()
        rig.retry(schedule)
        await held(rig, 2)
        await rig.kill(signal.SIGKILL)
        await rig.until(rig.records)
        await rig.settle_down()
        record = rig.records()[request.id]
        assert record.code == "sandbox.killed"
        assert [past.code for past in record.history] == ["sandbox.killed"] * 2
        assert dict(record.facts)["ended"] == "SIGKILL"
        assert len(rig.wire.published("later")) == 1


@pytest.mark.covers("sandbox.crashed")
@pytest.mark.parametrize(
    ("number", "detail"),
    [
        (signal.SIGSEGV, "SIGSEGV"), (signal.SIGABRT, "SIGABRT"), (signal.SIGSYS, "SIGSYS"),
        (signal.SIGRTMIN + 1, "signal 35"),
    ],
)  # fmt: skip
async def test_crashed(number: int, detail: str) -> None:
    """A signal of its own making is a crash, whatever its number; SIGSYS is an alarm."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        rig.ask("hold")
        await held(rig)
        await rig.kill(number)
        again = await rig.put_off()
        assert (again.crashes, again.history[-1].code) == (1, "sandbox.crashed")
        assert [facts["detail"] for facts in rig.journal.of("sandbox.died")] == [detail]
        forbidden = ["forbidden-call"] if number == signal.SIGSYS else []
        assert rig.journal.security() == forbidden
        rig.buckets.gate.set()
        assert (await rig.record(rig.ask("hold"))).code == ""


async def test_the_cause_of_death_is_the_kernels_word() -> None:
    """The socket's end may be seen before the process's: SIGKILL is still read as SIGKILL."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        for count in range(1, 13):
            rig.ask("hold")
            await held(rig, count)
            await rig.kill(signal.SIGKILL)
            await rig.put_off(count)
        codes = {facts["code"] for facts in rig.journal.of("sandbox.died")}
        assert codes == {"sandbox.killed"}


async def test_what_waited_behind_runs_again() -> None:
    """Only the attempt that ran is blamed; what came after it succeeds, no crash counted."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        rig.publish("echo", guests.ECHO)
        await rig.admit_all()
        guilty = rig.ask("hold")
        rest = [rig.ask("echo", str(n).encode()) for n in range(60)]
        await held(rig)
        await rig.until(lambda: rig.pool.statistics()["running"] > 1, "company")
        await rig.kill(signal.SIGKILL)
        for request in rest:
            assert (await rig.record(request)).output == request.input
        assert (await rig.put_off()).id == guilty.id
        assert len(rig.wire.published("later")) == 1


async def test_an_idle_sandbox_that_dies_costs_nothing() -> None:
    """Between attempts nobody is to blame; the next task gets a new sandbox."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        await rig.record(rig.ask("echo"))
        await rig.kill(signal.SIGKILL)
        assert (await rig.record(rig.ask("echo"))).code == ""
        assert not rig.wire.published("later")
        assert rig.pool.started == 2


async def test_a_busy_tenant_whose_sandboxes_die_does_not_touch_another() -> None:
    """While one tenant's guests lose their sandboxes, the neighbour's tasks all succeed."""
    async with Rig(sandbox__count=2) as rig:
        rig.publish("hold", guests.HOLD)
        rig.publish("echo", guests.ECHO, tenant=OTHER)
        rig.ask("hold")
        await held(rig)
        (victim,) = rig.sandboxes()
        neighbours = [rig.ask("echo", str(n).encode(), tenant=OTHER) for n in range(40)]
        victim._child.kill()
        for request in neighbours:
            assert (await rig.record(request)).output == request.input
        assert (await rig.put_off()).crashes == 1


async def test_the_deadline_covers_the_time_in_host_calls() -> None:
    """A guest that waits in a call past its deadline is killed like one that spins."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        request = rig.ask("hold", limits=(("deadline_ms", 100),), attempts_max=1)
        record = await rig.record(request)
        assert record.code == "limit.deadline-exceeded"
        assert dict(record.facts)["deadline_ms"] == 100


async def test_no_process_is_left_and_every_record_is_there() -> None:
    """Random kills under load: each task ends in one record or one retry, and nothing leaks."""
    async with Rig(sandbox__count=2) as rig:
        rig.publish("echo", guests.ECHO)
        rig.publish("zecho", guests.ECHO, tenant=OTHER)
        ids = set()
        for number in range(200):
            tenant, task = ("acme", "echo") if number % 2 else (OTHER, "zecho")
            ids.add(rig.ask(task, str(number).encode(), tenant=tenant).id)
            if number % 25 == 24:
                await rig.until(lambda: rig.pool.statistics()["ready"])
                for sandbox in rig.sandboxes():
                    sandbox._child.kill()
        await rig.settle_down()
        ended = [out.subject.split(".")[3] for out in rig.wire.published()]
        assert sorted(ended) == sorted(ids)


async def test_many_deaths_leave_no_descriptor_open() -> None:
    """The count of open descriptors after ten deaths is what it was after one."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        counts = []
        for count in range(1, 11):
            rig.ask("hold")
            await held(rig, count)
            await rig.kill(signal.SIGKILL)
            await rig.put_off(count)
            await asyncio.sleep(0)
            counts.append(descriptors())
        assert len(set(counts[1:])) == 1, counts


def descriptors() -> int:
    """How many this process has open."""
    import os

    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - no object for each
