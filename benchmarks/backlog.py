"""A queue of a million tasks beside one of a few: what its length costs.

Two servers, each with its executor's folder: one holds a backlog, the other never more than the
slice it is about to be asked for. In turn, `executor serve` consumes a slice from each; CPU time a
task and memory, of supervisor and server, are read from /proc while records appear.

    python -m benchmarks backlog --tasks 1000000
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgpack
import nats

from benchmarks.throughput import TENANT, hosted, last
from executor.transport.server import PrivateServer

SLICE: Final = 10_000  # tasks that are measured, a round and contender
WARM: Final = 1_000  # tasks before them
_WINDOW: Final = 256
_CHUNK: Final = 20_000
_INPUT: Final = b"a few words to count, and then a few more"
_SUBJECT: Final = f"task.{TENANT}.wordcount"
_STREAM: Final = f"OUTCOMES_{TENANT}"
_KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Slice:
    """What one slice cost."""

    tasks: int
    seconds: float
    supervisor_us: float  # CPU a task
    server_us: float
    supervisor_mib: float  # resident, at the end
    supervisor_growth_mib: float  # from the first measured task to the last
    server_mib: float
    ready_s: float  # from the start of the process to its first record


async def fill(url: str, tasks: int, name: str) -> None:
    """Queue so many small tasks, each with an id that is new and says so."""
    client = await nats.connect(url)
    jetstream = client.jetstream(publish_async_max_pending=_WINDOW)
    for start in range(0, tasks, _CHUNK):
        futures = []
        for number in range(start, min(start + _CHUNK, tasks)):
            body = msgpack.packb({
                "v": 1, "typ": "task", "aud": f"dev/{_SUBJECT}", "id": f"{name}-{number}",
                "input": _INPUT, "fresh": True,
            })  # fmt: skip
            futures.append(await jetstream.publish_async(_SUBJECT, body))
        await asyncio.gather(*futures)
    await client.close()


def cpu_s(pid: int) -> float:
    """User and system time of a process, its children aside."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """The memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (_KIB * _KIB)


@contextlib.contextmanager
def _serving(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "executor.cli.main", "serve", "-q"], cwd=folder
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


async def consume(folder: Path, server: PrivateServer) -> Slice:
    """Let `serve` take a slice from what is queued, and stop it."""
    before = await last(server.url, _STREAM)
    began = time.monotonic()
    with _serving(folder) as process:

        async def reach(records: int) -> int:
            async with asyncio.timeout(300):
                while (stored := await last(server.url, _STREAM)) < before + records:
                    await asyncio.sleep(0.02)
            return stored

        await reach(1)
        ready = time.monotonic() - began
        first = await reach(WARM)
        at, own, theirs = time.monotonic(), cpu_s(process.pid), cpu_s(server.pid)
        memory = resident_mib(process.pid)
        end = await reach(WARM + SLICE)
        tasks = end - first
        return Slice(
            tasks, time.monotonic() - at,
            (cpu_s(process.pid) - own) * 1e6 / tasks, (cpu_s(server.pid) - theirs) * 1e6 / tasks,
            resident_mib(process.pid), resident_mib(process.pid) - memory,
            resident_mib(server.pid), ready,
        )  # fmt: skip


async def _queued(url: str) -> int:
    client = await nats.connect(url)
    info = await client.jetstream().stream_info(f"TASKS_{TENANT}")
    await client.close()
    return int(info.state.messages)


async def main(tasks: int, rounds: int, *, as_json: bool) -> None:
    """Fill one queue, then let both contenders take turns, and print the table."""
    if tasks < (rounds + 1) * (WARM + SLICE) * 2:
        raise SystemExit(f"a backlog for {rounds} rounds needs more than {tasks} tasks")
    results: dict[str, list[Slice]] = {"few queued": [], "backlog": []}
    async with hosted() as (lean, few), hosted() as (full, many):
        started = time.monotonic()
        await fill(many.url, tasks, "backlog")
        filled = time.monotonic() - started
        for round_ in range(rounds):
            # Its tasks last for the slice and what a serving process holds beyond it.
            await fill(few.url, 2 * (WARM + SLICE), f"r{round_}")
            results["few queued"].append(await consume(lean, few))
            results["backlog"].append(await consume(full, many))
        left = await _queued(many.url)
    report = {name: [_facts(each) for each in slices] for name, slices in results.items()}
    if as_json:
        print(json.dumps({"tasks": tasks, "left": left, "filled_s": filled, **report}))
        return
    print(f"{tasks} queued in {filled:.0f} s, {left} left; {rounds} rounds of {SLICE}, medians")
    print(f"{'':<26} {'few queued':>12} {'backlog':>12} {'ratio':>7}")
    for name in report["backlog"][0]:
        one, other = (statistics.median(f[name] for f in report[key]) for key in results)
        ratio = f"{other / one:>7.2f}" if one > 0 else ""
        print(f"{name:<26} {one:>12.2f} {other:>12.2f} {ratio}")


def _facts(each: Slice) -> dict[str, float]:
    return {
        "tasks/s": each.tasks / each.seconds, "supervisor CPU us/task": each.supervisor_us,
        "server CPU us/task": each.server_us, "supervisor MiB": each.supervisor_mib,
        "supervisor growth MiB": each.supervisor_growth_mib, "server MiB": each.server_mib,
        "first record after s": each.ready_s,
    }  # fmt: skip
