"""What is put off, by tenant: one's full queue, oversized retry or removal delays nobody else's."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.core import subjects
from executor.core.seal import Opener
from executor.errors import ExecutorError
from executor.model import NO_ROOM, Answer, Delivery, Outgoing, Refused, Stored
from executor.transport import streams
from executor.transport.api import header_size
from executor.transport.connection import Connection
from executor.transport.control import Control
from executor.transport.outbox import Outbox
from executor.transport.pull import Pull
from executor.transport.room import Room
from executor.transport.speaking import Speaker
from executor.transport.streams import TenantQueue
from tests.servers import Events, NatsServer, connect, eventually, run
from tests.support import guests, speech
from tests.support.served import OTHER, TENANT, Site

ACME = TenantQueue("acme", queue_max_messages=1)
BETA = TenantQueue("beta")


def now_ms() -> int:
    """By the clock that the server goes by too."""
    return time.time_ns() // 1_000_000


class Beta:
    """The neighbour: schedules retries and takes them off its queue."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.outbox = Outbox(connection)
        self.arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        self.count = 0

    async def retry(self, tenant: str, *, ahead_ms: int = 0) -> str:
        """Store a retry; returns its body."""
        self.count += 1
        body = f"{tenant} {self.count}"
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.outbox.publish(
            Outgoing(
                subjects.later(tenant, "work", f"id{self.count}", 1), body.encode(),
                schedule_at_ms=now_ms() + ahead_ms, schedule_target=subjects.due(tenant, "work"),
            ),
            answer.set_result, 10,
        )  # fmt: skip
        assert isinstance(await answer, Stored)
        return body

    async def is_served(self) -> None:
        """A retry of beta comes due and arrives, within seconds and not some timeout."""
        body = await self.retry("beta")
        async with asyncio.timeout(10):
            delivery = await self.arrived.get()
        assert delivery.data.decode() == body
        self.outbox.ack(delivery.lease)


async def neighbours(server: NatsServer) -> Beta:
    """Two tenants, and a pull for beta alone."""
    events = Events()
    connection = await connect(server, events)
    await streams.apply(connection, [ACME, BETA])
    beta = Beta(connection)
    await beta.outbox.start()
    pull = Pull(
        connection, "beta", window=8, on_delivery=beta.arrived.put_nowait, on_event=events
    )  # fmt: skip
    await pull.start()
    return beta


async def messages(connection: Connection, stream: str, below: str = ">") -> dict[str, int]:
    """How many messages stand under each subject."""
    info = await connection.api(f"STREAM.INFO.{stream}", {"subjects_filter": below})
    found: dict[str, int] = info["state"].get("subjects") or {}
    return found


def test_a_full_queue_delays_nobody_else(server: NatsServer) -> None:
    """Fifty retries of a tenant whose queue is full wait in LATER; its neighbour's go through."""

    async def body() -> None:
        beta = await neighbours(server)
        await beta.connection.store("task.acme.work", b"fills it")
        for _ in range(50):
            await beta.retry("acme")

        async def all_due() -> bool:
            return await messages(beta.connection, "LATER_acme", "due.acme.>") == {
                "due.acme.work": 50
            }

        await eventually(all_due)
        for _ in range(5):
            await beta.is_served()
        assert (await messages(beta.connection, "TASKS_acme")) == {"task.acme.work": 1}
        assert await messages(beta.connection, "LATER_acme", "due.acme.>") == {"due.acme.work": 50}

    run(body())


def test_a_schedule_too_large_to_fire_delays_nobody_else(server: NatsServer) -> None:
    """Past the outbox's bound a schedule may never fire: it stays, and others still do."""

    async def body() -> None:
        beta = await neighbours(server)
        name = "k" * 64
        headers = {
            "Nats-Schedule": "@at 2020-01-01T00:00:00Z",
            "Nats-Schedule-Target": subjects.due("acme", name),
        }
        info = await beta.connection.api("STREAM.INFO.LATER_acme")
        rollup = header_size({"Nats-Rollup": "sub"})  # which the server adds
        room = info["config"]["max_msg_size"] - header_size(headers) - rollup
        subject = subjects.later("acme", name, "i" * 64, 1)
        await beta.connection.store(subject, bytes(room), headers)
        for _ in range(3):
            await beta.is_served()
        assert await messages(beta.connection, "LATER_acme") == {subject: 1}

    run(body())


