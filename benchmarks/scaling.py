"""How the rate grows with sandboxes, and what the length of the queue does to it.

A backlog is queued before the clock starts; the rate comes from the server's own timestamps of the
first and the last stored record.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import nats

from benchmarks import loading
from benchmarks.contenders import TENANT, hosted, purge
from benchmarks.note import note
from benchmarks.options import Options
from benchmarks.section import Plot, Section

SANDBOXES: Final = (1, 2, 4)
STREAM: Final = f"OUTCOMES_{TENANT}"


async def drain(folder: Path, url: str, tasks: int, *, sandboxes: int, name: str) -> float:
    """Queue so many, let `serve` take them all, and say at which rate they were stored."""
    await loading.load(url, tasks, name)
    before = await loading.last(url, STREAM)
    async with serving(folder, sandboxes):
        await asyncio.wait_for(loading.until(url, STREAM, before + tasks), 300)
    client = await nats.connect(url)
    jetstream = client.jetstream()
    begin = await jetstream.get_msg(STREAM, before + 1)
    end = await jetstream.get_msg(STREAM, before + tasks)
    await client.close()
    await purge(url, STREAM)
    assert begin.time is not None
    assert end.time is not None
    return (tasks - 1) / (end.time - begin.time).total_seconds()


@asynccontextmanager
async def serving(
    folder: Path, sandboxes: int = 2, **environ: str
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A running executor with so many sandboxes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "executor.cli.main", "serve", "-q"], cwd=folder,
        env={**loading.ENVIRON, "EXECUTOR_SANDBOX_COUNT": str(sandboxes), **environ},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


async def run(options: Options) -> list[Section]:
    """Both curves, interleaved."""
    section = Section("scaling", "Sandboxes and backlog", "python -m benchmarks scaling")
    section.plots = [
        Plot("lines", "Tasks per second over sandboxes", ("rate by sandboxes",), "tasks/s"),
        Plot("lines", "Tasks per second over backlog", ("rate by backlog",), "tasks/s"),
    ]
    tasks = options.count(options.tasks, 20_000, 2_000)
    backlogs = (tasks // 20, tasks // 2, 2 * tasks)
    async with hosted() as (folder, server):
        for round_ in range(options.count(options.rounds, 3, 1)):
            for count in SANDBOXES:
                note(f"scaling, round {round_ + 1}: {count} sandboxes")
                rate = await drain(folder, server.url, tasks, sandboxes=count,
                                   name=f"s{round_}-{count}")  # fmt: skip
                section.add(f"executor, sandboxes {count}", "rate by sandboxes", "tasks/s", rate,
                            round_=round_)  # fmt: skip
            for backlog in backlogs:
                note(f"scaling, round {round_ + 1}: backlog of {backlog}")
                rate = await drain(folder, server.url, backlog, sandboxes=2,
                                   name=f"b{round_}-{backlog}")  # fmt: skip
                section.add(f"executor, backlog {backlog}", "rate by backlog", "tasks/s", rate,
                            round_=round_)  # fmt: skip
    return [section]
