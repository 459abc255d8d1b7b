"""How much each tenant may still put off: the bound of its LATER, which the server cannot hold.

A stream that takes schedules knows no `discard: new`. So the outbox asks here before it sends one:
what the server said a moment ago, and what was sent since. Several executors may together pass the
bound by what they send within that moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from executor.core import subjects
from executor.errors import ExecutorError
from executor.transport.api import ApiError
from executor.transport.connection import Connection
from executor.transport.streams import TenantQueue

_FRESH_S: Final = 1.0  # how old the server's word may be


@dataclass(slots=True)
class _Seen:
    messages: int = 0
    size: int = 0
    looked_at: float = -_FRESH_S
    look: asyncio.Task[None] | None = None


class Room:
    """See the module. A tenant that nobody told of has no bound here."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._bounds: dict[str, TenantQueue] = {}
        self._seen: dict[str, _Seen] = {}

    def replace(self, tenants: Iterable[TenantQueue]) -> None:
        """From now on these bounds hold: those of a tenant's queue, for what it puts off."""
        self._bounds = {tenant.name: tenant for tenant in tenants}
        for name in self._seen.keys() - self._bounds.keys():
            del self._seen[name]

    def take(self, tenant: str, size: int) -> bool:
        """Whether a schedule of `size` bytes has room; it counts as sent."""
        bound = self._bounds.get(tenant)
        if bound is None:
            return True
        seen = self._seen.setdefault(tenant, _Seen())
        loop = asyncio.get_running_loop()
        if seen.look is None and loop.time() - seen.looked_at >= _FRESH_S:
            seen.look = loop.create_task(self._look(tenant, seen))
        if seen.messages >= bound.queue_max_messages or seen.size + size > bound.queue_max_bytes:
            return False
        seen.messages += 1
        seen.size += size
        return True

    async def _look(self, tenant: str, seen: _Seen) -> None:
        try:
            call = f"STREAM.INFO.{subjects.later_stream(tenant)}"
            state = (await self._connection.api(call))["state"]
            seen.messages, seen.size = int(state["messages"]), int(state["bytes"])
        except (ApiError, ExecutorError, KeyError):
            pass  # what was known, and what was sent since, still counts
        finally:
            seen.looked_at, seen.look = asyncio.get_running_loop().time(), None

    def stop(self) -> None:
        """Look no more."""
        for seen in self._seen.values():
            if seen.look is not None:
                seen.look.cancel()
