"""The streaming pull: credit, redelivery, idle consumers, restarts, consumers that come and go."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter

import pytest

from executor.model import Answer, Conflict, Delivery, Outgoing, Stored
from executor.transport import streams
from executor.transport.connection import Connection, Message, Settings
from executor.transport.outbox import Outbox
from executor.transport.pull import Pull
from executor.transport.streams import Options, TenantQueue
from executor.transport.submit import Submission, Submitted, Submitter
from tests.servers import Events, NatsServer, connect, eventually, run, until

ACME = TenantQueue("acme")


async def _submit(connection: Connection, count: int, body: bytes = b"x") -> None:
    submitter = Submitter(connection)
    await submitter.start()
    outcomes = await submitter.submit_many(
        Submission("task.acme.work", body, {"Task-Id": f"id{number}"}) for number in range(count)
    )
    assert all(isinstance(outcome, Submitted) for outcome in outcomes)
    await submitter.stop()


async def _messages(connection: Connection, stream: str) -> int:
    return int((await connection.api(f"STREAM.INFO.{stream}"))["state"]["messages"])


class _Worker:
    """Settles as an executor does: a once-only result, then the ack, then the credit."""

    def __init__(self, connection: Connection, events: Events, window: int) -> None:
        self.outbox = Outbox(connection, sweep_s=0.5)
        self.pull = Pull(
            connection,
            "acme",
            window=window,
            on_delivery=self._run,
            on_event=events,
            expires_ms=2_000,
            heartbeat_ms=500,
        )
        self.seen: Counter[str] = Counter()
        self.settled: Counter[str] = Counter()
        self.credit_max = 0
        self.changed = asyncio.Event()

    async def start(self) -> None:
        await self.outbox.start()
        await self.pull.start()

    async def stop(self) -> None:
        await self.pull.stop()
        assert await self.outbox.drain(10)
        await self.outbox.stop()

    def _run(self, delivery: Delivery) -> None:
        task_id = delivery.headers["Task-Id"]
        self.seen[task_id] += 1
        levels = self.pull.statistics()
        self.credit_max = max(self.credit_max, levels["held"] + levels["outstanding"])

        def answered(answer: Answer) -> None:
            assert isinstance(answer, Stored | Conflict)
            self.settled[task_id] += 1
            self.outbox.ack(delivery.lease)
            self.pull.completed()
            self.changed.set()

        outgoing = Outgoing(f"result.acme.work.{task_id}", b"r", once=f"*.acme.work.{task_id}")
        self.outbox.publish(outgoing, answered, 60)


def test_every_message_is_settled_once_within_its_credit(server: NatsServer) -> None:
    """5,000 messages through a window of 64: each once, never more than 64 asked for or held."""

    async def body() -> None:
        events = Events()
        connection = await connect(server, events)
        await streams.apply(connection, [ACME])
        await _submit(connection, 5_000)
        worker = _Worker(connection, events, window=64)
        await worker.start()
        await until(lambda: len(worker.settled) == 5_000, worker.changed)
        await worker.stop()
        assert set(worker.seen.values()) == {1}
        assert set(worker.settled.values()) == {1}
        assert worker.credit_max <= 64
        assert await _messages(connection, "TASKS_acme") == 0
        assert await _messages(connection, "OUTCOMES_acme") == 5_000
        assert worker.pull.statistics()["resets"] == 0

    run(body())


def test_credit_reaches_the_server(server: NatsServer) -> None:
    """The server has at most `window` unacknowledged; half a window completed asks for as much."""

    async def body() -> None:
        events = Events()
        connection = await connect(server, events)
        await streams.apply(connection, [ACME])
        await _submit(connection, 200)
        outbox = Outbox(connection)
        await outbox.start()
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        pull = Pull(connection, "acme", window=64, on_delivery=arrived.put_nowait, on_event=events)
        await pull.start()
        leases = [(await arrived.get()).lease for _ in range(64)]
        info = await connection.api("CONSUMER.INFO.TASKS_acme.executor")
        assert (info["num_ack_pending"], info["num_waiting"]) == (64, 0)
        for lease in leases[:31]:
            outbox.ack(lease)
            pull.completed()
        info = await connection.api("CONSUMER.INFO.TASKS_acme.executor")
        assert info["delivered"]["consumer_seq"] == 64
        outbox.ack(leases[31])
        pull.completed()
        for _ in range(32):
            await arrived.get()
        info = await connection.api("CONSUMER.INFO.TASKS_acme.executor")
        assert info["delivered"]["consumer_seq"] == 96
        assert arrived.empty()
        assert pull.statistics()["held"] == 64
        await pull.stop()
        await outbox.stop()

    run(body())


def test_a_nak_brings_the_message_again(server: NatsServer) -> None:
    """A nak'ed delivery comes again with the same sequence and a count of 2."""

    async def body() -> None:
        events = Events()
        connection = await connect(server, events)
        await streams.apply(connection, [ACME])
        outbox = Outbox(connection)
        await outbox.start()
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        pull = Pull(connection, "acme", window=4, on_delivery=arrived.put_nowait, on_event=events)
        await pull.start()
        await _submit(connection, 1, bytes(range(256)))
        first = await arrived.get()
        assert (first.sequence, first.delivered, first.data) == (1, 1, bytes(range(256)))
        assert first.stored_at > 1_600_000_000_000
        outbox.nak(first.lease)
        pull.completed()
        second = await arrived.get()
        assert (second.sequence, second.delivered) == (1, 2)
        outbox.nak(second.lease, delay_ms=50)
        pull.completed()
        third = await arrived.get()
        assert third.delivered == 3
        outbox.ack(third.lease)
        pull.completed()
        await pull.stop()
        await outbox.stop()
        assert await _messages(connection, "TASKS_acme") == 0

    run(body())