def test_a_removed_tenant_leaves_nothing_behind(server: NatsServer) -> None:
    """Its retries, what is due, its recurring schedules and its word in CONTROL go with it."""

    async def body() -> None:
        beta = await neighbours(server)
        bucket = Control(beta.connection)
        keys = [
            subjects.schedule_key("acme", "work", "tick"), subjects.pause_key("acme", "work"),
            subjects.breaker_key("module", "acme", "ab"), subjects.release_key("acme", "work"),
            subjects.cancel_key("acme", "_", "id1"),
        ]  # fmt: skip
        others = [
            subjects.pause_key("beta", "acme"), subjects.breaker_key("module", "beta", "ab"),
            subjects.quarantine_key("ab"), subjects.status_key("acme"),
        ]  # fmt: skip
        for key in (*keys, *others):
            await bucket.put(key, b"x")
        await beta.connection.store("task.acme.work", b"fills it")
        await beta.connection.store(
            subjects.recurring("acme", "work", "tick"), b"x",
            {"Nats-Schedule": "@every 1s", "Nats-Schedule-Target": "due.acme.work"},
        )  # fmt: skip
        await beta.retry("acme")
        await beta.retry("acme", ahead_ms=1_500)
        body = await beta.retry("beta", ahead_ms=1_500)

        async def one_due() -> bool:
            return bool(await messages(beta.connection, "LATER_acme", "due.acme.>"))

        await eventually(one_due)
        mouth = Speaker(bucket, Opener("test", {}), guests.OPERATOR)
        assert await mouth.forget_tenant("acme") == len(keys)
        assert await streams.remove_tenant(beta.connection, "acme") == [
            "TASKS_acme", "LATER_acme", "OUTCOMES_acme", "KV_T_acme",
        ]  # fmt: skip
        assert await bucket.keys() == sorted(others)
        # Later than what was removed: had it fired, it would be there now.
        assert (await beta.arrived.get()).data.decode() == body
        await beta.is_served()
        assert await streams.remove_tenant(beta.connection, "acme") == []
        assert await mouth.forget_tenant("acme") == 0

    run(body())


def test_what_is_written_for_a_tenant_that_is_gone_harms_nobody(server: NatsServer) -> None:
    """An executor that was not told yet stores one more retry: nobody takes it."""

    async def body() -> None:
        beta = await neighbours(server)
        await streams.remove_tenant(beta.connection, "acme")
        with pytest.raises(ExecutorError) as caught:
            await beta.connection.store(subjects.later("acme", "work", "id", 1), b"x")
        assert caught.value.code == "transport.stream-missing"
        for _ in range(3):
            await beta.is_served()

    run(body())


def test_a_tenant_puts_off_no_more_than_its_bound(server: NatsServer) -> None:
    """Past it a schedule is refused, a neighbour's and recurring ones are not, until some are gone.

    The server has no such bound beside schedules, so this is the outbox's.
    """

    async def body() -> None:
        beta = await neighbours(server)
        room = Room(beta.connection)
        room.replace([TenantQueue("acme", queue_max_messages=3), BETA])
        outbox = Outbox(beta.connection, room=room)
        await outbox.start()

        async def put_off(subject: str, tenant: str = "acme") -> Answer:
            answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            outgoing = Outgoing(subject, b"x", schedule_at_ms=now_ms() + 3_600_000,
                                schedule_target=subjects.due(tenant, "work"))  # fmt: skip
            outbox.publish(outgoing, answer.set_result, 10)
            return await answer

        answers = [await put_off(subjects.later("acme", "work", f"id{n}", 1)) for n in range(4)]
        assert [isinstance(answer, Stored) for answer in answers] == [True, True, True, False]
        assert isinstance(answers[3], Refused)
        assert answers[3].code == NO_ROOM
        assert isinstance(await put_off(subjects.later("beta", "work", "id", 1), "beta"), Stored)
        assert isinstance(await put_off(subjects.recurring("acme", "work", "id")), Stored)
        await beta.connection.api("STREAM.PURGE.LATER_acme")

        async def again() -> bool:
            return isinstance(await put_off(subjects.later("acme", "work", "id", 1)), Stored)

        await eventually(again)
        room.replace([TenantQueue("acme", queue_max_bytes=1), BETA])
        assert isinstance(await put_off(subjects.later("acme", "work", "id", 1)), Refused)
        room.stop()
        await outbox.stop()

    run(body())


# With executors.


@pytest.fixture
def site(tmp_path: Path, server: NatsServer) -> Iterator[Site]:
    """A folder with a configuration."""
    with Site(tmp_path / "site", server) as made:
        yield made


