"""A locked sandbox and a locked compiler, as the kernel describes them in /proc."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final
from unittest import mock

import pytest
import wasmtime

from executor.core import layers
from executor.core.frames import Compile, Fork, Load, encode
from executor.model import MIB
from executor.sandbox import jail, kernel, main
from executor.sandbox.channel import Channel
from executor.sandbox.compiler import ARTIFACT_MAX
from executor.sandbox.warm import warm_up
from tests.sandbox.conftest import GIB, Room, memfd
from tests.support.nursery import DATA_BYTES

if TYPE_CHECKING:
    from tests.sandbox.conftest import Lab, Rooms

CPU_SECONDS: Final = 10
SLACK: Final = 16 * MIB  # what a process may have mapped since its limits were set
FOLDERS: Final = Path("/proc")


def sandbox(rooms: Rooms) -> Room:
    """A sandbox that is ready."""
    return rooms.ready()


def compiler(rooms: Rooms) -> Room:
    """A compiler that is locked and has seconds of work before it."""
    names = [f"$l{index}" for index in range(300)]
    depth = 2_000
    use = "".join(f"(local.set {n} (i64.add (local.get {n}) (i64.const 1)))" for n in names)
    module = wasmtime.wat2wasm(
        f"(module (func (param i32) {''.join(f'(local {n} i64)' for n in names)}"
        f"{'(loop ' * depth} {use} {'(br_if 0 (local.get 0)))' * depth}))"
    )
    room = rooms.compiler(memfd(bytes(module)), memfd(), data=GIB, cpu_seconds=CPU_SECONDS)
    room.send(Compile(64 * MIB, large=False))
    while room.proc("Seccomp") != "2":
        os.sched_yield()
    return room


ROLES: Final[dict[str, tuple[Callable[[Rooms], Room], int]]] = {
    "sandbox": (sandbox, DATA_BYTES), "compiler": (compiler, GIB),
}  # fmt: skip


@pytest.fixture(params=ROLES)
def locked(rooms: Rooms, request: pytest.FixtureRequest) -> tuple[Room, int]:
    """A locked process of each role, and its budget of memory."""
    start, budget = ROLES[request.param]
    return start(rooms), budget


def limits(room: Room) -> dict[str, tuple[str, str]]:
    """/proc/PID/limits: name → soft and hard."""
    lines = (FOLDERS / str(room.process.pid) / "limits").read_text().splitlines()[1:]
    return {line[:26].strip(): (line[26:47].strip(), line[47:68].strip()) for line in lines}


def maps(room: Room) -> list[str]:
    """The rights of each of its mappings."""
    lines = (FOLDERS / str(room.process.pid) / "maps").read_text().splitlines()
    return [line.split()[1] for line in lines]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads a process that is not dumpable")
def test_no_memory_is_both_writable_and_executable(locked: tuple[Room, int]) -> None:
    """What can be written is never executed: neither of ctypes' pages nor of the engine's."""
    rights = maps(locked[0])
    assert len(rights) > 50
    assert [each for each in rights if "w" in each and "x" in each] == []


def test_nothing_but_memory_is_to_be_had(locked: tuple[Room, int]) -> None:
    """Each limit that is 0 is 0, soft and hard; a compiler may write one artifact."""
    found = limits(locked[0])
    names = (
        "Max core file size", "Max processes", "Max locked memory", "Max msgqueue size",
        "Max open files",
    )  # fmt: skip
    assert {name: found[name] for name in names} == dict.fromkeys(names, ("0", "0"))
    files = "0" if locked[1] == DATA_BYTES else str(ARTIFACT_MAX)
    assert found["Max file size"] == (files, files)


def test_memory_is_bounded_from_what_is_mapped(locked: tuple[Room, int], reserved: int) -> None:
    """Data by the budget; address space by the budget and what one instance reserves."""
    room, budget = locked
    found = limits(room)
    if budget == GIB:
        reserved = 0  # a compiler makes no instance
    for limit, now, more in (
        ("Max data size", "VmData", budget), ("Max address space", "VmSize", budget + reserved),
    ):  # fmt: skip
        soft, hard = found[limit]
        assert soft == hard
        left = int(soft) - int(room.proc(now).split()[0]) * 1024
        assert (0 if budget == GIB else more - SLACK) < left <= more + SLACK


def test_a_compilers_time_is_bounded(rooms: Rooms) -> None:
    """CPU seconds: the soft limit says why it died, the hard one is not to be argued with."""
    assert limits(compiler(rooms))["Max cpu time"] == (str(CPU_SECONDS), str(CPU_SECONDS + 1))
    assert limits(sandbox(rooms))["Max cpu time"] == ("unlimited", "unlimited")


def test_no_privilege_is_left(locked: tuple[Room, int]) -> None:
    """No capability in any set, no group, one thread, one filter, and no way back."""
    room, _ = locked
    said = {name: room.proc(name) for name in (
        "CapInh", "CapPrm", "CapEff", "CapAmb", "Groups", "NoNewPrivs", "Seccomp", "Threads",
    )}  # fmt: skip
    none = dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapAmb"), "0" * 16)
    assert said == {**none, "Groups": "", "NoNewPrivs": "1", "Seccomp": "2", "Threads": "1"}
    if os.geteuid() == 0 and jail.user_of_slot(0) >= 0:
        assert int(room.proc("CapBnd"), 16) == 0
        assert "0" not in (room.proc("Uid") + " " + room.proc("Gid")).split()


def test_it_says_all_that_it_put_on(rooms: Rooms) -> None:
    """The layers come in the order in which they are put on."""
    room = rooms.sandbox()
    frame = room.next()
    put_on = getattr(frame, "layers", ())
    assert list(put_on) == [name for name in layers.LAYERS if name in put_on]
    assert set(put_on) >= layers.REQUIRED


# What is loaded was written by another process.

# getuid, which no filter of ours allows, then exit with 42.
FORGED: Final = {
    "x86_64": bytes.fromhex("b8660000000f05" "b8e7000000bf2a0000000f05"),
    "aarch64": struct.pack(
        "<6I", 0xD28015C8, 0xD4000001, 0xD2800540, 0xD2800BC8, 0xD4000001, 0xD65F03C0
    ),
}  # fmt: skip
NOP: Final = {"x86_64": b"\x90", "aarch64": b"\x1f\x20\x03\xd5"}


def forged(artifact: bytes) -> bytes:
    """The artifact with other machine code: its whole text does the above, wherever it is entered.

    A compiler that was taken over could write it; an ELF file of 64 bits.
    """
    table, entry, count, names = (
        *struct.unpack_from("<Q", artifact, 40), *struct.unpack_from("<HHH", artifact, 58),
    )  # fmt: skip
    sections = [
        struct.unpack_from("<IIQQQQ", artifact, table + place * entry) for place in range(count)
    ]
    spelled = sections[names][4]
    found = [
        (section[4], section[5]) for section in sections
        if artifact[spelled + section[0] :].startswith(b".text\0")
    ]  # fmt: skip
    ((start, size),) = found
    code, nop = FORGED[kernel.machine()], NOP[kernel.machine()]
    slide = nop * ((size - len(code)) // len(nop))
    text: bytes = (slide + code).ljust(size, b"\0")
    return artifact[:start] + text + artifact[start + size :]


def test_forged_code_meets_the_filter(rooms: Rooms, lab: Lab) -> None:
    """A start section of any machine code runs behind the whole lock-down, before Ready."""
    text = lab.text('(func $s (nop)) (start $s) (func (export "run") (result i32) (i32.const 0))')
    genuine = rooms.artifact(text)
    assert rooms.sandbox(genuine).next() is not None  # the twin
    room = rooms.sandbox(memfd(forged(os.pread(genuine, os.fstat(genuine).st_size, 0))))
    assert room.next() is None
    assert room.exit_status() == -signal.SIGSYS


def test_who_reads_an_artifact_is_nobody() -> None:
    """While it loads a sandbox has another user, no privilege, and opens nothing of the host."""
    ours, theirs = socket.socketpair()
    page = memfd(size=4096)
    mapped = jail.user_of_slot(0) >= 0
    attempts: dict[str, Callable[[], object]] = {
        "a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "a folder": lambda: os.open("/", os.O_RDONLY),
        "another group": lambda: os.setgroups([0]),
        "another user": lambda: os.setresuid(1, 1, 1),
        "another root": lambda: os.chroot("."),
    }
    ours.sendall(encode(Load(())))

    def look(*_: object) -> None:
        allowed = []
        for name, attempt in attempts.items():
            with contextlib.suppress(PermissionError):
                attempt()
                allowed.append(name)
        said = (
            kernel.prctl(kernel.PR_GET_DUMPABLE), kernel.prctl(kernel.PR_GET_NO_NEW_PRIVS),
            mapped and 0 in (*os.getresuid(), *os.getresgid()), allowed,
        )  # fmt: skip
        os._exit(42 if said == (0, 1, False, []) else 43)

    child = os.fork()
    if child == 0:
        try:
            order = Fork(1, "sandbox", 0, DATA_BYTES, False, 0, "")
            with mock.patch.object(main, "_load", look):
                main.sandbox(order, [theirs.fileno(), page], Channel(theirs.fileno()),
                             warm_up(pooled=False), os.getppid())  # fmt: skip
        finally:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    ours.close()
    theirs.close()
    os.close(page)
    assert os.waitstatus_to_exitcode(status) == 42
