"""Recurring schedules on a real server: each firing one task, whoever wrote it, until removed."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from executor.client import TaskOutcome
from executor.core import control, envelope, schedule, subjects
from executor.core.envelope import Draft
from executor.core.schedule import Schedule
from executor.core.seal import seal
from executor.model import StoredMessage
from executor.transport import records
from executor.transport.control import Control
from tests.servers import NatsServer, connect, eventually, run
from tests.support import guests, speech
from tests.support.served import OTHER, TENANT, Site

NAME = (TENANT, "echo", "tick")
EVERY = Schedule("@every 1s", input=b"tick", content_type="text/plain", at=1)


@pytest.fixture
def site(tmp_path: Path, server: NatsServer) -> Iterator[Site]:
    """A folder with a configuration."""
    with Site(tmp_path / "site", server) as made:
        yield made


async def put(site: Site, said: Schedule | None, name: tuple[str, str, str] = NAME) -> None:
    """Write a schedule into CONTROL as the command line does, or remove it."""
    bucket, key = Control(await connect(site.server)), subjects.schedule_key(*name)
    await speech.put(bucket, "schedule", key, said.fields() if said else None)


async def waiting(site: Site, name: tuple[str, str, str] = NAME) -> StoredMessage | None:
    """The schedule in LATER."""
    return await records.read_recurring(await connect(site.server), *name)


async def written(site: Site, name: tuple[str, str, str] = NAME) -> StoredMessage:
    """Wait until LATER has it."""
    found: list[StoredMessage] = []

    async def there() -> bool:
        found[:] = [m for m in [await waiting(site, name)] if m is not None]
        return bool(found)

    await eventually(there)
    return found[0]


def test_each_firing_is_a_task_with_its_own_outcome(site: Site) -> None:
    """Two executors serve a schedule of every second: one result a firing, until it is removed."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        first, second = await site.serve(), await site.serve()
        await put(site, EVERY)
        ended = await site.all_ended(3)
        assert {outcome.output for outcome in ended.values()} == {b"tick"}
        assert {outcome.record.content_type for outcome in ended.values()} == {""}
        assert len(first.events("scheduled")) + len(second.events("scheduled")) == 1
        await put(site, None)

        async def gone() -> bool:
            return await waiting(site) is None

        await eventually(gone)

        async def ignored() -> bool:
            return bool(first.events("schedule-gone") or second.events("schedule-gone"))

        await eventually(ignored)
        await site.empty()

        async def nothing_left() -> bool:  # that could fire
            return (await site.state(subjects.later_stream(TENANT)))["messages"] == 0

        await eventually(nothing_left)

    run(test())


def test_a_cron_rule_in_a_time_zone(site: Site) -> None:
    """Six fields and a zone arrive at the server as they were asked for, and fire."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        await site.serve()
        await put(site, replace(EVERY, when="*/1 * * * * *", zone="Europe/Berlin"))
        there = await written(site)
        assert there.headers["Nats-Schedule"] == "*/1 * * * * *"
        assert there.headers["Nats-Schedule-Time-Zone"] == "Europe/Berlin"
        await site.all_ended(2)

    run(test())


def test_a_restarted_executor_keeps_the_phase(site: Site) -> None:
    """What stands in LATER and is right is not written again, by whichever executor comes."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        life = await site.serve()
        every = replace(EVERY, when="@every 3600s")
        await put(site, every)
        before = await written(site)
        life.signal(signal.SIGTERM)
        await life.exit_status()
        again = await site.serve()
        # Written after it, so that it was looked at before.
        await put(site, every, (TENANT, "echo", "zlast"))
        await again.line("scheduled", schedule="zlast")
        assert await waiting(site) == before
        # Another version is written, one with the same content and a newer time as well.
        await put(site, replace(every, at=2))
        await again.line("scheduled", schedule="tick")
        after = await waiting(site)
        assert after is not None
        assert after.sequence > before.sequence

    run(test())


def test_a_restart_of_the_server_runs_no_firing_twice(site: Site, server: NatsServer) -> None:
    """The server crashes and stores firings again: one outcome for each, none is lost."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        await site.serve()
        await put(site, EVERY)
        await site.all_ended(2)
        await asyncio.to_thread(server.restart, signal.SIGKILL)
        count = (await site.state(subjects.outcomes_stream(TENANT)))["messages"]
        ended = await site.all_ended(count + 3)  # which fails for two records of an id
        assert all(outcome.output == b"tick" for outcome in ended.values())

    run(test())


def test_a_retry_of_a_firing_is_the_same_task(site: Site) -> None:
    """A firing that fails for a while is retried under its id and ends as one outcome."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        await site.release(guests.sample("flaky"), "flaky")
        await site.serve()
        name = (TENANT, "flaky", "tick")
        await put(site, replace(EVERY, when="@every 3s"), name)
        ended = await site.all_ended(1)
        (outcome,) = ended.values()
        assert outcome.record.attempt == 2
        assert outcome.output == b"done: tick"
        assert outcome.id.startswith("s")
        assert [past.code for past in outcome.record.history] == ["guest.failed"]

    run(test())


