"""What the authenticity of outcomes costs the supervisor: CPU time of sealing a task, at full load.

The real host, in this process, works through a backlog; its one call that seals is timed by the
CPU clock of the thread, which is the loop's alone. Beside it: the same call on batches of a size.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from benchmarks.throughput import TENANT, hosted, last, load
from executor import config as configs
from executor.cli.serving import Host
from executor.core import seal
from executor.core.envelope import Draft
from executor.core.signature import SecretKey
from executor.telemetry import Log, Telemetry

_SIZES: Final = (1, 8, 32, 64)
_REPEATS: Final = 200
_PAYLOAD: Final = bytes(325)  # a word count's outcome


@dataclass
class Sealing:
    """What sealing took in one round."""

    outcomes: int = 0
    batches: int = 0
    cpu_ns: int = 0

    @property
    def us(self) -> float:
        """CPU an outcome."""
        return self.cpu_ns / 1000 / max(self.outcomes, 1)


async def _at_load(tasks: int, number: int) -> Sealing:
    found, sealed = Sealing(), seal.seal

    def timed(key: SecretKey, drafts: Sequence[Draft], *, at: int) -> list[bytes]:
        begin = time.thread_time_ns()
        bodies = sealed(key, drafts, at=at)
        found.cpu_ns += time.thread_time_ns() - begin
        found.outcomes += len(drafts)
        found.batches += 1
        return bodies

    async with hosted() as (folder, server):
        await load(server.url, "executor", tasks, number)
        config = configs.load(folder / configs.FILE, environ={}, required=True)
        host = Host(config, Telemetry(Log(quiet=True)))
        await host.start()
        seal.seal = timed
        try:
            async with asyncio.timeout(300):
                while await last(server.url, f"OUTCOMES_{TENANT}") < tasks:
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


async def main(tasks: int, rounds: int, *, as_json: bool) -> None:
    """Print medians."""
    found = [await _at_load(tasks, number) for number in range(rounds)]
    alone = {size: _alone(size) for size in _SIZES}
    us = statistics.median(one.us for one in found)
    mean = statistics.median(one.outcomes / max(one.batches, 1) for one in found)
    if as_json:
        print(json.dumps({"us_per_outcome": us, "batch_mean": mean, "alone_us": alone,
                          "rounds": [asdict(one) for one in found]}))  # fmt: skip
        return
    print(f"sealing at full load  {us:.1f} µs of CPU an outcome, {mean:.1f} outcomes a batch")
    for size, value in alone.items():
        print(f"  batches of {size:>2}       {value:.1f} µs")
