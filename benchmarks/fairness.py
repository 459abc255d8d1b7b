"""A tenant floods: what its neighbour's tasks take, one in flight, beside what they take alone.

Two tenants share three sandboxes, one of them in reserve. The neighbour asks for a word count,
waits for its outcome, and asks again: alone, and then while the other's queue is full of a hundred
times as many word counts, or of a hundred guests that spin for tens of ms each. Rounds alternate.
Also printed: what the answer of an open breaker takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.contenders import cli
from benchmarks.note import note
from benchmarks.options import Options
from benchmarks.peers.work import WORDS
from benchmarks.section import Goal, Plot, Section, percentile
from executor.client import Client
from executor.core.breaker import BreakerRules
from executor.supervisor.breakers import Breakers
from executor.transport.server import PrivateServer

QUIET, FLOODER = "quiet", "flooder"
BACKLOG = 100
_SPIN_FUEL = 50_000_000
_TASKS = Path(__file__).parent.parent / "tasks_wasm"


@dataclass
class Samples:
    """Milliseconds from submission to outcome, alone and beside a flood."""

    alone: list[float] = field(default_factory=list)
    flooded: list[float] = field(default_factory=list)
    flood: list[float] = field(default_factory=list)  # guest time of the flooder's attempts


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return percentile(values, 0.99)


@contextlib.asynccontextmanager
async def _stage() -> AsyncIterator[tuple[Client, Client]]:
    """A server, `serve` with two tenants, and a client of each."""
    with tempfile.TemporaryDirectory(prefix="executor-bench-") as name:
        folder = Path(name)
        async with PrivateServer(folder / "nats") as server:
            _prepare(folder, server.url)
            process = subprocess.Popen(
                [sys.executable, "-m", "executor.cli.main", "serve", "-q"], cwd=folder
            )
            try:
                config = folder / "executor.toml"
                async with (
                    await Client.from_config(config, QUIET) as quiet,
                    await Client.from_config(config, FLOODER) as flooder,
                ):
                    await quiet.run("wordcount", WORDS, timeout_s=60)
                    await flooder.run("wordcount", WORDS, timeout_s=60)
                    yield quiet, flooder
            finally:
                process.terminate()
                await asyncio.to_thread(process.wait)


def _prepare(folder: Path, url: str) -> None:
    cli(folder, "init", ".", "--tenant", QUIET)
    config = folder / "executor.toml"
    text = config.read_text().replace("nats://127.0.0.1:4222", url)
    text = text.replace("count = 2", "count = 3\nreserve = 1")
    text = text.replace(f'tasks = ["{QUIET}/*"]', 'tasks = ["*/*"]')
    start, end = text.index("[[tenant]]"), text.index("[[publisher]]")
    config.write_text(text + "\n" + text[start:end].replace(QUIET, FLOODER))
    cli(folder, "nats", "apply")
    for task in ("wordcount", "hostile/spin"):
        module = f"{Path(task).name}.wasm"
        cli(folder, "sign", str(_TASKS / task / module), "--key", "keys/author.key", "-o", module)
        for tenant in (QUIET, FLOODER):
            cli(folder, "publish", module, "--tenant", tenant)


async def _ask(client: Client, count: int) -> list[float]:
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        outcome = await client.run("wordcount", WORDS, timeout_s=60)
        assert outcome.ok
        taken.append((time.perf_counter() - began) * 1000)
    return taken


async def _measure(quiet: Client, flooder: Client, task: str, tasks: int, rounds: int) -> Samples:
    samples = Samples()
    fuel = _SPIN_FUEL if task == "spin" else 0
    # Spinning takes tens of milliseconds: a hundred of them outlast the measurement as well.
    count = BACKLOG if task == "spin" else BACKLOG * tasks
    for _ in range(rounds):
        samples.alone += await _ask(quiet, tasks)
        requests = [flooder.request(task, WORDS, fuel=fuel) for _ in range(count)]
        await flooder.submit_many(requests)
        samples.flooded += await _ask(quiet, tasks)
        left = await _queued(flooder)
        assert left, "the flood ended before the measurement"
        # What is left of it ends before the next quiet round.
        while await _queued(flooder):
            await asyncio.sleep(0.05)
        for request in requests[:BACKLOG]:
            outcome = await flooder.outcome(request.id, task=task)
            assert outcome is not None
            samples.flood.append(outcome.receipt.guest_us / 1000)
    return samples


async def _queued(client: Client) -> int:
    """Messages in the flooder's queue, those in hand included."""
    state = (await client.connection.api(f"STREAM.INFO.TASKS_{FLOODER}"))["state"]
    return int(state["messages"])


def short_circuit_us(calls: int = 100_000) -> float:
    """Microseconds that the answer of an open breaker takes."""

    class Nobody:
        def put(self, key: str, value: bytes) -> None:
            del key, value

        def delete(self, key: str) -> None:
            del key

        async def get(self, key: str) -> None:
            del key

    event: Callable[..., None] = lambda *_names, **_facts: None  # noqa: E731
    breakers = Breakers(
        Nobody(), "dev", "bench", lambda: time.time_ns() // 1_000_000, lambda: 0.5, event,
        BreakerRules(threshold=1, open_ms=3_600_000, open_max_ms=3_600_000),
    )  # fmt: skip
    names = (("module", QUIET, "0" * 64), ("sandbox", QUIET, "_"))
    breakers.failed(names[0])
    began = time.perf_counter()
    for _ in range(calls):
        assert breakers.wait_ms(*names)[1]
    return (time.perf_counter() - began) / calls * 1e6


async def run(options: Options) -> list[Section]:
    """Both floods, and the breaker."""
    section = Section("fairness", "A neighbour that floods", "python -m benchmarks fairness")
    tasks, rounds = options.count(options.tasks, 300, 40), options.count(options.rounds, 3, 1)
    section.remarks.append(f"{tasks} tasks a round, 3 sandboxes with 1 in reserve.")
    async with _stage() as (quiet, flooder):
        for task in ("wordcount", "spin"):
            note(f"fairness: flood of {task}")
            found = await _measure(quiet, flooder, task, tasks, rounds)
            name = f"flood of {task}"
            section.add(name, "alone", "ms", found.alone)
            section.add(name, "flooded", "ms", found.flooded)
            bound = 2 * p99(found.alone) + p99(found.flood)
            section.add(name, "one attempt, p99", "ms", p99(found.flood))
            section.add(name, "2 × p99 alone + one attempt", "ms", bound)
            section.goals.append(
                Goal(f"{name}: p99 ≤ 2 × alone + one attempt, ms", name, "flooded", "≤", bound,
                     stat="p99")
            )  # fmt: skip
    section.add("open breaker", "answer", "µs", short_circuit_us())
    section.goals.append(Goal("an open breaker answers, µs", "open breaker", "answer", "≤", 1000))
    section.plots = [Plot("distribution", "Latency beside a flood", ("flooded",), "ms")]
    return [section]
