"""What an executor says in CONTROL without waiting: the last word of a key, until it is stored.

While there is no connection, or the bucket refuses for a while, the last word waits; an older one
of the same key is dropped. It is what others should know, never what a settlement depends on. Each
is signed when it is written, and goes by itself after a while. What can never be written is dropped
with an event, and what fails now keeps nothing else waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from executor.errors import ExecutorError
from executor.model import StoredMessage
from executor.transport.backoff import Backoff
from executor.transport.connection import Connection
from executor.transport.control import REMOVED_S, Control

# Of what is not taken back: a breaker or a quarantine that matters is said again within it.
_STANDS_S: Final = 7 * 24 * 3600
_HOPELESS: Final = frozenset(
    {"message.too-large", "transport.permission-denied", "transport.stream-mismatch"}
)
# Keys that wait; beyond, the oldest is dropped with an event.
_WAITING_MAX: Final = 1_000


@dataclass
class Board:
    """See the module."""

    connection: Connection
    sign: Callable[[str, bytes], bytes]  # key and payload, "" to take it back → value
    lasting: frozenset[str] = frozenset({"quarantine", "usage"})  # stay until taken back
    _waiting: dict[str, bytes] = field(default_factory=dict)
    _writer: asyncio.Task[None] | None = None

    def put(self, key: str, value: bytes) -> None:
        """Say something."""
        self._say(key, value)

    def delete(self, key: str) -> None:
        """Take it back."""
        self._say(key, b"")

    async def get(self, key: str) -> StoredMessage | None:
        """What stands there now, read anew."""
        return await Control(self.connection).get(key)

    def _say(self, key: str, value: bytes) -> None:
        self._waiting.pop(key, None)
        self._waiting[key] = value
        if len(self._waiting) > _WAITING_MAX:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            self.connection.event("error", {"what": "too much to say", "key": oldest})
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        backoff = Backoff()
        try:
            while self._waiting:
                left = [key for key in list(self._waiting) if not await self._written(key)]
                if any(key in self._waiting for key in left):
                    await asyncio.sleep(backoff.delay())
                else:
                    backoff.reset()
        finally:
            self._writer = None

    async def flush(self, most_s: float) -> None:
        """Wait until all that was said is stored, or for so long."""
        if self._writer is not None:
            await asyncio.wait({self._writer}, timeout=most_s)

    async def _written(self, key: str) -> bool:
        """Whether there is nothing left to do for a key."""
        if key not in self._waiting:
            return True
        if not self.connection.connected:
            return False  # all that wait would meet the same, each after seconds
        payload = self._waiting[key]
        ttl_s = REMOVED_S if not payload else _STANDS_S
        if payload and key.partition(".")[0] in self.lasting:
            ttl_s = 0
        try:
            await Control(self.connection).put(key, self.sign(key, payload), ttl_s=ttl_s)
        except (ExecutorError, ValueError) as error:
            code = error.code if isinstance(error, ExecutorError) else "not a key"
            self.connection.event("error", {"what": "control", "key": key, "code": code})
            if isinstance(error, ExecutorError) and code not in _HOPELESS:
                return False
        # Unless something newer was said meanwhile.
        if self._waiting.get(key) is payload:
            del self._waiting[key]
        return True

    async def stop(self) -> None:
        """Say no more; what waits is dropped."""
        self._waiting.clear()
        writer = self._writer
        if writer is not None:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
