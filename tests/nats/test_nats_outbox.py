"""Publishing with certainty: once-only, superseding, lost PubAcks, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from executor.model import Answer, Conflict, Outgoing, Refused, Stored, Unconfirmed
from executor.transport import records, streams
from executor.transport.connection import Connection, Message
from executor.transport.outbox import Outbox
from executor.transport.streams import TenantQueue
from tests.servers import Events, NatsServer, connect, run

RESULT = "result.acme.work.id1"
DEAD = "dead.acme.work.id1"
EITHER = "*.acme.work.id1"


async def _answer(outbox: Outbox, outgoing: Outgoing, deadline_s: float = 10) -> Answer:
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    outbox.publish(outgoing, future.set_result, deadline_s)
    return await future


async def _open(server: NatsServer) -> Connection:
    connection = await connect(server)
    await streams.apply(connection, [TenantQueue("acme")])
    return connection


def test_only_one_terminal_record_exists(server: NatsServer) -> None:
    """After a result neither a dead letter nor a second result of the id is stored."""

    async def body() -> None:
        connection = await _open(server)
        outbox = Outbox(connection)
        await outbox.start()
        assert await _answer(outbox, Outgoing(RESULT, b"r", once=EITHER)) == Stored(1)
        assert await _answer(outbox, Outgoing(DEAD, b"d", once=EITHER)) == Conflict()
        assert await _answer(outbox, Outgoing(RESULT, b"r", once=EITHER)) == Conflict()
        found = await records.read_outcome(connection, "acme", "work", "id1")
        assert [(record.subject, record.body) for record in found] == [(RESULT, b"r")]
        await outbox.stop()

    run(body())


def test_racing_writers_leave_one_record(server: NatsServer) -> None:
    """Of a result and a dead letter sent at the same time by two connections one is stored."""

    async def body() -> None:
        first, second = await _open(server), await _open(server)
        outboxes = [Outbox(first), Outbox(second)]
        for outbox in outboxes:
            await outbox.start()
        for number in range(50):
            once = f"*.acme.work.r{number}"
            answers = await asyncio.gather(
                _answer(outboxes[0], Outgoing(f"result.acme.work.r{number}", b"r", once=once)),
                _answer(outboxes[1], Outgoing(f"dead.acme.work.r{number}", b"d", once=once)),
            )
            assert sorted(type(answer).__name__ for answer in answers) == ["Conflict", "Stored"]
            assert len(await records.read_outcome(first, "acme", "work", f"r{number}")) == 1
        for outbox in outboxes:
            await outbox.stop()

    run(body())


def test_an_unauthentic_record_is_superseded_once(server: NatsServer) -> None:
    """With the incumbent's sequence a new record is stored, a second try with it conflicts."""

    async def body() -> None:
        connection = await _open(server)
        outbox = Outbox(connection)
        await outbox.start()
        await connection.store(RESULT, b"forged")
        outgoing = Outgoing(DEAD, b"d", once=EITHER)
        assert await _answer(outbox, outgoing) == Conflict()
        (forged,) = await records.read_outcome(connection, "acme", "work", "id1")
        newer = Outgoing(DEAD, b"d", once=EITHER, expected_sequence=forged.sequence)
        assert await _answer(outbox, newer) == Stored(2)
        assert await _answer(outbox, newer) == Conflict()
        found = await records.read_outcome(connection, "acme", "work", "id1")
        assert [record.body for record in found] == [b"forged", b"d"]
        await outbox.stop()

    run(body())


class _Deaf(Outbox):
    """Loses the first PubAck of each publish."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, sweep_s=0.1)
        self.lost: set[str] = set()
        self.heard = asyncio.Event()

    def _on_answer(self, message: Message) -> None:
        if message.subject in self.lost:
            super()._on_answer(message)
        self.lost.add(message.subject)
        self.heard.set()


def test_a_lost_puback_is_repeated_and_conflicts(server: NatsServer) -> None:
    """The sweep publishes again; the record is stored once and the answer is a conflict."""

    async def body() -> None:
        connection = await _open(server)
        outbox = _Deaf(connection)
        await outbox.start()
        assert await _answer(outbox, Outgoing(RESULT, b"r", once=EITHER)) == Conflict()
        assert outbox.statistics()["repeats"] == 1
        info = await connection.api("STREAM.INFO.OUTCOMES_acme")
        assert info["state"]["messages"] == 1
        assert outbox.pending == 0
        await outbox.stop()

    run(body())


def test_no_answer_until_the_deadline_is_unconfirmed(server: NatsServer) -> None:
    """With the server gone an entry is answered `Unconfirmed`, not kept for ever."""

    async def body() -> None:
        connection = await _open(server)
        outbox = Outbox(connection, sweep_s=0.05)
        await outbox.start()
        server.stop()
        answer = await _answer(outbox, Outgoing(RESULT, b"r", once=EITHER), deadline_s=0.2)
        assert answer == Unconfirmed()
        await outbox.stop()

    run(body())


def test_what_is_published_while_disconnected_is_stored_later(server: NatsServer) -> None:
    """A publish waits for the reconnect and is stored once."""

    async def body() -> None:
        events = Events()
        connection = await connect(server, events)
        await streams.apply(connection, [TenantQueue("acme")])
        outbox = Outbox(connection)
        await outbox.start()
        await asyncio.to_thread(server.stop)
        await events.wait("disconnected")
        waiting = [
            asyncio.create_task(
                _answer(
                    outbox,
                    Outgoing(f"result.acme.work.w{number}", b"r", once=f"*.acme.work.w{number}"),
                    deadline_s=60,
                )
            )
            for number in range(20)
        ]
        await asyncio.to_thread(server.start)
        answers = await asyncio.gather(*waiting)
        assert {type(answer) for answer in answers} == {Stored}
        assert await outbox.drain(5)
        await outbox.stop()

    run(body())


def _collect(answers: list[Answer]) -> Callable[[Answer], None]:
    return answers.append


def test_an_oversized_message_is_refused_before_it_is_sent(server: NatsServer) -> None:
    """The server would hang up; instead the answer is `Refused` and the connection lives."""

    async def body() -> None:
        connection = await _open(server)
        outbox = Outbox(connection)
        await outbox.start()
        big = Outgoing(RESULT, bytes(connection.max_payload), {"A": "b"})
        answer = await _answer(outbox, big)
        assert isinstance(answer, Refused)
        assert answer.code == 413
        assert isinstance(await _answer(outbox, Outgoing(RESULT, b"r")), Stored)
        await outbox.stop()

    run(body())


def test_a_stream_that_is_missing_is_refused_at_the_deadline(server: NatsServer) -> None:
    """A patient outbox keeps asking while nobody takes the subject, then says why it gave up."""

    async def body() -> None:
        connection = await _open(server)
        outbox = Outbox(connection, sweep_s=0.05)
        await outbox.start()
        answer = await _answer(outbox, Outgoing("result.nobody.work.id1", b"r"), deadline_s=0.2)
        assert isinstance(answer, Refused)
        assert answer.code == 503
        assert outbox.statistics()["repeats"] >= 1
        await outbox.stop()

    run(body())


def test_stopping_answers_what_is_pending(server: NatsServer) -> None:
    """`stop` leaves no callback uncalled."""

    async def body() -> None:
        connection = await _open(server)
        outbox = Outbox(connection)
        await outbox.start()
        server.stop()
        answers: list[Answer] = []
        outbox.publish(Outgoing(RESULT, b"r"), _collect(answers), 60)
        assert not await outbox.drain(0.05)
        await outbox.stop()
        assert answers == [Unconfirmed()]

    run(body())
