"""All scenarios by name. A run without names takes those that are `usual`, in this order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from benchmarks import (
    authentic,
    backlog,
    containment,
    fairness,
    inprocess,
    kills,
    memory,
    safety,
    scaling,
    soak,
    throughput,
)
from benchmarks.options import Options
from benchmarks.section import Section


@dataclass(frozen=True, slots=True)
class Scenario:
    """What it is for, in a line, and how it is run."""

    about: str
    run: Callable[[Options], Awaitable[list[Section]]]
    usual: bool = True
    compares: bool = False  # takes another revision as one more contender


SCENARIOS: Final = {
    "inprocess": Scenario("an attempt beside wasmtime-py and Extism", inprocess.run, compares=True),
    "throughput": Scenario("end to end, beside a bare loop and the peers", throughput.run,
                           compares=True),
    "scaling": Scenario("sandboxes and backlog", scaling.run),
    "safety": Scenario("each guard on and off", safety.run),
    "authentic": Scenario("what sealing an outcome costs", authentic.run),
    "memory": Scenario("memory, growth, many tenants", memory.run),
    "containment": Scenario("births, the lock-down, ends by force", containment.run),
    "kills": Scenario("sandboxes die while tasks flow", kills.run),
    "fairness": Scenario("a tenant floods its neighbour", fairness.run),
    "backlog": Scenario("a long queue beside a short one", backlog.run, usual=False),
    "soak": Scenario("everything dies, for minutes", soak.play, usual=False),
}  # fmt: skip
