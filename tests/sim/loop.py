"""An event loop whose clock is a number: it never waits, it goes on to the next timer.

A day of back-offs takes as long as its callbacks do. Timers fire in the order of their times, and
nothing comes from outside, so a history depends on its seed alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")


_TURNS_MAX: Final = 20_000


class StuckError(Exception):
    """Nothing is ready and no timer is set, or the same moment never ends."""


class _Selector:
    """Where a real loop sleeps, this one moves its clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._turns = 0

    def select(self, timeout: float | None) -> tuple[()]:
        if timeout is None:
            raise StuckError("whoever waits would wait for ever")
        self._turns += 1
        if timeout > 0:
            self._loop.now += timeout
            self._turns = 0
        elif self._turns > _TURNS_MAX:
            self._turns = 0  # what is cancelled now may still end
            raise StuckError("turn after turn, and no time passes")
        return ()


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module. It has no files, sockets, threads or signals."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._selector = _Selector(self)
        self._clock_resolution = 1e-7  # above the precision of a float that counts years

    def time(self) -> float:
        """Seconds of virtual time."""
        return self.now

    def _process_events(self, event_list: object) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps, so nobody has to be woken."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time, in a loop of its own."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        for task in sorted(left, key=lambda task: task.get_name()):
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()
