"""Which tenant gets a slot, and which sandbox makes way: decided here, done by the pool.

A slot is a process for one tenant. While there are enough, each tenant with work keeps its own;
beyond, tenants take turns by weight. What a tenant holds already counts first, then what it has
paid. `reserve` slots are kept for tenants that have none, so that a flood of one does not make
another wait for an attempt to end.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from executor.core.fairness import Shares
from executor.supervisor.job import ModuleKey
from executor.supervisor.process import SandboxProcess

# A busy sandbox of another tenant is taken over only after this long, times its tenant's weight:
# a start costs 5 ms, and what runs in it must end first.
TURN_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Start:
    """There is a free slot for it."""


@dataclass(frozen=True, slots=True)
class Retire:
    """This one makes way once what runs in it has ended."""

    sandbox: SandboxProcess


@dataclass(frozen=True, slots=True)
class Wait:
    """Nobody's turn is over yet: look again then; 0: what is under way will tell."""

    seconds: float = 0.0


@dataclass
class Slots:
    """See the module."""

    count: int
    reserve: int = 0
    most: Mapping[str, int] = field(default_factory=dict)  # of a tenant's own, where it has a limit
    shares: Shares = field(default_factory=Shares)

    def room(
        self, tenant: str, key: ModuleKey, sandboxes: Sequence[SandboxProcess],
        waiting: Mapping[str, object],
    ) -> Start | Retire | Wait:  # fmt: skip
        """What to do for a job of `tenant` that needs the module `key` and finds no room.

        `waiting` names the tenants whose jobs wait.
        """
        own = [s for s in sandboxes if s.tenant == tenant and not s.retiring]
        fitting = [s for s in own if key in s.modules]
        if any(not s.ready for s in fitting):
            return Wait()  # one is starting
        unfit = [s for s in own if s not in fitting and s.ready]
        held = sum(s.tenant == tenant for s in sandboxes)
        others = [s for s in sandboxes if s.tenant != tenant and s.ready and not s.leaving]
        idle = [s for s in others if not s.outstanding and s.tenant not in waiting]
        # What is left for tenants that have none, if this one takes another.
        may_take = not own or self.count - len(sandboxes) + len(idle) > self.reserve
        within = held < self.most.get(tenant, self.count)
        if len(sandboxes) < self.count and may_take and within:
            return Start()
        if any(s.retiring and tenant in (s.tenant, s.successor) for s in sandboxes):
            # A slot is about to be free for this one. What leaves for another holds nobody else
            # up: who fills it has its time in hand.
            return Wait()
        if unfit:
            return Retire(min(unfit, key=lambda s: s.outstanding))
        if not within:
            return Wait()
        if idle and may_take:
            return Retire(min(idle, key=lambda s: s.born))
        return self._turn(tenant, own, others)

    def _turn(
        self, tenant: str, own: Sequence[SandboxProcess], others: Sequence[SandboxProcess]
    ) -> Retire | Wait:
        """Take over from whoever has most for its weight, once its turn is over."""
        held: dict[str, int] = {}
        for sandbox in others:
            held[sandbox.tenant] = held.get(sandbox.tenant, 0) + 1
        weight = self.shares.weight
        mine = (len(own) + 1) / weight(tenant)
        # Who has none takes turns even with those that have no more than their share.
        over = [
            s for s in others
            if not own or held[s.tenant] / weight(s.tenant) > mine
        ]  # fmt: skip
        if not over:
            return Wait()
        now = time.monotonic()
        ripe = [s for s in over if now - s.born >= TURN_S * weight(s.tenant)]
        if not ripe:
            return Wait(TURN_S / 5)
        return Retire(max(ripe, key=lambda s: (
            held[s.tenant] / weight(s.tenant), self.shares.owed(s.tenant), -s.born
        )))  # fmt: skip

    def order(
        self, waited_s: Mapping[str, float], sandboxes: Sequence[SandboxProcess]
    ) -> list[str]:
        """The tenants that wait, who is owed most first."""
        held = dict.fromkeys(waited_s, 0)
        for sandbox in sandboxes:
            if sandbox.tenant in held:
                held[sandbox.tenant] += 1
        return sorted(waited_s, key=lambda t: (
            held[t] / self.shares.weight(t), self.shares.owed(t, waited_s[t])
        ))  # fmt: skip
