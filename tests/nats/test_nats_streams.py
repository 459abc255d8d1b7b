"""Streams as desired: made once, compared, mended; schedules travel all the way."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from executor import config as configs
from executor.cli.serving import stream_options
from executor.core import control, subjects
from executor.errors import ExecutorError
from executor.model import Answer, Conflict, Delivery, Outgoing, Refused, Stored
from executor.transport import direct, records, streams
from executor.transport.api import ApiError, header_size
from executor.transport.control import REMOVED_S, Control
from executor.transport.outbox import Outbox, wire_headers
from executor.transport.pull import Pull
from executor.transport.streams import TenantQueue
from tests.servers import Events, NatsServer, connect, eventually, run
from tests.support import speech

ACME = TenantQueue("acme")
BETA = TenantQueue("beta")


def test_apply_twice_changes_nothing(server: NatsServer) -> None:
    """The second `apply` finds everything as the first left it, and `check` agrees."""

    async def body() -> None:
        connection = await connect(server)
        first = await streams.apply(connection, [ACME, BETA])
        assert {change.action for change in first} == {"created"}
        assert [change.stream for change in first][:4] == [
            "KV_CONTROL", "OBJ_MODULES", "KV_TRUST", "LATER_acme",
        ]  # fmt: skip
        second = await streams.apply(connection, [ACME, BETA])
        assert {change.action for change in second} == {"unchanged"}
        await streams.check(connection, [ACME, BETA])

    run(body())


@pytest.mark.covers("transport.stream-mismatch")
def test_drift_is_found_and_mended(server: NatsServer) -> None:
    """A changed field is named by `check` and put back by `apply`; what is not ours stays."""

    async def body() -> None:
        connection = await connect(server)
        await streams.apply(connection, [ACME])
        config = (await connection.api("STREAM.INFO.OUTCOMES_acme"))["config"]
        config |= {"max_age": 3_600_000_000_000, "description": "an operator's note"}
        await connection.api("STREAM.UPDATE.OUTCOMES_acme", config)
        with pytest.raises(ExecutorError) as caught:
            await streams.check(connection, [ACME])
        assert caught.value.code == "transport.stream-mismatch"
        assert caught.value.facts["stream"] == "OUTCOMES_acme"
        assert caught.value.facts["field"] == "max_age"
        changes = [c for c in await streams.apply(connection, [ACME]) if c.action != "unchanged"]
        assert [(c.stream, c.action, c.fields) for c in changes] == [
            ("OUTCOMES_acme", "updated", ("max_age",))
        ]
        info = await connection.api("STREAM.INFO.OUTCOMES_acme")
        assert info["config"]["description"] == "an operator's note"

    run(body())


def test_outcomes_are_bounded_by_size(server: NatsServer) -> None:
    """A full stream of outcomes drops its oldest, takes the newest, and then knows no dropped id.

    Once-only holds as long as the outcome is kept: that is what a smaller bound costs.
    """

    async def body() -> None:
        connection = await connect(server)
        await streams.apply(connection, [ACME], streams.Options(outcome_max_bytes=1024 * 1024))
        for number in range(40):
            await connection.store(f"result.acme.work.id{number}", bytes(64 * 1024))
        state = (await connection.api("STREAM.INFO.OUTCOMES_acme"))["state"]
        assert state["bytes"] <= 1024 * 1024
        assert state["last_seq"] == 40 > state["messages"] > 8
        assert await records.read_outcome(connection, "acme", "work", "id0") == []
        assert len(await records.read_outcome(connection, "acme", "work", "id39")) == 1
        outbox = Outbox(connection)
        await outbox.start()
        for number, expected in ((0, Stored), (39, Conflict)):
            answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            once = f"*.acme.work.id{number}"
            outbox.publish(
                Outgoing(f"dead.acme.work.id{number}", b"again", once=once), answer.set_result, 10
            )
            assert isinstance(await answer, expected)
        await outbox.stop()

    run(body())


def test_the_bound_of_outcomes_is_configured(tmp_path: Path) -> None:
    """`delivery.outcomes_max_mib` is the stream's size, and the oldest go first."""
    config = configs.parse(
        "[delivery]\noutcomes_max_mib = 3", folder=tmp_path, name="x", environ={}
    )
    options = stream_options(config)
    (outcomes,) = [
        wanted for wanted in streams.desired([ACME], options) if wanted["name"] == "OUTCOMES_acme"
    ]
    assert (outcomes["max_bytes"], outcomes["discard"]) == (3 * 1024 * 1024, "old")


