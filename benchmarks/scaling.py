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

from benchmarks import loading, processes
from benchmarks.contenders import TENANT, cli, hosted, purge
from benchmarks.note import note
from benchmarks.options import Options
from benchmarks.peers.work import WORDS
from benchmarks.section import Plot, Section
from executor.sizes import KIB
from executor.transport.server import PrivateServer
from tests.support import guests

SANDBOXES: Final = (1, 2, 4)
IDLE: Final = "idle"
_WARM: Final = 100
LARGE: Final = 32 * KIB  # a larger one fills a queue of 1 GiB with few tasks
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


def _publish_idle(folder: Path) -> None:
    """A task that does nothing with its input, so that its size alone counts."""
    idle = folder / "idle.wasm"
    idle.write_bytes(guests.described(guests.assemble(f"{guests.RUN} (i32.const 0))"), IDLE))
    cli(folder, "sign", "idle.wasm", "--key", "keys/author.key", "-o", "idle.wasm")
    cli(folder, "publish", "idle.wasm")


async def _cost(
    folder: Path, server: PrivateServer, size: int, tasks: int, name: str
) -> dict[str, float]:
    """CPU of a task of this size by process, in µs, from its submission to its outcome."""
    async with serving(folder) as process:

        def now() -> dict[str, float]:
            own = processes.own_cpu_s(process.pid)
            return {
                "server": processes.own_cpu_s(server.pid), "supervisor": own,
                "sandboxes": processes.cpu_s(processes.tree(process.pid)) - own,
            }  # fmt: skip

        async def through(count: int, name: str) -> None:
            stored = await loading.last(server.url, STREAM)
            await loading.load(server.url, count, name, bytes(size), task=IDLE)
            await asyncio.wait_for(loading.until(server.url, STREAM, stored + count), 300)

        await through(_WARM, f"{name}-warm")
        before = now()
        await through(tasks, name)
        after = now()
    await purge(server.url, STREAM)
    return {role: (after[role] - before[role]) * 1e6 / tasks for role in after}


async def _sizes(section: Section, folder: Path, server: PrivateServer, tasks: int, round_: int
                 ) -> None:  # fmt: skip
    """What a KiB of input more costs, and what is stored."""
    small = await _cost(folder, server, KIB, tasks, f"z{round_}-small")
    large = await _cost(folder, server, LARGE, tasks, f"z{round_}-large")
    for role in small:
        more = (large[role] - small[role]) / (LARGE / KIB - 1)
        section.add("a KiB more", f"CPU {role}", "µs", more, round_=round_)


async def _stored(section: Section, folder: Path, server: PrivateServer) -> None:
    """Bytes that the streams hold for a task and for its outcome."""
    count = 100
    await loading.load(server.url, count, "bytes")
    task = await loading.mean_bytes(server.url, f"TASKS_{TENANT}")
    section.add("stored", "task beside input", "B", task - len(WORDS))
    stored = await loading.last(server.url, STREAM)
    async with serving(folder):
        await asyncio.wait_for(loading.until(server.url, STREAM, stored + count), 60)
    section.add("stored", "outcome", "B", await loading.mean_bytes(server.url, STREAM))


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
        _publish_idle(folder)
        await _stored(section, folder, server)
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
            note(f"scaling, round {round_ + 1}: sizes")
            await _sizes(section, folder, server, max(tasks // 10, 200), round_)
    return [section]
