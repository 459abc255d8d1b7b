"""How long to wait before asking again: doubled each time, jittered, bounded."""

from __future__ import annotations

from random import SystemRandom


class Backoff:
    """Delays in seconds between `base` and `cap`; every delay is drawn from its upper half."""

    def __init__(self, base: float = 0.1, cap: float = 5.0) -> None:
        self._base = base
        self._cap = cap
        self._next = base
        self._random = SystemRandom()  # executors that lost one server must not return in step

    def reset(self) -> None:
        """Begin anew: the last try succeeded."""
        self._next = self._base

    def delay(self) -> float:
        """The next delay in seconds."""
        limit, self._next = self._next, min(self._next * 2, self._cap)
        return limit * self._random.uniform(0.5, 1.0)
