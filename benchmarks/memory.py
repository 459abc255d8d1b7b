"""What an executor holds: memory a process, growth over many tasks, compiled modules, 16 tenants.

Resident memory counts shared pages in every process, proportional memory divides them. Growth is
measured after a warm-up, with sandboxes that are not replaced meanwhile.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
from pathlib import Path
from typing import Final

import nats

from benchmarks import processes
from benchmarks.contenders import TENANT, cli, hosted
from benchmarks.loading import last, load, until
from benchmarks.note import note
from benchmarks.options import Options
from benchmarks.scaling import STREAM, serving
from benchmarks.section import Goal, Plot, Section
from executor.transport.server import PrivateServer

TENANTS: Final = 16
_WARM: Final = 1_000
_SLICE: Final = 10_000
_MIB: Final = 1024 * 1024


def _measure(supervisor: int, server: int) -> dict[str, tuple[float, float]]:
    """Role → resident and proportional memory in MiB; of sandboxes the median."""
    found = processes.executor(supervisor)
    boxes = found.sandboxes
    resident = [processes.resident_mib(pid) for pid in boxes]
    proportional = [processes.proportional_mib(pid) for pid in boxes]
    return {
        "supervisor": _both(found.supervisor), "fork server": _both(found.zygote),
        "a sandbox": (statistics.median(resident), statistics.median(proportional)),
        "nats-server": _both(server),
    }  # fmt: skip


def _both(pid: int) -> tuple[float, float]:
    return processes.resident_mib(pid), processes.proportional_mib(pid)


async def _growth(section: Section, folder: Path, server: PrivateServer, tasks: int) -> None:
    # No sandbox is replaced meanwhile.
    most = str(10 * tasks)
    async with serving(folder, EXECUTOR_SANDBOX_ATTEMPTS_PER_SANDBOX_MAX=most) as process:
        await _through(server.url, _WARM, "warm")
        before = _measure(process.pid, server.pid)
        for start in range(0, tasks, _SLICE):
            note(f"memory: {start} of {tasks} tasks")
            await _through(server.url, min(_SLICE, tasks - start), f"g{start}")
        after = _measure(process.pid, server.pid)
    for role, (resident, proportional) in after.items():
        section.add(role, "resident", "MiB", resident)
        section.add(role, "proportional", "MiB", proportional)
        section.add(role, "growth", "MiB", resident - before[role][0])
    section.remarks.append(f"Growth is over {tasks:,} tasks, after {_WARM:,} of warm-up.")


async def _through(url: str, tasks: int, name: str) -> None:
    stored = await last(url, STREAM)
    await load(url, tasks, name)
    await asyncio.wait_for(until(url, STREAM, stored + tasks), 300)


def _cache(section: Section, folder: Path) -> None:
    files = [path for path in (folder / "cache").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    section.add("artifact cache", "on disk", "MiB", size / _MIB)
    section.remarks.append(f"The artifact cache holds {len(files)} file(s) for one small module.")


def _add_tenants(folder: Path) -> list[str]:
    """The configured tenant many times over, each with its grant and its release."""
    config = folder / "executor.toml"
    text = config.read_text().replace(f'tasks = ["{TENANT}/*"]', 'tasks = ["*/*"]')
    block = text[text.index("[[tenant]]") : text.index("[[publisher]]")]
    names = [f"{TENANT}{number}" for number in range(TENANTS)]
    text += "".join("\n" + block.replace(TENANT, name) for name in names)
    config.write_text(text)
    cli(folder, "nats", "apply")
    for name in names:
        cli(folder, "publish", "wordcount.wasm", "--tenant", name)
    return names


async def _finished(url: str, tenant: str, tasks: int) -> float:
    """When the server stored the last of so many records, in seconds since 1970."""
    stream = f"OUTCOMES_{tenant}"
    await until(url, stream, tasks)
    client = await nats.connect(url)
    end = await client.jetstream().get_msg(stream, tasks)
    await client.close()
    assert end.time is not None
    return end.time.timestamp()


async def _many(section: Section, folder: Path, server: PrivateServer, tasks: int) -> None:
    """All tenants at once, a sandbox for each and then two for all."""
    names = _add_tenants(folder)
    done = 0
    for boxes in (TENANTS, 2):
        note(f"memory: {TENANTS} tenants, {boxes} sandboxes")
        for name in names:
            await load(server.url, tasks, f"s{boxes}", tenant=name)
        done += tasks
        async with serving(folder, boxes) as process:
            ends = await asyncio.wait_for(
                asyncio.gather(*(_finished(server.url, name, done) for name in names)), 300
            )
            begin = await _first(server.url, names, done - tasks + 1)
            _note_many(section, boxes, process, [end - begin for end in ends], tasks)


async def _first(url: str, names: list[str], sequence: int) -> float:
    client = await nats.connect(url)
    found = [await client.jetstream().get_msg(f"OUTCOMES_{n}", sequence) for n in names]
    await client.close()
    return min(message.time.timestamp() for message in found if message.time is not None)


def _note_many(
    section: Section, boxes: int, process: subprocess.Popen[bytes], ends: list[float], tasks: int
) -> None:
    found = processes.executor(process.pid)
    everything = [found.supervisor, found.zygote, *found.sandboxes]
    name = f"{TENANTS} tenants, {boxes} sandboxes"
    section.add(name, "resident", "MiB", sum(map(processes.resident_mib, everything)))
    section.add(name, "proportional", "MiB", sum(map(processes.proportional_mib, everything)))
    section.add(name, "rate", "tasks/s", tasks * TENANTS / max(ends))
    section.add(name, "slowest tenant / fastest", "×", max(ends) / max(min(ends), 1e-6))


async def run(options: Options) -> list[Section]:
    """One executor with one tenant, then one with sixteen."""
    section = Section("memory", "Memory and size", "python -m benchmarks memory")
    section.plots = [Plot("bars", "Resident memory", ("resident",), "MiB")]
    tasks = options.count(options.tasks, 100_000, 4_000)
    async with hosted() as (folder, server):
        await _growth(section, folder, server, tasks)
        _cache(section, folder)
        await _many(section, folder, server, 20 if options.quick else 100)
    section.goals = [
        Goal(f"T11 growth of {role}, MiB", role, "growth", "≤", 1.0)
        for role in ("supervisor", "a sandbox")
    ]
    return [section]
