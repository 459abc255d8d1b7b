"""A sandbox dies by kill -9 every 200 ms while tasks flow: each task still has one record.

The tasks are submitted from plain nats-py to a running `executor serve`; the children of that
process that are sandboxes are killed at random until the last record is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter

import nats

from benchmarks.contenders import hosted
from benchmarks.loading import load, until
from benchmarks.options import Options
from benchmarks.scaling import STREAM, serving
from benchmarks.section import Goal, Section
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


async def run(options: Options) -> list[Section]:
    """Kill while tasks flow, and count how their records came out."""
    section = Section("kills", "Sandboxes killed", "python -m benchmarks kills")
    tasks = options.count(options.tasks, 20_000, 4_000) // 10 * 10
    async with hosted() as (folder, server):
        async with serving(folder) as process:
            killer = asyncio.create_task(_kill(process.pid, options.seed))
            # In parts, so that the flow lasts longer than a few kills.
            for part in range(10):
                await load(server.url, tasks // 10, f"k{part}")
            async with asyncio.timeout(600):
                await until(server.url, STREAM, tasks)
            killer.cancel()
            killed = await killer
        client = await nats.connect(server.url)
        info = await client.jetstream().stream_info(STREAM, subjects_filter=">")
        await client.close()
    subjects = info.state.subjects or {}
    ids = Counter(subject.rsplit(".", 1)[1] for subject in subjects)
    twice = sum(n > 1 for n in ids.values()) + sum(n > 1 for n in subjects.values())
    dead = sum(subject.startswith("dead.") for subject in subjects)
    counts = {"tasks": tasks, "kills": killed, "lost": tasks - len(ids), "twice": twice,
              "dead letters": dead}  # fmt: skip
    for name, value in counts.items():
        section.add(f"kill -9 each {PERIOD_S} s", name, "", value)
    section.goals = [
        Goal("no task is lost", f"kill -9 each {PERIOD_S} s", "lost", "≤", 0),
        Goal("no task has two records", f"kill -9 each {PERIOD_S} s", "twice", "≤", 0),
    ]
    return [section]
