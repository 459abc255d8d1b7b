"""Short conversations with JetStream through the real transport classes.

Each script notes what it observes; the model and the real server must give the same notes. They
wait for events, never for a time: where time must pass, a delayed redelivery is the clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from executor.core import subjects
from executor.model import Answer, Delivery, Outgoing, StoredMessage
from executor.transport import records
from executor.transport.connection import Connection
from executor.transport.outbox import Outbox
from executor.transport.pull import Pull
from tests.servers import eventually
from tests.sim.wire import MESSAGE_ID, TASKS, TENANT

ACK_WAIT_MS: Final = 1_000
WORK: Final = subjects.task(TENANT, "work")
_HALF_MS: Final = 600  # more than half a lease, less than one
_RESULT: Final = subjects.result(TENANT, "work", "id1")
_DEAD: Final = subjects.dead(TENANT, "work", "id1")
_EITHER: Final = subjects.either(TENANT, "work", "id1")


class Site(Protocol):
    """A server with the executor's streams: real or modelled."""

    async def connect(self) -> Connection:
        """A connection to it."""

    async def restart(self) -> None:
        """It crashes and comes back; connections heal by themselves."""

    def now_ms(self) -> int:
        """Its wall clock."""


@dataclass
class Talk:
    """One executor's side of a conversation, and what it noted."""

    site: Site
    connection: Connection
    outbox: Outbox
    window: int = 16
    notes: list[object] = field(default_factory=list)
    _arrived: asyncio.Queue[Delivery] = field(default_factory=asyncio.Queue)

    async def pull(self) -> Pull:
        """Begin to pull."""
        pull = Pull(
            self.connection, TENANT, window=self.window, on_delivery=self._arrived.put_nowait,
            on_event=lambda _name, _facts: None, expires_ms=5_000, heartbeat_ms=1_000,
        )  # fmt: skip
        await pull.start()
        return pull

    def note(self, *facts: object) -> None:
        """Remember an observation."""
        self.notes.append(facts)

    async def put(self, body: bytes, message_id: str = "") -> None:
        """Ask for a task; note the answer."""
        headers = {MESSAGE_ID: message_id} if message_id else None
        answer = await self.connection.request(WORK, body, headers)
        self.note("put", body, b"duplicate" in answer.data)

    async def next(self) -> Delivery:
        """The next delivery, noted: place, count, subject, body."""
        delivery = await self._arrived.get()
        self.note("got", delivery.sequence, delivery.delivered, delivery.subject, delivery.data)
        return delivery

    async def say(self, outgoing: Outgoing) -> Answer:
        """Publish; note the answer."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.outbox.publish(outgoing, future.set_result, 10)
        answer = await future
        self.note(outgoing.subject, outgoing.body, answer)
        return answer

    async def emptied(self) -> None:
        """Wait until the queue holds nothing."""

        async def empty() -> bool:
            info = await self.connection.api(f"STREAM.INFO.{TASKS}")
            return bool(info["state"]["messages"] == 0)

        await eventually(empty)
        self.note("empty")

    def found(self, messages: list[StoredMessage]) -> None:
        """Note what was read."""
        self.note("read", [(m.subject, m.sequence, m.body) for m in messages])


Script = Callable[[Talk], Coroutine[Any, Any, None]]


async def duplicates(talk: Talk) -> None:
    """A message id is taken once; without one, each message counts."""
    for message_id in ("m1", "m1", "m2", "", ""):
        await talk.put(b"x", message_id)


async def in_order_until_acked(talk: Talk) -> None:
    """Deliveries come in order with count 1; an ack removes the message."""
    for body in (b"a", b"b", b"c"):
        await talk.put(body)
    pull = await talk.pull()
    for _ in range(3):
        talk.outbox.ack((await talk.next()).lease)
    await talk.emptied()
    await pull.stop()


async def given_back(talk: Talk) -> None:
    """A nak brings the message again, counted, before what is new."""
    await talk.put(b"a")
    pull = await talk.pull()
    talk.outbox.nak((await talk.next()).lease)
    again = await talk.next()
    talk.outbox.nak(again.lease, delay_ms=300)
    third = await talk.next()
    talk.outbox.ack(third.lease)
    await talk.emptied()
    await pull.stop()


async def a_lease_lapses(talk: Talk) -> None:
    """Silence brings the message again; an ack under the first lease settles the second."""
    await talk.put(b"a")
    pull = await talk.pull()
    first = await talk.next()
    await talk.next()
    talk.outbox.ack(first.lease)
    await talk.emptied()
    await pull.stop()


async def renewed(talk: Talk) -> None:
    """`+WPI` keeps a lease: what was not renewed comes again first."""
    for body in (b"renewed", b"silent", b"clock"):
        await talk.put(body)
    pull = await talk.pull()
    kept, _, clock = [await talk.next() for _ in range(3)]
    talk.outbox.nak(clock.lease, delay_ms=_HALF_MS)
    talk.outbox.ack((await talk.next()).lease)
    talk.outbox.progress(kept.lease)
    for _ in range(2):
        talk.outbox.ack((await talk.next()).lease)
    await talk.emptied()
    await pull.stop()


async def renewed_under_an_old_lease(talk: Talk) -> None:
    """`+WPI` under a lease that lapsed renews the one that counts now."""
    for body in (b"renewed", b"silent"):
        await talk.put(body)
    pull = await talk.pull()
    old = await talk.next()
    await talk.next()
    await talk.next()
    silent = await talk.next()
    await talk.put(b"clock")
    clock = await talk.next()
    talk.outbox.nak(clock.lease, delay_ms=_HALF_MS)
    talk.outbox.ack((await talk.next()).lease)
    talk.outbox.progress(old.lease)
    assert silent.data == b"silent"
    for _ in range(2):
        talk.outbox.ack((await talk.next()).lease)
    await talk.emptied()
    await pull.stop()


async def so_many_at_once(talk: Talk) -> None:
    """No more than `max_ack_pending` are out; redeliveries are not held up by it."""
    for body in (b"a", b"b", b"c"):
        await talk.put(body)
    pull = await talk.pull()
    first, second = await talk.next(), await talk.next()
    talk.outbox.nak(second.lease)
    second = await talk.next()
    talk.outbox.ack(first.lease)
    third = await talk.next()
    for delivery in (second, third):
        talk.outbox.ack(delivery.lease)
    await talk.emptied()
    await pull.stop()


async def one_record(talk: Talk) -> None:
    """The second of result and dead conflicts; with the right sequence it supersedes, once."""
    read = records.read_outcome
    talk.found(await read(talk.connection, TENANT, "work", "id1"))
    await talk.say(Outgoing(_RESULT, b"r", once=_EITHER))
    await talk.say(Outgoing(_DEAD, b"d", once=_EITHER))
    await talk.say(Outgoing(_RESULT, b"r", once=_EITHER))
    talk.found(await read(talk.connection, TENANT, "work", "id1"))
    await talk.say(Outgoing(_DEAD, b"d", once=_EITHER, expected_sequence=1))
    await talk.say(Outgoing(_RESULT, b"s", once=_EITHER, expected_sequence=1))
    await talk.say(Outgoing(_RESULT, b"s", once=_EITHER, expected_sequence=7))
    await talk.say(Outgoing(_RESULT, b"anybody's"))
    talk.found(await read(talk.connection, TENANT, "work", "id1"))
    await talk.say(Outgoing(subjects.dead(TENANT, "work", "id2"), b"d",
                            once=subjects.either(TENANT, "work", "id2")))  # fmt: skip


async def written_over_a_record(talk: Talk) -> None:
    """What lies over a record hides it from a look at the last ones, and from no other."""

    def believed(message: StoredMessage) -> bool:
        return message.body == b"r"

    await talk.say(Outgoing(_DEAD, b"forged"))
    await talk.say(Outgoing(_RESULT, b"r", once=_EITHER, expected_sequence=1))
    for number in range(40):
        await talk.say(Outgoing(_RESULT, b"over %d" % number))
    read = records.read_outcome
    talk.found(await read(talk.connection, TENANT, "work", "id1"))
    talk.found(await read(talk.connection, TENANT, "work", "id1", believed))
    talk.found(await read(talk.connection, TENANT, "work", "id1", lambda _: False))


def _schedule(talk: Talk, number: int, body: bytes, after_ms: int, message_id: str) -> Outgoing:
    return Outgoing(
        subjects.later(TENANT, "work", "id1", number), body, {MESSAGE_ID: message_id},
        schedule_at_ms=talk.site.now_ms() + after_ms, schedule_target=subjects.due(TENANT, "work"),
    )  # fmt: skip


async def _waiting(talk: Talk) -> None:
    talk.found(await records.read_waiting(talk.connection, TENANT, subjects.ANY_TASK, "id1"))


async def scheduled(talk: Talk) -> None:
    """A schedule comes as a new message and waits no more; its message id stays used."""
    pull = await talk.pull()
    await _waiting(talk)
    await talk.say(_schedule(talk, 1, b"later", 300, "s1"))
    await _waiting(talk)
    talk.outbox.ack((await talk.next()).lease)
    await talk.emptied()
    await _waiting(talk)
    await talk.say(_schedule(talk, 1, b"again", 100, "s1"))
    await _waiting(talk)
    await talk.say(_schedule(talk, 1, b"at once", -1_000, "s2"))
    talk.outbox.ack((await talk.next()).lease)
    await pull.stop()


async def written_over(talk: Talk) -> None:
    """The last write of a schedule's subject counts; another subject is another schedule."""
    pull = await talk.pull()
    await talk.say(_schedule(talk, 1, b"first", 3_600_000, "s1"))
    await talk.say(_schedule(talk, 1, b"second", 3_500_000, "s1"))
    await talk.say(_schedule(talk, 2, b"other", 3_600_000, "s3"))
    await _waiting(talk)
    await talk.say(_schedule(talk, 1, b"third", 200, "s4"))
    talk.outbox.ack((await talk.next()).lease)
    await talk.emptied()
    await _waiting(talk)
    await pull.stop()


