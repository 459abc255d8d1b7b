"""Sandboxed, signed and durable, against a bare Python loop: tasks per second in the same run.

Each round loads a backlog of word-count tasks with a plain nats-py script, lets one contender
consume it, and takes the rate from the server's own timestamps of the first and the last stored
result. The contenders take turns; the table shows medians and the ratio.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgpack
import nats
from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig

from executor.transport.server import PrivateServer

WORDS = " ".join(f"word{i % 97}" for i in range(160))[:1000].encode()
TENANT = "bench"
_WINDOW = 256


@dataclass(frozen=True)
class Round:
    """One contender's turn."""

    tasks: int
    results: int
    distinct: int
    rate: float  # tasks/s
    cpu_ms_per_1k: float  # of the contender's processes, without server and submitter


def cli(folder: Path, *arguments: str, **options: str) -> subprocess.CompletedProcess[bytes]:
    """One call of the command in a folder; it must succeed."""
    return subprocess.run(
        [sys.executable, "-m", "executor.cli.main", *arguments],
        cwd=folder, check=True, capture_output=True, env={**os.environ, **options},
    )  # fmt: skip


def prepare(folder: Path, url: str) -> Path:
    """A folder with configuration, keys and a published word count."""
    cli(folder, "init", ".", "--tenant", TENANT)
    config = folder / "executor.toml"
    config.write_text(config.read_text().replace("nats://127.0.0.1:4222", url))
    cli(folder, "nats", "apply")
    module = Path(__file__).parent.parent / "tasks_wasm" / "wordcount" / "wordcount.wasm"
    cli(folder, "sign", str(module), "--key", "keys/author.key", "-o", "wordcount.wasm")
    cli(folder, "publish", "wordcount.wasm")
    return config


def _envelope(number: int, round_: int) -> tuple[str, bytes, dict[str, str]]:
    """A task as any program can write it: an id that is new, and says so."""
    task_id = f"b{round_}-{number}"
    body = msgpack.packb({
        "v": 1, "typ": "task", "aud": f"dev/task.{TENANT}.wordcount", "id": task_id,
        "input": WORDS, "fresh": True,
    })  # fmt: skip
    return f"task.{TENANT}.wordcount", body, {"Nats-Msg-Id": task_id}


def _raw(number: int, round_: int) -> tuple[str, bytes, dict[str, str]]:
    """A raw body: the id is the submitter's own and is looked up before it runs."""
    task_id = f"r{round_}-{number}"
    return f"task.{TENANT}.wordcount", WORDS, {"Task-Id": task_id, "Nats-Msg-Id": task_id}


def _bare(number: int, round_: int) -> tuple[str, bytes, dict[str, str]]:
    task_id = f"p{round_}-{number}"
    return f"bare.task.{round_}", WORDS, {"Task-Id": task_id, "Nats-Msg-Id": task_id}


FORMS = {"executor": _envelope, "executor, raw bodies": _raw, "bare nats-py loop": _bare}


async def load(url: str, form: str, tasks: int, round_: int) -> None:
    """Submit `tasks` from plain nats-py, a window of publishes in flight, each confirmed."""
    client = await nats.connect(url)
    jetstream = client.jetstream(publish_async_max_pending=_WINDOW)
    futures = []
    for number in range(tasks):
        subject, body, headers = FORMS[form](number, round_)
        futures.append(await jetstream.publish_async(subject, body, headers=headers))
    await asyncio.gather(*futures)
    await client.close()


def _cpu_s(pid: int) -> float:
    """User and system time of a process and of the children it reaped or has."""
    total = 0.0
    tick = os.sysconf("SC_CLK_TCK")
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            if int(path.parent.name) == pid or int(fields[1]) == pid:
                total += (int(fields[11]) + int(fields[12])) / tick
                if int(path.parent.name) == pid:
                    total += (int(fields[13]) + int(fields[14])) / tick
    return total


async def _stored(url: str, stream: str, first: int) -> tuple[int, int, float]:
    """(messages, distinct subjects, seconds from first to last) from `first` on; then empties.

    The server names at most 100,000 subjects, so each round starts with an empty stream.
    """
    client = await nats.connect(url)
    jetstream = client.jetstream()
    info = await jetstream.stream_info(stream, subjects_filter=">")
    end_sequence = info.state.last_seq
    begin = await jetstream.get_msg(stream, first)
    end = await jetstream.get_msg(stream, end_sequence)
    await jetstream.purge_stream(stream)
    await client.close()
    assert begin.time is not None
    assert end.time is not None
    seconds = (end.time - begin.time).total_seconds()
    return end_sequence - first + 1, len(info.state.subjects or {}), seconds


