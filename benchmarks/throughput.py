"""Sandboxed, signed and durable, beside a bare Python loop and the peers, in one run.

Each contender has servers of its own, idle while others take their turn. A turn starts its worker,
keeps 256 tasks in flight with every result read and compared, and then one; CPU time is that of
all processes, from /proc. All guards of the executor are on.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Final

from benchmarks.contenders import BARE, EXECUTOR, PEERS, RAW, Contender, Stage, Turn, stage
from benchmarks.environments import UnavailableError, revision
from benchmarks.note import note
from benchmarks.options import Options
from benchmarks.section import Goal, Plot, Section

ROLES: Final = ("submitter", "server", "supervisor", "sandboxes")
_RATE: Final = "rate"
_CPU: Final = "CPU"
_ARRIVED: Final = "latency, unverified"
GOALS: Final = (
    Goal("T2 sandboxed, signed and durable, tasks/s", EXECUTOR.name, _RATE, "≥", 10_000),
    Goal("T3 over a bare nats-py loop", EXECUTOR.name, _RATE, "≥", 1.0, over=BARE.name),
    Goal("T4 over FastStream", EXECUTOR.name, _RATE, "≥", 3.0, over="FastStream"),
    Goal("T4 over Celery", EXECUTOR.name, _RATE, "≥", 15.0, over="Celery"),
    Goal("T5 one in flight, p50, ms", EXECUTOR.name, "latency", "≤", 0.85, stat="p50"),
    Goal("T5 one in flight, p99, ms", EXECUTOR.name, "latency", "≤", 1.5, stat="p99"),
    Goal("T6 CPU of all processes, s per 1,000 tasks", EXECUTOR.name, _CPU, "≤", 0.15),
)  # fmt: skip


def chosen(options: Options) -> list[Contender]:
    """Who takes part: always the executor and the bare loop, and the peers that were named."""
    peers = [p for p in PEERS if options.peers is None or p.name in options.peers]
    return [EXECUTOR, RAW, BARE, *peers]


def note_turn(section: Section, name: str, turn: Turn, round_: int) -> None:
    """Add what a turn saw."""
    section.add(name, _RATE, "tasks/s", turn.rate, round_=round_)
    section.add(name, "latency", "ms", turn.latency_ms, round_=round_)
    if turn.arrived_ms:
        section.add(name, _ARRIVED, "ms", turn.arrived_ms, round_=round_)
    section.add(name, _CPU, "s/1k", sum(turn.cpu_us.values()) / 1000, round_=round_)
    for role, value in turn.cpu_us.items():
        section.add(name, f"CPU {role}", "µs", value, round_=round_)


async def run(options: Options) -> list[Section]:
    """All contenders, round by round."""
    section = Section("throughput", "End to end", "python -m benchmarks throughput")
    section.base = BARE.name
    section.goals = list(GOALS)
    section.remarks.append(
        "A window of 256 tasks of 1,000 bytes, then one in flight, every result read and compared. "
        "No contender syncs each message to the disk. Of peers, `supervisor` is the process that "
        "was started and `sandboxes` are its children."
    )
    section.plots = [
        Plot("bars", "Tasks per second", (_RATE,), "tasks/s"),
        Plot("distribution", "Latency with one in flight", ("latency",), "ms"),
        Plot("stack", "CPU of a task by process", tuple(f"CPU {r}" for r in ROLES), "µs"),
    ]
    contenders = chosen(options)
    async with contextlib.AsyncExitStack() as stack:
        if options.compare:
            interpreter = stack.enter_context(revision(options.compare))
            old = f"{EXECUTOR.name} at {options.compare}"
            contenders.insert(1, replace(EXECUTOR, name=old, interpreter=interpreter))
        await take_turns(section, contenders, options, stack)
    return [section]


async def take_turns(
    section: Section, contenders: list[Contender], options: Options,
    stack: contextlib.AsyncExitStack,
) -> None:  # fmt: skip
    """Set the stages up, and let each contender take its turn in each round."""
    stages: dict[str, Stage] = {}
    for contender in contenders:
        section.notes[contender.name] = contender.guarantee
        try:
            stages[contender.name] = await stack.enter_async_context(stage(contender))
        except UnavailableError as error:
            section.notes[contender.name] = f"not measured: {error}"
    flow = options.pick(options.seconds, 2.5, 1.0)
    for round_ in range(options.count(options.rounds, 5, 1)):
        for name in list(stages):
            note(f"{section.name}, round {round_ + 1}: {name}")
            try:
                note_turn(section, name, await stages[name].turn(flow, flow / 2), round_)
            except UnavailableError as error:
                section.notes[name] += f"; gave up in round {round_ + 1}: {error}"
                del stages[name]
