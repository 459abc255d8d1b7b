"""Publishing with certainty and without waiting: PubAcks on one inbox, repeated until confirmed.

`publish` queues; the answer comes to a callback. An entry without answer is published again every
`sweep_s` and on reconnect until its deadline: harmless for once-only records (the second gets
`Conflict`) and for schedules (the last write of a subject wins). `ack`, `nak` and `progress` are
plain publishes in the same order: a lost one means one more delivery, nothing else.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from executor.core import subjects
from executor.model import NO_ROOM, Answer, Conflict, Outgoing, Refused, Stored, Unconfirmed
from executor.transport import api
from executor.transport.connection import Connection, Message, Subscription
from executor.transport.pull import NAK
from executor.transport.room import Room
from executor.transport.streams import MESSAGE_MAX_BYTES, SCHEDULE_MARGIN

SCHEDULE: Final = "Nats-Schedule"
SCHEDULE_ZONE: Final = "Nats-Schedule-Time-Zone"
SCHEDULE_TARGET: Final = "Nats-Schedule-Target"

# The PubAck of almost every publish; whatever reads otherwise is taken apart as JSON.
_STORED: Final = re.compile(rb'\{"stream":"[A-Za-z0-9_-]+",\s*"seq":(\d{1,18})\}')
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
_EXPECTED_OF: Final = "Nats-Expected-Last-Subject-Sequence-Subject"
_PROGRESS: Final = b"+WPI"
_NS_PER_MS: Final = 1_000_000
_TEMPORARY: Final = 500  # codes from here on say that the server could not, not that it would not
_ACCOUNT_FULL: Final = 10002  # comes with 400, and ends with room like the server's own limit
_FORBIDDEN: Final = 403
_TOO_LARGE: Final = 413
_UNAVAILABLE: Final = 503


def wire_headers(outgoing: Outgoing) -> dict[str, str] | None:
    """All headers of a message as they travel."""
    headers = outgoing.headers.copy()
    if outgoing.once:
        headers[_EXPECTED] = str(outgoing.expected_sequence)
        headers[_EXPECTED_OF] = outgoing.once
    if outgoing.schedule_target:
        at = datetime.fromtimestamp(outgoing.schedule_at_ms / 1000, UTC)
        headers[SCHEDULE] = outgoing.schedule or f"@at {at.isoformat(timespec='milliseconds')}"
        if outgoing.schedule_zone:
            headers[SCHEDULE_ZONE] = outgoing.schedule_zone
        headers[SCHEDULE_TARGET] = outgoing.schedule_target
    return headers or None


class _Entry:
    __slots__ = (
        "deadline",
        "headers",
        "on_answer",
        "outgoing",
        "refused",
        "sent_at",
        "waits",
    )

    def __init__(
        self,
        outgoing: Outgoing,
        headers: dict[str, str] | None,
        on_answer: Callable[[Answer], None],
        deadline: float,
    ) -> None:
        self.outgoing = outgoing
        self.headers = headers
        self.on_answer = on_answer
        self.deadline = deadline
        self.sent_at = 0.0
        self.refused: Refused | None = None
        self.waits: tuple[str, int] | None = None  # for `room`: whose, and how large


class Outbox:
    """See the module.

    `patient`            temporary refusals are repeated too, until the deadline.
    `schedule_max_bytes` bound of a schedule with its headers; goes with the streams' Options.
    `room`               where a task that is put off must find room; `Refused(NO_ROOM)` if not.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        sweep_s: float = 5.0,
        patient: bool = True,
        schedule_max_bytes: int = MESSAGE_MAX_BYTES - SCHEDULE_MARGIN,
        room: Room | None = None,
    ) -> None:
        self._connection = connection
        self._sweep_s = sweep_s
        self._patient = patient
        self._schedule_max_bytes = schedule_max_bytes
        self._room = room
        self._entries: dict[str, _Entry] = {}
        self._count = 0
        self._repeats = 0
        self._inbox = ""
        self._skip = 0
        self._loop: asyncio.AbstractEventLoop  # to ask which one runs is a system call
        self._subscription: Subscription | None = None
        self._unlisten: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    async def start(self) -> None:
        """Subscribe to the inbox of PubAcks."""
        self._loop = asyncio.get_running_loop()
        self._inbox = self._connection.inbox()
        self._skip = len(self._inbox) + 1
        self._subscription = await self._connection.subscribe(f"{self._inbox}.*", self._on_answer)
        self._unlisten = [
            self._connection.listen("reconnected", self._repeat_all),
            self._connection.listen("violation", self._on_violation),
        ]

    async def stop(self) -> None:
        """End; what is pending is answered `Unconfirmed`."""
        for unlisten in self._unlisten:
            unlisten()
        self._unlisten = []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await self._connection.unsubscribe(subscription)
        for number in tuple(self._entries):
            self._settle(number, Unconfirmed())

    @property
    def pending(self) -> int:
        """How many publishes have no answer yet."""
        return len(self._entries)

    def statistics(self) -> dict[str, int]:
        """Levels and counters."""
        return {
            "pending": len(self._entries),
            "published": self._count,
            "repeats": self._repeats,
        }

    async def drain(self, timeout_s: float) -> bool:
        """Wait until every publish has its answer and the acks have left; False: not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        await self._connection.flush(timeout_s=max(timeout_s, 0.1))
        return True

    # Publishing.

    def publish(
        self, outgoing: Outgoing, on_answer: Callable[[Answer], None], deadline_s: float
    ) -> None:
        """Queue a message; `on_answer` is called once, at the latest `deadline_s` from now.

        (Plus half a sweep.) It never runs before `publish` returns.
        """
        loop = self._loop
        headers = wire_headers(outgoing)
        limit = self._connection.max_payload  # beyond it the server would hang up
        if outgoing.schedule_target:
            limit = min(limit, self._schedule_max_bytes)
        size = len(outgoing.body)
        # Else what we add ourselves, some hundred bytes, is far from any limit.
        if size > limit // 2 or outgoing.headers:
            size += api.header_size(headers)
        if size > limit:
            loop.call_soon(on_answer, Refused(_TOO_LARGE, f"{size} bytes, the limit is {limit}"))
            return
        now = loop.time()
        entry = _Entry(outgoing, headers, on_answer, now + deadline_s)
        # Few publishes put something off.
        if (
            self._room is not None and outgoing.subject.startswith("later.")
            and (later := subjects.parse_later(outgoing.subject))
        ):  # fmt: skip
            entry.waits = later[0], size
            if not self._room.take(*entry.waits):
                loop.call_soon(on_answer, Refused(NO_ROOM, "the tenant puts off all that it may"))
                return
        self._count += 1
        number = str(self._count)
        if not self._entries:
            self._empty.clear()
        self._entries[number] = entry
        self._send(number, entry, now)
        if self._timer is None:
            self._timer = loop.call_later(self._sweep_s / 2, self._sweep)

    def push(self) -> None:
        """What was published in this turn of the loop is all: it leaves now."""
        self._connection.push()

    def _send(self, number: str, entry: _Entry, now: float) -> None:
        # Not while disconnected: the reconnect sends it, once.
        if self._connection.connected:
            entry.sent_at = now
            self._connection.send(
                entry.outgoing.subject, entry.outgoing.body, f"{self._inbox}.{number}",
                entry.headers,
            )  # fmt: skip

    def _settle(self, number: str, answer: Answer) -> None:
        entry = self._entries.pop(number, None)
        if entry is None:
            return  # the answer to a repeat
        if entry.waits and self._room is not None:
            sequence = answer.sequence if isinstance(answer, Stored) else 0
            self._room.landed(*entry.waits, sequence=sequence)
        if not self._entries:
            self._empty.set()
        entry.on_answer(answer)

    def _on_answer(self, message: Message) -> None:
        number = message.subject[self._skip :]
        if not message.data:  # status 503: no stream takes this subject
            self._refuse(
                number, Refused(_UNAVAILABLE, "no stream takes this subject", temporary=True)
            )
            return
        usual = _STORED.fullmatch(message.data)
        if usual:
            self._settle(number, Stored(int(usual[1])))
            return
        try:
            answer = api.decode(message.data)
            stored = Stored(int(answer["seq"]), bool(answer.get("duplicate")))
        except api.ApiError as error:
            if error.err_code in api.CONFLICTS:
                self._settle(number, Conflict())
            else:
                temporary = error.code >= _TEMPORARY or error.err_code == _ACCOUNT_FULL
                code = error.err_code or error.code
                self._refuse(number, Refused(code, error.description, temporary=temporary))
            return
        except (KeyError, TypeError, ValueError):
            self._refuse(number, Refused(0, "not a PubAck", temporary=True))
            return
        self._settle(number, stored)

    def _refuse(self, number: str, refused: Refused) -> None:
        entry = self._entries.get(number)
        if entry is not None and refused.temporary and self._patient:
            entry.refused = refused
            return
        self._settle(number, refused)

    def _on_violation(self, subject: str) -> None:
        for number, entry in tuple(self._entries.items()):
            if entry.outgoing.subject.lower() == subject:
                self._settle(number, Refused(_FORBIDDEN, "the permission is missing"))

    # Repeating.

    def _repeat_all(self) -> None:
        now = asyncio.get_running_loop().time()
        for number, entry in self._entries.items():
            self._repeats += 1
            self._send(number, entry, now)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        try:
            for number, entry in tuple(self._entries.items()):
                if now >= entry.deadline:
                    self._settle(number, entry.refused or Unconfirmed())
                elif now - entry.sent_at >= self._sweep_s:
                    self._repeats += 1
                    self._send(number, entry, now)
        finally:  # a callback that raises must not end the sweep
            more = bool(self._entries)
            self._timer = loop.call_later(self._sweep_s / 2, self._sweep) if more else None

    # Leases.

    def ack(self, lease: str) -> None:
        """Settle a delivery: the server forgets it."""
        self._connection.send(lease)

    def nak(self, lease: str, delay_ms: int = 0) -> None:
        """Give a delivery back, to come again after `delay_ms`."""
        payload = NAK + b' {"delay":%d}' % (delay_ms * _NS_PER_MS) if delay_ms > 0 else NAK
        self._connection.send(lease, payload)

    def progress(self, lease: str) -> None:
        """Renew a lease for another `ack_wait`."""
        self._connection.send(lease, _PROGRESS)