def test_drift_of_the_consumer_is_found_and_mended(server: NatsServer) -> None:
    """A lease of another length is named as the consumer's field and put back."""

    async def body() -> None:
        connection = await connect(server)
        await streams.apply(connection, [ACME], streams.Options(ack_wait_ms=5_000))
        with pytest.raises(ExecutorError) as caught:
            await streams.check(connection, [ACME])
        assert caught.value.facts["stream"] == "TASKS_acme/executor"
        assert caught.value.facts["field"] == "ack_wait"
        await streams.apply(connection, [ACME])
        await streams.check(connection, [ACME])

    run(body())


@pytest.mark.covers("transport.stream-missing")
def test_a_missing_stream_is_named(server: NatsServer) -> None:
    """`check` before `apply` says which stream does not exist."""

    async def body() -> None:
        connection = await connect(server)
        with pytest.raises(ExecutorError) as caught:
            await streams.check(connection, [ACME])
        assert caught.value.code == "transport.stream-missing"
        assert caught.value.facts["stream"] == "KV_CONTROL"

    run(body())


def test_a_removed_tenant_leaves_nothing_and_others_alone(server: NatsServer) -> None:
    """`remove_tenant` deletes that tenant's streams; twice is harmless."""

    async def body() -> None:
        connection = await connect(server)
        await streams.apply(connection, [ACME, BETA])
        assert await streams.remove_tenant(connection, "acme") == [
            "TASKS_acme",
            "LATER_acme",
            "OUTCOMES_acme",
            "KV_T_acme",
        ]
        assert await streams.remove_tenant(connection, "acme") == []
        await streams.check(connection, [BETA])
        with pytest.raises(ApiError):
            await connection.api("STREAM.INFO.TASKS_acme")

    run(body())


def test_the_shared_later_of_before_gives_way(server: NatsServer) -> None:
    """While a task waits there `apply` says so and touches nothing; recurring ones come again."""

    async def body() -> None:
        connection = await connect(server)
        config = {"name": "LATER", "subjects": ["later.*.*.*.*", "due.>"], "retention": "workqueue",
                  "allow_msg_schedules": True}  # fmt: skip
        await connection.api("STREAM.CREATE.LATER", config)
        headers = {"Nats-Schedule": "@every 1h", "Nats-Schedule-Target": "due.acme.work"}
        for last in ("1", "cron"):
            await connection.store(f"later.acme.work.id.{last}", b"x", headers)
        with pytest.raises(ExecutorError) as caught:
            await streams.apply(connection, [ACME])
        assert caught.value.code == "transport.stream-mismatch"
        assert (caught.value.facts["stream"], caught.value.facts["waiting"]) == ("LATER", "1")
        info = await connection.api("STREAM.INFO.LATER")
        assert info["state"]["messages"] == 2
        await connection.api("STREAM.PURGE.LATER", {"filter": "later.acme.work.id.1"})
        await streams.apply(connection, [ACME, BETA])
        await streams.check(connection, [ACME, BETA])
        with pytest.raises(ApiError):
            await connection.api("STREAM.INFO.LATER")

    run(body())


def test_submitters_get_no_schedules_and_no_rollups(server: NatsServer) -> None:
    """TASKS refuses the headers with which a submitter would steer the server."""

    async def body() -> None:
        connection = await connect(server)
        await streams.apply(connection, [ACME])
        for headers in (
            {"Nats-Schedule": "@every 1s", "Nats-Schedule-Target": "task.acme.x"},
            {"Nats-Rollup": "all"},
            {"Nats-TTL": "1s"},
        ):
            with pytest.raises(ApiError):
                await connection.store("task.acme.work", b"x", headers)

    run(body())


