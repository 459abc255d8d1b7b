"""The system call filter, decision by decision: against its table, and against libseccomp.

The program that the kernel would run is interpreted here, for both machines, over every system call
number and over arguments that are right, wrong, or right in half of their bits.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import pytest

from executor.sandbox import attacks, kernel, seccomp

PID: Final = 4711
SOCKET: Final = 5
ARTIFACT: Final = 9
LIBRARY: Final = "libseccomp.so.2"
ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
FOREIGN: Final = (0x4000_0003, 0x4000_0028, 0xC000_00F3, 0)  # i386, arm, riscv64, none
NUMBERS: Final = range(601)
X32: Final = 0x4000_0000
HIGH: Final = 0xDEAD_BEEF << 32  # what the kernel cuts off an int

ALLOW: Final = 0x7FFF_0000
KILL: Final = 0x8000_0000

# The documented table: these with any argument …
FREE: Final = frozenset({
    "munmap", "madvise", "brk", "rt_sigreturn", "exit_group", "exit", "mremap", "rt_sigaction",
    "rt_sigprocmask", "sigaltstack", "sched_yield", "getpid", "gettid", "clock_gettime",
    "clock_nanosleep", "getrandom", "restart_syscall", "close",
})  # fmt: skip
# … these under conditions of their own (`documented`), pwrite64 beside them in a compiler.
CHECKED: Final = frozenset({
    "read", "recvfrom", "sendto", "write", "mmap", "mprotect", "futex", "tgkill",
})  # fmt: skip

Arguments = tuple[int, ...]


def documented(role: str, name: str, arguments: Arguments) -> bool:
    """Whether the table allows it. All that is looked at are ints: the kernel takes 32 bits."""
    first, second, third, fourth = (value & 0xFFFF_FFFF for value in arguments[:4])
    if name in FREE:
        return True
    match name:
        case "read" | "recvfrom" | "sendto":
            return first == SOCKET
        case "write":
            return first in {SOCKET, 2}
        case "mmap":
            return not third & 4 and not fourth & 0x101
        case "mprotect":
            return not third & 4 if role == "sandbox" else third < 8 and third not in {6, 7}
        case "futex":
            # Flags are 128 and 256; with any bit above them the kernel knows no such command.
            return second & 0x7F in {0, 1, 9, 10}
        case "tgkill":
            return first == PID and third == 6
        case "pwrite64":
            return role == "compiler" and first == ARTIFACT
    return False


def rules_of(role: str) -> tuple[seccomp.Rule, ...]:
    """The rules of a role."""
    if role == "sandbox":
        return seccomp.sandbox_rules(pid=PID, socket=SOCKET)
    return seccomp.compiler_rules(pid=PID, socket=SOCKET, artifact=ARTIFACT)


class Program:
    """A classic BPF program, interpreted: what the kernel does with it, and nothing more."""

    def __init__(self, code: bytes) -> None:
        self.steps: list[tuple[int, int, int, int]] = list(struct.iter_unpack("=HBBI", code))
        assert 0 < len(self.steps) <= 4096  # the kernel's limit

    def decide(self, number: int, architecture: int, arguments: Arguments) -> int:
        """What the filter answers to this call."""
        data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments)
        value = place = 0
        while True:
            code, yes, no, k = self.steps[place]
            place += 1
            match code:
                case 0x20:  # LD W ABS
                    assert k % 4 == 0  # the kernel refuses others
                    (value,) = struct.unpack_from("<I", data, k)
                case 0x54:  # AND
                    value &= k
                case 0x05:  # JA
                    place += k
                case 0x15:  # JEQ
                    place += yes if value == k else no
                case 0x25:  # JGT
                    place += yes if value > k else no
                case 0x35:  # JGE
                    place += yes if value >= k else no
                case 0x45:  # JSET
                    place += yes if value & k else no
                case 0x06:  # RET
                    return k
                case _:
                    raise AssertionError(f"unknown instruction {code:#x}")


def filled(*arguments: int) -> Arguments:
    """Six arguments."""
    return (*arguments, *[0] * (6 - len(arguments)))


def few() -> list[Arguments]:
    """For every number: none, all bits, what somebody might have allowed by mistake."""
    return [
        filled(), (2**64 - 1,) * 6, (HIGH,) * 6, filled(SOCKET, 1, 0, 2), filled(2, 0, 3, 0x22),
        filled(ARTIFACT, 0, 1, 2), filled(PID, PID, 6), filled(HIGH | SOCKET, HIGH, HIGH, HIGH),
        filled(0, 4096, 7, 0x22), filled(0, 129, 4, 0x21),
    ]  # fmt: skip


def many() -> Iterator[Arguments]:
    """For what is on the list: each argument alone and in pairs, also with its upper half set."""
    descriptors = (0, 1, 2, SOCKET, ARTIFACT, PID, SOCKET << 32, PID << 32, 2**32 - 1)
    rights = (*range(9), 15, 16, 1 << 24, 1 << 31, 4 << 32, 6 << 32, HIGH | 4, HIGH | 6, HIGH | 3)
    for first, third in itertools.product((*descriptors, *(HIGH | d for d in descriptors)), rights):
        yield filled(first, 0, third, 0x22)
    kinds = (0, 1, 2, 3, 0x21, 0x22, 0x100, 0x122, 1 << 32, HIGH | 0x21, HIGH | 0x122)
    for third, fourth in itertools.product(rights, kinds):
        yield filled(0, 4096, third, fourth)
    for second in itertools.chain(range(1024), (HIGH | 1, HIGH | 2, 1 << 32, 2**32 - 1, 1 << 31)):
        yield filled(0, second, 0, 0)


def calls(machine: str) -> Iterator[tuple[int, Arguments]]:
    """Every number with a few arguments, the listed ones with many."""
    for number, arguments in itertools.product(NUMBERS, few()):
        yield number, arguments
    listed = [kernel.number(name, machine) for name in (*FREE, *CHECKED, "pwrite64")]
    for number, arguments in itertools.product(listed, many()):
        yield number, arguments


roles = pytest.mark.parametrize("role", ["sandbox", "compiler"])
machines = pytest.mark.parametrize("machine", kernel.MACHINES)


@roles
@machines
def test_every_decision_is_that_of_the_table(role: str, machine: str) -> None:
    """Whatever number and arguments: what the table names is allowed, all else is killed."""
    program = Program(seccomp.assemble(rules_of(role), machine))
    names = {kernel.number(name, machine): name for name in kernel.SYSCALLS}
    wrong: list[tuple[str, Arguments]] = []
    seen = {ALLOW: 0, KILL: 0}
    for number, arguments in calls(machine):
        name = names.get(number, str(number))
        answer = program.decide(number, ARCHITECTURES[machine], arguments)
        seen[answer] += 1
        if (answer == ALLOW) is not documented(role, name, arguments):
            wrong.append((name, arguments))
    assert wrong == []
    assert min(seen.values()) > 1000, seen


@roles
@machines
def test_upper_halves_do_not_fool_it(role: str, machine: str) -> None:
    """The kernel cuts an int off a register: junk above it changes no decision."""
    program = Program(seccomp.assemble(rules_of(role), machine))
    for number, arguments in calls(machine):
        low = tuple(value & 0xFFFF_FFFF for value in arguments)
        high = tuple(value | HIGH for value in low)
        decided = {
            program.decide(number, ARCHITECTURES[machine], passed)
            for passed in (arguments, low, high)
        }
        assert len(decided) == 1, (number, arguments)


@roles
@machines
def test_another_machines_calls_are_killed(role: str, machine: str) -> None:
    """The same number under another architecture is another call: none of them passes."""
    program = Program(seccomp.assemble(rules_of(role), machine))
    others = {*FOREIGN, *ARCHITECTURES.values()} - {ARCHITECTURES[machine]}
    for number, other, arguments in itertools.product(NUMBERS, sorted(others), few()):
        assert program.decide(number, other, arguments) == KILL


@roles
@machines
def test_the_x32_range_is_killed(role: str, machine: str) -> None:
    """A number of the x32 range is the same call by another door, and so are negative ones."""
    program = Program(seccomp.assemble(rules_of(role), machine))
    for number, base, arguments in itertools.product(NUMBERS, (X32, 1 << 31, 3 << 30), few()):
        assert program.decide(base | number, ARCHITECTURES[machine], arguments) == KILL
    assert program.decide(2**32 - 1, ARCHITECTURES[machine], filled()) == KILL


@machines
def test_how_many_calls_there_are(machine: str) -> None:
    """A sandbox has 26 system calls, those of the table, each once; a compiler one more."""
    names = [name for name, _ in rules_of("sandbox")]
    assert len(names) == len(set(names)) == 26
    assert set(names) == FREE | CHECKED
    more = [name for name, _ in rules_of("compiler")]
    assert sorted(more) == sorted([*names, "pwrite64"])
    assert len({kernel.number(name, machine) for name in more}) == 27


def test_a_block_too_long_is_refused() -> None:
    """A jump reaches 255 steps: a longer block is an error and not a hole."""
    values = tuple(range(250))
    longest = (("read", (seccomp.Is(0, values),)),)
    program = Program(seccomp.assemble(longest, "x86_64"))
    assert program.decide(0, ARCHITECTURES["x86_64"], filled(249)) == ALLOW
    assert program.decide(0, ARCHITECTURES["x86_64"], filled(250)) == KILL
    assert program.decide(1, ARCHITECTURES["x86_64"], filled(1)) == KILL
    with pytest.raises(ValueError, match="read is too long"):
        seccomp.assemble((("read", (seccomp.Is(0, values), seccomp.Is(1, values))),), "x86_64")


# libseccomp, by its C interface.


class Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp`."""

    _fields_ = (
        ("arg", ctypes.c_uint), ("op", ctypes.c_int), ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )  # fmt: skip


