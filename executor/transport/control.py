"""The CONTROL bucket: small state that every executor watches (releases, pauses, quarantine, …).

A watch makes no consumer, for which executors have no right: it reads the state by direct gets and
then listens to what the server republishes as stored, with its revision. After a reconnect, and
every half minute in case a republished message was lost, it reads what is newer than what it read.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from typing import Final

from executor.core import subjects
from executor.errors import ExecutorError
from executor.model import StoredMessage
from executor.transport import direct
from executor.transport.api import CONFLICTS, ApiError
from executor.transport.backoff import Backoff
from executor.transport.connection import Connection, Message, Subscription
from executor.transport.streams import CONTROL_STORED

OnEntry = Callable[[str, bytes | None, int], None]  # key, value or None, when it was stored (ms)

STREAM: Final = f"KV_{subjects.CONTROL_BUCKET}"
PREFIX: Final = f"$KV.{subjects.CONTROL_BUCKET}."
_KEY: Final = re.compile(r"[A-Za-z0-9_=/-]+(\.[A-Za-z0-9_=/-]+)*\Z")
_KEY_MAX: Final = 256
OPERATION: Final = "KV-Operation"
_DELETED: Final = frozenset({"DEL", "PURGE"})
# How long a signed removal stands, so that whoever was away hears of it.
REMOVED_S: Final = 7 * 24 * 3600
_RESYNC_S: Final = 30.0
# Whoever may write there can fill it; what stands is kept, and the tenant's own entries can go.
_FULL: Final = (
    "find who fills it: nats stream subjects KV_CONTROL; then, as a deployer: "
    "nats stream purge KV_CONTROL --subject '$KV.CONTROL.cancel.TENANT.>'"
)


class Conflict(Exception):  # noqa: N818 - an answer, not an error
    """The key changed meanwhile: `put` with `revision` lost."""


def check_key(key: str) -> str:
    """Refuse what is no key: tokens of letters, digits and `_=/-`, joined by dots."""
    if len(key) > _KEY_MAX or not _KEY.match(key):
        raise ValueError(f"not a key: {key[:_KEY_MAX]!r}")
    return key


def value_of(stored: StoredMessage) -> bytes | None:
    """Return the value of a bucket's message, None for a deletion."""
    return None if stored.headers.get(OPERATION) in _DELETED else stored.body


