"""The submitter of every contender: a window of tasks in flight, then one, each result compared.

It speaks with the runner in lines of JSON and waits for a line before each part, so that the
runner reads CPU times when nothing is under way.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from typing import Any, Final, Protocol

from benchmarks.peers import work

WINDOW: Final = 256
BATCH: Final = 32  # submitted together, as soon as the window has room for them
_WARM_S: Final = 0.5
_RESULT_S: Final = 60.0


class Caller(Protocol):
    """What a contender's file offers: handles of tasks, and the result of each."""

    async def submit(self, count: int) -> list[Any]:
        """Ask for so many tasks; returns when all are stored."""

    async def result(self, handle: Any) -> object:
        """The result of one, as the work's dictionary or its JSON.

        Who verifies it keeps in `verified_s` how long that took.
        """


async def _flow(caller: Caller, seconds: float) -> tuple[int, float]:
    """Keep the window full for so long, and wait for what is left: (tasks, seconds)."""
    waiting: deque[Any] = deque()
    done, began = 0, time.perf_counter()
    end = began + seconds
    async with asyncio.timeout(seconds + _RESULT_S):  # one for all: a timer a task is a cost
        while waiting or time.perf_counter() < end:
            if len(waiting) + BATCH <= WINDOW and time.perf_counter() < end:
                waiting.extend(await caller.submit(BATCH))
                continue
            work.check(await caller.result(waiting.popleft()))
            done += 1
    return done, time.perf_counter() - began


async def _one_by_one(caller: Caller, seconds: float) -> dict[str, list[float]]:
    """Milliseconds from submission to result with nothing else in flight, and what part of it.

    Of a caller that verifies, `arrived` is without that.
    """
    taken: list[float] = []
    arrived: list[float] = []
    end = time.perf_counter() + seconds
    async with asyncio.timeout(seconds + _RESULT_S):
        while (began := time.perf_counter()) < end:
            [handle] = await caller.submit(1)
            work.check(await caller.result(handle))
            taken.append((time.perf_counter() - began) * 1000)
            if hasattr(caller, "verified_s"):
                arrived.append(taken[-1] - caller.verified_s * 1000)
    return {"values": taken, "arrived": arrived}


async def _say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)
    if not await asyncio.to_thread(sys.stdin.readline):
        raise SystemExit("the runner is gone")


async def drive(caller: Caller, flow_s: float, latency_s: float) -> None:
    """Warm up, then both parts."""
    [first] = await caller.submit(1)  # the worker may still be starting
    work.check(await asyncio.wait_for(caller.result(first), _RESULT_S))
    await _flow(caller, min(_WARM_S, flow_s))
    await _say(part="ready")
    tasks, seconds = await _flow(caller, flow_s)
    await _say(part="flow", tasks=tasks, seconds=seconds)
    await _say(part="latency", **await _one_by_one(caller, latency_s))
