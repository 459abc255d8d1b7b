"""One attempt: a Run in, a Done out.

The table of outcomes of the ABI is this file. Whatever is not a row of it (an exception in a host
call, an engine error that no limit explains) is raised, and the process ends with it: our own
failure is never blamed on a guest.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import Final, NamedTuple

from executor.core import abi
from executor.core.frames import Done, Run
from executor.sandbox.host import I64_MAX, Attempt, Host
from executor.sandbox.machine import Ended, Facts, Machine, Program
from executor.sandbox.memory import PAGE, BadPointer

MEMORY_MAX = 65_536 * PAGE  # what 32 bits can address


def execute(program: Program, run: Run, host: Host) -> Done:
    """Run one attempt in a fresh Store and Instance.

    Errors  whatever is not an outcome: the caller ends the process.
    """
    memory_max = min(run.memory_bytes // PAGE * PAGE, MEMORY_MAX)
    begin = perf_counter_ns()
    machine = program.machine(
        fuel=run.fuel, memory_bytes=memory_max, table_elements=run.table_elements
    )
    try:
        attempt = host.begin(run, machine)
        too_large = program.memory_min > memory_max
        ended = _too_large(program) if too_large else _drive(program, machine, attempt, host)
        total_ns = perf_counter_ns() - begin
        return _done(attempt, ended, memory_max=memory_max, total_ns=total_ns)
    finally:
        host.end()
        machine.close()


def _too_large(program: Program) -> Ended:
    return Ended("limit.memory-exceeded", f"it starts with {program.memory_min} bytes")


def _drive(program: Program, machine: Machine, attempt: Attempt, host: Host) -> Ended | None:
    """Let the guest run; how it ended, None for a result."""
    try:
        machine.instantiate()
        attempt.memory = host.memory_of(machine)
        if program.initializes:
            machine.call(abi.INITIALIZE)
        status = machine.call(abi.ENTRY)
    except Ended as ended:
        ended.__traceback__ = None  # refers to frames that refer to it
        return ended
    except BadPointer as bad:
        bad.__traceback__ = None
        return Ended(
            "guest.bad-pointer",
            f"{bad.length} bytes at {bad.pointer}, memory has {bad.size}",
            (("pointer", str(bad.pointer)), ("length", str(bad.length))),
        )
    if attempt.failure is not None:
        return Ended("guest.failed", attempt.failure[1])
    if status == 0:
        return None
    return Ended("guest.failed", f"run returned {status}", (("status", str(status)),))


def _done(attempt: Attempt, ended: Ended | None, *, memory_max: int, total_ns: int) -> Done:
    size = attempt.machine.size() if attempt.memory is not None else 0
    log, host_ns = attempt.log, attempt.host_ns
    why, output, recent = _RESULT, b"", _NO_CALLS
    if ended is None:
        output = bytes(attempt.output)
    else:
        why, recent = _why(attempt, ended, size, memory_max), tuple(attempt.recent)
    # By place: sixteen names would cost twice what the rest of this does.
    return Done(
        attempt.run.seq, why.code, why.message, why.transient, why.retry_after_ms, output,
        tuple(log.lines) if log else (), log.dropped if log else 0,
        attempt.fuel_used(), size,
        (total_ns - host_ns) // 1_000 if total_ns > host_ns else 0, host_ns // 1_000,
        attempt.calls, why.facts, recent, attempt.used,
    )  # fmt: skip


class _Why(NamedTuple):
    code: str = ""
    message: str = ""
    transient: bool = False
    retry_after_ms: int = -1
    facts: Facts = ()


_RESULT: Final = _Why()
_NO_CALLS: Final[tuple[tuple[str, int], ...]] = ()


def _why(attempt: Attempt, ended: Ended, size: int, memory_max: int) -> _Why:
    code, message, facts = ended.code, ended.message, ended.facts
    if code == "guest.trap" and 0 < memory_max <= size:
        code = "limit.memory-exceeded"
    transient, retry_after_ms = False, -1
    if code == "guest.failed":
        transient, retry_after_ms = _verdict(attempt, facts)
        if transient and attempt.unavailable:
            code = "capability.unavailable"
    elif attempt.failure is not None and attempt.failure[1]:
        # The guest's own last words say more than the trap, whose name stays in the facts.
        message = attempt.failure[1]
    facts = (*facts, *_facts(attempt, size, memory_max))
    return _Why(code, message, transient, retry_after_ms, facts)


def _verdict(attempt: Attempt, facts: tuple[tuple[str, str], ...]) -> tuple[bool, int]:
    """Whether a failure that the guest reported is transient, and its own delay or -1."""
    if attempt.failure is None:
        return facts == (("status", "1"),), -1
    kind, _, retry_after_ms = attempt.failure
    if kind != abi.FAIL_RETRY:
        return False, -1
    # A negative delay is data, not an error: the host's back-off.
    return True, retry_after_ms if 0 <= retry_after_ms <= I64_MAX else -1


def _facts(attempt: Attempt, size: int, memory_max: int) -> tuple[tuple[str, str], ...]:
    """What every failure carries beside its own facts."""
    facts = [("memory", f"{size} of {memory_max}")]
    if attempt.last_call:
        facts.append(("last_call", attempt.last_call))
    return tuple(facts)
