"""How much is needed for a rate of tasks: arithmetic over measured figures, each step shown.

Nothing here is measured. `Figures` come from a file that the benchmarks write; the assumptions are
the constants below and `Load`. Every step is linear, so that a reader can redo it by hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Final, Self

from executor.errors import ExecutorError
from executor.sizes import KIB, MIB

# Above about this share of a core, waiting grows faster than the rate.
USED: Final = 0.6
# Confirmations and acks, each with its subject and the reply's: four of them a task.
SIGNALS: Final = 4
SIGNAL_BYTES: Final = 120
DUPLICATES_S: Final = 120  # the window of TASKS in which the server keeps every message id
DUPLICATE_BYTES: Final = 470  # of the server's memory for each: 60,000 ids took 28 MB
RECORD_BYTES: Final = 250  # of the server's memory for each outcome kept: its own subject
_US: Final = 1_000_000
_DAY_S: Final = 86_400
_MEGA: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Figures:
    """What the benchmarks saw; CPU in µs a task, memory in MiB, on the machine that is named."""

    machine: str
    input_bytes: float  # of the task that was measured
    submitter_us: float
    server_us: float
    supervisor_us: float
    sandbox_us: float
    server_kib_us: float  # more for each KiB of input
    supervisor_kib_us: float
    sandbox_kib_us: float
    task_bytes: float  # stored, beside the input
    outcome_bytes: float  # stored
    stream_per_s: float  # once-only publishes that one stream took from one connection
    supervisor_mib: float
    sandbox_mib: float

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> Self:
        """Check a file's values. Errors  `config.invalid`."""
        found: dict[str, str | float] = {}
        for each in fields(cls):
            value = values.get(each.name)
            wanted = (str,) if each.name == "machine" else (int, float)
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise ExecutorError("config.invalid", f"figures: `{each.name}` is {value!r}")
            if not isinstance(value, str) and not (0 <= value < math.inf):
                raise ExecutorError("config.invalid", f"figures: `{each.name}` is {value!r}")
            found[each.name] = value
        if not found["server_us"] or not found["supervisor_us"] or not found["stream_per_s"]:
            raise ExecutorError("config.invalid", "figures: a cost of 0")
        return cls(**found)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for; `guest_us` is CPU beyond that of the measured task."""

    rate: float
    size: int
    guest_us: float = 0.0
    replicas: int = 3
    days: float = 7.0
    backlog_s: float = 3_600.0
    cores: int = 8  # of a machine
    memory_gib: int = 64  # of a machine


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the arithmetic."""

    name: str
    how: str
    value: float
    unit: str


