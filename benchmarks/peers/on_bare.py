"""The baseline: a bare nats-py streaming loop that counts words in Python, without a sandbox.

It is as careful as a loop can be without our machinery: overlapping pull requests on one inbox,
outcomes published with a PubAck before the task is acked, nothing awaited per message. It signs
nothing, bounds nothing and runs whatever code it has in its own process.

    python -m benchmarks.peers.on_bare (work | prepare | drive FLOW_S LATENCY_S) with BENCH_NATS set
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Final

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig

from benchmarks.peers import work
from benchmarks.peers.drive import drive

TASKS: Final = "BARE"
RESULTS: Final = "BARE_OUT"
_BATCH: Final = 128
_IN_FLIGHT: Final = 512


async def prepare(client: Client) -> None:
    """A work queue, a stream of results, both in files, and a consumer that must be acked."""
    jetstream = client.jetstream()
    await jetstream.add_stream(StreamConfig(
        name=TASKS, subjects=["bare.task"], retention=RetentionPolicy.WORK_QUEUE,
    ))  # fmt: skip
    await jetstream.add_stream(name=RESULTS, subjects=["bare.result.*"])
    await jetstream.add_consumer(
        TASKS, ConsumerConfig(durable_name="worker", ack_wait=30, max_ack_pending=4096)
    )


async def consume(client: Client) -> None:
    """Take tasks, publish as many results, ack each after its PubAck, until SIGTERM."""
    deliveries, acks = client.new_inbox(), client.new_inbox()
    waiting: dict[str, str] = {}
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    credit = 0

    async def ask() -> None:
        nonlocal credit
        while _IN_FLIGHT - credit >= _BATCH:
            credit += _BATCH
            body = json.dumps({"batch": _BATCH, "expires": 30_000_000_000}).encode()
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{TASKS}.worker"
            await client.publish(subject, body, reply=deliveries)

    async def on_task(message: Msg) -> None:
        nonlocal credit
        if not message.reply:
            credit -= int((message.headers or {}).get("Nats-Pending-Messages", 0))
            await ask()
            return
        token = message.reply.rsplit(".", 3)[-3]
        waiting[token] = message.reply
        task_id = (message.headers or {}).get("Task-Id", token)
        result = work.count_json(message.data)
        await client.publish(f"bare.result.{task_id}", result, reply=f"{acks}.{token}")

    async def on_ack(message: Msg) -> None:
        nonlocal credit
        await client.publish(waiting.pop(message.subject.rsplit(".", 1)[1]), b"")
        credit -= 1
        await ask()

    await client.subscribe(deliveries, cb=on_task, pending_msgs_limit=-1)
    await client.subscribe(f"{acks}.*", cb=on_ack, pending_msgs_limit=-1)
    await ask()
    await stop.wait()


class Submitter:
    """Publishes with PubAcks on one inbox and hears the results as they are stored."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._inbox = client.new_inbox()
        self._results: dict[str, asyncio.Future[bytes]] = {}
        self._stored: dict[str, asyncio.Future[None]] = {}
        self._number = 0
        self._name = f"{os.getpid():x}"

    async def start(self) -> None:
        """Listen."""
        await self._client.subscribe(f"{self._inbox}.*", cb=self._acked, pending_msgs_limit=-1)
        await self._client.subscribe("bare.result.*", cb=self._heard, pending_msgs_limit=-1)

    async def _acked(self, message: Msg) -> None:
        self._stored.pop(message.subject.rsplit(".", 1)[1]).set_result(None)

    async def _heard(self, message: Msg) -> None:
        if (future := self._results.pop(message.subject.rsplit(".", 1)[1], None)) is not None:
            future.set_result(message.data)

    async def submit(self, count: int) -> list[asyncio.Future[bytes]]:
        """Publish so many; returns when the last PubAck is in."""
        loop = asyncio.get_running_loop()
        handles, stored = [], []
        for _ in range(count):
            self._number += 1
            task_id = f"{self._name}-{self._number}"
            handles.append(self._results.setdefault(task_id, loop.create_future()))
            stored.append(self._stored.setdefault(task_id, loop.create_future()))
            headers = {"Task-Id": task_id, "Nats-Msg-Id": task_id}
            await self._client.publish(
                "bare.task", work.WORDS, reply=f"{self._inbox}.{task_id}", headers=headers
            )
        for each in stored:
            await each
        return handles

    async def result(self, handle: asyncio.Future[bytes]) -> bytes:
        """As it was stored."""
        return await handle


async def main(role: str, *seconds: str) -> None:
    """One of the three roles."""
    client = await nats.connect(os.environ["BENCH_NATS"])
    match role:
        case "prepare":
            await prepare(client)
        case "work":
            await consume(client)
        case _:
            submitter = Submitter(client)
            await submitter.start()
            await drive(submitter, *map(float, seconds))
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
