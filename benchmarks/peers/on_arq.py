"""arq on Redis: one process, 256 jobs at once, its poll shortened from 500 to 5 ms."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from arq import create_pool, run_worker
from arq.connections import ArqRedis, RedisSettings

from benchmarks.peers import work
from benchmarks.peers.drive import drive

_SETTINGS = RedisSettings.from_dsn(os.environ.get("BENCH_REDIS", "redis://127.0.0.1"))


async def count(_context: dict[Any, Any], text: str) -> dict[str, int]:
    """The work."""
    return work.count(text.encode())


class Worker:
    """The settings of its worker."""

    functions = (count,)
    redis_settings = _SETTINGS
    max_jobs = 256
    poll_delay = 0.005
    keep_result = 600
    log_results = False


class Submitter:
    """Asks for a batch at once; a result is asked for until it is there."""

    def __init__(self, pool: ArqRedis) -> None:
        self._pool = pool

    async def submit(self, count_: int) -> list[Any]:
        """Each job is stored when its call returns."""
        calls = (self._pool.enqueue_job("count", work.TEXT) for _ in range(count_))
        return list(await asyncio.gather(*calls))

    async def result(self, handle: Any) -> object:
        """Looked for each half millisecond."""
        return await handle.result(timeout=60, poll_delay=0.0005)


async def main(*seconds: str) -> None:
    """Drive."""
    await drive(Submitter(await create_pool(_SETTINGS)), *map(float, seconds))


if __name__ == "__main__":
    if sys.argv[1] == "work":  # without the log of each job that its command writes
        run_worker(Worker)
    else:
        asyncio.run(main(*sys.argv[2:]))
