"""What the authenticity of outcomes costs the supervisor: CPU time of sealing a task, at full load.

The real host, in this process, works through a backlog; its one call that seals is timed by the
CPU clock of the thread, which is the loop's alone. Beside it: the same call on batches of a size.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.contenders import hosted
from benchmarks.loading import last, load
from benchmarks.note import note
from benchmarks.options import Options
from benchmarks.scaling import STREAM
from benchmarks.section import Goal, Section
from executor import config as configs
from executor.cli.serving import Host
from executor.core import seal
from executor.core.envelope import Draft
from executor.core.seal import Signer
from executor.core.signature import SecretKey
from executor.telemetry import Log, Telemetry

_SIZES: Final = (1, 8, 32, 64)
_REPEATS: Final = 200
_PAYLOAD: Final = bytes(325)  # a word count's outcome
_WHO: Final = "executor at full load"


@dataclass
class Sealing:
    """What sealing took in one round."""

    outcomes: int = 0
    batches: int = 0
    cpu_ns: int = 0


async def _at_load(tasks: int, round_: int) -> Sealing:
    found, sealed = Sealing(), seal.seal

    def timed(key: Signer, drafts: Sequence[Draft], *, at: int) -> list[bytes]:
        begin = time.thread_time_ns()
        bodies = sealed(key, drafts, at=at)
        found.cpu_ns += time.thread_time_ns() - begin
        found.outcomes += len(drafts)
        found.batches += 1
        return bodies

    async with hosted() as (folder, server):
        await load(server.url, tasks, f"a{round_}")
        config = configs.load(folder / configs.FILE, environ={}, required=True)
        host = Host(config, Telemetry(Log(quiet=True)))
        await host.start()
        seal.seal = timed
        try:
            async with asyncio.timeout(300):
                while await last(server.url, STREAM) < tasks:
                    await asyncio.sleep(0.05)
        finally:
            seal.seal = sealed
            await host.close(drain_ms=5_000)
    return found


def _alone(size: int) -> float:
    """CPU µs an outcome of batches of one size."""
    key = SecretKey.generate()
    drafts = [Draft("result", f"dev/result.a.b.{n}", str(n), _PAYLOAD) for n in range(size)]
    begin = time.thread_time_ns()
    for _ in range(_REPEATS):
        seal.seal(key, drafts, at=1)
    return (time.thread_time_ns() - begin) / 1000 / size / _REPEATS


async def run(options: Options) -> list[Section]:
    """Rounds of a backlog, and of batches alone."""
    section = Section("authentic", "Authenticated outcomes", "python -m benchmarks authentic")
    section.goals = [Goal("CPU of sealing an outcome, µs", _WHO, "sealing", "≤", 8)]
    for round_ in range(options.count(options.rounds, 3, 1)):
        note(f"authentic, round {round_ + 1}")
        seen = await _at_load(options.count(options.tasks, 10_000, 500), round_)
        section.add(_WHO, "sealing", "µs", seen.cpu_ns / 1000 / seen.outcomes, round_=round_)
        section.add(_WHO, "a batch", "outcomes", seen.outcomes / seen.batches, round_=round_)
        for size in _SIZES:
            section.add(f"batches of {size}", "sealing", "µs", _alone(size), round_=round_)
    return [section]
