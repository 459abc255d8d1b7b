"""Slots: who gets a sandbox, what it is born with, when it is replaced."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from executor.core.frames import WINDOW_TASKS, Failed, Run
from executor.supervisor import slots
from executor.supervisor.zygote import Zygote
from tests.support import guests
from tests.support.puppet import Puppet, Puppets, done
from tests.support.rig import OTHER, TENANT, Rig, make_config

TENANTS = {TENANT: "echo", OTHER: "zecho"}


def publish_echo(rig: Rig) -> None:
    """An echo for each tenant."""
    for tenant, task in TENANTS.items():
        rig.publish(task, guests.ECHO, tenant=tenant)


def sharers(rig: Rig) -> set[int | str]:
    """The process ids that were ever started for more than one tenant."""
    tenants: dict[int | str, set[int | str]] = {}
    for facts in rig.journal.of("sandbox.started"):
        tenants.setdefault(facts["pid"], set()).add(facts["tenant"])
    return {pid for pid, seen in tenants.items() if len(seen) > 1}


@pytest.mark.parametrize("count", [1, 2])
async def test_tenants_take_turns(count: int) -> None:
    """Two tenants with more work than slots: no process serves both, and both make progress.

    Each has a queue that never runs dry, so neither gets a slot because the other is idle.
    """
    async with Rig(sandbox__count=count) as rig:
        publish_echo(rig)
        await rig.admit_all()
        ended = dict.fromkeys(TENANTS, 0)
        stop = False

        def again() -> None:
            for tenant, task in TENANTS.items():
                done_now = sum(a.split("-")[0] == tenant for a in rig.acked())
                ended[tenant] = done_now
                while not stop and asked[tenant] - done_now < 250:
                    asked[tenant] += 1
                    rig.ask(task, tenant=tenant, id=f"{tenant}-{asked[tenant]}", fresh=True)

        asked = dict.fromkeys(TENANTS, 0)

        def both() -> bool:
            again()
            starts = [facts["tenant"] for facts in rig.journal.of("sandbox.started")]
            return min(ended.values()) >= 50 and min(map(starts.count, TENANTS)) >= 3 - count

        await rig.until(both, "progress for both tenants")
        stop = True
        await rig.settle_down()
        assert len(rig.records()) == sum(asked.values())
        assert sharers(rig) == set()


async def test_a_lone_tenant_uses_every_slot() -> None:
    """While nobody else wants one, a tenant with work has all the sandboxes."""
    async with Rig(sandbox__count=2) as rig:
        rig.publish("hold", guests.HOLD)
        await rig.admit_all()
        for _ in range(8):
            rig.ask("hold")
        await rig.until(lambda: rig.buckets.at_gate() == 2, "two at work")
        assert {sandbox.tenant for sandbox in rig.sandboxes()} == {TENANT}
        rig.buckets.gate.set()
        await rig.settle_down()


async def fill(rig: Rig, puppets: Puppets, task: str, count: int) -> tuple[Puppet, list[Run]]:
    """A sandbox of `OTHER` in which `count` attempts lie: its module is known to be fast."""
    first = rig.ask(task, tenant=OTHER)
    puppet = await puppets.ready()
    await puppet.send(done((await puppet.run()).seq))
    await rig.record(first)
    for number in range(count):
        rig.ask(task, str(number).encode(), tenant=OTHER)
    runs = [await puppet.run() for _ in range(count)]
    puppet.show(runs[0].seq)
    return puppet, runs


async def test_what_lies_in_a_sandbox_holds_up_nobody(
    puppets: Puppets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A neighbour waits for the attempt that runs, not for what its tenant has queued behind it.

    What is taken back costs nobody an attempt: it runs in the tenant's next sandbox.
    """
    monkeypatch.setattr(slots, "TURN_S", 0.0)
    async with Rig() as rig:
        publish_echo(rig)
        await rig.admit_all()
        hostile, runs = await fill(rig, puppets, "zecho", 40)
        waiting = rig.ask("echo", b"x")
        await rig.until(lambda: rig.pool.statistics()["waiting"] == 1)
        # The page may say what it likes of who runs.
        hostile.show(runs[-1].seq)
        (sandbox,) = rig.sandboxes()
        async with asyncio.timeout(30):
            while not sandbox.leaving:  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0)
        await hostile.send(done(runs[0].seq, runs[0].input))
        await hostile.ended.wait()
        heir = await puppets.ready()
        run = await heir.run()
        assert run.input == b"x"
        await heir.send(done(run.seq, run.input))
        await rig.record(waiting)
        again = await puppets.ready()
        for number in range(1, 40):
            run = await again.run()
            assert run.input == str(number).encode()
            await again.send(done(run.seq, run.input))
        await rig.settle_down()
        assert len(rig.records()) == 42
        assert not rig.wire.published("later")


