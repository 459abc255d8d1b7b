"""What is broken open: for one operator one action, by two others' word, until a time.

An opening adds to `Access` what a binding would, and ends by itself. Only what holds up, ends or
repeats work that policy admits may be broken open: never what makes code run or widens authority
(`publish`, `release`, `change-policy`, `approve`), nor what is a tenant's own (`submit`, `read`).
A binding that denies is stronger.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from executor.core.access import ANY, BUILT_IN

BREAKABLE: Final = BUILT_IN["operator"]
# These name no tenant: they are about an executor, or about a digest.
WHOLE: Final = frozenset({"drain", "quarantine"})
MOST_MS: Final = 3_600_000
# Two people approved each: more at once is no emergency.
_OPEN_MAX: Final = 64
_CLOSED_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class Opening:
    """What two approved; `who` is a key id in hex, `exp` in ms, a task of "*" is all of them."""

    id: str
    who: str
    action: str
    tenant: str
    task: str
    why: str
    exp: int = 0
    by: tuple[str, ...] = ()  # names of who approved

    def covers(self, who: str, action: str, tenant: str, task: str) -> bool:
        """Whether it lets `who` do this; "*" asks for all."""
        return (
            (who, action) == (self.who, self.action)
            and self.tenant in {ANY, tenant}
            and self.task in {ANY, task}
        )


@dataclass
class Glass:
    """What is open now, by id. What was closed is not opened again in its time."""

    openings: dict[str, Opening] = field(default_factory=dict)
    _closed: dict[str, int] = field(default_factory=dict)  # id → until when that is kept

    def opens(self, who: str, action: str, tenant: str, task: str, at: int) -> str:
        """The id of an opening that lets `who` do it at a time in ms; "" if none does."""
        for opening in self.openings.values():
            if at <= opening.exp and opening.covers(who, action, tenant, task):
                return opening.id
        return ""

    def add(self, opening: Opening) -> str:
        """Open; returns why not, "" if it is open now."""
        if opening.id in self._closed:
            return "it was closed"
        full = len(self.openings) >= _OPEN_MAX or len(self._closed) >= _CLOSED_MAX
        if full and opening.id not in self.openings:
            return "too much is open, or was"
        self.openings[opening.id] = opening
        return ""

    def close(self, opening_id: str, until: int) -> Opening | None:
        """Close, for ever if `until` is the latest that it could have lasted; what was open."""
        self._closed[opening_id] = until
        return self.openings.pop(opening_id, None)

    def sweep(self, now: int) -> list[Opening]:
        """End what is over, and say what that was."""
        over = [opening for opening in self.openings.values() if opening.exp < now]
        for opening in over:
            del self.openings[opening.id]
        if self._closed:
            self._closed = {key: until for key, until in self._closed.items() if until >= now}
        return over
