"""What is killed and restarted under load: exactly one record for each task, whatever dies."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.core import envelope, subjects
from executor.core.envelope import Draft, Record
from executor.core.seal import seal
from executor.model import Delivery, Receipt
from executor.transport.kv import TenantKv
from executor.transport.pull import Pull
from tests.servers import Events, NatsServer, connect, eventually, run
from tests.support import guests
from tests.support.served import TENANT, Site

SHORT = guests.working(1_000_000)
MIDDLE = guests.working(20_000_000)  # some 20 ms
LONG = guests.working(1_000_000_000)


@pytest.fixture
def site(tmp_path: Path, server: NatsServer) -> Iterator[Site]:
    """A folder with a configuration whose lease is as short as allowed."""
    with Site(tmp_path / "site", server, ack_wait_ms=1_000) as made:
        yield made


async def began(site: Site, name: str) -> None:
    """Wait until the guest with this input has begun."""
    bucket = TenantKv(await connect(site.server), TENANT)

    async def there() -> bool:
        return await bucket.get(f"own/{name}") is not None

    await eventually(there)


async def submit(site: Site, task: str, count: int) -> list[str]:
    """Ask for so many tasks; returns their ids."""
    async with await site.client() as client:
        requests = [client.request(task, f"n{n}".encode()) for n in range(count)]
        await client.submit_many(requests)
    return [request.id for request in requests]


def kill(pid: int) -> None:
    """SIGKILL, unless it is gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_the_supervisor_is_killed_in_mid_run(site: Site) -> None:
    """Kill -9 of the supervisor takes its sandboxes along; another one finishes, once each."""

    async def test() -> None:
        await site.prepare(work=guests.working(200_000_000))
        first = await site.serve()
        ids = await submit(site, "work", 6)
        await began(site, "n0")
        first.signal(signal.SIGKILL)
        assert await first.exit_status() == -signal.SIGKILL
        await first.no_orphans()
        await site.serve()
        ended = await site.all_ended(len(ids))
        assert sorted(ended) == sorted(ids)
        assert all(outcome.ok and outcome.record.attempt == 1 for outcome in ended.values())
        await site.empty()

    run(test())


def test_the_supervisor_is_killed_before_the_ack(site: Site) -> None:
    """A record that is stored while its message is not acked: the next one acks and runs nothing.

    The state is the one that such a death leaves: the same key has written the record, and the
    message, delivered once already, comes again when its lease lapses.
    """

    async def test() -> None:
        await site.prepare(work=SHORT)
        ids = await submit(site, "work", 3)
        connection = await connect(site.server)
        taken: asyncio.Queue[Delivery] = asyncio.Queue()
        pull = Pull(
            connection, TENANT, window=1, on_delivery=taken.put_nowait, on_event=Events()
        )  # fmt: skip
        await pull.start()
        assert (await taken.get()).delivered == 1
        await pull.stop()
        subject = subjects.result(TENANT, "work", ids[0])
        record = Record(
            task="work", attempt=1, attempts_max=3, submitted_at=1, finished_at=2,
            receipt=Receipt(), output=b"of the dead",
        )  # fmt: skip
        draft = Draft("result", f"test/{subject}", ids[0], envelope.encode_record(record))
        await connection.store(subject, seal(guests.HOST, [draft], at=1)[0])
        await site.serve()
        ended = await site.all_ended(len(ids))
        await site.empty()
        assert ended[ids[0]].output == b"of the dead"
        assert (await site.state(f"KV_{subjects.tenant_bucket(TENANT)}"))["last_seq"] == 2

    run(test())


def test_supervisors_are_killed_again_and_again(site: Site) -> None:
    """Kill -9 at whatever point it is, five times under load: one record for each task."""

    async def test() -> None:
        await site.prepare(work=guests.working(5_000_000))
        ids = await submit(site, "work", 150)
        for round_number in range(5):
            life = await site.serve()

            async def some(least: int = 5 * round_number + 1) -> bool:
                return (await site.state(subjects.outcomes_stream(TENANT)))["messages"] >= least

            await eventually(some)
            life.signal(signal.SIGKILL)
            await life.exit_status()
            await life.no_orphans()
        await site.serve()
        ended = await site.all_ended(len(ids))
        assert sorted(ended) == sorted(ids)
        assert all(outcome.ok for outcome in ended.values())
        await site.empty()
        assert len(await site.stored()) == len(ids)

    run(test())