def test_one_message_empties_no_bucket(server: NatsServer) -> None:
    """Whoever may write one key of a shared bucket cannot roll up what stands under the others."""

    async def body() -> None:
        connection = await connect(server)
        await streams.apply(connection, [ACME])
        for own, others in (
            ("$KV.CONTROL.cancel.acme.x.y", "$KV.CONTROL.quarantine.aa"),
            ("$KV.TRUST.md.targets", "$KV.TRUST.md.root"),
            ("$KV.T_acme.x", "$KV.T_acme.y"),
            ("$O.MODULES.M.mine", "$O.MODULES.M.theirs"),
        ):
            await connection.store(others, b"stands")
            for what in ("all", "sub"):
                with pytest.raises(ApiError) as caught:
                    await connection.store(own, b"x", {"Nats-Rollup": what})
                assert caught.value.err_code == 10111  # rollup not permitted
            stream = "OBJ_MODULES" if own.startswith("$O") else f"KV_{own.split('.')[1]}"
            found = await direct.last(connection, stream, others)
            assert found is not None
            assert found.body == b"stands"

    run(body())


@pytest.mark.covers("message.too-large")
def test_entries_of_control_are_bounded(server: NatsServer) -> None:
    """The largest of each kind is stored, what is larger refused; `apply` mends older streams."""

    async def body() -> None:
        connection = await connect(server)
        await streams.apply(connection, [])
        config = (await connection.api("STREAM.INFO.KV_CONTROL"))["config"]
        await connection.api("STREAM.UPDATE.KV_CONTROL", config | {"max_msg_size": -1})
        bucket = Control(connection)
        await bucket.put("cancel.acme._.old", bytes(control.ENTRY_MAX * 2))
        (change,) = [c for c in await streams.apply(connection, []) if c.action != "unchanged"]
        assert (change.stream, change.fields) == ("KV_CONTROL", ("max_msg_size",))
        for key, value in speech.largest().items():
            full = value.ljust(control.ENTRY_MAX)
            revision = await bucket.put(key, value, ttl_s=REMOVED_S)
            assert await bucket.put(key, full, revision=revision, ttl_s=REMOVED_S) > revision
            with pytest.raises(ExecutorError) as caught:
                await bucket.put(key, full + bytes(1024))
            assert caught.value.code == "message.too-large"

    run(body())


@pytest.mark.covers("transport.stream-full")
def test_a_flood_of_control_takes_nothing_away(server: NatsServer) -> None:
    """A full bucket refuses what is new and keeps what stands, which can still be taken back."""

    async def body() -> None:
        connection = await connect(server)
        await streams.apply(connection, [], streams.Options(control_max_bytes=1024 * 1024))
        bucket = Control(connection)
        why: dict[str, control.Value] = {"at": 1, "why": ""}
        keys = [subjects.pause_key("acme", f"t{number}") for number in range(8)]
        said = {key: speech.value("pause", key, why) for key in keys}
        for key, value in said.items():
            await bucket.put(key, value)

        async def flood(size: int) -> None:
            for number in range(20_000):
                await bucket.put(f"cancel.acme._.{size}-{number}", bytes(size))

        for size in (control.ENTRY_MAX, 1):
            with pytest.raises(ExecutorError) as caught:
                await flood(size)
            assert caught.value.code == "transport.stream-full"
            assert "purge KV_CONTROL" in caught.value.hint
        stands = await bucket.entries("pause")
        assert {key: stored.body for key, stored in stands.items()} == said
        await bucket.put(keys[0], speech.value("pause", keys[0]), ttl_s=REMOVED_S)
        # The way out, which the hint says.
        filter_ = {"filter": "$KV.CONTROL.cancel.acme.>"}
        await connection.api("STREAM.PURGE.KV_CONTROL", filter_)
        await bucket.put("pause.acme.more", said[keys[0]])
        assert len(await bucket.entries()) == len(keys) + 1

    run(body())


async def _schedule(outbox: Outbox, tenant: str, task_id: str, at_ms: int, body: bytes) -> None:
    answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    outgoing = Outgoing(
        subjects.later(tenant, "work", task_id, 1),
        body,
        {"Traceparent": "00-1-2-03"},
        schedule_at_ms=at_ms,
        schedule_target=subjects.due(tenant, "work"),
    )
    outbox.publish(outgoing, answer.set_result, 10)
    assert isinstance(await answer, Stored)


