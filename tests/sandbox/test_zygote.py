"""The fork server by itself: what it holds, how it ends, and what it survives."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from executor.core.frames import Exited, Fork, Load, Reader, Ready, encode
from executor.model import MIB
from executor.sandbox import attacks, kernel
from executor.supervisor.zygote import Child, Zygote, hide_memory
from tests.support.nursery import DATA_BYTES, WAIT_SECONDS, Nursery

CANARY: Final = "canary-in-the-{}-5b1e77c0"
EXIT_PROTOCOL: Final = 73
START_FAILED: Final = 71
# kill (for the children's parent-death signal), setgid, setuid, setpcap.
CAPABILITIES_MAX: Final = 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8

root_only = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root reads a process that is not dumpable"
)


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    """A fork server of its own for each test: most of them end it."""
    made = Nursery()
    yield made
    made.close()


def field(pid: int, name: str) -> str:
    """A line of /proc/<pid>/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines)[name].strip()


def offspring(pid: int) -> list[int]:
    """The children of a process."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                if int(field(int(folder.name), "PPid")) == pid:
                    found.append(int(folder.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def ended(pidfd: int) -> bool:
    """Wait for the end of a process."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(WAIT_SECONDS * 1000))


class Sandbox:
    """A child in a sandbox's role, and the supervisor's end of its socket."""

    def __init__(self, nursery: Nursery, *, slot: int = 0) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(WAIT_SECONDS)
        page = os.memfd_create("status")
        os.ftruncate(page, 4096)
        with theirs:
            self.born = nursery.fork("sandbox", [theirs.fileno(), page], slot=slot)
        os.close(page)

    def ready(self) -> Ready:
        """Have it lock itself down."""
        self.socket.sendall(encode(Load(())))
        frames = Reader().feed(self.socket.recv(4096))
        (frame,) = frames
        assert isinstance(frame, Ready), frame
        return frame

    def close(self) -> None:
        """Let go of the socket."""
        self.socket.close()


def family(nursery: Nursery) -> list[Sandbox]:
    """Two locked children and one that still waits for what it is to load."""
    made = [Sandbox(nursery, slot=slot) for slot in range(3)]
    for locked in made[:2]:
        locked.ready()
    assert works(nursery)  # the next one held ready exists before this one's end is told
    return made


def works(nursery: Nursery) -> bool:
    """Whether it forks a good child."""
    return nursery.attack("nothing") == attacks.EXIT_PASSED


def memory(pid: int) -> Iterator[bytes]:
    """Every readable page of a process, reserved address space aside."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as pages:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            start, end = (int(part, 16) for part in span.split("-"))
            if not rights.startswith("r") or end - start > 1 << 28:
                continue
            try:
                pages.seek(start)
                yield pages.read(end - start)
            except (OSError, OverflowError):
                continue


# What it holds.


@root_only
def test_its_memory_holds_nothing_of_its_starter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A copy of it has nothing to hide: no secret of whoever started it is in there."""
    planted = {where: CANARY.format(where).encode() for where in ("environment", "file", "memory")}
    monkeypatch.setenv("EXECUTOR_TEST_SECRET", planted["environment"].decode())
    path = tmp_path / planted["file"].decode()
    path.write_bytes(planted["file"])
    with path.open("rb") as file:
        os.set_inheritable(file.fileno(), True)
        held = file.read()
        nursery = Nursery()
        try:
            assert works(nursery)
            copy = Sandbox(nursery)
            needles = {**planted, "fingerprint": nursery.warm.engine.encode()}
            for pid in (nursery.process.pid, copy.born.pid):
                pages = b"".join(memory(pid))
                # The twin: what it must know is found by the same search.
                assert [name for name, text in needles.items() if text in pages] == ["fingerprint"]
                assert Path(f"/proc/{pid}/environ").read_bytes() == b""
            copy.close()
        finally:
            nursery.close()
    assert held == planted["file"]