ACT_BADARCH: Final = 2
MASKED_EQUAL: Final = 7
Masked = tuple[int, int, int]  # argument, mask, value

# The table once more, as libseccomp takes it: alternatives of conditions that hold together.
_INT: Final = 0xFFFF_FFFF


def policy(role: str) -> Iterator[tuple[str, tuple[Masked, ...]]]:
    """What is allowed."""
    for name in sorted(FREE):
        yield name, ()
    for name in ("read", "recvfrom", "sendto", "write"):
        yield name, ((0, _INT, SOCKET),)
    yield "write", ((0, _INT, 2),)
    yield "mmap", ((2, 4, 0), (3, 0x101, 0))
    if role == "sandbox":
        yield "mprotect", ((2, 4, 0),)
    else:
        for rights in range(6):
            yield "mprotect", ((2, _INT, rights),)
        yield "pwrite64", ((0, _INT, ARTIFACT),)
    for command in (0, 1, 9, 10):
        yield "futex", ((1, 0x7F, command),)
    yield "tgkill", ((0, _INT, PID), (2, _INT, 6))


class Reference:
    """The library, where it is installed."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.seccomp_init.restype = ctypes.c_void_p
        resolve = library.seccomp_syscall_resolve_name_arch
        resolve.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
        self._resolve: Callable[[int, bytes], int] = resolve
        void, unsigned = ctypes.c_void_p, ctypes.c_uint32
        for name, types in {
            "init": (unsigned,), "release": (void,), "arch_add": (void, unsigned),
            "arch_remove": (void, unsigned), "attr_set": (void, ctypes.c_int, unsigned),
            "export_bpf": (void, ctypes.c_int),
            "rule_add_array": (void, unsigned, ctypes.c_int, ctypes.c_uint, void),
        }.items():  # fmt: skip
            getattr(library, f"seccomp_{name}").argtypes = types

    def number(self, name: str, machine: str) -> int:
        """The number of a call there, negative if it has none."""
        return self._resolve(ARCHITECTURES[machine], name.encode())

    def _do(self, name: str, *arguments: object) -> None:
        assert getattr(self._library, f"seccomp_{name}")(*arguments) == 0, name

    def program(self, rules: Iterable[tuple[str, tuple[Masked, ...]]], machine: str) -> Program:
        """The filter that it makes of these rules."""
        context = self._library.seccomp_init(KILL)
        assert context
        try:
            self._do("attr_set", context, ACT_BADARCH, KILL)
            if machine != kernel.machine():
                self._do("arch_add", context, ARCHITECTURES[machine])
                self._do("arch_remove", context, ARCHITECTURES[kernel.machine()])
            for name, conditions in rules:
                # It takes the numbers of the machine it runs on, and translates them.
                native = self.number(name, kernel.machine())
                described = [
                    Comparison(index, MASKED_EQUAL, mask, value)
                    for index, mask, value in conditions
                ]
                array = (Comparison * len(described))(*described)
                self._do("rule_add_array", context, ALLOW, native, len(described), array)
            file = os.memfd_create("filter")
            try:
                self._do("export_bpf", context, file)
                return Program(os.pread(file, os.fstat(file).st_size, 0))
            finally:
                os.close(file)
        finally:
            self._library.seccomp_release(context)


@pytest.fixture(scope="module")
def reference() -> Reference:
    """The library to compare with."""
    try:
        return Reference(ctypes.CDLL(LIBRARY))
    except OSError:
        pytest.skip(f"{LIBRARY} is not installed")


@machines
def test_numbers_are_those_of_libseccomp(reference: Reference, machine: str) -> None:
    """No number is mistyped: the filter would let another call through."""
    ours = {name: kernel.number(name, machine) for name in kernel.SYSCALLS}
    assert ours == {name: reference.number(name, machine) for name in kernel.SYSCALLS}


@machines
def test_the_attacks_numbers_are_those_of_libseccomp(reference: Reference, machine: str) -> None:
    """An attack that makes another call than it says proves nothing."""
    place = kernel.MACHINES.index(machine)
    known = {
        name: number
        for name in attacks._NUMBERS
        if (number := reference.number(name, machine)) >= 0
    }
    assert len(known) > 60
    assert known == {name: attacks._NUMBERS[name][place] for name in known}


@roles
@machines
def test_every_decision_is_that_of_libseccomp(
    reference: Reference, role: str, machine: str
) -> None:
    """The same policy, assembled by others: not one decision differs."""
    ours = Program(seccomp.assemble(rules_of(role), machine))
    theirs = reference.program(policy(role), machine)
    assert ours.steps != theirs.steps
    for number, arguments in calls(machine):
        for base in (0, X32):
            asked = (base | number, ARCHITECTURES[machine], arguments)
            assert ours.decide(*asked) == theirs.decide(*asked), asked
    for number, other in itertools.product(NUMBERS, FOREIGN):
        asked = (number, other, filled())
        assert ours.decide(*asked) == theirs.decide(*asked), asked
