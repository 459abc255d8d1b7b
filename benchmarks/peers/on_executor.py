"""The executor's submitter: the client library, its window kept full, every outcome verified.

python -m benchmarks.peers.on_executor drive FLOW_S LATENCY_S [raw], in a folder of `init`
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.peers import work
from benchmarks.peers.drive import drive
from executor import config as configs
from executor.client import Client, make_opener
from executor.model import StoredMessage
from executor.transport.records import Tap

TASK: Final = "wordcount"


class Submitter:
    """Submits through `Client` and opens each record that the tap hears of."""

    def __init__(self, client: Client, keys: list[Any], *, raw: bool) -> None:
        self._client = client
        self._opener = make_opener(client.environment, keys)
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._raw = raw
        self._number = 0
        self.verified_s = 0.0  # the last record

    def heard(self, message: StoredMessage) -> None:
        """Verify a record; what does not hold raises and ends the run."""
        future = self._waiting.pop(message.subject.rsplit(".", 1)[1], None)
        if future is not None:
            began = time.perf_counter()
            record = self._opener.record(
                message.subject, message.body, stored_at=message.stored_at_ms
            )
            self.verified_s = time.perf_counter() - began
            future.set_result(record.output if not record.code else record.code.encode())

    def _wait(self, task_id: str) -> asyncio.Future[bytes]:
        return self._waiting.setdefault(task_id, asyncio.get_running_loop().create_future())

    async def submit(self, count: int) -> list[asyncio.Future[bytes]]:
        """Ask for so many; returns when the queue has all of them."""
        if self._raw:
            ids = [f"{os.getpid():x}-{self._number + i}" for i in range(count)]
            self._number += count
            handles = [self._wait(task_id) for task_id in ids]
            await asyncio.gather(*(
                self._client.submit_bytes(TASK, work.WORDS, id=task_id) for task_id in ids
            ))  # fmt: skip
            return handles
        requests = [self._client.request(TASK, work.WORDS) for _ in range(count)]
        handles = [self._wait(request.id) for request in requests]
        await self._client.submit_many(requests)
        return handles

    async def result(self, handle: asyncio.Future[bytes]) -> object:
        """The guest's JSON has no blanks."""
        return (await handle).replace(b":", b": ").replace(b",", b", ")


async def main(_role: str, flow_s: str, latency_s: str, form: str = "") -> None:
    """Drive the first tenant of the configuration here."""
    config = configs.load(Path("executor.toml"))
    tenant = config.policy.tenants[0].name
    async with await Client.from_config("executor.toml", tenant) as client:
        keys = [entry.key for entry in config.executors]
        submitter = Submitter(client, keys, raw=form == "raw")
        heard: Callable[[StoredMessage], None] = submitter.heard
        tap = Tap(client.connection, heard)
        await tap.start(tenant)
        await drive(submitter, float(flow_s), float(latency_s))
        await tap.stop()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
