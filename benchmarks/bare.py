"""The baseline: a bare nats-py streaming loop that counts words in Python, without a sandbox.

It is as careful as a loop can be without our machinery: overlapping pull requests on one inbox,
outcomes published with a PubAck before the task is acked, nothing awaited per message. It signs
nothing, bounds nothing and runs whatever code it has in its own process.

    python -m benchmarks.bare URL STREAM CONSUMER COUNT
"""

from __future__ import annotations

import asyncio
import json
import sys

import nats
from nats.aio.msg import Msg

_BATCH = 128
_IN_FLIGHT = 512


def count_words(data: bytes) -> bytes:
    """The same answer as tasks_wasm/wordcount."""
    words = data.split()
    return json.dumps({"words": len(words), "distinct": len(set(words))}).encode()


async def work(url: str, stream: str, consumer: str, count: int) -> None:
    """Consume `count` tasks, publish as many results, ack each after its PubAck."""
    client = await nats.connect(url)
    deliveries, acks = client.new_inbox(), client.new_inbox()
    waiting: dict[str, str] = {}
    done = asyncio.Event()
    left, credit = count, 0

    async def ask() -> None:
        nonlocal credit
        while _IN_FLIGHT - credit >= _BATCH:
            credit += _BATCH
            body = json.dumps({"batch": _BATCH, "expires": 30_000_000_000}).encode()
            await client.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", body, reply=deliveries
            )

    async def on_task(message: Msg) -> None:
        nonlocal credit
        if not message.reply:
            credit -= int((message.headers or {}).get("Nats-Pending-Messages", 0))
            await ask()
            return
        number = message.reply.rsplit(".", 3)[-3]
        token = f"{number}"
        waiting[token] = message.reply
        task_id = (message.headers or {}).get("Task-Id", number)
        await client.publish(
            f"bare.result.{task_id}", count_words(message.data), reply=f"{acks}.{token}"
        )

    async def on_ack(message: Msg) -> None:
        nonlocal left, credit
        await client.publish(waiting.pop(message.subject.rsplit(".", 1)[1]), b"")
        left -= 1
        credit -= 1
        await ask()
        if not left:
            done.set()

    await client.subscribe(deliveries, cb=on_task, pending_msgs_limit=-1)
    await client.subscribe(f"{acks}.*", cb=on_ack, pending_msgs_limit=-1)
    await ask()
    await done.wait()
    await client.drain()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