def test_progress_keeps_a_lease(server: NatsServer) -> None:
    """Without renewal a delivery comes again after `ack_wait`; with it, it does not."""

    async def body() -> None:
        events = Events()
        connection = await connect(server, events)
        await streams.apply(connection, [ACME], Options(ack_wait_ms=400))
        outbox = Outbox(connection)
        await outbox.start()
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        pull = Pull(connection, "acme", window=4, on_delivery=arrived.put_nowait, on_event=events)
        await pull.start()
        await _submit(connection, 2)
        kept, lapsed = await arrived.get(), await arrived.get()
        loop = asyncio.get_running_loop()
        until_s = loop.time() + 1.0
        again = asyncio.create_task(arrived.get())
        while loop.time() < until_s and not again.done():
            outbox.progress(kept.lease)
            await asyncio.wait((again,), timeout=0.1)
        assert (await again).sequence == lapsed.sequence
        assert (await again).delivered == 2
        outbox.ack(kept.lease)
        outbox.ack((await again).lease)
        await pull.stop()
        await outbox.stop()

    run(body())


class _Observed(Pull):
    """Remembers the statuses it got."""

    statuses: Counter[str]
    changed: asyncio.Event

    def _on_status(self, flow: object, message: Message) -> None:
        self.statuses[(message.headers or {})["Status"]] += 1
        super()._on_status(flow, message)  # type: ignore[arg-type]
        self.changed.set()


def test_an_idle_consumer_is_asked_again(server: NatsServer) -> None:
    """Requests expire with their credit given back, heartbeats arrive, a late message is taken."""

    async def body() -> None:
        events = Events()
        connection = await connect(server, events)
        await streams.apply(connection, [ACME])
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        pull = _Observed(
            connection,
            "acme",
            window=4,
            on_delivery=arrived.put_nowait,
            on_event=events,
            expires_ms=300,
            heartbeat_ms=100,
        )
        pull.statuses, pull.changed = Counter(), asyncio.Event()
        await pull.start()
        await until(lambda: pull.statuses["408"] >= 3 and pull.statuses["100"] >= 3, pull.changed)
        assert pull.statistics()["outstanding"] == 4
        assert pull.statistics()["resets"] == 0
        await _submit(connection, 1)
        assert (await arrived.get()).delivered == 1
        assert pull.statistics()["outstanding"] == 3
        await pull.stop()

    run(body())


