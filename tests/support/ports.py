"""The supervisor's ports as scripts: everything said to them is kept, every answer can be chosen.

`Wire` is outbox, records and intake in one. It answers as a stream would, once-only included, until
a test takes that over; and it keeps two promises for every test that uses it: nothing is acked
before its record is stored or found, and credit is given back once a delivery.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from executor.core import control, provenance, seal, subjects
from executor.errors import ExecutorError
from executor.model import (
    Answer,
    Conflict,
    Digest,
    Outgoing,
    Release,
    Stored,
    StoredMessage,
)
from executor.telemetry import Log
from tests.support import guests, speech

WAIT_S = 20.0


class Changes:
    """Wakes who waits for a condition."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def touch(self) -> None:
        """Something happened."""
        self._changed.set()

    async def until(self, holds: Callable[[], Any], what: object = "") -> None:
        """Wait until `holds()`, looking after each change."""
        try:
            async with asyncio.timeout(WAIT_S):
                while not holds():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"it never came about: {what}") from None


@dataclass(frozen=True, slots=True)
class Said:
    """One line of the wire's protocol: publish, stored, ack, nak, progress, read, completed."""

    what: str
    about: str  # a subject, a lease, or a tenant
    outgoing: Outgoing | None = None


class Wire:
    """See the module."""

    def __init__(self, changes: Changes) -> None:
        self.changes = changes
        self.said: list[Said] = []
        self.stored: dict[str, StoredMessage] = {}  # by subject, the last one
        self.answer: Callable[[Outgoing], Answer | None] = self.store
        # lease → task id, by whoever delivers; a message may end under its place instead.
        self.lease_of: dict[str, str] = {}
        self.completed_count = 0
        self.reads_fail = ""  # with this code
        self._settled_ids: set[str] = set()
        self._waiting: list[tuple[Outgoing, Callable[[Answer], None]]] = []
        self._sequence = 100

    def _say(self, what: str, about: str, outgoing: Outgoing | None = None) -> None:
        self.said.append(Said(what, about, outgoing))
        self.changes.touch()

    def count(self, what: str) -> int:
        """How often something was said."""
        return sum(said.what == what for said in self.said)

    def all(self, what: str) -> list[str]:
        """What it was said about, in order."""
        return [said.about for said in self.said if said.what == what]

    def published(self, kind: str = "") -> list[Outgoing]:
        """The messages published on subjects of a kind, in order."""
        return [
            said.outgoing for said in self.said
            if said.outgoing is not None and said.about.startswith(kind)
        ]  # fmt: skip

    # Outbox.

    def store(self, outgoing: Outgoing) -> Answer:
        """Answer as a stream: once-only holds, the last write of a subject wins."""
        if outgoing.once:
            _, tenant, task, task_id = outgoing.once.split(".")
            last = max((m.sequence for m in self._of(tenant, task, task_id)), default=0)
            if last != outgoing.expected_sequence:
                return Conflict()
        self.put(outgoing.subject, outgoing.body)
        return Stored(self._sequence)

    def put(self, subject: str, body: bytes) -> StoredMessage:
        """Store a message, as somebody else would."""
        self._sequence += 1
        message = StoredMessage(subject, self._sequence, body, {}, 1_700_000_000_000)
        self.stored[subject] = message
        return message

    def _of(self, tenant: str, task: str, task_id: str) -> list[StoredMessage]:
        names = (subjects.result(tenant, task, task_id), subjects.dead(tenant, task, task_id))
        found = [self.stored[name] for name in names if name in self.stored]
        return sorted(found, key=lambda message: message.sequence)

    def publish(
        self, outgoing: Outgoing, on_answer: Callable[[Answer], None], deadline_s: float
    ) -> None:
        """Keep the message; the answer comes in a later turn, or from `release`."""
        assert deadline_s > 0
        self._say("publish", outgoing.subject, outgoing)
        answer = self.answer(outgoing)
        if answer is None:
            self._waiting.append((outgoing, on_answer))
        else:
            asyncio.get_running_loop().call_soon(self._give, outgoing, on_answer, answer)

    def release(self, answer: Answer | None = None) -> None:
        """Answer everything that waits."""
        waiting, self._waiting = self._waiting, []
        for outgoing, on_answer in waiting:
            self._give(outgoing, on_answer, answer or self.store(outgoing))

    def _give(
        self, outgoing: Outgoing, on_answer: Callable[[Answer], None], answer: Answer
    ) -> None:
        if isinstance(answer, Stored):
            self._settled_ids.add(_id_of(outgoing.subject))
            self._say("stored", outgoing.subject)
        else:
            self._say(type(answer).__name__.lower(), outgoing.subject)
        on_answer(answer)

    def push(self) -> None:
        """Nothing waits here."""

    def ack(self, lease: str) -> None:
        """Settle; refuses what has no record yet."""
        place = "_" + lease.removeprefix("lease-").partition(".")[0]
        recorded = {self.lease_of[lease], place} & self._settled_ids
        assert recorded, f"{lease} was acked before its record"
        self._say("ack", lease)

    def nak(self, lease: str, delay_ms: int = 0) -> None:
        """Give back."""
        assert delay_ms == 0
        self._say("nak", lease)

    def progress(self, lease: str) -> None:
        """Renew."""
        self._say("progress", lease)

    # Records and intake.

    async def waiting(self, tenant: str, task: str, task_id: str) -> Sequence[StoredMessage]:
        """The schedules of an id."""
        if self.reads_fail:
            raise ExecutorError(self.reads_fail, "scripted")
        wanted = {(tenant, task, task_id), (tenant, subjects.ANY_TASK, task_id)}
        found = []
        for subject, message in self.stored.items():
            parts = subjects.parse_later(subject)
            if parts and {parts, (parts[0], subjects.ANY_TASK, parts[2])} & wanted:
                found.append(message)
        return found

    async def find(self, tenant: str, task: str, task_id: str) -> Sequence[StoredMessage]:
        """The records of an id, of whichever task."""
        if task != subjects.ANY_TASK:
            return await self.read(tenant, task, task_id)
        return [
            message for subject, message in self.stored.items()
            if (parts := subjects.parse_terminal(subject)) and parts[1::2] == (tenant, task_id)
        ]  # fmt: skip

    async def recurring(self, tenant: str, task: str, schedule_id: str) -> StoredMessage | None:
        """A recurring schedule."""
        return self.stored.get(subjects.recurring(tenant, task, schedule_id))

    async def read(self, tenant: str, task: str, task_id: str) -> Sequence[StoredMessage]:
        """What is stored of an id; found counts as settled."""
        self._say("read", task_id)
        if self.reads_fail:
            raise ExecutorError(self.reads_fail, "scripted")
        found = self._of(tenant, task, task_id)
        if found:
            self._settled_ids.add(task_id)
        return found

    def completed(self, tenant: str) -> None:
        """Take credit back."""
        self.completed_count += 1
        self._say("completed", tenant)


