"""`executor demo`: the whole journey on a private nats-server, in a folder that is gone afterwards.

Thirteen tasks: five that succeed, in two languages and one only at its second attempt, and eight
that fail in eight ways, each contained and each with its one dead letter.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from executor import config as configs
from executor.cli import output
from executor.cli.base import Verb, run_async, state, write_file
from executor.cli.operate import outcome_fields, publish_module, store
from executor.cli.serving import Host, queue, settings, stream_options
from executor.client import Client, TaskOutcome
from executor.config import Config
from executor.core import manifest, signature, wasm
from executor.core.manifest import Manifest
from executor.core.signature import SecretKey
from executor.errors import TABLE, ExecutorError
from executor.model import Release
from executor.telemetry import Log, Telemetry
from executor.transport import streams
from executor.transport.connection import Connection
from executor.transport.server import PrivateServer

_TENANT: Final = "demo"
_ALL_S: Final = 90.0  # far beyond what the slowest machine needs: a bound, not a measure

_CONFIG: Final = """\
[host]
name = "demo"
[nats]
url = "{url}"
[delivery]
backoff_ms = [50]
[limits]
fuel = 50_000_000_000
memory_max_mib = 16
[[tenant]]
name = "demo"
ceiling = {{ capabilities = ["log", "kv"] }}
[[grant]]
tenant = "demo"
task = "*"
why = "log lines are bounded and escaped"
log = true
[[grant]]
tenant = "demo"
task = "flaky"
why = "remembers that it ran"
kv = {{ prefix = "flaky/", mode = "write" }}
[[publisher]]
name = "demo-author"
key = "{author}"
tasks = ["demo/*"]
[[executor]]
name = "demo"
key = "{executor}"
[[operator]]
name = "demo"
key = "{operator}"
[[binding]]
role = "releaser"
who = ["demo"]
why = "it publishes what it shows"
"""

_POEM: Final = (
    "the process with the keys never runs your code and the process that runs your code has "
    "nothing worth stealing"
)


@dataclass(frozen=True, slots=True)
class _Case:
    """One task of the demo: which module, what to ask, what it shows."""

    task: str
    source: str  # below tasks_wasm; "" for none of its own
    shows: str
    text: str = "demo"
    sample: str = ""  # take this file of the task as input
    options: tuple[tuple[str, int], ...] = ()


_CASES: Final = (
    _Case("wordcount", "wordcount", "C", _POEM),
    _Case("wordcount-zig", "wordcount-zig", "Zig, the same output", _POEM),
    _Case("ascii-art", "ascii-art", "Zig, a picture as text", sample="sample.ppm"),
    _Case("flaky", "flaky", "fails once, then succeeds"),
    _Case("log-flood", "hostile/log-flood", "10 000 log lines: 256 kept"),
    _Case("spin", "hostile/spin", "loops for ever", options=(("fuel", 10_000_000),)),
    _Case("balloon", "hostile/balloon", "grows its memory"),
    _Case("slow", "hostile/slow", "outstays its deadline",
          options=(("deadline_ms", 150), ("attempts_max", 1))),
    _Case("curious", "curious", "wants more than granted"),
    _Case("trap", "hostile/trap", "crashes three calls deep"),
)  # fmt: skip


# Put into the store behind the back of `publish`, and no task at all.
_BEHIND: Final = {
    "unsigned": "carries no signature",
    "tampered": "one byte changed",
    "(no envelope)": "bytes that are no task",
}


def _asset(source: str, name: str) -> bytes:
    root = importlib.resources.files("tasks_wasm")
    return root.joinpath(source, name).read_bytes()


def _module(source: str) -> bytes:
    return _asset(source, f"{source.rpartition('/')[2]}.wasm")


@click.command("demo", cls=Verb)
@click.option("--report", type=click.Path(path_type=Path), help="Also write the JSON there.")
def demo(report: Path | None) -> None:
    """Run thirteen tasks, good and hostile, all offline.

    Offline, in a temporary folder, on a port of its own; leaves nothing behind.

    Example: executor demo
    """
    out = state().out
    out.say("starting nats-server, signing and publishing modules, starting two sandboxes …")
    found, submitted = run_async(_demo())
    if report is not None:
        import json  # only here

        write_file(report, json.dumps(_summary(found, submitted)).encode())
    out.data(_summary(found, submitted), _table(found, submitted))
    if len(found) != submitted:
        raise SystemExit(TABLE["transport.outcome-pending"].exit)


async def _demo() -> tuple[list[TaskOutcome], int]:
    author, operator, key = (SecretKey.generate() for _ in range(3))
    with tempfile.TemporaryDirectory(prefix="executor-demo-") as folder:
        async with PrivateServer(Path(folder) / "nats") as server:
            text = _CONFIG.format(
                url=server.url, author=author.public.text, executor=key.public.text,
                operator=operator.public.text,
            )  # fmt: skip
            config = configs.parse(text, folder=Path(folder), name="demo.toml", environ={})
            await _prepare(config, author, operator)
            host = Host(config, Telemetry(Log(quiet=not state().out.verbose)), key=key)
            await host.start()
            try:
                return await _submit_all(config)
            finally:
                await host.close(drain_ms=config.number("delivery.drain_ms"))


async def _prepare(config: Config, author: SecretKey, operator: SecretKey) -> None:
    """Streams, honest modules through `publish`, dishonest ones behind its back."""
    connection = await Connection.open(
        settings(config, "demo", "deployer_"), lambda _name, _facts: None
    )
    try:
        queues = [queue(tenant) for tenant in config.policy.tenants]
        await streams.apply(connection, queues, stream_options(config))
        for case in _CASES:
            signed = signature.sign_module(_module(case.source), author)
            await publish_module(config, signed, _TENANT, key=operator)
        innocent = _module("wordcount")
        tampered = bytearray(signature.sign_module(_renamed(innocent, "tampered"), author))
        tampered[-1] ^= 1
        for name, data in (("unsigned", _renamed(innocent, "unsigned")),
                           ("tampered", bytes(tampered))):  # fmt: skip
            live = Release(_TENANT, name, signature.digest(data), "1.0.0")
            await store(connection, config, live, data, operator)
    finally:
        await connection.close()


def _renamed(module: bytes, name: str) -> bytes:
    """The same code under another task name: its manifest, the last section, is written anew."""
    described = manifest.read(module)
    section = next(s for s in wasm.sections(module) if s.name == manifest.SECTION)
    return manifest.append(
        module[: section.start] + module[section.end :],
        Manifest(task=name, version="1.0.0", wants=described.wants),
    )


async def _submit_all(config: Config) -> tuple[list[TaskOutcome], int]:
    async with await Client.from_config(config) as client:
        ids: list[str] = []
        for case in _CASES:
            data = _asset(case.source, case.sample) if case.sample else case.text
            sent = await client.submit(case.task, data, **dict(case.options))
            ids.append(sent.id)
        ids += [(await client.submit(name, _POEM)).id for name in ("unsigned", "tampered")]
        malformed = await client.submit_bytes("wordcount", b"this is no envelope")
        ids.append(f"_{malformed.sequence}")  # it has no id but its place in the stream
        waits = [client.wait(task_id, timeout_s=_ALL_S) for task_id in ids]
        ended = await asyncio.gather(*waits, return_exceptions=True)
    found = []
    for outcome in ended:
        if isinstance(outcome, TaskOutcome):
            found.append(outcome)
        elif not isinstance(outcome, ExecutorError):
            raise outcome
    return found, len(ids)


def _summary(found: list[TaskOutcome], submitted: int) -> dict[str, Any]:
    dead: dict[str, int] = {}
    for outcome in found:
        if not outcome.ok:
            dead[outcome.code] = dead.get(outcome.code, 0) + 1
    return {
        "schema": "executor.demo/1", "submitted": submitted,
        "results": sum(outcome.ok for outcome in found), "dead": dead,
        "lost": submitted - len(found), "tasks": [outcome_fields(o) for o in found],
    }  # fmt: skip


def _table(found: list[TaskOutcome], submitted: int) -> str:
    shows = {case.task: case.shows for case in _CASES} | _BEHIND
    rows = [_cells(outcome, shows) for outcome in found]
    header = ("TASK", "ATTEMPT", "OUTCOME", "", "", "FUEL", "MEMORY", "TIME")
    results = sum(outcome.ok for outcome in found)
    art = next((o for o in found if o.ok and o.task == "ascii-art"), None)
    picture = f"\n{output.safe_text(art.record.output).rstrip()}\n" if art else ""
    return (
        f"{output.table(header, rows)}\n{picture}\n"
        f"{submitted} tasks: {results} results, {len(found) - results} dead letters, "
        f"{submitted - len(found)} lost · next: executor init mine"
    )


def _cells(outcome: TaskOutcome, shows: dict[str, str]) -> tuple[str, ...]:
    record, used = outcome.record, outcome.record.receipt
    ran = bool(used.digest)
    attempt = f"{record.attempt} of {record.attempts_max}" if ran else "-"
    what = record.code or output.shown(record.output, record.content_type, most=40)
    name = outcome.task if not outcome.id.startswith("_") else "(no envelope)"
    return (
        name, attempt, "result" if outcome.ok else "dead", what, shows[name],
        output.number(used.fuel_used) if used.fuel_used else "-",
        output.size(used.memory_peak_bytes) if used.memory_peak_bytes else "-",
        f"{used.guest_us / 1000:.1f} ms" if ran else "-",
    )  # fmt: skip


VERBS = (demo,)