def test_two_supervisors_share_and_one_dies(site: Site) -> None:
    """Of two executors on one queue one is killed: the other takes over, one record for each."""

    async def test() -> None:
        await site.prepare(work=MIDDLE)
        first, second = await site.serve(), await site.serve()
        ids = await submit(site, "work", 60)

        async def both() -> bool:
            return (await site.state(subjects.outcomes_stream(TENANT)))["messages"] >= 5

        await eventually(both)
        first.signal(signal.SIGKILL)
        ended = await site.all_ended(len(ids))
        assert sorted(ended) == sorted(ids)
        assert second.process.poll() is None
        await site.empty()

    run(test())


def test_a_sandbox_is_killed_in_mid_run(site: Site) -> None:
    """Kill -9 of the sandbox that runs: the task runs again, its crash on record, and succeeds."""

    async def test() -> None:
        await site.prepare(work=LONG)
        life = await site.serve()
        (task_id,) = await submit(site, "work", 1)
        await began(site, "n0")
        for pid in life.sandboxes():
            kill(pid)
        ended = await site.all_ended(1)
        record = ended[task_id].record
        assert (record.code, record.attempt) == ("", 1)
        assert [past.code for past in record.history] == ["sandbox.killed"]
        assert life.process.poll() is None

    run(test())


def test_sandboxes_die_all_the_time(site: Site) -> None:
    """300 tasks while a random sandbox is killed every 200 ms: 300 records, none twice."""

    async def test() -> None:
        await site.prepare(work=guests.working(30_000_000))
        life = await site.serve()
        seeded = random.Random(7)
        finished = asyncio.Event()
        killed = 0

        async def murder() -> None:
            nonlocal killed
            # Bounded: on a busy machine there would else be more killing than work.
            while not finished.is_set() and killed < 30:
                pids = life.sandboxes()
                if pids:
                    kill(seeded.choice(pids))
                    killed += 1
                await asyncio.wait([waiting], timeout=0.2)

        waiting = asyncio.create_task(finished.wait())
        murderer = asyncio.create_task(murder())
        ids = await submit(site, "work", 300)
        ended = await site.all_ended(len(ids))
        finished.set()
        await murderer
        assert sorted(ended) == sorted(ids)
        codes = {outcome.code for outcome in ended.values()}
        assert codes <= {"", "sandbox.killed"}
        assert sum(outcome.ok for outcome in ended.values()) > 200
        assert killed >= 5
        await site.empty()
        assert len(await site.stored()) == len(ids)
        life.signal(signal.SIGTERM)
        assert await life.exit_status() == 0
        await life.no_orphans()

    run(test())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_server_restarts_under_load(
    site: Site, server: NatsServer, number: signal.Signals
) -> None:
    """nats-server ends in mid-load and comes back: every task ends in exactly one record."""

    async def test() -> None:
        await site.prepare(work=MIDDLE)
        life = await site.serve()
        ids = await submit(site, "work", 100)

        async def some() -> bool:
            return (await site.state(subjects.outcomes_stream(TENANT)))["messages"] >= 10

        await eventually(some)
        server.restart(number)
        ended = await site.all_ended(len(ids))
        assert sorted(ended) == sorted(ids)
        assert all(outcome.ok for outcome in ended.values())
        await site.empty()
        assert len(await site.stored()) == len(ids)
        assert life.process.poll() is None

    run(test())


def test_the_server_is_away_longer_than_a_lease(site: Site, server: NatsServer) -> None:
    """Off line for longer than `ack_wait`, attempts are dropped and run again, one record each."""

    async def test() -> None:
        await site.prepare(work=guests.working(100_000_000))
        life = await site.serve()
        ids = await submit(site, "work", 10)
        await began(site, "n0")
        server.stop(signal.SIGKILL)
        await life.line("lease-lost", len(ids) // 2)
        server.start()
        ended = await site.all_ended(len(ids))
        assert sorted(ended) == sorted(ids)
        assert all(outcome.ok for outcome in ended.values())
        await site.empty()

    run(test())
