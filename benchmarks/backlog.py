"""A queue of a million tasks beside one of a few: what its length costs.

Two servers, each with its executor's folder: one holds a backlog, the other never more than the
slice it is about to be asked for. In turn, `executor serve` consumes a slice from each; CPU time a
task and memory, of supervisor and server, are read from /proc while records appear.

    python -m benchmarks backlog --tasks 1000000
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import nats

from benchmarks.contenders import TENANT, hosted
from benchmarks.loading import last, load
from benchmarks.note import note
from benchmarks.options import Options
from benchmarks.processes import own_cpu_s, resident_mib
from benchmarks.scaling import STREAM, serving
from benchmarks.section import Goal, Section
from executor.transport.server import PrivateServer

SLICE: Final = 10_000  # tasks that are measured, a round and contender
WARM: Final = 1_000  # tasks before them
_INPUT: Final = b"a few words to count, and then a few more"


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


async def consume(folder: Path, server: PrivateServer) -> Slice:
    """Let `serve` take a slice from what is queued, and stop it."""
    before = await last(server.url, STREAM)
    began = time.monotonic()
    async with serving(folder) as process:

        async def reach(records: int) -> int:
            async with asyncio.timeout(300):
                while (stored := await last(server.url, STREAM)) < before + records:
                    await asyncio.sleep(0.02)
            return stored

        await reach(1)
        ready = time.monotonic() - began
        first = await reach(WARM)
        at, own, theirs = time.monotonic(), own_cpu_s(process.pid), own_cpu_s(server.pid)
        memory = resident_mib(process.pid)
        end = await reach(WARM + SLICE)
        tasks = end - first
        return Slice(
            tasks, time.monotonic() - at,
            (own_cpu_s(process.pid) - own) * 1e6 / tasks,
            (own_cpu_s(server.pid) - theirs) * 1e6 / tasks,
            resident_mib(process.pid), resident_mib(process.pid) - memory,
            resident_mib(server.pid), ready,
        )  # fmt: skip


async def _queued(url: str) -> int:
    client = await nats.connect(url)
    info = await client.jetstream().stream_info(f"TASKS_{TENANT}")
    await client.close()
    return int(info.state.messages)


async def run(options: Options) -> list[Section]:
    """Fill one queue, then let both contenders take turns."""
    rounds = options.count(options.rounds, 3, 1)
    least = (rounds + 1) * (WARM + SLICE) * 2
    tasks = options.count(options.tasks, 200_000, least)
    if tasks < least:
        raise SystemExit(f"a backlog for {rounds} rounds needs at least {least} tasks")
    section = Section("backlog", "A long queue beside a short one", "python -m benchmarks backlog")
    section.base = "few queued"
    async with hosted() as (lean, few), hosted() as (full, many):
        note(f"backlog: queueing {tasks}")
        await load(many.url, tasks, "backlog", _INPUT)
        for round_ in range(rounds):
            note(f"backlog, round {round_ + 1}")
            # Its tasks last for the slice and what a serving process holds beyond it.
            await load(few.url, 2 * (WARM + SLICE), f"r{round_}", _INPUT)
            for name, folder, server in (("few queued", lean, few), ("backlog", full, many)):
                for metric, (unit, value) in _facts(await consume(folder, server)).items():
                    section.add(name, metric, unit, value, round_=round_)
        section.remarks.append(f"{tasks} queued, {await _queued(many.url)} left.")
    section.goals = [
        Goal(f"T13 {metric}, over few queued", "backlog", metric, "≤", 1.1, over="few queued")
        for metric in ("supervisor CPU", "server CPU")
    ]
    return [section]


def _facts(each: Slice) -> dict[str, tuple[str, float]]:
    return {
        "supervisor CPU": ("µs", each.supervisor_us), "server CPU": ("µs", each.server_us),
        "rate": ("tasks/s", each.tasks / each.seconds), "supervisor": ("MiB", each.supervisor_mib),
        "supervisor growth": ("MiB", each.supervisor_growth_mib),
        "server": ("MiB", each.server_mib), "first record": ("s", each.ready_s),
    }  # fmt: skip
