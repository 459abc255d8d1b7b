"""Single messages are lost, doubled or late, and connections break, between `serve` and the server.

The proxy stands before `serve` alone: tasks are submitted and records read past it.
"""

from __future__ import annotations

import random
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from executor.core import subjects
from tests.servers import NatsServer, run
from tests.support import load
from tests.support.proxy import (
    Frame,
    Proxy,
    is_ack,
    is_delivery,
    is_nak,
    is_progress,
    is_publish,
    puback,
)
from tests.support.served import TENANT, Site

OUTCOMES = subjects.outcomes_stream(TENANT)


@asynccontextmanager
async def proxied(
    tmp_path: Path, server: NatsServer, *, ack_wait_ms: int = 30_000, **bodies: str
) -> AsyncIterator[tuple[Proxy, Site]]:
    """A site whose `serve` connects through a proxy; what lives at the end stops in order."""
    async with Proxy(server) as proxy:
        with Site(tmp_path / "site", server, ack_wait_ms=ack_wait_ms, url=proxy.url) as site:
            await site.prepare(**(bodies or {"work": load.SHORT}))
            yield proxy, site
            await load.stopped(site)


def test_pubacks_are_lost(tmp_path: Path, server: NatsServer) -> None:
    """Attacks *nothing is acked before its record is confirmed*: the confirmations are lost.

    The publish is repeated, refused because the record stands, and the record is believed: no ack
    before that, no second run, one record.
    """

    async def test() -> None:
        async with proxied(tmp_path, server) as (proxy, site):
            life = await site.serve()
            lost = proxy.on(puback(OUTCOMES), "drop", times=5)
            ids = await load.submit(site, "work", 5)
            await lost.hit(5)
            await load.stored(site, 5)
            assert proxy.count(is_ack) == 0
            ended = await load.each_once(site, ids)
            assert all(outcome.ok for outcome in ended.values())
            assert len(life.events("duplicate")) == 5
            assert await load.runs(site) == 5
            assert proxy.count(is_publish(f"result.{TENANT}.")) == 10

    run(test())


def test_acks_are_lost(tmp_path: Path, server: NatsServer) -> None:
    """Attacks *exactly one record*: a task that has ended is handed over again and does not run.

    The look-up finds the record, and the redelivery is acked without a run or a publish.
    """

    async def test() -> None:
        async with proxied(tmp_path, server, ack_wait_ms=1_000) as (proxy, site):
            life = await site.serve()
            lost = proxy.on(is_ack, "drop", times=5)
            ids = await load.submit(site, "work", 5)
            await lost.hit(5)
            await load.each_once(site, ids)
            assert len(life.events("duplicate")) == 5
            assert await load.runs(site) == 5
            assert proxy.count(is_publish(f"result.{TENANT}.")) == 5
            assert proxy.count(is_ack) == 10

    run(test())


def test_deliveries_come_twice(tmp_path: Path, server: NatsServer) -> None:
    """Attacks *exactly one record*: each delivery comes twice, under one and the same lease.

    A copy of what is in hand is dropped; the pull's credit stays right, so all tasks come.
    """

    async def test() -> None:
        async with proxied(tmp_path, server, work=load.MIDDLE) as (proxy, site):
            await site.serve()
            twice = proxy.on(is_delivery, "duplicate")
            ids = await load.submit(site, "work", 40)
            await load.each_once(site, ids)
            assert twice.hits == 40
            assert await load.runs(site) == 40

    run(test())


def test_deliveries_come_late(tmp_path: Path, server: NatsServer) -> None:
    """Attacks *the redelivery owns the task*: a delivery arrives after its lease has lapsed.

    The server has handed the task over again by then; both copies end in one record.
    """

    async def test() -> None:
        async with proxied(tmp_path, server, ack_wait_ms=1_000) as (proxy, site):
            await site.serve()
            late = proxy.on(is_delivery, 1.5, times=3)
            ids = await load.submit(site, "work", 6)
            await late.hit(3)
            await load.each_once(site, ids)
            assert proxy.count(is_delivery) >= 9

    run(test())


def test_the_server_is_slow(tmp_path: Path, server: NatsServer) -> None:
    """Attacks *everything has a bound*: 300 ms a round trip; all tasks end, none runs twice."""

    async def test() -> None:
        async with proxied(tmp_path, server, ack_wait_ms=5_000) as (proxy, site):
            await site.serve()
            proxy.latency = {"up": 0.15, "down": 0.15}
            ids = await load.submit(site, "work", 8)
            await load.each_once(site, ids)
            assert await load.runs(site) == 8
            assert proxy.count(is_delivery) == proxy.count(is_ack) == 8

    run(test())


def test_a_connection_is_half_open(tmp_path: Path, server: NatsServer) -> None:
    """Attacks *a lease is renewed or lost*: the connection stands and nothing passes any more.

    Unanswered pings end it within half a lease, or three seconds; the tasks in hand go on over a
    new connection, and each ends once.
    """

    async def test() -> None:
        async with proxied(tmp_path, server, ack_wait_ms=6_000, work=load.LONG) as (proxy, site):
            life = await site.serve()
            ids = await load.submit(site, "work", 6)
            await load.began(site, "n0")
            before = proxy.connections
            proxy.freeze()
            await life.line("nats.reconnected")
            assert proxy.connections == before + 1
            ended = await load.each_once(site, ids)
            assert all(outcome.ok for outcome in ended.values())
            assert not life.events("lease-lost")

    run(test())