class _Sheet:
    def __init__(self) -> None:
        self.steps: list[Step] = []

    def add(self, name: str, how: str, value: float, unit: str = "") -> float:
        """Note a step and return its value."""
        self.steps.append(Step(name, how, value, unit))
        return value


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU µs a task for this load, by process."""

    server: float
    supervisor: float
    sandbox: float

    @property
    def executor(self) -> float:
        """Both sides of the hop."""
        return self.supervisor + self.sandbox


def costs(figures: Figures, load: Load) -> Costs:
    """Of a task of this size; every copy of a stream costs its server the whole of it."""
    more = max(0.0, (load.size - figures.input_bytes) / KIB)
    return Costs(
        (figures.server_us + more * figures.server_kib_us) * load.replicas,
        figures.supervisor_us + more * figures.supervisor_kib_us,
        figures.sandbox_us + more * figures.sandbox_kib_us + load.guest_us,
    )


def reach(figures: Figures, load: Load, machines: int) -> Load:
    """The rate that so many machines can do, their cores shared between servers and executors.

    A stream has no more copies than there are machines.
    """
    load = replace(load, replicas=min(load.replicas, machines))
    cost = costs(figures, load)
    whole = machines * load.cores * USED * _US
    return replace(load, rate=whole / (cost.server + cost.executor))


def plan(figures: Figures, load: Load) -> list[Step]:
    """Every step from the load to machines, streams, network, disk and memory."""
    sheet, cost = _Sheet(), costs(figures, load)
    rate = sheet.add("tasks", "asked for", load.rate, "/s")
    _executors(sheet, cost, load)
    cells = _servers(sheet, cost, load)
    streams = sheet.add(
        "streams of each kind",
        f"⌈{_n(rate)} / ({_n(figures.stream_per_s)}/s × {USED})⌉, a tenant or partition each",
        math.ceil(rate / (figures.stream_per_s * USED)),
    )
    sheet.add("streams of each kind, a cell", f"⌈{_n(streams)} / {_n(cells)}⌉",
              math.ceil(streams / cells))  # fmt: skip
    _traffic(sheet, figures, load)
    _memory(sheet, figures, load, cells)
    return sheet.steps


def _executors(sheet: _Sheet, cost: Costs, load: Load) -> None:
    rate = load.rate
    one = sheet.add("one supervisor does", f"{USED} × 1e6 µs / {_n(cost.supervisor)} µs",
                    USED * _US / cost.supervisor, "/s")  # fmt: skip
    executors = sheet.add("executors", f"⌈{_n(rate)} / {_n(one)}⌉", math.ceil(rate / one))
    sandboxes = sheet.add(
        "sandboxes", f"⌈{_n(rate)} × {_n(cost.sandbox)} µs / 1e6 / {USED}⌉, one each at least",
        max(executors, math.ceil(rate * cost.sandbox / _US / USED)),
    )  # fmt: skip
    cores = sheet.add(
        "cores for executors", f"{_n(rate)} × {_n(cost.executor)} µs / 1e6 / {USED}",
        rate * cost.executor / _US / USED,
    )  # fmt: skip
    sheet.add("machines for executors", f"⌈{_n(cores)} / {load.cores}⌉",
              math.ceil(cores / load.cores))  # fmt: skip
    sheet.add("sandboxes an executor", f"⌈{_n(sandboxes)} / {_n(executors)}⌉",
              math.ceil(sandboxes / executors))  # fmt: skip


def _cell(cost: Costs, load: Load) -> float:
    return load.replicas * load.cores * USED * _US / cost.server


def _servers(sheet: _Sheet, cost: Costs, load: Load) -> int:
    cores = sheet.add(
        "cores for NATS", f"{_n(load.rate)} × {_n(cost.server)} µs / 1e6 / {USED}; "
        f"{load.replicas} copies are in the µs", load.rate * cost.server / _US / USED,
    )  # fmt: skip
    # A cell is one cluster with as many servers as a stream has copies: more servers do not make a
    # stream faster, more cells do, each a JetStream domain of its own behind a leaf node.
    cell = sheet.add(
        "one cell does",
        f"{load.replicas} servers × {load.cores} cores × {USED} × 1e6 / {_n(cost.server)} µs",
        _cell(cost, load), "/s",
    )  # fmt: skip
    cells = math.ceil(load.rate / cell)
    sheet.add("cells", f"⌈{_n(load.rate)} / {_n(cell)}⌉", cells)
    sheet.add("machines for NATS", f"{cells} × {load.replicas}, of which {_n(cores)} cores work",
              cells * load.replicas)  # fmt: skip
    return cells


def _traffic(sheet: _Sheet, figures: Figures, load: Load) -> None:
    rate, copies = load.rate, load.replicas - 1
    task = sheet.add("bytes of a task", f"{load.size} + {_n(figures.task_bytes)}",
                     load.size + figures.task_bytes, "B")  # fmt: skip
    both, signals = task + figures.outcome_bytes, SIGNALS * SIGNAL_BYTES
    sheet.add(
        "network of the servers, each way",
        f"{_n(rate)} × ({_n(both)} + {signals} + {copies} × {_n(both)}) × 8",
        rate * (both + signals + copies * both) * 8 / _MEGA, "Mbit/s",
    )  # fmt: skip
    sheet.add("written to disks", f"{_n(rate)} × {_n(both)} × {load.replicas}",
              rate * both * load.replicas / _MEGA, "MB/s")  # fmt: skip
    sheet.add("disk for the queue, a copy", f"{_n(rate)} × {_n(load.backlog_s)} s × {_n(task)}",
              rate * load.backlog_s * task / 1e9, "GB")  # fmt: skip
    sheet.add(
        "disk for outcomes, a copy",
        f"{_n(rate)} × {_n(load.days)} days × {_n(figures.outcome_bytes)}",
        rate * load.days * _DAY_S * figures.outcome_bytes / 1e9, "GB",
    )  # fmt: skip


def _memory(sheet: _Sheet, figures: Figures, load: Load, cells: int) -> None:
    kept = load.rate * load.days * _DAY_S
    recent = load.rate * DUPLICATES_S
    sheet.add(
        "memory of the servers, a copy",
        f"{_n(kept)} outcomes × {RECORD_BYTES} + {_n(recent)} ids × {DUPLICATE_BYTES}",
        (kept * RECORD_BYTES + recent * DUPLICATE_BYTES) / MIB, "MiB",
    )  # fmt: skip
    sheet.add(
        "how long servers can keep outcomes",
        f"{load.memory_gib} GiB × {USED} / {RECORD_BYTES} / ({_n(load.rate)}/s / {cells})",
        _keep_s(load, cells) / _DAY_S, "days",
    )  # fmt: skip
    executors, sandboxes = (_find(sheet, name) for name in ("executors", "sandboxes"))
    sheet.add(
        "memory of executors",
        f"{_n(executors)} × {_n(figures.supervisor_mib)} + {_n(sandboxes)} × "
        f"{_n(figures.sandbox_mib)}",
        executors * figures.supervisor_mib + sandboxes * figures.sandbox_mib, "MiB",
    )  # fmt: skip


def _keep_s(load: Load, cells: int) -> float:
    return load.memory_gib * KIB * MIB * USED / RECORD_BYTES / (load.rate / cells)


def _find(sheet: _Sheet, name: str) -> float:
    return next(step.value for step in sheet.steps if step.name == name)


def advice(figures: Figures, load: Load) -> list[str]:
    """Which limit of NATS is met, and what moves it."""
    cost, found = costs(figures, load), []
    stream = figures.stream_per_s * USED
    if load.rate > stream:
        found.append(
            f"one stream ends at {_n(stream)}/s: a tenant has streams of its own, so spread tasks "
            "over tenants, or partition one by subject"
        )
    cells = math.ceil(load.rate / _cell(cost, load))
    if cells > 1:
        found.append(
            "one cluster ends here: use several, each with executors and a JetStream domain of its "
            "own, joined by leaf nodes; a task stays in the cell that took it"
        )
    longest = _keep_s(load, cells)
    if load.days * _DAY_S > longest:
        found.append(
            "the servers' memory ends first: each outcome kept is a subject in it, so keep them "
            f"for {_n(longest / 3_600)} hours (delivery.outcomes_max_mib), or have more servers"
        )
    return found or ["one cluster and one pair of streams are enough"]


def _n(value: float) -> str:
    """A number as a reader would write it down."""
    if value >= 100:  # noqa: PLR2004 - what reads well
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"
