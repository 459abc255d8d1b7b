"""Verbs that measure and reckon: `bench module`, `bench plan`."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from executor.cli import local, output
from executor.cli.base import Family, Verb, read_file, read_input, run_async, state, with_input
from executor.config import Config
from executor.core import capacity
from executor.core.envelope import Record
from executor.errors import ExecutorError
from executor.model import Answer, Outgoing, Stored
from executor.supervisor.service import new_zygote
from executor.supervisor.zygote import hide_memory
from executor.telemetry import Log, Telemetry

FIGURES: Final = Path(__file__).parent / "figures.json"
_WINDOW: Final = 64
_WARM: Final = 20  # tasks before the clock


@click.group("bench", cls=Family)
def bench() -> None:
    """Measure a module here; reckon what a rate of tasks needs."""


class _Many(local.Wire):
    """Answers every publish, and says what each delivery became."""

    def __init__(self, on_record: Callable[[Outgoing], None]) -> None:
        super().__init__()
        self._on_record = on_record

    def publish(
        self, outgoing: Outgoing, on_answer: Callable[[Answer], None], deadline_s: float
    ) -> None:
        del deadline_s
        on_answer(Stored(1))
        self._on_record(outgoing)


@dataclass
class _Run:
    """Many attempts of one order through one pipeline."""

    order: local.Order
    made: local.Assembled = field(init=False)
    records: list[Record] = field(default_factory=list)
    _waiting: dict[str, asyncio.Future[Outgoing]] = field(default_factory=dict)
    _number: int = 0

    def heard(self, outgoing: Outgoing) -> None:
        """A record was published; a put-off retry counts as one and is found out when opened."""
        future = self._waiting.pop(outgoing.subject.split(".")[3], None)
        if future is not None:
            future.set_result(outgoing)

    def _ask(self) -> asyncio.Future[Outgoing]:
        self._number += 1
        name = f"b{self._number}"
        future = self._waiting[name] = asyncio.get_running_loop().create_future()
        self.made.deliver(self.order, name, self._number)
        return future

    async def one(self) -> Record:
        """One attempt. Errors  the code that it ended with: only what works is worth measuring."""
        return self._open(await self._ask())

    def _open(self, outgoing: Outgoing) -> Record:
        if outgoing.schedule_at_ms:
            raise ExecutorError("sandbox.killed", "an attempt was put off",
                                hint="see why: executor run MODULE")  # fmt: skip
        record = self.made.opener.record(
            outgoing.subject, outgoing.body, stored_at=self.made.pipeline.now_ms()
        )
        if record.code:
            raise ExecutorError(record.code, record.message, hint=record.hint)
        return record

    async def flow(self, seconds: float) -> tuple[int, float]:
        """Keep a window in flight; (attempts, seconds)."""
        began = time.perf_counter()
        waiting = [self._ask() for _ in range(_WINDOW)]
        done = 0
        while waiting:
            self.records.append(self._open(await waiting.pop(0)))
            done += 1
            if time.perf_counter() - began < seconds:
                waiting.append(self._ask())
        return done, time.perf_counter() - began


async def _measure(config: Config, order: local.Order, seconds: float) -> dict[str, Any]:
    zygote = new_zygote(config)
    hide_memory()
    zygote.launch()
    try:
        run = _Run(order)
        wire, bucket = _Many(run.heard), local.Bucket(order.kv or {})
        telemetry = Telemetry(Log(quiet=True))
        run.made = local.put_together(config, order, telemetry, zygote, wire, bucket)
        try:
            for _ in range(_WARM):
                await run.one()
            alone: list[float] = []
            end = time.perf_counter() + seconds / 2
            while time.perf_counter() < end or not alone:
                began = time.perf_counter()
                await run.one()
                alone.append((time.perf_counter() - began) * 1000)
            count, took = await run.flow(seconds)
        finally:
            await run.made.pipeline.stop()
    finally:
        await zygote.close()
    return _facts(run, alone, count / took, config.number("sandbox.count"))


def _facts(run: _Run, alone: list[float], rate: float, sandboxes: int) -> dict[str, Any]:
    alone.sort()
    receipts = [record.receipt for record in run.records]
    last = run.records[-1]

    def middle(name: str) -> float:
        return float(statistics.median(getattr(receipt, name) for receipt in receipts))

    return {
        "schema": "executor.bench/1", "task": run.made.release.task,
        "version": run.made.release.version, "input_bytes": len(run.order.input),
        "output_bytes": len(last.output), "sandboxes": sandboxes, "window": _WINDOW,
        "attempts": len(receipts), "attempts_per_s": round(rate, 1),
        "p50_ms": round(alone[len(alone) // 2], 3),
        "p99_ms": round(alone[int(len(alone) * 0.99)], 3),
        "guest_us": middle("guest_us"), "host_us": middle("host_us"),
        "fuel_used": int(middle("fuel_used")),
        "memory_peak_bytes": int(middle("memory_peak_bytes")),
        "containment": last.receipt.containment,
    }  # fmt: skip


@bench.command("module", cls=Verb)
@click.argument("module", type=click.Path(path_type=Path))
@with_input
@click.option("--allow", multiple=True, metavar="CAP", default=("log",), show_default=True,
              help="Grant log, clock, random or kv[=PREFIX[:read]]; repeatable.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0.05, 60), default=2.0, show_default=True,
              help="How long attempts are kept in flight.")  # fmt: skip
def module(
    module: Path, text: str | None, kind: str, allow: tuple[str, ...], seconds: float
) -> None:
    """Run MODULE many times, here, without NATS.

    Limits are those of executor.toml; signature, policy, jail, caps and the signing of outcomes
    are those of `serve`. What the queue adds is not in these numbers.

    Example: executor bench module tasks_wasm/wordcount/wordcount.wasm -i "one two"
    """
    data, content_type = read_input(text, kind)
    order = local.Order(module=read_file(module), input=data, content_type=content_type,
                        allow=allow)  # fmt: skip
    facts = run_async(_measure(state().config(), order, seconds), f"`{module}`")
    rows = [
        ("attempts", f"{output.number(int(facts['attempts_per_s']))}/s with {_WINDOW} in flight, "
         f"sandbox.count {facts['sandboxes']}"),
        ("one at a time", f"p50 {facts['p50_ms']:.2f} ms · p99 {facts['p99_ms']:.2f} ms"),
        ("in the sandbox", f"guest {facts['guest_us']:.0f} µs · host calls {facts['host_us']:.0f} "
         "µs"),
        ("each used", f"fuel {output.number(facts['fuel_used'])} · "
         f"memory {output.size(facts['memory_peak_bytes'])}"),
    ]  # fmt: skip
    head = (
        f"{facts['task']} {facts['version']} · {output.size(len(data))} in, "
        f"{output.size(facts['output_bytes'])} out · containment {facts['containment']}"
    )
    state().out.data(facts, "\n".join([head, *(f"{n:<15} {v}" for n, v in rows)]))


@bench.command("plan", cls=Verb)
@click.option("--rate", type=click.FloatRange(0.001, 1e9), help="Tasks per second.")
@click.option("--machines", type=click.IntRange(1, 1_000_000), help="Or: what so many can do.")
@click.option("--size", type=click.IntRange(0, 524_288), default=1_000, show_default=True,
              help="Bytes of input.")  # fmt: skip
@click.option("--guest-us", type=click.FloatRange(0, 1e9), default=0.0,
              help="CPU of a guest beyond the word count's, in µs.")  # fmt: skip
@click.option("--replicas", type=click.IntRange(1, 5), default=3, show_default=True,
              help="Copies of each stream.")  # fmt: skip
@click.option("--days", type=click.FloatRange(0, 3650), default=7.0, show_default=True,
              help="How long outcomes are kept.")  # fmt: skip
@click.option("--backlog-s", type=click.FloatRange(0, 1e8), default=3600.0, show_default=True,
              help="Seconds of tasks that the queue must hold.")  # fmt: skip
@click.option("--cores", type=click.IntRange(1, 1024), default=8, show_default=True,
              help="Cores of a machine.")  # fmt: skip
@click.option("--memory-gib", type=click.IntRange(1, 65_536), default=64, show_default=True,
              help="Memory of a machine.")  # fmt: skip
@click.option("--figures", type=click.Path(path_type=Path), help="Measured here, not by us.")
def plan(
    rate: float | None, machines: int | None, size: int, guest_us: float, replicas: int,
    days: float, backlog_s: float, cores: int, memory_gib: int, figures: Path | None,
) -> None:  # fmt: skip
    """Reckon what a rate of tasks needs, step by step.

    Executors, NATS, network, disk and memory, over figures that the benchmarks measured; cores
    and memory are planned at 60 %.

    Example: executor bench plan --rate 10000 --size 1024
    """
    if (rate is None) == (machines is None):
        raise click.UsageError("Say --rate or --machines, one of them.")
    seen = _figures(figures or FIGURES)
    load = capacity.Load(
        rate or 1.0, size, guest_us, replicas, days, backlog_s, cores, memory_gib
    )  # fmt: skip
    if machines is not None:
        load = capacity.reach(seen, load, machines)
    steps, advice = capacity.plan(seen, load), capacity.advice(seen, load)
    shown = output.table(("WHAT", "HOW", "RESULT"), [
        (s.name, s.how, f"{_number(s.value)} {s.unit}".replace(" /s", "/s").rstrip())
        for s in steps
    ])  # fmt: skip
    notes = "\n".join(f"- {line}" for line in advice)
    state().out.data(
        {"schema": "executor.plan/1", "machine": seen.machine, "rate": load.rate,
         "steps": [{"what": s.name, "how": s.how, "value": s.value, "unit": s.unit or None}
                   for s in steps], "advice": advice},
        f"measured on {seen.machine}\n\n{shown}\n\n{notes}",
    )  # fmt: skip


def _number(value: float) -> str:
    if value >= 100 or value == int(value):  # noqa: PLR2004 - what reads well
        return output.number(round(value))
    return f"{value:.3g}"


def _figures(path: Path) -> capacity.Figures:
    """Read a file of figures. Errors  `config.missing`, `config.invalid`."""
    try:
        values = json.loads(read_file(path))
    except ValueError as error:
        raise ExecutorError("config.invalid", f"`{path}`: not JSON: {error}") from None
    if not isinstance(values, dict) or values.get("schema") != "executor.figures/1":
        raise ExecutorError("config.invalid", f"`{path}` is not of schema executor.figures/1",
                            hint="python -m benchmarks writes figures.json")  # fmt: skip
    return capacity.Figures.parse(values)


VERBS = (bench,)
