"""FastStream on JetStream: pulled in batches, many handlers at once, a stored result before ack."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

import nats
from faststream import AckPolicy, FastStream
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from nats.aio.msg import Msg

from benchmarks.peers import work
from benchmarks.peers.drive import drive

TASKS: Final = JStream(name="FS", subjects=["fs.task"], declare=False)
_AT_ONCE: Final = 256

broker = NatsBroker(os.environ.get("BENCH_NATS", "nats://127.0.0.1:4222"))
app = FastStream(broker)


@broker.subscriber(
    "fs.task", stream=TASKS, durable="worker", pull_sub=PullSub(batch_size=_AT_ONCE),
    max_workers=_AT_ONCE, ack_policy=AckPolicy.NACK_ON_ERROR,
)  # fmt: skip
async def count(data: bytes, message: NatsMessage) -> None:
    """Store the result, then let the task be acked."""
    task_id = message.headers["Task-Id"]
    await broker.publish(work.count_json(data), f"fs.result.{task_id}", stream="FS_OUT")


class Submitter:
    """Publishes a batch at once and hears the results as they are stored."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._number = 0

    async def heard(self, message: Msg) -> None:
        """A result was stored."""
        future = self._waiting.pop(message.subject.rsplit(".", 1)[1], None)
        if future is not None:
            future.set_result(message.data)

    async def submit(self, count: int) -> list[asyncio.Future[bytes]]:
        """Each publish waits for its PubAck."""
        loop = asyncio.get_running_loop()
        ids = [f"{os.getpid():x}-{self._number + i}" for i in range(count)]
        self._number += count
        handles = [self._waiting.setdefault(task_id, loop.create_future()) for task_id in ids]
        await asyncio.gather(*(
            broker.publish(work.WORDS, "fs.task", headers={"Task-Id": task_id}, stream="FS")
            for task_id in ids
        ))  # fmt: skip
        return handles

    async def result(self, handle: asyncio.Future[bytes]) -> bytes:
        """As it was stored."""
        return await handle


async def main(role: str, *seconds: str) -> None:
    """Make the streams, or drive."""
    client = await nats.connect(os.environ["BENCH_NATS"])
    if role == "prepare":
        jetstream = client.jetstream()
        await jetstream.add_stream(name="FS", subjects=["fs.task"])
        await jetstream.add_stream(name="FS_OUT", subjects=["fs.result.*"])
    else:
        submitter = Submitter()
        await client.subscribe("fs.result.*", cb=submitter.heard, pending_msgs_limit=-1)
        await broker.connect()
        await drive(submitter, *map(float, seconds))
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
