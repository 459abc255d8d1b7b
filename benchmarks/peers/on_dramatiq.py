"""Dramatiq on Redis: two processes of eight threads, results stored in Redis."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.peers import work
from benchmarks.peers.drive import drive

_URL = os.environ.get("BENCH_REDIS", "redis://127.0.0.1")
broker = RedisBroker(url=_URL)
broker.add_middleware(Results(backend=RedisBackend(url=_URL)))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def count(text: str) -> dict[str, int]:
    """The work."""
    return work.count(text.encode())


class Submitter:
    """The plain calls; they block, and nothing else runs in this process."""

    async def submit(self, count_: int) -> list[Any]:
        """Each task is stored when its call returns."""
        return [count.send(work.TEXT) for _ in range(count_)]

    async def result(self, handle: Any) -> object:
        """Blocks in Redis until it is there."""
        return handle.get_result(block=True, timeout=60_000)


if __name__ == "__main__":
    asyncio.run(drive(Submitter(), *map(float, sys.argv[2:])))