async def last(url: str, stream: str) -> int:
    """The last sequence of a stream."""
    client = await nats.connect(url)
    info = await client.jetstream().stream_info(stream)
    await client.close()
    return int(info.state.last_seq)


async def _until(url: str, stream: str, sequence: int) -> None:
    while await last(url, stream) < sequence:
        await asyncio.sleep(0.05)


async def _run_executor(folder: Path, url: str, form: str, tasks: int, round_: int) -> Round:
    stream = f"OUTCOMES_{TENANT}"
    await load(url, form, tasks, round_)
    before = await last(url, stream)
    server = subprocess.Popen(
        [sys.executable, "-m", "executor.cli.main", "serve", "-q"], cwd=folder
    )
    try:
        await asyncio.wait_for(_until(url, stream, before + tasks), 300)
        cpu = _cpu_s(server.pid)
    finally:
        server.terminate()
        await asyncio.to_thread(server.wait)
    return _round(tasks, await _stored(url, stream, before + 1), cpu)


async def _run_bare(_folder: Path, url: str, form: str, tasks: int, round_: int) -> Round:
    client = await nats.connect(url)
    jetstream = client.jetstream()
    consumer = f"c{round_}"
    await jetstream.add_consumer(
        "BARE",
        ConsumerConfig(durable_name=consumer, filter_subject=f"bare.task.{round_}",
                       ack_wait=30, max_ack_pending=4096),
    )  # fmt: skip
    await client.close()
    await load(url, form, tasks, round_)
    before = await last(url, "BARE_OUT")
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bare", url, "BARE", consumer, str(tasks)],
        cwd=Path(__file__).parent.parent,
    )
    try:
        await asyncio.wait_for(_until(url, "BARE_OUT", before + tasks), 300)
        cpu = _cpu_s(process.pid)
    finally:
        await asyncio.to_thread(process.wait, 60)
    return _round(tasks, await _stored(url, "BARE_OUT", before + 1), cpu)


def _round(tasks: int, stored: tuple[int, int, float], cpu: float) -> Round:
    count, distinct, seconds = stored
    return Round(tasks, count, distinct, (count - 1) / seconds, cpu * 1e6 / tasks)


@contextlib.asynccontextmanager
async def hosted() -> AsyncIterator[tuple[Path, PrivateServer]]:
    """A server, and a folder with configuration, keys and a published module."""
    with tempfile.TemporaryDirectory(prefix="executor-bench-") as name:
        folder = Path(name)
        async with PrivateServer(folder / "nats") as server:
            prepare(folder, server.url)
            yield folder, server


@contextlib.asynccontextmanager
async def stage() -> AsyncIterator[tuple[Path, str]]:
    """The same, and streams for the bare loop."""
    async with hosted() as (folder, server):
        client = await nats.connect(server.url)
        jetstream = client.jetstream()
        await jetstream.add_stream(StreamConfig(
            name="BARE", subjects=["bare.task.*"], retention=RetentionPolicy.WORK_QUEUE,
        ))  # fmt: skip
        await jetstream.add_stream(name="BARE_OUT", subjects=["bare.result.*"])
        await client.close()
        yield folder, server.url


async def main(tasks: int, rounds: int, *, as_json: bool) -> None:
    """Run all contenders in turn and print the table."""
    results: dict[str, list[Round]] = {form: [] for form in FORMS}
    async with stage() as (folder, url):
        for round_ in range(rounds):
            for form in FORMS:
                run = _run_bare if form.startswith("bare") else _run_executor
                results[form].append(await run(folder, url, form, tasks, round_))
    if as_json:
        print(json.dumps({form: [vars(r) for r in runs] for form, runs in results.items()}))
        return
    base = statistics.median(r.rate for r in results["bare nats-py loop"])
    print(f"{tasks} tasks of {len(WORDS)} bytes a round, {rounds} rounds, median (min-max)")
    print(f"{'':<22} {'tasks/s':>22} {'ratio':>6} {'CPU ms/1k':>10}  results, distinct, lost")
    for form, runs in results.items():
        rates = sorted(r.rate for r in runs)
        middle = statistics.median(rates)
        cpu = statistics.median(r.cpu_ms_per_1k for r in runs)
        stored, distinct = sum(r.results for r in runs), sum(r.distinct for r in runs)
        lost = sum(r.tasks for r in runs) - stored
        span = f"{middle:,.0f} ({rates[0]:,.0f}-{rates[-1]:,.0f})"
        print(f"{form:<22} {span:>22} {middle / base:>6.2f} {cpu:>10.1f}  "
              f"{stored}, {distinct}, {lost}")  # fmt: skip
