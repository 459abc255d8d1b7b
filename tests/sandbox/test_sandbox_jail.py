"""The lock-down, in forked children: each step bites, a missing one ends the process."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from executor.core import layers
from executor.errors import ExecutorError
from executor.sandbox import jail, seccomp

# Without the filter, which kills where the other layers refuse: so that each is seen to bite.
UNFILTERED = jail.STEPS[:-1]


def plan(parent: int, **fields: Any) -> jail.Plan:
    """A plan as a sandbox's, the socket left out."""
    rules = seccomp.sandbox_rules(pid=os.getpid(), socket=0)
    return jail.Plan(parent=parent, rules=rules, user=jail.user_of_slot(0), **fields)


def in_child(work: Callable[[], bool]) -> bool:
    """Whether `work` says True in a child that ends with it."""
    child = os.fork()
    if child == 0:
        answer = False
        try:
            answer = work()
        finally:
            os._exit(0 if answer else 1)
    _, status = os.waitpid(child, 0)
    return status == 0


def locked(work: Callable[[], bool], **fields: int) -> bool:
    """As `in_child`, after the whole lock-down."""

    def child() -> bool:
        jail.lock_down(plan(os.getppid(), **fields), UNFILTERED)
        return work()

    return in_child(child)


def refuses(work: Callable[[], object]) -> bool:
    """Whether the call fails with an error of the system."""
    try:
        work()
    except OSError:
        return True
    return False


def test_a_locked_process_does_its_work() -> None:
    """The harmless twin: memory, time and open descriptors still serve."""
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def work() -> bool:
            theirs.sendall(bytes(1_000_000)[:1000] + os.urandom(8))
            return True

        assert locked(work)
        assert len(ours.recv(2000)) == 1008


@pytest.mark.parametrize(
    "attack",
    [
        lambda: os.open("/", os.O_RDONLY),
        lambda: os.open("/dev/null", os.O_RDONLY),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        lambda: socket.socket(socket.AF_UNIX),
        socket.socketpair,
        os.pipe,
        lambda: os.dup(1),
        lambda: os.memfd_create("x"),
        lambda: os.setuid(0),
        lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (10, 10)),
    ],
)
def test_what_a_locked_process_cannot_do(attack: Callable[[], object]) -> None:
    """No descriptor of any kind comes into being, and nothing is taken back."""
    if os.geteuid() == 0:
        assert in_child(lambda: not refuses(lambda: os.close(os.open("/", os.O_RDONLY))))
    assert locked(lambda: refuses_any(attack))


def refuses_any(attack: Callable[[], object]) -> bool:
    """As `refuses`; a raised limit is a ValueError in this library."""
    try:
        return refuses(attack)
    except ValueError:
        return True


def test_a_locked_process_cannot_fork() -> None:
    """No thread and no process comes into being."""

    def work() -> bool:
        try:
            child = os.fork()
        except OSError as error:
            return error.errno == errno.EAGAIN
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        return False

    assert locked(work)


def test_a_locked_process_cannot_write_a_file() -> None:
    """A file that is still open takes no byte; a compiler's takes its cap and not more."""
    descriptor = os.memfd_create("x")
    assert locked(lambda: refuses(lambda: os.pwrite(descriptor, b"x", 0)))
    assert locked(lambda: os.pwrite(descriptor, b"12345678", 0) == 8, file_bytes=8)
    assert locked(lambda: refuses(lambda: os.pwrite(descriptor, b"9", 8)), file_bytes=8)
    os.close(descriptor)


def test_a_compilers_memory_is_relative() -> None:
    """The budget counts from what is mapped already."""

    def work() -> bool:
        bytearray(8 * 1024 * 1024)
        try:
            bytearray(64 * 1024 * 1024)
        except MemoryError:
            return True
        return False

    assert locked(work, address_space=32 * 1024 * 1024)


@pytest.mark.covers("sandbox.containment-missing")
def steps_without(failing: str) -> list[tuple[str, jail.Step]]:
    """Harmless steps, of which one fails."""

    def fail(_plan: jail.Plan) -> tuple[str, ...]:
        raise OSError(errno.EPERM, "no")

    return [
        (name, fail if name == failing else lambda _plan, name=name: (name,))  # type: ignore[misc]
        for name, _ in jail.STEPS
    ]


@pytest.mark.covers("sandbox.containment-missing")
@pytest.mark.parametrize("failing", sorted(layers.REQUIRED))
def test_a_step_that_fails_is_named(failing: str) -> None:
    """A required layer that cannot be had ends the lock-down with its name."""
    with pytest.raises(ExecutorError) as caught:
        jail.lock_down(plan(0), steps_without(failing))
    assert caught.value.code == "sandbox.containment-missing"
    assert caught.value.detail.startswith(failing)


@pytest.mark.parametrize("failing", [name for name, _ in jail.STEPS])
def test_best_effort_leaves_a_layer_out_and_says_so(failing: str) -> None:
    """What cannot be had is missing in the list; an optional layer always is, never silently."""
    relaxed = replace(plan(0), best_effort=failing in layers.REQUIRED)
    put_on = jail.lock_down(relaxed, steps_without(failing))
    assert put_on == tuple(name for name, _ in jail.STEPS if name != failing)


def test_an_orphan_does_not_start() -> None:
    """When the parent is gone before the signal was asked for, the process ends itself."""

    def work() -> bool:
        try:
            jail.lock_down(plan(os.getppid() + 1))
        except ExecutorError as error:
            return error.detail == "parent-death: the parent is gone"
        return False

    assert in_child(work)


def test_the_proof_fails_in_an_open_process() -> None:
    """Where a file opens, the proof ends the process: it does not trust the steps."""
    with pytest.raises(ExecutorError) as caught:
        jail.prove()
    assert caught.value.code == "sandbox.containment-missing"


def test_the_proof_needs_both() -> None:
    """A process that cannot open files but sockets is no jail either."""
    ours, theirs = socket.socketpair()
    with (
        ours, theirs,
        mock.patch.object(os, "open", side_effect=OSError(errno.EMFILE, "no")),
        mock.patch.object(socket, "socket", return_value=ours),
        pytest.raises(ExecutorError) as caught,
    ):  # fmt: skip
        jail.prove()
    assert caught.value.detail == "a socket opens"


def test_close_others_closes_what_is_not_kept() -> None:
    """Only 0-2 and the kept descriptors are left."""
    kept, other = os.open("/", os.O_RDONLY), os.open("/", os.O_RDONLY)

    def work() -> bool:
        jail.close_others({kept})
        return jail.descriptors() <= {0, 1, 2, kept} and refuses(lambda: os.fstat(other))

    assert in_child(work)
    os.close(kept)
    os.close(other)


def test_the_parents_death_is_the_childs() -> None:
    """A locked process whose parent dies is killed by the kernel."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(30)

        def middle() -> bool:
            parent = os.getpid()
            if os.fork() == 0:
                ours.close()
                jail.lock_down(plan(parent), UNFILTERED)
                theirs.sendall(b"locked")
                while True:
                    os.sched_yield()
            theirs.close()
            return ours.recv(10) == b"locked"

        assert in_child(middle)
        theirs.close()
        # The grandchild held the last other end: its death is the end of the stream.
        assert ours.recv(10) == b""