def _id_of(subject: str) -> str:
    return subject.split(".")[3]


@dataclass
class Shelf:
    """Releases and module bytes."""

    live: dict[tuple[str, str], Release] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    gets: list[str] = field(default_factory=list)
    before_get: Callable[[str], Awaitable[None]] | None = None

    def release(self, tenant: str, task: str) -> Release | None:
        """What is live."""
        return self.live.get((tenant, task))

    def releases(self) -> Sequence[Release]:
        """All of it."""
        return list(self.live.values())

    async def get(self, digest: Digest, max_bytes: int) -> bytes | None:
        """The bytes under a digest."""
        assert max_bytes > 0
        self.gets.append(digest)
        if self.before_get is not None:
            await self.before_get(digest)
        return self.stored.get(digest)

    async def provenance(self, digest: Digest, max_bytes: int) -> bytes | None:
        """The statement beside it."""
        return await self.get(Digest(provenance.object_name(digest)), max_bytes)


class Notices:
    """The board: what was said in CONTROL, entry by entry."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self.entries: dict[str, bytes] = {}

    def put(self, key: str, value: bytes) -> None:
        """Keep an entry."""
        self.entries[key] = value
        self._changes.touch()

    def delete(self, key: str) -> None:
        """Drop it."""
        self.entries.pop(key, None)
        self._changes.touch()

    async def get(self, key: str) -> StoredMessage | None:
        """What stands there, as if an operator had said it just now."""
        if key not in self.entries:
            return None
        now = speech.now_ms()
        body = seal.say(guests.OPERATOR, "test", key, self.entries[key], at=now)
        return StoredMessage(key, 1, body, {}, now)

    def fields(self, key: str) -> dict[str, control.Value]:
        """What an entry says."""
        return control.decode(self.entries[key], key.split(".", maxsplit=1)[0], key, "test")


class Buckets:
    """Every tenant's bucket; the key `gate` is answered when the test opens it."""

    def __init__(self, changes: Changes) -> None:
        self.changes = changes
        self.data: dict[tuple[str, str], bytes] = {}
        self.asked: list[tuple[str, str, str]] = []  # tenant, function, key
        self.gate = asyncio.Event()
        self.down = False

    def kv(self, tenant: str) -> Bucket:
        """One tenant's."""
        return Bucket(self, tenant)

    def at_gate(self) -> int:
        """How many guests have come to the gate, ever."""
        return sum(key.endswith("gate") for _, _, key in self.asked)


@dataclass(frozen=True)
class Bucket:
    """A tenant's view."""

    all: Buckets
    tenant: str

    async def _ask(self, function: str, key: str) -> None:
        self.all.asked.append((self.tenant, function, key))
        self.all.changes.touch()
        if self.all.down:
            raise ExecutorError("capability.unavailable", "scripted")
        if key.endswith("gate"):
            await self.all.gate.wait()

    async def get(self, key: str) -> bytes | None:
        """The value."""
        await self._ask("get", key)
        return self.all.data.get((self.tenant, key))

    async def put(self, key: str, value: bytes) -> None:
        """Set it."""
        await self._ask("put", key)
        self.all.data[self.tenant, key] = value

    async def delete(self, key: str) -> None:
        """Remove it."""
        await self._ask("delete", key)
        self.all.data.pop((self.tenant, key), None)


class Journal(Log):
    """The log as a list of (event, facts)."""

    def __init__(self, changes: Changes) -> None:
        super().__init__(quiet=True)
        self.events: list[tuple[str, dict[str, str | int]]] = []
        self._changes = changes

    def event(self, name: str, **facts: str | int) -> None:
        """Keep it."""
        self.events.append((name, facts))
        self._changes.touch()

    def of(self, name: str) -> list[dict[str, str | int]]:
        """The facts of every event of a name."""
        return [facts for event, facts in self.events if event == name]

    def security(self) -> list[str]:
        """The kinds of the security events, in order."""
        return [str(facts["kind"]) for facts in self.of("security-event")]
