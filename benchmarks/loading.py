"""Filling a queue from a plain nats-py script, and waiting for what a stream then holds."""

from __future__ import annotations

import asyncio
import os
from typing import Final

import msgpack
import nats

from benchmarks.contenders import TENANT
from benchmarks.peers.work import WORDS

ENVIRON: Final = dict(os.environ)
_WINDOW: Final = 256
_CHUNK: Final = 20_000


async def load(
    url: str, tasks: int, name: str, data: bytes = WORDS, *, tenant: str = TENANT,
    task: str = "wordcount",
) -> None:  # fmt: skip
    """Submit tasks, a window of publishes in flight, each confirmed; their ids say `fresh`."""
    subject = f"task.{tenant}.{task}"
    client = await nats.connect(url)
    jetstream = client.jetstream(publish_async_max_pending=_WINDOW)
    for start in range(0, tasks, _CHUNK):
        futures = []
        for number in range(start, min(start + _CHUNK, tasks)):
            body = msgpack.packb({
                "v": 1, "typ": "task", "aud": f"dev/{subject}", "id": f"{name}-{number}",
                "input": data, "fresh": True,
            })  # fmt: skip
            futures.append(await jetstream.publish_async(subject, body))
        await asyncio.gather(*futures)
    await client.close()


async def last(url: str, stream: str) -> int:
    """The last sequence of a stream."""
    client = await nats.connect(url)
    info = await client.jetstream().stream_info(stream)
    await client.close()
    return int(info.state.last_seq)


async def until(url: str, stream: str, sequence: int) -> None:
    """Wait until a stream has come so far."""
    while await last(url, stream) < sequence:
        await asyncio.sleep(0.05)


async def mean_bytes(url: str, stream: str) -> float:
    """What a stream holds for a message, headers and all."""
    client = await nats.connect(url)
    state = (await client.jetstream().stream_info(stream)).state
    await client.close()
    return state.bytes / state.messages
