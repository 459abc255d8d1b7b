"""Each step of the lock-down by itself: what it alone does, so that none goes away unseen."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from unittest import mock

import pytest
import wasmtime

from executor.core import layers
from executor.core.frames import Answer, Call
from executor.errors import ExecutorError
from executor.sandbox import jail, kernel, landlock, linker, zygote
from executor.sandbox.host import Host
from executor.sandbox.machine import Ended
from executor.sandbox.memory import PAGE
from tests.sandbox.conftest import MEMORY, Lab, end, entry, text

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root has what it takes away")
OK: Final = 0
TCP_SINCE: Final = 4
SCOPES_SINCE: Final = 6


def take(*names: str, **fields: int) -> None:
    """Take these steps and no other."""
    plan = jail.Plan(parent=os.getppid(), rules=(), user=jail.user_of_slot(0), **fields)  # type: ignore[arg-type]
    jail.lock_down(plan, [(name, step) for name, step in jail.STEPS if name in names])


# Processes.


def test_time_ends_with_its_own_signal() -> None:
    """CPU seconds alone end a process, with the signal that says so."""

    def spin() -> bool:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        take(layers.RLIMITS, cpu_seconds=1)
        while time.process_time() < 10:  # far more than allowed: then it was not stopped
            pass
        return False

    assert end(spin) == -signal.SIGXCPU


def test_limits_are_set_by_the_step() -> None:
    """Whatever was inherited: each of them is 0 for good."""
    limits = (
        resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC,
        resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE,
    )  # fmt: skip

    def work() -> bool:
        for limit in limits:
            hard = 4096 if os.geteuid() == 0 else resource.getrlimit(limit)[1]
            resource.setrlimit(limit, (hard, hard))
        take(layers.RLIMITS)
        return {resource.getrlimit(limit) for limit in limits} == {(0, 0)}

    assert end(work) == OK


@root_only
def test_groups_go_with_the_user() -> None:
    """A group that root was in is not the slot's, nor is any capability for an exec to gain."""

    def work() -> bool:
        os.setgroups([1, 2, 3])
        if kernel.bounding_set() == 0:
            return False
        take(layers.USER)
        return os.getgroups() == [] and kernel.bounding_set() == 0

    if jail.user_of_slot(0) >= 0:
        assert end(work) == OK


def test_memory_is_hidden_by_the_step() -> None:
    """Not only by a change of user: the step does it, where there is no change."""

    def work() -> bool:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        take(layers.NOT_DUMPABLE)
        return kernel.prctl(kernel.PR_GET_DUMPABLE) == 0

    assert end(work) == OK


def test_the_fork_server_hides_its_memory() -> None:
    """It writes no core file, is not dumpable and gains nothing, from before its first child on."""

    def work() -> bool:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        zygote._lock_down()
        return (
            kernel.prctl(kernel.PR_GET_DUMPABLE) == 0
            and kernel.prctl(kernel.PR_GET_NO_NEW_PRIVS) == 1
            and resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        )

    assert end(work) == OK


def test_descriptors_are_proved_to_be_gone() -> None:
    """A limit that was accepted and does nothing is found out: the step tries before it says so."""
    with (
        mock.patch.object(resource, "setrlimit"),
        pytest.raises(ExecutorError, match="a file opens") as caught,
    ):
        take(layers.NO_DESCRIPTORS)
    assert caught.value.code == "sandbox.containment-missing"


# Memory that is written and executed.


def both() -> int:
    """A page that is both, as an import might leave one."""
    page = ctypes.CDLL(None, use_errno=True)
    page.mmap.restype = ctypes.c_void_p
    address: int = page.mmap(None, ctypes.c_size_t(4096), 7, 0x22, -1, ctypes.c_size_t(0))
    return address


def test_a_page_that_is_both_loses_one() -> None:
    """It is read and executed, and a write ends the process."""

    def work() -> bool:
        address = both()
        ctypes.memset(address, 1, 1)
        take(layers.WRITE_OR_EXECUTE)
        ctypes.memset(address, 1, 1)
        return True

    assert end(work) == -signal.SIGSEGV


def test_a_page_that_stays_both_ends_the_start() -> None:
    """The step looks again, and trusts no call that said yes."""

    def work() -> bool:
        both()
        with mock.patch.object(kernel, "make_read_only_code"), contextlib.suppress(ExecutorError):
            take(layers.WRITE_OR_EXECUTE)
            return False
        return True

    assert end(work) == OK


# Landlock, alone.