def test_a_tenant_is_removed_while_executors_run(site: Site) -> None:
    """Its retries wait and its schedule fires when it goes; the other's retries go on."""

    async def test() -> None:
        site.write(tenants=(TENANT, OTHER))
        await site.prepare(echo=guests.ECHO, retry=guests.RETRY)
        life = await site.serve()
        connection = await connect(site.server)
        bucket, key = Control(connection), subjects.schedule_key(TENANT, "echo", "tick")
        await speech.put(
            bucket, "schedule", key, {"at": 1, "when": "@every 1s", "zone": "", "input": b"",
                                      "ct": "", "expires_ms": 0},
        )  # fmt: skip
        async with await site.client() as client:
            await client.submit("retry", not_before=now_ms() + 3_600_000)
        await site.all_ended(1)
        site.write(tenants=(OTHER,))
        mouth = Speaker(bucket, site.config().opener(), guests.OPERATOR)
        # Two releases, a schedule, and what was used, if an executor has told of that by now.
        assert await mouth.forget_tenant(TENANT) in {3, 4}
        assert await mouth.forget_tenant(TENANT) == 0
        assert f"LATER_{TENANT}" in await streams.remove_tenant(connection, TENANT)
        life.signal(signal.SIGHUP)
        await life.line("reloaded", tenants=OTHER)
        async with await site.client(OTHER) as client:
            ended = await client.run("retry", timeout_s=30)
            assert (ended.code, ended.record.attempt) == ("guest.failed", 3)
        assert life.process.poll() is None

    run(test())


def test_nothing_is_lost_where_no_more_can_be_put_off(site: Site) -> None:
    """What finds no room waits in its queue, unheld: it runs in time, and the neighbour's at once.

    Both ways: a delay, and a retry, which keeps its number until it can be counted.
    """

    async def test() -> None:
        site.write(tenants=(TENANT, OTHER))
        text = site.path.read_text()
        bounded = text.replace("queue_max_mib", "queue_max_messages = 3\nqueue_max_mib", 1)
        site.path.write_text(bounded)
        await site.prepare(echo=guests.ECHO, retry=guests.RETRY)
        life = await site.serve()
        far, at = now_ms() + 3_600_000, now_ms() + 2_000

        async def full() -> bool:
            return (await site.state(subjects.later_stream(TENANT)))["messages"] == 3

        async with await site.client() as client, await site.client(OTHER) as other:
            for _ in range(2):
                await client.submit("echo", not_before=far, expires_at=far + 1)
            await client.submit("echo", not_before=at)
            await eventually(full)
            sent = await client.submit("echo", b"x", not_before=at)
            failing = await client.submit("retry")
            assert (await other.run("retry", timeout_s=30)).record.attempt == 3
            ended = await client.wait(sent.id, timeout_s=30)
            assert ended.output == b"x"
            assert ended.record.finished_at >= at
            failed = await client.wait(failing.id, timeout_s=30)
            assert failed.code in {"guest.failed", "message.deliveries-exhausted"}
        assert [f for f in life.events("publish-unconfirmed") if "puts off" in str(f["why"])]
        await site.empty()

        async def two_left() -> bool:
            return (await site.state(subjects.later_stream(TENANT)))["messages"] == 2

        await eventually(two_left)

    run(test())


def test_not_before_over_a_crash_of_the_server(site: Site, server: NatsServer) -> None:
    """A delayed task waits through a crash of the server and starts after its time, once."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        await site.serve()
        at = now_ms() + 2_000
        async with await site.client() as client:
            sent = await client.submit("echo", b"later", not_before=at)

        async def waits() -> bool:
            return (await site.state(subjects.later_stream(TENANT)))["messages"] == 1

        await eventually(waits)
        await asyncio.to_thread(server.restart, signal.SIGKILL)
        ended = (await site.all_ended(1))[sent.id]
        assert ended.output == b"later"
        assert ended.record.finished_at >= at
        await site.empty()

    run(test())


@pytest.mark.covers("message.expired")
def test_a_task_that_waits_ends_when_it_expires(site: Site) -> None:
    """Whatever would come after `expires_at` ends then: delayed, or waiting for its retry."""

    async def test() -> None:
        later = guests.RETRY.replace("(i64.const 7)", "(i64.const 3600000)")
        await site.prepare(echo=guests.ECHO, later=later)
        await site.serve()
        async with await site.client() as client:
            at = now_ms() + 2_000
            sent = [
                await client.submit("echo", expires_at=at, not_before=at + 3_600_000),
                await client.submit("later", expires_at=at),
            ]
            ended = [await client.wait(task.id, timeout_s=30) for task in sent]
        assert [outcome.code for outcome in ended] == ["message.expired"] * 2
        assert all(outcome.record.finished_at >= at for outcome in ended)
        assert [past.code for past in ended[1].record.history] == ["guest.failed"]
        # In time it runs, delayed or not.
        async with await site.client() as client:
            at = now_ms() + 500
            done = await client.run(
                "echo", b"x", expires_at=at + 30_000, not_before=at, timeout_s=30
            )
            assert done.output == b"x"
            assert done.record.finished_at >= at
            late = await client.run("echo", b"x", expires_at=1, timeout_s=30)
            assert late.code == "message.expired"

    run(test())
