"""A circuit breaker as a value: a score of failures, and until when nothing is let through.

    closed     everything passes; a failure adds 1 to the score, a success takes half a point off
    open       from a score of `threshold` on, until `until`: nothing passes
    half-open  afterwards: one probe passes at a time; its success closes, its failure opens again
               for twice as long

The score rises while more than a third of the attempts fail. What ends after the breaker opened,
but began before, changes nothing. Times are in ms and passed in, as is the jitter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

_EASES: Final = 0.5  # a success, against a failure's 1


class State(StrEnum):
    """What a breaker lets through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When it opens and for how long."""

    threshold: int = 5
    open_ms: int = 2_000
    open_max_ms: int = 60_000
    probe_ms: int = 10_000  # a probe that says nothing for so long is not waited for any longer


@dataclass(frozen=True, slots=True)
class Breaker:
    """One dependency. `until` 0 is closed; `probe_at` 0: no probe is out."""

    score: float = 0.0
    trips: int = 0  # in a row
    until: int = 0
    probe_at: int = 0

    def state(self, now: int) -> State:
        """What it is at `now`."""
        if not self.until:
            return State.CLOSED
        return State.OPEN if now < self.until else State.HALF_OPEN


CLOSED: Final = Breaker()


def admit(breaker: Breaker, now: int, rules: BreakerRules) -> tuple[Breaker, int]:
    """Whether an attempt may pass: the breaker after it, and 0 or how long to wait."""
    match breaker.state(now):
        case State.CLOSED:
            return breaker, 0
        case State.OPEN:
            return breaker, breaker.until - now
        case State.HALF_OPEN:
            left = breaker.probe_at + rules.probe_ms - now if breaker.probe_at else 0
            return (breaker, left) if left > 0 else (replace(breaker, probe_at=now), 0)


def failed(breaker: Breaker, now: int, rules: BreakerRules, jitter: float) -> Breaker:
    """The breaker after a failure of what it guards."""
    match breaker.state(now):
        case State.CLOSED:
            score = breaker.score + 1
            if score < rules.threshold:
                return replace(breaker, score=score)
        case State.OPEN:
            return breaker
        case State.HALF_OPEN:
            if not breaker.probe_at:
                return breaker
    trips = breaker.trips + 1
    # Executors that share a dependency do not probe it in the same instant.
    length = min(rules.open_ms << min(trips - 1, 16), rules.open_max_ms)
    return Breaker(trips=trips, until=now + int(length * (0.75 + jitter / 2)))


def succeeded(breaker: Breaker, now: int) -> Breaker:
    """The breaker after a success of what it guards."""
    match breaker.state(now):
        case State.CLOSED:
            return replace(breaker, score=max(breaker.score - _EASES, 0.0))
        case State.OPEN:
            return breaker
        case State.HALF_OPEN:
            return CLOSED if breaker.probe_at else breaker


def heard(breaker: Breaker, until: int, trips: int) -> Breaker:
    """The breaker after another executor said that it opened; the later end counts."""
    if until <= breaker.until:
        return breaker
    return Breaker(trips=trips, until=until)
