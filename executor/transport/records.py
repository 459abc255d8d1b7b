"""A tenant's terminal records: by task id, by sequence, all in order, and live.

Nothing here makes a consumer. What is returned is what the stream holds; whether it is authentic,
and meant for its subject, is for the reader to verify (`executor.core`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Final

from executor.core import subjects
from executor.errors import ExecutorError
from executor.model import StoredMessage
from executor.transport import direct
from executor.transport.connection import Connection, Message, Subscription
from executor.transport.direct import BATCH
from executor.transport.streams import STORED

__all__ = ["Tap", "find", "get", "iterate", "read_outcome", "read_recurring", "read_waiting", "tap"]

_OVER: Final = 16  # one or two lie over a record, unless somebody means it
_FOUND_MAX: Final = 64  # an id stands under few tasks; more is somebody's mistake


async def read_outcome(
    connection: Connection,
    tenant: str,
    task: str,
    task_id: str,
    believed: Callable[[StoredMessage], bool] | None = None,
) -> list[StoredMessage]:
    """Return the last `result.…` and `dead.…` of an id, those that exist, oldest first.

    Two direct gets in flight at once. More than one means a superseded record or a forged one.
    With `believed`, a record that somebody wrote over is found all the same: where none of the last
    ones is believed, all of the id are read, and the first that is joins them.
    """
    stream = subjects.outcomes_stream(tenant)
    last = await asyncio.gather(
        direct.last(connection, stream, subjects.result(tenant, task, task_id)),
        direct.last(connection, stream, subjects.dead(tenant, task, task_id)),
    )
    found = [record for record in last if record]
    if believed is not None and found and not any(map(believed, found)):
        every = iterate(connection, tenant, subjects.either(tenant, task, task_id), batch=_OVER)
        async with contextlib.aclosing(every) as records:
            async for record in records:
                if believed(record):
                    found.append(record)
                    break
    return sorted(found, key=lambda record: record.sequence)


async def read_waiting(
    connection: Connection, tenant: str, task: str, task_id: str
) -> list[StoredMessage]:
    """Return the schedules of an id, oldest first; `task` may be `subjects.ANY_TASK`."""
    below = subjects.waiting(tenant, task, task_id)
    found: list[StoredMessage] = []
    async for message in direct.scan(connection, subjects.later_stream(tenant), below):
        found.append(message)
        if len(found) == _FOUND_MAX:
            break
    return found


async def read_recurring(
    connection: Connection, tenant: str, task: str, schedule_id: str
) -> StoredMessage | None:
    """Return a recurring schedule with its headers, or None."""
    subject = subjects.recurring(tenant, task, schedule_id)
    return await direct.last(connection, subjects.later_stream(tenant), subject)


async def get(connection: Connection, tenant: str, sequence: int) -> StoredMessage | None:
    """Return the record with a stream sequence, or None."""
    return await direct.at(connection, subjects.outcomes_stream(tenant), sequence)


def iterate(
    connection: Connection,
    tenant: str,
    filter_subject: str,
    *,
    start_sequence: int = 1,
    batch: int = BATCH,
) -> AsyncGenerator[StoredMessage]:
    """Yield the records whose subject matches, such as `dead.acme.>`, oldest first."""
    return direct.scan(
        connection,
        subjects.outcomes_stream(tenant),
        filter_subject,
        start_sequence=start_sequence,
        batch=batch,
    )


async def find(connection: Connection, tenant: str, task_id: str) -> list[StoredMessage]:
    """Return the records of an id whose task is not known; at most 64."""
    if not subjects.is_token(task_id):
        return []
    found = []
    async for record in iterate(connection, tenant, f"*.{tenant}.*.{task_id}", batch=_FOUND_MAX):
        found.append(record)
        if len(found) == _FOUND_MAX:
            break
    return found


class Tap:
    """A live subscription to a tenant's records; end it with `stop`."""

    def __init__(self, connection: Connection, on_stored: Callable[[StoredMessage], None]) -> None:
        self._connection = connection
        self._on_stored = on_stored
        self._subscriptions: list[Subscription] = []

    def _receive(self, message: Message) -> None:
        try:
            stored = direct.from_message(message, message.subject.removeprefix(STORED))
        except ExecutorError:
            self._connection.event("foreign-message", {"subject": message.subject})
            return
        self._on_stored(stored)

    async def start(self, tenant: str) -> None:
        """Subscribe."""
        if not subjects.is_token(tenant):  # a tenant `*` would listen to everybody
            raise ValueError(f"not a tenant: {tenant!r}")
        for kind in ("result", "dead"):
            subject = f"{STORED}{kind}.{tenant}.>"
            self._subscriptions.append(await self._connection.subscribe(subject, self._receive))

    async def stop(self) -> None:
        """Unsubscribe; idempotent."""
        while self._subscriptions:
            subscription = self._subscriptions.pop()
            await self._connection.unsubscribe(subscription)


async def tap(
    connection: Connection, tenant: str, on_stored: Callable[[StoredMessage], None]
) -> Tap:
    """Hear of each record as it is stored. Not durable: read what a reconnect may have missed."""
    made = Tap(connection, on_stored)
    await made.start(tenant)
    return made