@root_only
def test_its_descriptors(nursery: Nursery, tmp_path: Path) -> None:
    """The null device, its control socket, and one socket and pidfd of the child held ready."""
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        assert works(nursery)  # the child held ready exists before the first one's end is told
        folder = Path(f"/proc/{nursery.process.pid}/fd")
        held = {int(fd.name): str(fd.readlink()).partition(":")[0] for fd in folder.iterdir()}
        assert [held.pop(standard) for standard in range(3)] == ["/dev/null"] * 3
        assert sorted(held.values()) == ["anon_inode", "socket", "socket"]
        # That child, once it is locked, has its own end only.
        child = Sandbox(nursery)
        child.ready()
        folder = Path(f"/proc/{child.born.pid}/fd")
        held = {int(fd.name): str(fd.readlink()).partition(":")[0] for fd in folder.iterdir()}
        assert [held.pop(standard) for standard in range(3)] == ["/dev/null"] * 3
        assert list(held.values()) == ["socket"]
        child.close()


def test_it_has_one_thread_and_hardly_a_privilege(nursery: Nursery) -> None:
    """It can give each child a user of its own and nothing beyond; no exec regains anything."""
    pid = nursery.process.pid
    assert field(pid, "Threads") == "1"
    assert field(pid, "NoNewPrivs") == "1"
    for name in ("CapEff", "CapPrm"):
        assert int(field(pid, name), 16) & ~CAPABILITIES_MAX == 0
    for name in ("CapInh", "CapAmb"):
        assert int(field(pid, name), 16) == 0


def test_a_locked_child_has_no_privilege(nursery: Nursery) -> None:
    """What the fork server kept ends in its child."""
    child = Sandbox(nursery)
    child.ready()
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(field(child.born.pid, name), 16) == 0
    assert field(child.born.pid, "Seccomp") == "2"
    assert field(child.born.pid, "Threads") == "1"
    child.close()
    assert child.born.wait() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives each slot a user")
def test_each_slot_has_a_user_of_its_own(nursery: Nursery) -> None:
    """Two sandboxes of one host are two users, and neither is root, in no field."""
    rooms = [Sandbox(nursery, slot=slot) for slot in (0, 1)]
    for room in rooms:
        room.ready()
    users = [set(field(room.born.pid, "Uid").split()) for room in rooms]
    groups = [set(field(room.born.pid, "Gid").split()) for room in rooms]
    assert [len(user) for user in users] == [1, 1]  # real, effective, saved, file system
    assert users[0] != users[1]
    assert groups == users
    assert "0" not in users[0] | users[1]
    assert [field(room.born.pid, "Groups") for room in rooms] == ["", ""]
    for room in rooms:
        room.close()


# How it ends.


def test_it_leaves_when_its_socket_closes(nursery: Nursery) -> None:
    """The end of the supervisor, however it comes, is the end of the fork server and all others."""
    children = family(nursery)
    pidfds = [child.born._pidfd for child in children]
    pidfds += [os.pidfd_open(pid) for pid in offspring(nursery.process.pid)]
    assert len(pidfds) >= 7  # each of the three twice, and the one held ready
    nursery.control.close()
    assert nursery.process.wait(WAIT_SECONDS) == 0
    assert all(map(ended, pidfds))
    for child in children:
        child.close()
    for pidfd in pidfds:
        os.close(pidfd)


def test_its_children_die_with_it(nursery: Nursery) -> None:
    """Killed from outside, it takes everything along, while their sockets are still open."""
    children = family(nursery)
    pidfds = [child.born._pidfd for child in children]
    pidfds += [os.pidfd_open(pid) for pid in offspring(nursery.process.pid)]
    assert len(pidfds) >= 7
    nursery.process.kill()
    assert nursery.process.wait(WAIT_SECONDS) == -signal.SIGKILL
    assert all(map(ended, pidfds))
    for child in children:
        child.close()
    for pidfd in pidfds:
        os.close(pidfd)


def test_the_child_held_ready_may_die(nursery: Nursery) -> None:
    """Without it the next one is forked at once, and dies with the fork server as any other."""
    assert works(nursery)
    (spare,) = offspring(nursery.process.pid)
    gone = os.pidfd_open(spare)
    os.kill(spare, signal.SIGKILL)
    assert ended(gone)
    os.close(gone)
    child = Sandbox(nursery)
    child.ready()
    assert child.born.pid != spare
    nursery.process.kill()
    assert ended(child.born._pidfd)
    child.close()
    os.close(child.born._pidfd)


# What it survives.