async def test_two_that_wait_get_two_slots(
    puppets: Puppets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a slot is made free for one tenant, another one is for the next, and no third."""
    monkeypatch.setattr(slots, "TURN_S", 0.0)
    tenants = (OTHER, "bravo", "carol")
    async with Rig(make_config(tenants=tenants, sandbox__count=3)) as rig:
        for tenant in tenants:
            rig.publish("echo", guests.ECHO, tenant=tenant)
        await rig.admit_all()
        await fill(rig, puppets, "echo", WINDOW_TASKS)
        for _ in range(2 * WINDOW_TASKS):
            rig.ask("echo", tenant=OTHER)
        for _ in range(2):
            await (await puppets.ready()).run()
        assert [sandbox.tenant for sandbox in rig.sandboxes()] == [OTHER] * 3
        for tenant in tenants[1:]:
            for _ in range(3):
                rig.ask("echo", tenant=tenant)

        def leaving() -> list[str]:
            return sorted(s.successor for s in rig.sandboxes() if s.leaving)

        async with asyncio.timeout(30):
            while leaving() != ["bravo", "carol"]:  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
            assert leaving() == ["bravo", "carol"]
        await rig.pipeline.stop()


async def test_what_waits_in_a_sandbox_is_given_back_at_once(puppets: Puppets) -> None:
    """A drain lets the attempt end that runs; what lies behind it is somebody else's at once.

    The sandbox ends with that attempt, and what it says of the others does not count.
    """
    async with Rig() as rig:
        publish_echo(rig)
        await rig.admit_all()
        puppet, runs = await fill(rig, puppets, "zecho", 10)
        draining = asyncio.create_task(rig.pipeline.drain(60))
        await rig.until(lambda: rig.wire.count("nak") == 9, "what waits is back")
        assert rig.pipeline.held == 1
        await puppet.send(*(done(run.seq, run.input) for run in runs))
        await puppet.ended.wait()
        await draining
        assert len(rig.records()) == 2
        assert rig.wire.count("nak") == 9
        assert puppets.count == 1


async def test_an_idle_sandbox_makes_way_at_once() -> None:
    """A slot that does nothing goes to the tenant that waits."""
    async with Rig() as rig:
        publish_echo(rig)
        for tenant, task in (*TENANTS.items(), *TENANTS.items()):
            await rig.record(rig.ask(task, tenant=tenant))
        assert rig.pool.started == 4
        assert len(rig.alive()) <= 2


async def test_a_release_renews_the_sandboxes() -> None:
    """A new version is what runs from its release on; the sandbox of the old one is replaced."""
    async with Rig() as rig:
        first = rig.publish("echo", guests.ECHO)
        assert (await rig.record(rig.ask("echo"))).receipt.digest == first.digest
        second = rig.publish("echo", guests.TRAP, version="2.0.0")
        record = await rig.record(rig.ask("echo"))
        assert (record.code, record.version) == ("guest.trap", "2.0.0")
        assert record.receipt.digest == second.digest
        rig.publish("more", guests.ECHO)
        assert (await rig.record(rig.ask("more"))).code == ""
        await rig.until(lambda: len(rig.sandboxes()) == 1)


async def test_what_runs_during_a_release_ends_as_it_began() -> None:
    """An attempt in mid-run is not disturbed by a release of its task."""
    async with Rig(sandbox__count=2) as rig:
        first = rig.publish("hold", guests.HOLD)
        request = rig.ask("hold", b"x")
        await rig.until(rig.buckets.at_gate)
        rig.publish("hold", guests.ECHO, version="2.0.0")
        newer = await rig.record(rig.ask("hold"))
        assert newer.version == "2.0.0"
        rig.buckets.gate.set()
        record = await rig.record(request)
        assert (record.version, record.receipt.digest) == ("1.0.0", first.digest)


async def test_a_sandbox_is_recycled() -> None:
    """After `attempts_per_sandbox_max` attempts a sandbox ends; no task notices."""
    async with Rig(sandbox__attempts_per_sandbox_max=5) as rig:
        rig.publish("echo", guests.ECHO)
        requests = [rig.ask("echo", str(n).encode()) for n in range(23)]
        for request in requests:
            assert (await rig.record(request)).output == request.input
        assert rig.pool.started >= 5
        assert rig.pool.died == 0
        assert not rig.wire.published("later")


@pytest.mark.covers("sandbox.start-failed")
async def test_starts_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that cannot start sandboxes backs off, puts tasks off uncounted, and recovers."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(24, "too many open files")

    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        honest = Zygote.fork
        monkeypatch.setattr(Zygote, "fork", fail)
        before = open_descriptors()
        request = rig.ask("echo")
        again = await rig.put_off()
        assert (again.id, again.attempt, again.crashes) == (request.id, 1, 0)
        failures = rig.journal.of("sandbox.start-failed")
        assert [facts["detail"] for facts in failures] == ["errno 24"] * 3
        assert open_descriptors() <= before
        monkeypatch.setattr(Zygote, "fork", honest)
        rig.retry(rig.wire.published("later")[0])
        await rig.settle_down()
        assert rig.records()[request.id].code == ""


@pytest.mark.parametrize("code", ["sandbox.start-failed", "sandbox.containment-missing"])
async def test_a_start_that_ends_itself(puppets: Puppets, code: str) -> None:
    """A process that cannot begin says why, and the tasks that wait are put off uncounted."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)

        async def play() -> None:
            while True:
                puppet = await puppets.next()
                await puppet.started.wait()
                await puppet.send(Failed(code, "landlock-files: no such thing here"))
                puppet.child.kill()

        playing = asyncio.create_task(play())
        rig.ask("echo")
        again = await rig.put_off()
        assert (again.attempt, again.crashes) == (1, 0)
        failures = rig.journal.of("sandbox.start-failed")
        assert {facts["code"] for facts in failures} == {code}
        playing.cancel()


async def test_a_tenant_whose_sandboxes_never_start_holds_up_nobody(puppets: Puppets) -> None:
    """One tenant's failing starts back off alone; its neighbour's tasks run meanwhile."""
    async with Rig(sandbox__count=2) as rig:
        publish_echo(rig)
        served = 0

        async def play() -> None:
            nonlocal served
            while True:
                puppet = await puppets.next()
                (tenant,) = [s.tenant for s in rig.sandboxes() if s.pid == puppet.child.pid]
                if tenant == OTHER:
                    puppet.child.kill()
                    continue
                await puppet.ready()
                for _ in range(30):
                    run = await puppet.run()
                    await puppet.send(done(run.seq, run.input))
                    served += 1

        playing = asyncio.create_task(play())
        broken = [rig.ask("zecho", tenant=OTHER) for _ in range(3)]
        await rig.until(lambda: rig.journal.of("sandbox.start-failed"))
        for _ in range(30):
            assert (await rig.record(rig.ask("echo"))).code == ""
        await rig.put_off(3)
        playing.cancel()
        assert served == 30
        put_off = {rig.open_retry(out)[0].id for out in rig.wire.published("later")}
        assert put_off == {request.id for request in broken}


async def test_a_failing_second_start_does_not_stop_the_first(puppets: Puppets) -> None:
    """While one sandbox of a tenant works, starts that fail beside it put nothing off."""
    async with Rig(sandbox__count=2) as rig:
        rig.publish("echo", guests.ECHO)
        await rig.admit_all()
        requests = [rig.ask("echo", str(n).encode()) for n in range(8)]
        healthy = await puppets.ready()

        async def fail() -> None:
            while True:
                (await puppets.next()).child.kill()

        failing = asyncio.create_task(fail())
        await rig.until(lambda: len(rig.journal.of("sandbox.start-failed")) >= 3, "failures")
        for _ in requests:
            run = await healthy.run()
            await healthy.send(done(run.seq, run.input))
        for request in requests:
            assert (await rig.record(request)).output == request.input
        failing.cancel()
        assert not rig.wire.published("later")


async def test_a_sandbox_takes_more_than_one_attempt_at_a_time() -> None:
    """Short attempts lie ready behind the running one, within a bound."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.publish("hold", guests.HOLD)
        await rig.admit_all()
        await rig.record(rig.ask("echo"))
        rig.ask("hold")
        for _ in range(300):
            rig.ask("echo")
        await rig.until(rig.buckets.at_gate)
        statistics = rig.pool.statistics()
        assert 2 <= statistics["running"] <= 96
        assert statistics["running"] + statistics["waiting"] == 301
        rig.buckets.gate.set()
        await rig.settle_down()


async def test_large_inputs_bound_what_lies_ready() -> None:
    """What lies ready is bounded in bytes too: a sandbox is no second queue."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        rig.publish("echo", guests.ECHO)
        await rig.admit_all()
        rig.ask("hold", bytes(200_000))
        for _ in range(5):
            rig.ask("echo", bytes(200_000))
        await rig.until(rig.buckets.at_gate)
        assert rig.pool.statistics()["running"] == 1
        rig.buckets.gate.set()
        await rig.settle_down()


async def test_warming() -> None:
    """A sandbox started ahead is the one that serves the first task."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.pool.warm(TENANT)
        assert rig.pool.started == 0  # nothing is admitted yet
        await rig.admit_all()
        rig.pool.warm(TENANT)
        rig.pool.warm(TENANT)
        await rig.record(rig.ask("echo"))
        assert rig.pool.started == 1


def open_descriptors() -> int:
    """How many this process holds."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_no_orphan_when_the_supervisor_lets_go() -> None:
    """At the end of everything no sandbox exists, the busy and the starting ones included."""
    async with Rig(sandbox__count=2) as rig:
        rig.publish("spin", guests.SPIN)
        await rig.admit_all()
        for _ in range(4):
            rig.ask("spin")
        await rig.running()
        pids = list(rig.pool.pids())
        await rig.pipeline.stop()
        assert rig.alive() == []
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