def restricted(attempt: Callable[[], object]) -> bool:
    """Whether it works before and is refused after, with no other layer on."""

    def work() -> bool:
        attempt()
        take(layers.NO_NEW_PRIVS, layers.LANDLOCK_FILES)
        try:
            attempt()
        except PermissionError:
            return True
        return False

    return end(work) == OK


def since(version: int) -> pytest.MarkDecorator:
    """Where this kernel's interface has it."""
    try:
        found = landlock.version()
    except OSError:
        found = 0
    return pytest.mark.skipif(found < version, reason=f"Landlock {found} is older")


@pytest.fixture
def listening() -> Iterator[tuple[str, int]]:
    """A TCP port of this host that accepts."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        yield host, port


@since(TCP_SINCE)
def test_no_port_is_connected_to(listening: tuple[str, int]) -> None:
    """TCP, one right of two."""
    assert restricted(lambda: socket.create_connection(listening).close())


@since(TCP_SINCE)
def test_no_port_is_bound() -> None:
    """TCP, the other right."""
    assert restricted(lambda: socket.create_server(("127.0.0.1", 0)).close())


@since(SCOPES_SINCE)
def test_no_abstract_socket_is_reached() -> None:
    """A name without a file, of somebody outside."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("")  # the kernel chooses an abstract name
        server.listen()

        def attempt() -> None:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(server.getsockname())

        assert restricted(attempt)


@since(SCOPES_SINCE)
def test_no_signal_reaches_the_parent() -> None:
    """Not even the one that does nothing."""
    assert restricted(lambda: os.kill(os.getppid(), 0))


def each(*calls: Callable[[], object]) -> Callable[[], object]:
    """All of these, one after the other."""
    return lambda: [call() for call in calls]


@since(1)
def test_no_file_is_touched(tmp_path: Path) -> None:
    """Made, read, written, listed, linked, moved, removed: each refused."""
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_bytes(b"x")
    for attempt in (
        each(file.read_bytes),
        each(lambda: os.close(os.open(file, os.O_WRONLY))),
        each(lambda: os.listdir(tmp_path)),  # noqa: PTH208 - the call itself, not one that waits
        each(other.touch, other.unlink),
        each(other.mkdir, other.rmdir),
        each(lambda: other.symlink_to("x"), other.unlink),
        each(lambda: os.mkfifo(other), other.unlink),
        each(lambda: file.rename(other), lambda: other.rename(file)),
    ):
        assert restricted(attempt)


@pytest.mark.parametrize(
    ("version", "files", "tcp", "scopes"),
    [
        (1, 0x1FFF, 0, 0), (2, 0x3FFF, 0, 0), (3, 0x7FFF, 0, 0), (4, 0x7FFF, 3, 0),
        (5, 0xFFFF, 3, 0), (6, 0xFFFF, 3, 3), (7, 0xFFFF, 3, 3),
    ],
)  # fmt: skip
def test_every_right_of_a_version_is_handled(
    version: int, files: int, tcp: int, scopes: int
) -> None:
    """The kernel's own list: files 13, refer, truncate, ioctl; bind and connect; two scopes."""
    assert landlock.rights(version) == (files, tcp, scopes)


# A Store.


def test_a_store_has_one_instance(lab: Lab) -> None:
    """A second one in the Store of an attempt, should a guest ever get to ask, is not given."""
    program, _ = lab.program(text(entry("(i32.const 0)")))
    machine = program.machine(fuel=1_000_000, memory_bytes=PAGE, table_elements=10)
    try:
        machine.instantiate()
        with pytest.raises(Ended) as caught:
            machine.instantiate()
        assert "instance count" in caught.value.message
    finally:
        machine.close()


def test_a_store_has_one_memory() -> None:
    """Our engine compiles no module with two; where one did, the Store would not have it."""
    config = wasmtime.Config()
    config.consume_fuel = True
    config.wasm_multi_memory = True
    engine = wasmtime.Engine(config)
    codes = []
    for memories in (MEMORY, f"{MEMORY} (memory 1)"):
        module = wasmtime.Module(engine, text(entry("(i32.const 0)"), memory=memories))
        program = linker.prepare(engine, module, (), Host(unasked))
        machine = program.machine(fuel=1_000_000, memory_bytes=PAGE, table_elements=10)
        code = ""
        try:
            machine.instantiate()
        except Ended as ended:
            code = ended.code
        finally:
            machine.close()
        codes.append(code)
    assert codes == ["", "limit.memory-exceeded"]


def unasked(call: Call) -> Answer:
    """A mediator that no guest here calls."""
    raise AssertionError(call)
