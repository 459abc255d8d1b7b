"""The messages in hand and their leases: renewed every third of it, forgotten when it was lost.

A message whose lease lapsed belongs to its redelivery: what runs of it is ended and publishes
nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from executor.model import Delivery
from executor.supervisor.job import Job
from executor.supervisor.ports import Outbox

# A lease is renewed this often before it would lapse: one lost message is no lost lease.
_RENEWALS: Final = 3


def now_s() -> float:
    """The loop's time, in which leases are counted."""
    return asyncio.get_running_loop().time()


@dataclass
class Leases:
    """See the module. `on_lost` is called once for each job whose lease lapsed."""

    ack_wait_ms: int
    outbox: Outbox
    on_lost: Callable[[Job], None]
    connected: bool = True
    _held: dict[tuple[str, int], Job] = field(default_factory=dict)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    _renewal: asyncio.TimerHandle | None = None
    # Once it has begun, the loop's own: to ask which loop runs is a system call.
    _now_s: Callable[[], float] = now_s

    def until(self) -> float:
        """When a lease that begins now lapses."""
        return self._now_s() + self.ack_wait_ms / 1000

    def take(self, job: Job) -> None:
        """A delivery came to hand."""
        self._held[job.delivery.tenant, job.delivery.sequence] = job

    def again(self, delivery: Delivery) -> bool:
        """Whether this message is in hand already: then the work goes on under the new lease."""
        held = self._held.get((delivery.tenant, delivery.sequence))
        if held is None:
            return False
        held.delivery = delivery
        held.lease_until = self.until()
        return True

    def give_up(self, job: Job) -> None:
        """The job is settled, given back or lost."""
        self._held.pop((job.delivery.tenant, job.delivery.sequence), None)
        if not self._held:
            self._idle.set()

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._held.values()))

    async def wait_empty(self) -> None:
        """Until nothing is in hand."""
        while self._held:
            self._idle.clear()
            await self._idle.wait()

    def start(self) -> None:
        """Begin to renew."""
        loop = asyncio.get_running_loop()
        self._now_s = loop.time
        self._renewal = loop.call_later(self.ack_wait_ms / 1000 / _RENEWALS, self._turn)

    def stop(self) -> None:
        """Renew nothing any more."""
        if self._renewal is not None:
            self._renewal.cancel()

    def _turn(self) -> None:
        try:
            self.renew()
        finally:  # whatever one job meets, the others' leases go on
            self.start()

    def renew(self) -> None:
        """Renew every lease, and let go of those that lapsed."""
        now = now_s()
        for job in self:
            if now > job.lease_until:
                self.on_lost(job)
            elif self.connected:
                self.outbox.progress(job.delivery.lease)
                job.lease_until = now + self.ack_wait_ms / 1000
