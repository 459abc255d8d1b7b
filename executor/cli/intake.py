"""Pulls the tenants' queues and shares the credit: who has work gets more, by weight and by rate.

Credit follows completion: a message that is settled gives its credit back, at once or when its
tenant's rate allows. What is held at once has one bound for all tenants together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from executor.core.fairness import IDLE_WINDOW, Load, windows
from executor.core.policy import NO_LIMIT, Tenant
from executor.model import Delivery
from executor.transport.connection import Connection, Event
from executor.transport.pull import Pull

# How often the credit is shared anew while something happens.
_SHARE_S: Final = 0.25


@dataclass(slots=True)
class _Source:
    tenant: Tenant
    pull: Pull
    delivered: int = 0  # since the last sharing
    busy: bool = False
    next_at: float = 0.0  # loop time, when its rate allows another


@dataclass
class Intake:
    """See the module. `mean_s` tells how long a tenant's attempts take, 0 if nobody knows."""

    connection: Connection
    alone: int  # held at once while one tenant has work
    shared: int  # while several have
    slots: int
    on_event: Event
    mean_s: Callable[[str], float]
    on_delivery: Callable[[Delivery], None] = field(init=False)  # set before the first tenant
    _sources: dict[str, _Source] = field(default_factory=dict)
    _timer: asyncio.TimerHandle | None = None

    async def add(self, tenant: Tenant) -> None:
        """Begin to pull a tenant's queue. Errors  `transport.*`."""
        pull = Pull(
            self.connection, tenant.name, window=IDLE_WINDOW, on_delivery=self._deliver,
            on_event=self.on_event,
        )  # fmt: skip
        self._sources[tenant.name] = _Source(tenant, pull)
        try:
            await pull.start()
        except BaseException:
            self._sources.pop(tenant.name, None)  # whoever adds it again begins anew
            raise
        # Whoever comes first need not wait for the first look at who is busy.
        self._share()

    async def remove(self, name: str) -> None:
        """Pull it no more."""
        source = self._sources.pop(name, None)
        if source is not None:
            await source.pull.stop()
            self._share()

    def replace(self, tenants: Iterable[Tenant]) -> None:
        """Weights and rates may have changed."""
        for tenant in tenants:
            if tenant.name in self._sources:
                self._sources[tenant.name].tenant = tenant
        self._share()

    async def stop(self) -> None:
        """Ask for nothing more of any tenant."""
        if self._timer is not None:
            self._timer.cancel()
        for source in self._sources.values():
            await source.pull.stop()

    def windows(self) -> dict[str, int]:
        """What each tenant may hold at once."""
        return {n: s.pull.statistics()["window"] for n, s in self._sources.items()}

    def _deliver(self, delivery: Delivery) -> None:
        source = self._sources.get(delivery.tenant)
        if source is not None:
            source.delivered += 1
            if not source.busy:
                source.busy = True
                self._soon(0.0)
        self.on_delivery(delivery)

    def completed(self, tenant: str) -> None:
        """One delivery is settled: its credit may be given out again."""
        source = self._sources.get(tenant)
        if source is None:
            return
        if source.tenant.tasks_per_s >= NO_LIMIT:
            source.pull.completed()
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        due, source.next_at = (
            source.next_at,
            (max(source.next_at, now) + 1 / source.tenant.tasks_per_s),
        )
        if due <= now:
            source.pull.completed()
        else:
            loop.call_at(due, source.pull.completed)

    def _soon(self, delay_s: float) -> None:
        if self._timer is not None:
            if delay_s:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._share)

    def _share(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loads, active = {}, False
        for name, source in self._sources.items():
            held = source.pull.statistics()["held"]
            source.busy = busy = bool(source.delivered or held)
            active = active or busy
            source.delivered = 0
            tenant = source.tenant
            loads[name] = Load(
                weight=tenant.weight, busy=busy, mean_s=self.mean_s(name),
                slots=min(self.slots, tenant.sandboxes_max),
                most=max(tenant.tasks_per_s, IDLE_WINDOW),  # a burst of a second at most
            )  # fmt: skip
        if not active:  # a first burst of anybody finds room for it
            loads = {name: replace(load, busy=True) for name, load in loads.items()}
        for name, window in windows(self.alone, self.shared, loads).items():
            pull = self._sources[name].pull
            if pull.statistics()["window"] != window:
                pull.resize(window)
        if active:
            self._soon(_SHARE_S)
