"""The breakers and retry budgets of one executor, shared between executors through CONTROL.

A breaker is named by what it guards: ("module", tenant, digest in hex), ("capability", tenant,
target) or ("sandbox", tenant, "_"). One that opens is announced; one that another executor opened
counts here too. Nothing is kept of what works: while nothing fails, a look costs one test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from executor.core import control, subjects
from executor.core.breaker import (
    CLOSED,
    Breaker,
    BreakerRules,
    State,
    admit,
    failed,
    heard,
    succeeded,
)
from executor.core.budget import Budget, BudgetRules
from executor.core.settlement import RETRY_AFTER_MAX_MS
from executor.supervisor.ports import Board

Name = tuple[str, str, str]  # kind, tenant, what

# A name costs some 300 bytes; beyond, what is closed is forgotten.
_NAMES_MAX: Final = 10_000


@dataclass
class Breakers:
    """See the module."""

    board: Board
    environment: str
    executor: str
    now_ms: Callable[[], int]
    jitter: Callable[[], float]
    on_event: Callable[..., None]
    rules: BreakerRules = field(default_factory=BreakerRules)
    known: dict[Name, Breaker] = field(default_factory=dict)  # none while nothing fails

    def wait_ms(self, *names: Name) -> tuple[Name | None, int]:
        """Which of these holds an attempt up that depends on them all, and for how long.

        (None, 0) lets it pass, as the probe where one is half-open.
        """
        if not self.known:
            return None, 0
        now = self.now_ms()
        after: dict[Name, Breaker] = {}
        for name in names:
            breaker = self.known.get(name)
            if breaker is None:
                continue
            after[name], wait = admit(breaker, now, self.rules)
            if wait:
                return name, wait
        self.known.update(after)
        return None, 0

    def failed(self, name: Name) -> None:
        """What `name` guards failed once more."""
        if len(self.known) >= _NAMES_MAX:
            self.known = {n: b for n, b in self.known.items() if b.until}
        now = self.now_ms()
        before = self.known.get(name, CLOSED)
        after = failed(before, now, self.rules, self.jitter())
        self.known[name] = after
        if after.until > before.until:
            self.on_event("breaker.opened", kind=name[0], tenant=name[1], of=name[2],
                          trips=after.trips, for_ms=after.until - now)  # fmt: skip
            key = subjects.breaker_key(*name)
            self.board.put(key, control.encode(
                "breaker", key, self.environment, until=after.until, trips=after.trips,
                by=self.executor,
            ))  # fmt: skip

    def succeeded(self, name: Name) -> None:
        """What `name` guards worked."""
        before = self.known.get(name) if self.known else None
        if before is None:
            return
        after = succeeded(before, self.now_ms())
        if after.score or after.until:
            self.known[name] = after
            return
        del self.known[name]
        if before.until:
            self.on_event("breaker.closed", kind=name[0], tenant=name[1], of=name[2])
            self.board.delete(subjects.breaker_key(*name))

    def heard(self, name: Name, until: int, trips: int) -> None:
        """Another executor opened it."""
        now, longest = self.now_ms(), 2 * self.rules.open_max_ms
        if until + longest < now or (name not in self.known and len(self.known) >= _NAMES_MAX):
            return  # left behind by an executor that is gone
        # Nothing stays open for longer than the rules know, whoever says so.
        until = min(until, now + longest)
        self.known[name] = heard(self.known.get(name, CLOSED), until, trips)

    def withdrawn(self, name: Name) -> None:
        """Another executor closed it, or an operator did."""
        self.known.pop(name, None)

    def open(self) -> dict[Name, Breaker]:
        """Those that do not let everything pass."""
        now = self.now_ms()
        return {n: b for n, b in self.known.items() if b.state(now) is not State.CLOSED}


@dataclass
class Budgets:
    """Retry budgets by name; one comes to be with the first retry of what it is for."""

    now_ms: Callable[[], int]
    rules: BudgetRules = field(default_factory=BudgetRules)
    known: dict[Name, Budget] = field(default_factory=dict)

    def attempted(self, *names: Name) -> None:
        """A first attempt of what these stand for began."""
        if not self.known:
            return
        now = self.now_ms()
        for name in names:
            budget = self.known.get(name)
            if budget is not None:
                budget.attempted(now, self.rules)

    def retried(self, *names: Name) -> int:
        """How many ms a retry has to wait, beyond its back-off, until all of these can pay."""
        now = self.now_ms()
        if len(self.known) >= _NAMES_MAX:
            self.known.clear()
        budgets = [self.known.setdefault(n, Budget(self.rules.most, now)) for n in names]
        owed = max(budget.retried(now, self.rules) for budget in budgets)
        return min(owed, RETRY_AFTER_MAX_MS)  # however large the storm, a task comes back in a day
