"""What an executor says in CONTROL without waiting: the last word of a key, until it is stored.

While there is no connection, or the bucket refuses for a while, the last word waits; an older one
of the same key is dropped. It is what others should know, never what a settlement depends on.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from executor.errors import ExecutorError
from executor.transport.backoff import Backoff
from executor.transport.connection import Connection
from executor.transport.control import Control

# Keys that wait; beyond, the oldest is dropped with an event.
_WAITING_MAX: Final = 1_000


@dataclass
class Board:
    """See the module."""

    connection: Connection
    _waiting: dict[str, bytes | None] = field(default_factory=dict)
    _writer: asyncio.Task[None] | None = None

    def put(self, key: str, value: bytes) -> None:
        """Say something."""
        self._say(key, value)

    def delete(self, key: str) -> None:
        """Take it back."""
        self._say(key, None)

    async def get(self, key: str) -> bytes | None:
        """What stands there now, read anew."""
        found = await Control(self.connection).get(key)
        return found[0] if found else None

    def _say(self, key: str, value: bytes | None) -> None:
        self._waiting.pop(key, None)
        self._waiting[key] = value
        if len(self._waiting) > _WAITING_MAX:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            self.connection.event("error", {"what": "too much to say", "key": oldest})
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        control, backoff = Control(self.connection), Backoff()
        try:
            while self._waiting:
                key = next(iter(self._waiting))
                value = self._waiting[key]
                try:
                    if value is None:
                        await control.delete(key)
                    else:
                        await control.put(key, value)
                except ExecutorError as error:
                    self.connection.event("error", {"what": "control", "code": error.code})
                    await asyncio.sleep(backoff.delay())
                    continue
                # Unless something newer was said meanwhile.
                if self._waiting.get(key, b"") is value:
                    del self._waiting[key]
                backoff.reset()
        finally:
            self._writer = None

    async def flush(self, most_s: float) -> None:
        """Wait until all that was said is stored, or for so long."""
        if self._writer is not None:
            await asyncio.wait({self._writer}, timeout=most_s)

    async def stop(self) -> None:
        """Say no more; what waits is dropped."""
        self._waiting.clear()
        writer = self._writer
        if writer is not None:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