def test_a_schedule_fires_into_its_tenants_queue(server: NatsServer) -> None:
    """A retry waits, arrives as `task.…` with its body intact, and leaves LATER empty."""

    async def body() -> None:
        events = Events()
        connection = await connect(server, events)
        await streams.apply(connection, [ACME, BETA])
        outbox = Outbox(connection)
        await outbox.start()
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        pulls = [
            Pull(connection, tenant, window=8, on_delivery=arrived.put_nowait, on_event=events)
            for tenant in ("acme", "beta")
        ]
        for pull in pulls:
            await pull.start()
        payload = bytes(range(256)) * 16
        for tenant, ahead_ms in (("acme", 300), ("beta", -60_000)):
            at_ms = int(time.time() * 1000) + ahead_ms
            await _schedule(outbox, tenant, "id1", at_ms, payload)
            delivery = await arrived.get()
            assert time.time() * 1000 >= at_ms
            assert delivery.subject == f"task.{tenant}.work"
            assert delivery.tenant == tenant
            assert delivery.data == payload
            assert delivery.headers["Traceparent"] == "00-1-2-03"
            assert delivery.headers["Nats-Scheduler"] == f"later.{tenant}.work.id1.1"
            assert "Nats-Schedule-Target" not in delivery.headers
            outbox.ack(delivery.lease)

        async def later_is_empty() -> bool:
            infos = [await connection.api(f"STREAM.INFO.LATER_{t}") for t in ("acme", "beta")]
            return not any(info["state"]["messages"] for info in infos)

        await eventually(later_is_empty)
        for pull in pulls:
            await pull.stop()
        await outbox.stop()

    run(body())


def test_the_last_write_of_a_schedule_wins(server: NatsServer) -> None:
    """Writing a schedule's subject again replaces it: one delivery, with the newer body."""

    async def body() -> None:
        events = Events()
        connection = await connect(server, events)
        await streams.apply(connection, [ACME])
        outbox = Outbox(connection)
        await outbox.start()
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        pull = Pull(connection, "acme", window=8, on_delivery=arrived.put_nowait, on_event=events)
        await pull.start()
        now = int(time.time() * 1000)
        await _schedule(outbox, "acme", "id1", now + 60_000, b"old")
        await _schedule(outbox, "acme", "id1", now + 200, b"new")
        await _schedule(outbox, "acme", "id2", now + 400, b"other")
        assert (await arrived.get()).data == b"new"
        assert (await arrived.get()).data == b"other"
        await pull.stop()
        await outbox.stop()

    run(body())


def test_the_largest_schedule_fires(server: NatsServer) -> None:
    """With the longest names a schedule at the limit arrives; one byte more is refused."""

    async def body() -> None:
        events = Events()
        connection = await connect(server, events)
        tenant, name, task_id = "t" * 64, "k" * 64, "i" * 64
        await streams.apply(connection, [TenantQueue(tenant)])
        outbox = Outbox(connection)
        await outbox.start()
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        pull = Pull(connection, tenant, window=8, on_delivery=arrived.put_nowait, on_event=events)
        await pull.start()

        def outgoing(size: int) -> Outgoing:
            return Outgoing(
                subjects.later(tenant, name, task_id, 1),
                bytes(size),
                schedule_at_ms=1_000,
                schedule_target=subjects.due(tenant, name),
            )

        overhead = header_size(wire_headers(outgoing(0)))
        size = streams.MESSAGE_MAX_BYTES - streams.SCHEDULE_MARGIN - overhead
        for more in (1, 0):
            answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            outbox.publish(outgoing(size + more), answer.set_result, 10)
            assert isinstance(await answer, Refused if more else Stored)
        assert len((await arrived.get()).data) == size
        await pull.stop()
        await outbox.stop()

    run(body())


def test_schedules_survive_a_crash_of_the_server(server: NatsServer) -> None:
    """What came due while the server was away, and what comes due later, both arrive.

    The server resumes sources about 10 s after a restart (2.15.1), so this test takes that long.
    """

    async def body() -> None:
        events = Events()
        connection = await connect(server, events)
        await streams.apply(connection, [ACME])
        outbox = Outbox(connection)
        await outbox.start()
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        pull = Pull(connection, "acme", window=8, on_delivery=arrived.put_nowait, on_event=events)
        await pull.start()
        now = int(time.time() * 1000)
        await _schedule(outbox, "acme", "id1", now + 300, b"due while away")
        await _schedule(outbox, "acme", "id2", now + 2_000, b"due later")
        await asyncio.to_thread(server.stop, signal.SIGKILL)

        async def came_due() -> bool:
            return time.time() * 1000 > now + 300

        await eventually(came_due)
        await asyncio.to_thread(server.start)
        assert {(await arrived.get()).data, (await arrived.get()).data} == {
            b"due while away",
            b"due later",
        }
        await pull.stop()
        await outbox.stop()

    run(body())
