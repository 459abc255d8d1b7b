"""Who is next: tenants share by weight, pay in fuel, and gain by waiting.

Each tenant has an account of what it used, divided by its weight: the lowest is owed most. Who had
no work does not save up: on its return it is set to the least that anybody with work has paid. Who
waits gains `AGE_FUEL` a second, so no wait is without end. Times in s, fuel as the engine has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

# What a core burns in about a second (1e9 fuel take 0.1 to 0.6 s of CPU).
AGE_FUEL: Final = 2e9


@dataclass
class Shares:
    """See the module. A tenant without a weight has 1."""

    weights: Mapping[str, int] = field(default_factory=dict)
    _paid: dict[str, float] = field(default_factory=dict)

    def weight(self, tenant: str) -> int:
        """A tenant's weight."""
        return self.weights.get(tenant, 1)

    def joins(self, tenant: str, working: Iterable[str]) -> None:
        """A tenant has work again, beside these that had some all along."""
        least = min((self._paid.get(other, 0.0) for other in working if other != tenant), default=0)
        self._paid[tenant] = max(self._paid.get(tenant, 0.0), least)

    def charge(self, tenant: str, fuel: float) -> None:
        """It used this much, or less than was charged before where it is negative."""
        self._paid[tenant] = self._paid.get(tenant, 0.0) + fuel / self.weight(tenant)

    def owed(self, tenant: str, waited_s: float = 0.0) -> float:
        """The lower, the more it is owed."""
        return self._paid.get(tenant, 0.0) - waited_s * AGE_FUEL

    def leaves(self, tenant: str) -> None:
        """It is a tenant no more."""
        self._paid.pop(tenant, None)


@dataclass(frozen=True, slots=True)
class Load:
    """What a tenant's pull is measured by."""

    weight: int = 1
    busy: bool = True
    mean_s: float = 0.0  # of its attempts; 0: not known
    slots: int = 1  # sandboxes that may work for it
    most: int = 2**30  # of its own: a rate of its own, for example


# A tenant without work asks for so many, to be there when some comes.
IDLE_WINDOW: Final = 2
# With more tenants at work than sandboxes each turn costs a new process, some 3 ms: with one
# message a turn, 16 tenants on two sandboxes had 70 tasks a second together.
_TURN_TASKS: Final = 16
# Work that may lie ahead of a tenant's sandboxes.
_AHEAD_S: Final = 0.25
_MEAN_MIN_S: Final = 1e-6


def windows(alone: int, shared: int, loads: Mapping[str, Load]) -> dict[str, int]:
    """How many messages each tenant may hold: by weight among those that have work.

    `alone` while one of them has, `shared` among several: what one holds, another waits behind.
    Less where attempts are long: what lies here, no other executor can take. Never below 1, nor
    below what is worth a turn where tenants take turns in sandboxes.
    """
    busy = {name: load for name, load in loads.items() if load.busy}
    total = alone if len(busy) <= 1 else min(shared, alone)
    weights = sum(load.weight for load in busy.values())
    left = max(total - IDLE_WINDOW * (len(loads) - len(busy)), len(busy))
    turns = len(busy) > max((load.slots for load in loads.values()), default=1)
    least = min(_TURN_TASKS, alone // max(len(busy), 1)) if turns else 1
    found = {}
    for name, load in loads.items():
        window = IDLE_WINDOW
        if name in busy:
            window = max(left * load.weight // weights, least)
        if load.mean_s:
            ahead = int(load.slots * _AHEAD_S / max(load.mean_s, _MEAN_MIN_S))
            window = min(window, max(ahead, 2 * load.slots))
        found[name] = max(min(window, load.most), 1)
    return found