def test_a_removal_while_nobody_serves(site: Site) -> None:
    """A schedule that was removed meanwhile: its firings are dropped, and LATER is put right."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        life = await site.serve()
        await put(site, EVERY)
        await written(site)
        life.signal(signal.SIGTERM)
        await life.exit_status()
        count = len(await site.stored())
        await put(site, None)

        async def fired() -> bool:
            return (await site.state(subjects.tasks_stream(TENANT)))["messages"] > 0

        await eventually(fired)
        again = await site.serve()
        await again.line("schedule-gone", task=f"{TENANT}/echo", schedule="tick")

        async def gone() -> bool:
            return await waiting(site) is None

        await eventually(gone)
        await site.empty()
        assert len(await site.stored()) == count

    run(test())


@pytest.mark.covers("message.malformed")
def test_a_submitter_forges_no_firing(site: Site) -> None:
    """Unsigned, signed by a stranger, or copied to another task: malformed and a security event."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO, other=guests.ECHO)
        life = await site.serve()
        await put(site, replace(EVERY, when="@every 3600s"))
        genuine = (await written(site)).body
        aud = subjects.audience("test", subjects.task(TENANT, "echo"))
        (forged,) = seal(
            guests.STRANGER, [Draft("schedule", aud, "tick", EVERY.payload())], at=1
        )  # fmt: skip
        async with await site.client() as client:
            await client.submit_bytes("echo", forged)
            await client.submit_bytes("other", genuine)
            ended = await site.all_ended(2)
            assert {outcome.code for outcome in ended.values()} == {"message.malformed"}
            assert all(task_id.startswith("_") for task_id in ended)
            await life.line("security-event", 2, kind="schedule-not-authentic")
            # Where it belongs it is a firing, once, at whatever time it claims.
            await client.submit_bytes("echo", genuine)
            assert len(await site.all_ended(3)) == 3

    run(test())


def test_a_schedule_that_the_server_refuses(site: Site) -> None:
    """A rule that got past the command line is said in the log and stops nothing else."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        life = await site.serve()
        await put(site, replace(EVERY, when="* * * * *"), (TENANT, "echo", "bad"))
        await life.line("schedule-refused", schedule="bad")
        await put(site, replace(EVERY, when="@every 1s\r\nNats-TTL: 1s"), (TENANT, "echo", "worse"))
        await life.line("security-event", kind="schedule-not-authentic")
        await put(site, EVERY)
        await site.all_ended(1)

    run(test())


def test_a_schedule_of_another_executors_tenant(site: Site) -> None:
    """An executor writes no schedule of a tenant that is not its own, until it serves it."""

    async def test() -> None:
        site.write(tenants=(TENANT, OTHER))
        await site.prepare(echo=guests.ECHO)
        site.write()
        life = await site.serve()
        name = (OTHER, "echo", "tick")
        await put(site, EVERY, name)
        await put(site, replace(EVERY, when="@every 3600s"))
        await life.line("scheduled", schedule="tick")
        assert await waiting(site, name) is None
        site.write(tenants=(TENANT, OTHER))
        life.signal(signal.SIGHUP)
        await site.all_ended(1, OTHER)

    run(test())


def test_the_largest_firing_fires_and_is_retried(site: Site) -> None:
    """An input at the bound travels all the way, its retry too."""

    async def test() -> None:
        task, schedule_id = "t" * 64, "i" * 64
        await site.prepare(**{task: guests.RETRY})
        await site.serve()
        data = b"x" * control.BYTES_MAX
        await put(site, replace(EVERY, input=data), (TENANT, task, schedule_id))
        outcome = next(iter((await site.all_ended(1)).values()))
        assert (outcome.code, outcome.record.attempt) == ("guest.failed", 3)
        assert outcome.record.origin is not None
        assert outcome.record.origin.whole
        assert data in outcome.record.origin.data

    run(test())


def test_a_firing_has_to_start_in_time(site: Site) -> None:
    """A firing that nobody took in time ends as expired; its schedule goes on."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        life = await site.serve()
        await put(site, replace(EVERY, expires_ms=1))
        await life.line("attempt", code="message.expired")
        expired: list[TaskOutcome] = []

        async def seen() -> bool:
            # A firing that was taken within a millisecond has run instead.
            expired[:] = [o for o in (await site.ended()).values() if o.code == "message.expired"]
            return bool(expired)

        await eventually(seen)
        outcome = expired[0]
        assert outcome.record.origin is not None
        assert envelope.decode_sealed(outcome.record.origin.data).typ == "schedule"
        assert schedule.firing_id("tick", 1, "") != outcome.id

    run(test())