@pytest.mark.parametrize(
    ("role", "attack", "status"),
    [
        ("", "", EXIT_PROTOCOL),
        ("supervisor", "", EXIT_PROTOCOL),
        ("Sandbox", "", EXIT_PROTOCOL),
        ("attack", "", EXIT_PROTOCOL),
        ("attack", "no such thing", EXIT_PROTOCOL),
    ],
)
def test_a_wrong_order_ends_the_child(
    nursery: Nursery, role: str, attack: str, status: int
) -> None:
    """What nobody should ask for ends the child that was asked, and nobody else."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        born = nursery.fork(role, [theirs.fileno()], attack=attack)
        assert born.wait() == status
        born.close()
    assert works(nursery)


@pytest.mark.parametrize("role", ["sandbox", "compiler"])
def test_too_few_descriptors_end_the_child(nursery: Nursery, role: str) -> None:
    """A child that lacks its status page or its file does not start; the fork server lives."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        born = nursery.fork(role, [theirs.fileno()])
        ours.sendall(encode(Load(())))
        assert born.wait() not in {0, -signal.SIGKILL}
        born.close()
    assert works(nursery)


@pytest.mark.parametrize("role", ["sandbox", "compiler", "attack", "nobody"])
def test_no_descriptors_are_refused(nursery: Nursery, role: str) -> None:
    """Without a socket no child is made; the answer says so, and the next order is served."""
    order = Fork(1000, role, 0, DATA_BYTES, False, 0, "nothing")
    nursery.control.sendall(encode(order))
    frame, passed = nursery._next()
    assert (frame, passed) == (Exited(1000, START_FAILED), [])
    assert works(nursery)


def test_a_message_that_is_no_order_ends_it(nursery: Nursery) -> None:
    """It trusts nobody's grammar: what is no Fork ends it, as a protocol violation."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(nursery.control, [encode(Load(()))], [theirs.fileno()])
    assert nursery.process.wait(WAIT_SECONDS) == EXIT_PROTOCOL


# As the supervisor sees it.


class Ending(Child):
    """A child whose birth and end can be waited for."""

    def __init__(self) -> None:
        super().__init__(self._born, self._gone)
        self.born, self.gone = asyncio.Event(), asyncio.Event()
        self.status: int | None = None

    def _born(self) -> None:
        self.born.set()

    def _gone(self, status: int, _detail: str) -> None:
        self.status = status
        self.gone.set()


def fork(zygote: Zygote, attack: str) -> Ending:
    """A locked child that does this."""
    child = Ending()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        zygote.fork("attack", [theirs.fileno()], child, slot=0, data=64 * MIB, attack=attack)
    return child


async def test_its_death_is_told_and_mended() -> None:
    """Every child of a killed fork server is reported killed; the next request starts another."""
    zygote = Zygote()
    try:
        first = await zygote.warm()
        assert first.engine.startswith("wasmtime ")
        assert zygote.starts == 1
        children = [fork(zygote, "sleep") for _ in range(3)]
        for child in children:
            await child.born.wait()
        pidfds = [os.pidfd_open(child.pid) for child in children]
        killed = zygote.pid
        os.kill(killed, signal.SIGKILL)
        for child in children:
            await child.gone.wait()
        assert [child.status for child in children] == [-signal.SIGKILL] * 3
        assert all(child.ended for child in children)
        assert all([await asyncio.to_thread(ended, pidfd) for pidfd in pidfds])
        for pidfd in pidfds:
            os.close(pidfd)
        after = fork(zygote, "nothing")
        assert zygote.starts == 2
        assert zygote.pid != killed
        await after.gone.wait()
        assert after.status == attacks.EXIT_PASSED
        assert await zygote.warm() == first
    finally:
        await zygote.close()


async def test_an_order_that_was_never_answered() -> None:
    """A child that was asked for and not yet forked when the fork server died is told as well."""
    zygote = Zygote()
    try:
        await zygote.warm()
        os.kill(zygote.pid, signal.SIGSTOP)
        child = fork(zygote, "nothing")
        os.kill(zygote.pid, signal.SIGKILL)
        await child.gone.wait()
        assert (child.status, child.pid) == (-signal.SIGKILL, 0)
    finally:
        await zygote.close()


def test_the_supervisors_memory_is_hidden() -> None:
    """After `hide_memory` a process is not dumpable; before, it is."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            before = kernel.prctl(kernel.PR_GET_DUMPABLE)
            hide_memory()
            if (before, kernel.prctl(kernel.PR_GET_DUMPABLE)) == (1, 0):
                status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
