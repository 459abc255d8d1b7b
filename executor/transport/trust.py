"""The TRUST bucket: signed metadata and what it names, as bytes; nothing here is believed.

Whoever may write to the bucket, or has the server write to it, can put anything into it: what is
read is judged elsewhere, and that something changed is only a hint to look.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from executor.core import subjects
from executor.transport import control, direct
from executor.transport.api import ApiError
from executor.transport.connection import Connection
from executor.transport.streams import TRUST_STORED

_STREAM: Final = f"KV_{subjects.TRUST_BUCKET}"
_PREFIX: Final = f"$KV.{subjects.TRUST_BUCKET}."
# Written last of a push, and the only one that a refresh begins with.
_LAST: Final = "md.timestamp"


class TrustBucket:
    """Reads, writes and hints."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, key: str) -> bytes | None:
        """What stands under a key. Errors  `transport.*`."""
        subject = _PREFIX + control.check_key(key)
        stored = await direct.last(self._connection, _STREAM, subject)
        return control.value_of(stored) if stored else None

    async def put(self, key: str, value: bytes) -> None:
        """Write; confirmed on return. Errors  `transport.*`."""
        await self._store(key, value, None)

    async def remove(self, key: str) -> None:
        """Take away what stands under a key, if anything does. Errors  `transport.*`."""
        if await self.get(key) is not None:
            await self._store(key, b"", {control.OPERATION: "DEL"})

    async def _store(self, key: str, value: bytes, headers: dict[str, str] | None) -> None:
        try:
            await self._connection.store(_PREFIX + control.check_key(key), value, headers)
        except ApiError as error:
            raise error.mapped(_STREAM) from None

    async def push(self, files: Iterable[tuple[str, bytes]]) -> int:
        """Write what differs, in this order; returns how many. Errors  `transport.*`."""
        written = 0
        for key, value in files:
            if await self.get(key) != value:
                await self.put(key, value)
                written += 1
        return written

    async def hints(self, on_hint: Callable[[], None]) -> Callable[[], Awaitable[None]]:
        """Call `on_hint` when a push may have ended, and after each reconnect; returns its end."""
        heard = await self._connection.subscribe(
            f"{TRUST_STORED}{_LAST}", lambda _message: on_hint()
        )
        unlisten = self._connection.listen("reconnected", on_hint)

        async def end() -> None:
            unlisten()
            await self._connection.unsubscribe(heard)

        return end