class Control:
    """Reads and writes; `watch` in a class of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def put(
        self, key: str, value: bytes, *, revision: int | None = None, ttl_s: int = 0
    ) -> int:
        """Write and return the new revision.

        `revision`  the one the key must have, 0 for none yet; another raises `Conflict`.
        `ttl_s`     after so many seconds the server drops it and tells nobody; 0: never.
        """
        headers = {"Nats-TTL": f"{ttl_s}s"} if ttl_s else {}
        if revision is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(revision)
        return await self._store(key, value, headers)

    async def delete(self, key: str) -> int:
        """Delete, for what is junk: nobody signed it, so nobody who believed the entry forgets it.

        Watchers see None. A key that does not exist is deleted all the same.
        """
        return await self._store(key, b"", {OPERATION: "DEL"})

    async def _store(self, key: str, value: bytes, headers: dict[str, str]) -> int:
        try:
            return await self._connection.store(PREFIX + check_key(key), value, headers or None)
        except ApiError as error:
            if error.err_code in CONFLICTS:
                raise Conflict(key) from None
            mapped = error.mapped(STREAM)
            hint = _FULL if mapped.code == "transport.stream-full" else ""
            raise ExecutorError(mapped.code, mapped.detail, hint=hint, **mapped.facts) from None

    async def get(self, key: str) -> StoredMessage | None:
        """Return what stands there, its revision as sequence, or None."""
        stored = await direct.last(self._connection, STREAM, PREFIX + check_key(key))
        return stored if stored and value_of(stored) is not None else None

    async def entries(self, prefix: str = "") -> dict[str, StoredMessage]:
        """Return what stands below `prefix` (whole tokens, such as `release.acme`) by key."""
        below = f"{PREFIX}{check_key(prefix)}.>" if prefix else f"{PREFIX}>"
        found = {}
        async for stored in direct.scan(self._connection, STREAM, below):
            if value_of(stored) is not None:
                found[stored.subject.removeprefix(PREFIX)] = stored
        return found

    async def keys(self, prefix: str = "") -> list[str]:
        """Return the keys below `prefix`."""
        return sorted(await self.entries(prefix))


class Watch:
    """Calls `on_entry(key, value or None, stored at)` for the state, then for every change.

    Revisions of one key only grow; a change may be told twice, an older one never after a newer.
    """

    def __init__(
        self, connection: Connection, on_entry: OnEntry, *, resync_s: float = _RESYNC_S
    ) -> None:
        self._connection = connection
        self._on_entry = on_entry
        self._resync_s = resync_s
        self._revisions: dict[str, int] = {}
        self._scanned = 0  # everything up to this revision was read
        self._floor = 0  # nothing up to this one is news
        self._whole = False  # to be told once more
        self._again = asyncio.Event()
        self._subscription: Subscription | None = None
        self._unlisten: Callable[[], None] | None = None
        self._task: asyncio.Task[None] | None = None
        self.ready = asyncio.Event()

    async def start(self) -> None:
        """Deliver the present state; on return `ready` is set.

        Errors  `transport.stream-missing` without the bucket, and the errors of a request.
        """
        try:
            # First the ear, then the state: nothing falls between.
            self._subscription = await self._connection.subscribe(
                f"{CONTROL_STORED}>", self._receive
            )
            self._unlisten = self._connection.listen("reconnected", self._again.set)
            await self._scan()
        except BaseException:
            await self.stop()
            raise
        self.ready.set()
        self._task = asyncio.get_running_loop().create_task(self._keep())

    def look_again(self) -> None:
        """Tell the whole state once more."""
        self._whole = True
        self._again.set()

    async def stop(self) -> None:
        """End; idempotent."""
        if self._unlisten is not None:
            self._unlisten()
            self._unlisten = None
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await self._connection.unsubscribe(subscription)

    def _receive(self, message: Message) -> None:
        try:
            key = message.subject.removeprefix(CONTROL_STORED)
            self._take(direct.from_message(message, PREFIX + key))
        except ExecutorError:
            self._connection.event("foreign-message", {"subject": message.subject})

    def _take(self, stored: StoredMessage) -> None:
        key, value = stored.subject.removeprefix(PREFIX), value_of(stored)
        known = self._revisions.get(key)
        if known is None and value is None and not self.ready.is_set():
            return  # deleted before we came
        if stored.sequence > (self._floor if known is None else known):
            self._revisions[key] = stored.sequence
            self._on_entry(key, value, stored.stored_at_ms)

    async def _scan(self) -> None:
        if self._whole:
            self._whole = False
            self._revisions.clear()
            self._scanned = self._floor = 0
        start = self._scanned + 1
        async for stored in direct.scan(
            self._connection, STREAM, f"{PREFIX}>", start_sequence=start
        ):
            self._scanned = stored.sequence
            self._take(stored)
        # What the scan has passed needs no memory of its own: keys come and go for ever.
        self._floor = self._scanned
        self._revisions = {k: r for k, r in self._revisions.items() if r > self._floor}

    async def _keep(self) -> None:
        backoff = Backoff()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._resync_s):
                    await self._again.wait()
            self._again.clear()
            if not self._connection.connected:
                continue
            try:
                await self._scan()
                backoff.reset()
            except ExecutorError as error:
                self._connection.event("error", {"what": "control watch", "code": error.code})
                await asyncio.sleep(backoff.delay())
                self._again.set()


async def watch(connection: Connection, on_entry: OnEntry) -> Watch:
    """Start a `Watch`; returns when the present state was delivered."""
    made = Watch(connection, on_entry)
    await made.start()
    return made