async def through_a_crash(talk: Talk) -> None:
    """Queue, counts, records and schedules outlive the server; leases lapse as if it were there."""
    await talk.put(b"a")
    pull = await talk.pull()
    await talk.next()
    await talk.say(Outgoing(_RESULT, b"r", once=_EITHER))
    await talk.say(_schedule(talk, 1, b"hour", 3_600_000, "s1"))
    await talk.site.restart()
    talk.outbox.ack((await talk.next()).lease)
    await talk.say(Outgoing(_DEAD, b"d", once=_EITHER))
    await talk.say(_schedule(talk, 1, b"hour again", 3_600_000, "s1"))
    await _waiting(talk)
    await talk.emptied()
    await pull.stop()


SCRIPTS: Final[tuple[Script, ...]] = (
    duplicates, in_order_until_acked, given_back, a_lease_lapses, renewed,
    renewed_under_an_old_lease, so_many_at_once, one_record,
    written_over_a_record, scheduled, written_over,
    through_a_crash,
)  # fmt: skip


async def perform(script: Script, site: Site) -> list[object]:
    """Run a script; what it noted."""
    connection = await site.connect()
    outbox = Outbox(connection, sweep_s=0.5)
    await outbox.start()
    talk = Talk(site, connection, outbox)
    async with asyncio.timeout(60):
        await script(talk)
    await outbox.stop()
    return talk.notes
