"""How much each tenant may still put off: the bound of its LATER, which the server cannot hold.

A stream that takes schedules knows no `discard: new`. So the outbox asks here before it sends one:
what the server said a moment ago, what was stored since, and what is under way. Several executors
may together pass the bound by what they store within that moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from executor.core import subjects
from executor.errors import ExecutorError
from executor.transport.api import ApiError
from executor.transport.connection import Connection
from executor.transport.streams import TenantQueue

_FRESH_S: Final = 1.0  # how old the server's word may be


@dataclass(slots=True)
class _Sum:
    messages: int = 0
    size: int = 0

    def add(self, messages: int, size: int) -> None:
        self.messages += messages
        self.size += size


@dataclass(slots=True)
class _Seen:
    told: _Sum = field(default_factory=_Sum)  # by the server
    last: int = 0  # the sequence up to which it told
    later: dict[int, int] = field(default_factory=dict)  # stored after that: sequence → size
    since: _Sum = field(default_factory=_Sum)  # their sum
    flying: _Sum = field(default_factory=_Sum)  # without an answer
    looked_at: float = -_FRESH_S
    look: asyncio.Task[None] | None = None

    def store(self, sequence: int, size: int) -> None:
        """It is stored; what was told may hold it already."""
        if sequence > self.last and sequence not in self.later:
            self.later[sequence] = size
            self.since.add(1, size)

    def tell(self, told: _Sum, last: int) -> None:
        """The server says what there is up to a sequence."""
        if last < self.last:  # the stream was made anew, and its sequences with it
            self.later.clear()
        self.told, self.last = told, last
        self.later = {number: size for number, size in self.later.items() if number > last}
        self.since = _Sum(len(self.later), sum(self.later.values()))

    def fits(self, bound: TenantQueue, size: int) -> bool:
        parts = (self.told, self.since, self.flying)
        return (
            sum(part.messages for part in parts) < bound.queue_max_messages
            and sum(part.size for part in parts) + size <= bound.queue_max_bytes
        )


class Room:
    """See the module. A tenant that nobody told of has no bound here."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._bounds: dict[str, TenantQueue] = {}
        self._seen: dict[str, _Seen] = {}

    def replace(self, tenants: Iterable[TenantQueue]) -> None:
        """From now on these bounds hold: those of a tenant's queue, for what it puts off."""
        self._bounds = {tenant.name: tenant for tenant in tenants}

    def take(self, tenant: str, size: int) -> bool:
        """Whether a schedule of `size` bytes has room; it counts at once, `landed` must follow."""
        bound = self._bounds.get(tenant)
        if bound is None:
            return True
        seen = self._seen.setdefault(tenant, _Seen())
        loop = asyncio.get_running_loop()
        if seen.look is None and loop.time() - seen.looked_at >= _FRESH_S:
            seen.look = loop.create_task(self._look(tenant, seen))
        if not seen.fits(bound, size):
            return False
        seen.flying.add(1, size)
        return True

    def landed(self, tenant: str, size: int, *, sequence: int) -> None:
        """What `take` let through has its answer: where it is stored, 0 if it is not."""
        seen = self._seen.get(tenant)
        if seen is not None:
            seen.flying.add(-1, -size)
            if sequence:
                seen.store(sequence, size)

    async def _look(self, tenant: str, seen: _Seen) -> None:
        try:
            call = f"STREAM.INFO.{subjects.later_stream(tenant)}"
            state = (await self._connection.api(call))["state"]
            seen.tell(_Sum(int(state["messages"]), int(state["bytes"])), int(state["last_seq"]))
        except (ApiError, ExecutorError, KeyError):
            pass  # what was known, and what was stored since, still counts
        finally:
            seen.looked_at, seen.look = asyncio.get_running_loop().time(), None

    def stop(self) -> None:
        """Look no more."""
        for seen in self._seen.values():
            if seen.look is not None:
                seen.look.cancel()
