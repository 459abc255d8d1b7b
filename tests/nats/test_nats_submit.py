"""Submitting: the window, duplicates, and what each refusal is called."""

from __future__ import annotations

import asyncio

import pytest

from executor.errors import ExecutorError
from executor.transport import streams
from executor.transport.streams import TenantQueue
from executor.transport.submit import Submission, Submitted, Submitter
from tests.servers import Events, NatsServer, connect, run

ACME = TenantQueue("acme", queue_max_messages=1_000)


def test_a_task_is_stored_and_its_repeat_is_a_duplicate(server: NatsServer) -> None:
    """The sequence comes back; the same `Nats-Msg-Id` again is stored once and says so."""

    async def body() -> None:
        connection = await connect(server)
        await streams.apply(connection, [ACME])
        submitter = Submitter(connection)
        await submitter.start()
        headers = {"Nats-Msg-Id": "one"}
        assert await submitter.submit("task.acme.work", b"x", headers) == Submitted(1)
        again = await submitter.submit("task.acme.work", b"x", headers)
        assert again == Submitted(1, duplicate=True)
        assert await submitter.submit("task.acme.work", b"x") == Submitted(2)
        assert headers == {"Nats-Msg-Id": "one"}
        await submitter.stop()

    run(body())


@pytest.mark.covers("transport.stream-full")
def test_each_refusal_has_its_code(server: NatsServer) -> None:
    """Unknown tenant, full queue, too large, and a header that the queue does not take."""

    async def body() -> None:
        connection = await connect(server)
        await streams.apply(connection, [TenantQueue("acme", queue_max_messages=2)])
        submitter = Submitter(connection)
        await submitter.start()
        for subject, content, headers, code in (
            ("task.nobody.work", b"x", None, "transport.stream-missing"),
            ("task.acme.work", bytes(connection.max_payload), None, "message.too-large"),
            ("task.acme.work", b"x", {"Nats-Rollup": "all"}, "transport.publish-unconfirmed"),
        ):
            with pytest.raises(ExecutorError) as caught:
                await submitter.submit(subject, content, headers)
            assert caught.value.code == code
        outcomes = await submitter.submit_many(Submission("task.acme.work", b"x") for _ in range(3))
        assert outcomes[:2] == [Submitted(1), Submitted(2)]
        assert isinstance(outcomes[2], ExecutorError)
        assert outcomes[2].code == "transport.stream-full"
        await submitter.stop()

    run(body())


def test_the_window_bounds_what_is_in_flight(server: NatsServer) -> None:
    """Never more than `window` unconfirmed; every outcome stands in the place of its task."""

    async def body() -> None:
        connection = await connect(server)
        await streams.apply(connection, [ACME])
        submitter = Submitter(connection, window=8)
        await submitter.start()
        in_flight = 0

        def submissions() -> list[Submission]:
            return [Submission("task.acme.work", str(n).encode()) for n in range(500)]

        publish = submitter._publish

        def watched(submission: Submission, on_answer: object) -> None:
            nonlocal in_flight
            publish(submission, on_answer)  # type: ignore[arg-type]
            in_flight = max(in_flight, submitter._outbox.pending)

        submitter._publish = watched  # type: ignore[method-assign]
        outcomes = await submitter.submit_many(submissions())
        assert [outcome.sequence for outcome in outcomes if isinstance(outcome, Submitted)] == list(
            range(1, 501)
        )
        assert in_flight == 8
        assert await submitter.submit_many([]) == []
        await submitter.stop()

    run(body())


def test_a_restart_while_submitting_stores_each_task_once(server: NatsServer) -> None:
    """Unconfirmed tasks are repeated with their id: nothing lost, nothing twice."""

    async def body() -> None:
        events = Events()
        connection = await connect(server, events)
        await streams.apply(connection, [TenantQueue("acme")])
        submitter = Submitter(connection, window=64, timeout_s=30)
        await submitter.start()
        half = asyncio.Event()

        def submissions() -> list[Submission]:
            return [Submission("task.acme.work", b"x") for _ in range(2_000)]

        count = 0
        publish = submitter._publish

        def watched(submission: Submission, on_answer: object) -> None:
            nonlocal count
            count += 1
            if count == 500:
                half.set()
            publish(submission, on_answer)  # type: ignore[arg-type]

        submitter._publish = watched  # type: ignore[method-assign]
        submitting = asyncio.create_task(submitter.submit_many(submissions()))
        await half.wait()
        await asyncio.to_thread(server.restart)
        outcomes = await submitting
        assert all(isinstance(outcome, Submitted) for outcome in outcomes)
        info = await connection.api("STREAM.INFO.TASKS_acme")
        assert info["state"]["messages"] == 2_000
        await submitter.stop()

    run(body())


def test_no_server_is_publish_unconfirmed(server: NatsServer) -> None:
    """A submit that nobody confirms ends at its timeout with a harmless-to-repeat error."""

    async def body() -> None:
        connection = await connect(server)
        await streams.apply(connection, [ACME])
        submitter = Submitter(connection, timeout_s=0.2)
        await submitter.start()
        await asyncio.to_thread(server.stop)
        with pytest.raises(ExecutorError) as caught:
            await submitter.submit("task.acme.work", b"x")
        assert caught.value.code == "transport.publish-unconfirmed"
        await submitter.stop()

    run(body())
