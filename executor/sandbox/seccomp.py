"""The system call filter: a list of what may be called, everything else kills the process.

Written by hand, since no library is both maintained and made to lock its own process after it has
warmed up. The list is data, the assembler is forty lines, and the tests compare both with
libseccomp: the same decision for every system call of both machines.

A program is a chain of blocks, one a system call: test the number, test the arguments, allow. The
numbers are tried in the order of the list, so what is called most stands first.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from typing import Final

from executor.sandbox import kernel

KILL: Final = 0x8000_0000  # SECCOMP_RET_KILL_PROCESS
ALLOW: Final = 0x7FFF_0000
_SET_MODE_FILTER: Final = 1
_FLAG_TSYNC: Final = 1

# linux/bpf_common.h: instruction classes, put together.
_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_ABOVE_OR_EQUAL: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
# struct seccomp_data: number, architecture, instruction pointer, six arguments of eight bytes.
_NUMBER: Final = 0
_ARCHITECTURE: Final = 4
_ARGUMENTS: Final = 16
_X32: Final = 0x4000_0000  # numbers from here on are the x32 range
_JUMP_MAX: Final = 255

PROT_WRITE: Final = 2
PROT_EXEC: Final = 4
MAP_SHARED: Final = 1
MAP_GROWSDOWN: Final = 0x100  # a stack, which no limit of data counts
SIGABRT: Final = 6
# Commands of futex; the flags beside them are private and realtime.
_FUTEX_MASK: Final = 0x7F
_FUTEX: Final = (0, 1, 9, 10)  # WAIT, WAKE, WAIT_BITSET, WAKE_BITSET


@dataclass(frozen=True, slots=True)
class Is:
    """Argument `index`, masked, is one of `values`. The low 32 bits: all of these are ints."""

    index: int
    values: tuple[int, ...]
    mask: int = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Lacks:
    """Argument `index` has none of `bits`, all of which are in its low 32."""

    index: int
    bits: int


Condition = Is | Lacks
Rule = tuple[str, tuple[Condition, ...]]

# Harmless whatever the arguments: they reach nothing but the caller's own memory, time and end.
_FREE: Final = (
    "munmap", "madvise", "brk", "rt_sigreturn", "exit_group", "mremap", "rt_sigaction",
    "rt_sigprocmask", "sigaltstack", "sched_yield", "getpid", "gettid", "clock_gettime",
    "clock_nanosleep", "getrandom", "restart_syscall", "close", "exit",
)  # fmt: skip


def sandbox_rules(*, pid: int, socket: int) -> tuple[Rule, ...]:
    """What a sandbox may call. Its code was loaded before: nothing becomes executable."""
    return _rules(pid, socket, (Lacks(2, PROT_EXEC),))


def compiler_rules(*, pid: int, socket: int, artifact: int) -> tuple[Rule, ...]:
    """What a compiler may call: as a sandbox, and write its artifact.

    The engine makes what it compiled executable, first written and then executable, never both.
    """
    only = Is(2, tuple(p for p in range(8) if p & 6 != PROT_WRITE | PROT_EXEC))
    return (*_rules(pid, socket, (only,)), ("pwrite64", (Is(0, (artifact,)),)))


def _rules(pid: int, socket: int, protect: tuple[Condition, ...]) -> tuple[Rule, ...]:
    own = (Is(0, (socket,)),)
    return (
        ("recvfrom", own),
        ("sendto", own),
        ("mprotect", protect),
        ("mmap", (Lacks(2, PROT_EXEC), Lacks(3, MAP_SHARED | MAP_GROWSDOWN))),
        *((name, ()) for name in _FREE),
        ("read", own),
        ("write", (Is(0, (socket, 2)),)),
        ("futex", (Is(1, _FUTEX, _FUTEX_MASK),)),
        # An abort of the engine then reads as signal 6 and not as a violation.
        ("tgkill", (Is(0, (pid,)), Is(2, (SIGABRT,)))),
    )


def _instruction(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, k)


def _condition(condition: Condition) -> list[bytes]:
    """Instructions that fall through when it holds and kill when it does not."""
    # Little endian, both machines: the low word of an argument comes first.
    load = _instruction(_LOAD, _ARGUMENTS + 8 * condition.index)
    kill = _instruction(_RETURN, KILL)
    if isinstance(condition, Lacks):
        return [load, _instruction(_ANY_BIT, condition.bits, 0, 1), kill]
    tests = [
        _instruction(_EQUAL, value, len(condition.values) - place)
        for place, value in enumerate(condition.values)
    ]
    return [load, _instruction(_AND, condition.mask), *tests, kill]


def assemble(rules: tuple[Rule, ...], machine: str) -> bytes:
    """The program: architecture, x32 range, then a block for each rule, then kill."""
    kill = _instruction(_RETURN, KILL)
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_EQUAL, kernel.AUDIT_ARCH[machine], 1),
        kill,
        _instruction(_LOAD, _NUMBER),
        _instruction(_ABOVE_OR_EQUAL, _X32, 0, 1),
        kill,
    ]
    for name, conditions in rules:
        block = [step for condition in conditions for step in _condition(condition)]
        block.append(_instruction(_RETURN, ALLOW))
        if len(block) > _JUMP_MAX:
            raise ValueError(f"the block of {name} is too long to jump over")
        program.append(_instruction(_EQUAL, kernel.number(name, machine), 0, len(block)))
        program += block
    return b"".join([*program, kill])


def install(rules: tuple[Rule, ...]) -> None:
    """Put the filter on every thread of this process, for good. Errors  `OSError`.

    Needs no-new-privs.
    """
    program = assemble(rules, kernel.machine())
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: count, padding, address.
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    argument = ctypes.create_string_buffer(described, len(described))
    kernel.syscall("seccomp", _SET_MODE_FILTER, _FLAG_TSYNC, argument)
