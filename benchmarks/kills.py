"""A sandbox dies by kill -9 every 200 ms while tasks flow: each task still has one record.

The tasks are submitted from plain nats-py to a running `executor serve`; the children of that
process that are sandboxes are killed at random until the last record is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter

import nats

from benchmarks.throughput import TENANT, last, load, stage
from tests.support.aftermath import sandboxes

PERIOD_S = 0.2


async def _kill(pid: int, seed: int) -> int:
    """Kill one sandbox every PERIOD_S until cancelled; returns how many."""
    dice, killed = random.Random(seed), 0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(PERIOD_S)
            if alive := sandboxes(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(dice.choice(alive), signal.SIGKILL)
                    killed += 1
    return killed


async def main(tasks: int, seed: int, *, as_json: bool) -> None:
    """Run it and print how the records came out."""
    async with stage() as (folder, url):
        server = subprocess.Popen(
            [sys.executable, "-m", "executor.cli.main", "serve", "-q"], cwd=folder
        )
        killer = asyncio.create_task(_kill(server.pid, seed))
        try:
            # In parts, so that the flow lasts longer than a few kills.
            for part in range(10):
                await load(url, "executor", tasks // 10, part)
            stream = f"OUTCOMES_{TENANT}"
            async with asyncio.timeout(600):
                while await last(url, stream) < tasks // 10 * 10:
                    await asyncio.sleep(0.1)
            killer.cancel()
            killed = await killer
        finally:
            server.terminate()
            await asyncio.to_thread(server.wait)
        client = await nats.connect(url)
        info = await client.jetstream().stream_info(stream, subjects_filter=">")
        await client.close()
    subjects = info.state.subjects or {}
    ids = Counter(subject.rsplit(".", 1)[1] for subject in subjects)
    report = {
        "tasks": tasks // 10 * 10, "killed": killed, "records": info.state.messages,
        "ids": len(ids), "twice": sum(n > 1 for n in ids.values()) + sum(
            n > 1 for n in subjects.values()),
        "results": sum(s.startswith("result.") for s in subjects),
        "dead": sum(s.startswith("dead.") for s in subjects), "seed": seed,
    }  # fmt: skip
    print(json.dumps(report) if as_json else "  ".join(f"{k} {v}" for k, v in report.items()))