def test_a_frozen_connection_comes_back(tmp_path: Path, server: NatsServer) -> None:
    """Attacks *the second record is refused*: what was held for longer than a lease arrives late.

    Another executor has taken the tasks over by then; the first one's records, acks and renewals
    come after its own and change nothing.
    """

    async def test() -> None:
        async with proxied(tmp_path, server, ack_wait_ms=1_000, work=load.LONG) as (proxy, site):
            frozen = await site.serve()
            ids = await load.submit(site, "work", 3)
            await load.began(site, "n0")
            proxy.freeze()
            proxy.refuse = True
            site.url = server.url
            site.write()
            await site.serve()
            await load.stored(site, 3)
            await frozen.line("lease-lost")
            proxy.thaw()
            proxy.refuse = False
            await frozen.line("nats.reconnected")
            await load.each_once(site, ids)

    run(test())


def test_connections_are_cut_in_mid_frame(tmp_path: Path, server: NatsServer) -> None:
    """Attacks *nothing is lost, nothing is twice*: a reset after some thousand bytes, 5 times."""

    async def test() -> None:
        seeded = random.Random(11)
        async with proxied(tmp_path, server, ack_wait_ms=1_000, work=load.MIDDLE) as (proxy, site):
            life = await site.serve()
            proxy.budget = lambda: seeded.randrange(1_500, 9_000)
            await proxy.cut()
            ids = await load.submit(site, "work", 80)
            await proxy.wait_connections(6)
            proxy.budget = None
            ended = await load.each_once(site, ids)
            assert all(outcome.ok for outcome in ended.values())
            assert life.process.poll() is None

    run(test())


def test_renewals_are_lost(tmp_path: Path, server: NatsServer) -> None:
    """Attacks *the redelivery owns the task*: no renewal arrives, so the lease lapses in mid-run.

    The same executor gets the task again: the attempt goes on under the new lease, runs once, and
    the new lease is the one that is acked.
    """

    async def test() -> None:
        async with proxied(tmp_path, server, ack_wait_ms=1_000, work=load.LONGER) as (proxy, site):
            await site.serve()
            lost = proxy.on(is_progress, "drop")
            (task_id,) = await load.submit(site, "work", 1)
            await proxy.wait(is_delivery, 2)
            await load.each_once(site, [task_id])
            assert lost.hits
            assert await load.runs(site) == 1
            seen = list(proxy.seen)
            acks = [frame.subject for frame in seen if is_ack(frame)]
            leases = [frame.reply for frame in seen if is_delivery(frame)]
            # What was handed over before the record left is known when it is confirmed; what comes
            # later may cross the ack, and is acked as done.
            record = next(n for n, f in enumerate(seen) if is_publish(f"result.{TENANT}.")(f))
            newest = [frame.reply for frame in seen[:record] if is_delivery(frame)][-1]
            assert acks == leases[leases.index(acks[0]) :]
            assert leases.index(acks[0]) >= leases.index(newest)

    run(test())


def test_a_lost_lease_kills_the_attempt(tmp_path: Path, server: NatsServer) -> None:
    """Attacks *the redelivery owns the task*: cut off, the first attempt is killed and is silent.

    Another executor runs the task meanwhile, until it is cancelled; the first one publishes nothing
    when it is back.
    """

    async def test() -> None:
        async with proxied(tmp_path, server, ack_wait_ms=1_000, work=load.ENDLESS) as (proxy, site):
            first = await site.serve()
            (task_id,) = await load.submit(site, "work", 1)
            await load.began(site, "n0")
            proxy.refuse = True
            await proxy.cut()
            site.url = server.url
            site.write()
            await site.serve()
            await first.line("lease-lost", id=task_id)
            await load.ran(site, 2)
            async with await load.direct(site) as client:
                await client.cancel(task_id)
            await load.stored(site, 1)
            proxy.refuse = False
            await first.line("nats.reconnected")
            ended = await load.each_once(site, [task_id])
            assert ended[task_id].code == "task.cancelled"
            assert proxy.count(is_publish(f"result.{TENANT}.")) == 0
            assert proxy.count(is_publish(f"dead.{TENANT}.")) == 0
            assert proxy.count(is_ack) == 0

    run(test())


def test_a_drain_says_so_on_the_wire(tmp_path: Path, server: NatsServer) -> None:
    """Attacks *every lease is settled*: what a drain gives back is nak'ed, what ended is acked."""

    def settled(frames: Iterable[Frame]) -> set[str]:
        return {frame.subject for frame in frames if is_ack(frame) or is_nak(frame)}

    async def test() -> None:
        async with proxied(tmp_path, server, ack_wait_ms=1_000, work=load.LONG) as (proxy, site):
            life = await site.serve()
            ids = await load.submit(site, "work", 8)
            await load.began(site, "n0")
            await proxy.wait(is_progress)
            life.signal(signal.SIGTERM)
            assert await life.exit_status() == 0
            assert settled(proxy.seen) == {f.reply for f in proxy.seen if is_delivery(f)}
            assert proxy.count(is_nak) > 0
            assert len(await site.ended()) + proxy.count(is_nak) == len(ids)

    run(test())