@pytest.mark.parametrize("with_signal", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_the_server_loses_nothing(
    server: NatsServer, with_signal: signal.Signals
) -> None:
    """The server goes away mid-pull and comes back: every message gets its one record."""

    async def body() -> None:
        events = Events()
        connection = await connect(server, events)
        await streams.apply(connection, [ACME], Options(ack_wait_ms=1_000))
        await _submit(connection, 2_000)
        worker = _Worker(connection, events, window=64)
        await worker.start()
        await until(lambda: len(worker.settled) >= 300, worker.changed)
        await asyncio.to_thread(server.restart, with_signal)
        await events.wait("reconnected")

        async def all_settled() -> bool:
            return await _messages(connection, "TASKS_acme") == 0

        await eventually(all_settled)
        await worker.stop()
        assert await _messages(connection, "OUTCOMES_acme") == 2_000
        assert len(worker.settled) == 2_000
        assert worker.pull.statistics()["held"] == 0

    run(body())


def test_a_consumer_that_is_deleted_and_made_again_is_found(server: NatsServer) -> None:
    """While it is gone an event says so; when it is back the pull goes on by itself."""

    async def body() -> None:
        events = Events()
        connection = await connect(server, events)
        await streams.apply(connection, [ACME])
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        pull = Pull(
            connection,
            "acme",
            window=4,
            on_delivery=arrived.put_nowait,
            on_event=events,
            heartbeat_ms=200,
        )
        await pull.start()
        await connection.api("CONSUMER.DELETE.TASKS_acme.executor")
        assert (await events.wait("consumer-missing", 2))["tenant"] == "acme"
        await streams.apply(connection, [ACME])
        await _submit(connection, 1)
        assert (await arrived.get()).sequence == 1
        await pull.stop()

    run(body())


def test_a_silent_server_is_noticed(server: NatsServer) -> None:
    """Missed heartbeats reset the pull although the connection stands; it goes on afterwards."""

    async def body() -> None:
        events = Events()
        settings = Settings(server.url, connect_timeout_ms=500)
        connection = await connect(server, events, settings)
        await streams.apply(connection, [ACME])
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        pull = Pull(
            connection,
            "acme",
            window=4,
            on_delivery=arrived.put_nowait,
            on_event=events,
            expires_ms=400,
            heartbeat_ms=100,
        )
        await pull.start()
        os.kill(server.pid, signal.SIGSTOP)
        try:
            assert (await events.wait("pull-reset"))["reason"] == "heartbeats missed"
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await _submit(connection, 1)
        assert (await arrived.get()).sequence == 1
        await pull.stop()

    run(body())


def test_after_stop_nothing_is_handed_over(server: NatsServer) -> None:
    """What arrives while stopping is nak'ed at once, so that another executor gets it."""

    async def body() -> None:
        events = Events()
        connection = await connect(server, events)
        await streams.apply(connection, [ACME])
        late: list[Delivery] = []
        first = Pull(connection, "acme", window=8, on_delivery=late.append, on_event=events)
        await first.start()
        first._stopping = True  # as `stop` does first; its unsubscribe comes later
        await _submit(connection, 5)
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        second = Pull(connection, "acme", window=8, on_delivery=arrived.put_nowait, on_event=events)
        await second.start()
        await first.stop()
        await first.stop()
        taken = [await arrived.get() for _ in range(5)]
        assert sorted(delivery.sequence for delivery in taken) == [1, 2, 3, 4, 5]
        assert late == []
        await second.stop()

    run(body())


def test_a_window_can_shrink_to_nothing_and_grow(server: NatsServer) -> None:
    """Window 0 asks for nothing; growing it takes what waits."""

    async def body() -> None:
        events = Events()
        connection = await connect(server, events)
        await streams.apply(connection, [ACME])
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        pull = Pull(connection, "acme", window=0, on_delivery=arrived.put_nowait, on_event=events)
        await pull.start()
        await _submit(connection, 3)
        assert pull.statistics()["outstanding"] == 0
        pull.resize(2)
        assert [(await arrived.get()).sequence, (await arrived.get()).sequence] == [1, 2]
        assert pull.statistics()["outstanding"] == 0
        pull.resize(3)
        assert (await arrived.get()).sequence == 3
        await pull.stop()

    run(body())


def test_a_flow_that_was_never_heard_is_given_up_after_two_heartbeats(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request may have gone to a consumer's leader that stands still."""

    async def body() -> None:
        waits: list[float] = []

        async def wait(_futures: object, *, timeout: float) -> None:  # noqa: ASYNC109 - as asyncio's
            waits.append(timeout)

        connection = await connect(server)
        pull = Pull(connection, "acme", window=4, on_delivery=print, on_event=Events())
        await pull._begin()
        monkeypatch.setattr(asyncio, "wait", wait)
        assert await pull._watch() == "heartbeats missed"
        assert waits == [5.0, 5.0]
        await pull.stop()

    run(body())
