"""taskiq on JetStream with results in Redis: pulled in batches, acked once the result is saved."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from taskiq_nats import PullBasedJetStreamBroker
from taskiq_redis import RedisAsyncResultBackend

from benchmarks.peers import work
from benchmarks.peers.drive import drive

backend: Any = RedisAsyncResultBackend(
    os.environ.get("BENCH_REDIS", "redis://127.0.0.1"), result_ex_time=600
)
broker = PullBasedJetStreamBroker(
    os.environ.get("BENCH_NATS", "nats://127.0.0.1:4222"), subject="taskiq.task",
    stream_name="TASKIQ", durable="worker", pull_consume_batch=64, pull_consume_timeout=1.0,
).with_result_backend(backend)  # fmt: skip


@broker.task(task_name="count")
async def count(text: str) -> dict[str, int]:
    """The work."""
    return work.count(text.encode())


class Submitter:
    """Asks for a batch at once; a result is asked for until it is there."""

    async def submit(self, count_: int) -> list[Any]:
        """Each task is stored when its call returns."""
        return list(await asyncio.gather(*(count.kiq(work.TEXT) for _ in range(count_))))

    async def result(self, handle: Any) -> object:
        """Looked for each half millisecond."""
        return (await handle.wait_result(check_interval=0.0005, timeout=60)).return_value


async def main(_role: str, *seconds: str) -> None:
    """Drive."""
    await broker.startup()
    await drive(Submitter(), *map(float, seconds))
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
