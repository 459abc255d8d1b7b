"""Celery on Redis: two processes, acked late, prefetching, results by publish and subscribe."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from celery import Celery

from benchmarks.peers import work
from benchmarks.peers.drive import drive

app = Celery(
    "on_celery", broker=os.environ.get("BENCH_REDIS"), backend=os.environ.get("BENCH_REDIS")
)
app.conf.update(
    task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=64,
    result_expires=600, task_track_started=False, worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
)  # fmt: skip


@app.task(name="count")
def count(text: str) -> dict[str, int]:
    """The work."""
    return work.count(text.encode())


class Submitter:
    """The plain calls; they block, and nothing else runs in this process."""

    async def submit(self, count_: int) -> list[Any]:
        """Each task is stored when its call returns."""
        return [count.delay(work.TEXT) for _ in range(count_)]

    async def result(self, handle: Any) -> object:
        """Woken by Redis."""
        return handle.get(timeout=60, interval=0.001)


if __name__ == "__main__":
    asyncio.run(drive(Submitter(), *map(float, sys.argv[2:])))
