"""Turns verified module bytes into an artifact, in a compiler process of its own.

Compiling untrusted Wasm is an attack by itself, so it happens in a process with CPU, memory and
file-size bounds and a deadline kept from here; one module a process, never on the task path. As
many run at once as there are cores, and tenants take turns: what one of them releases costs the
others a turn. A module is judged by the CPU time that its compiler used, never by how long this
host left it waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

from executor.core.frames import (
    START_CODES,
    Compile,
    Compiled,
    Failed,
    Reader,
    Rejected,
    encode,
)
from executor.errors import TABLE, ExecutorError
from executor.model import MIB
from executor.supervisor.job import Artifact
from executor.supervisor.process import ended, seal_content, sealed_memfd
from executor.supervisor.zygote import Child, Zygote

_READ: Final = 64 * 1024
_KILLED: Final = -int(signal.SIGKILL)
_FORBIDDEN: Final = -int(signal.SIGSYS)
# Compilers use the slots behind those of sandboxes, of which there are 256 at most.
COMPILER_SLOTS: Final = 256
COMPILERS_MAX: Final = 64
# A compiler is given its CPU time within so many times as long, and may have to share its core with
# a sandbox, another compiler and this process. What got less is this host's failure.
_PATIENCE: Final = 4
# The zygote forks in milliseconds; this is for one that does not answer at all.
_FORK_S: Final = 20.0
# CPU time is counted in steps of 10 ms; looking more often than this shows nothing new.
_LOOK_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Product:
    """An artifact and what the compiler read out of the module."""

    artifact: Artifact
    imports: tuple[tuple[str, str, str], ...]
    exports: tuple[tuple[str, str], ...]
    memory_min: int


@dataclass(frozen=True, slots=True)
class Budget:
    """What compiling one module may take: memory beyond the start's, and CPU time.

    `cpu_seconds`  is the kernel's bound, `deadline_ms` the finer one, kept from here.
    """

    memory_bytes: int = 1024 * MIB
    cpu_seconds: int = 10
    deadline_ms: int = 10_000


def _cores() -> int:
    # More compilers than cores would end no sooner, and each may hold a gigabyte until it does.
    return min(len(os.sched_getaffinity(0)), COMPILERS_MAX)


@dataclass
class Turns:
    """Who compiles next: one tenant after the other, however many modules each has waiting."""

    count: int = field(default_factory=_cores)
    _free: list[int] = field(init=False)
    # In the order of their next turns. What waits here is bounded by the releases.
    _waiting: dict[str, deque[asyncio.Future[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """All places are free."""
        self._free = list(range(self.count))

    @contextlib.asynccontextmanager
    async def turn(self, tenant: str) -> AsyncIterator[int]:
        """Wait for one of the places, and hold it; its number is nobody else's meanwhile."""
        place = self._free.pop() if self._free else await self._wait(tenant)
        try:
            yield place
        finally:
            self._give(place)

    async def _wait(self, tenant: str) -> int:
        mine: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(mine)
        try:
            return await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._give(mine.result())
            raise

    def _give(self, place: int) -> None:
        while self._waiting:
            tenant = next(iter(self._waiting))
            queue = self._waiting.pop(tenant)
            while queue and queue[0].done():
                queue.popleft()  # it was cancelled while it waited
            if not queue:
                continue
            queue.popleft().set_result(place)
            if queue:
                self._waiting[tenant] = queue  # behind all others
            return
        self._free.append(place)


@dataclass
class Compiler:
    """Compiles in a process of its own, one for each module, when it is the tenant's turn."""

    zygote: Zygote
    standard: Budget = field(default_factory=Budget)
    large: Budget = field(default_factory=lambda: Budget(2048 * MIB, 60, 60_000))
    turns: Turns = field(default_factory=Turns)
    started: int = 0
    # A sign of attack, by its kind: the module took its compiler over, or a bug looks like it.
    on_violation: Callable[[str], None] = lambda _kind: None

    async def compile(
        self, module: bytes, *, tenant: str, memory_max: int, large: bool = False
    ) -> Product:
        """Compile `module`, whose signature was verified, for a tenant.

        Errors  `module.*` and `limit.memory-exceeded` as the compiler says; `module.too-complex`
                when it ran into its own bounds; `sandbox.start-failed` when it could not start or
                this host had no time for it, `sandbox.containment-missing`.
        """
        async with self.turns.turn(tenant) as place:
            return await self._compile(module, Compile(memory_max, large), COMPILER_SLOTS + place)

    async def _compile(self, module: bytes, order: Compile, slot: int) -> Product:
        module_fd = sealed_memfd("module", module)
        artifact_fd = os.memfd_create("artifact", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            try:
                fds = (module_fd, artifact_fd)
                compiled = await self._ask(fds, order, slot)
                if compiled is None:
                    # Killed by somebody else, who says nothing about the module. Twice in a row
                    # it is no accident: the module takes more than this host has.
                    os.ftruncate(artifact_fd, 0)
                    compiled = await self._ask(fds, order, slot)
            finally:
                os.close(module_fd)
            compiled = _check_whole(artifact_fd, compiled)
            try:
                # The compiler is gone: nobody holds a writable mapping, so the seal can be set.
                seal_content(artifact_fd)
            except OSError as error:
                raise ExecutorError("sandbox.start-failed", "an artifact in use") from error
        except BaseException:
            os.close(artifact_fd)
            raise
        artifact = Artifact(artifact_fd, compiled.artifact_bytes, compiled.engine)
        return Product(artifact, compiled.imports, compiled.exports, compiled.memory_min)

    async def _ask(self, fds: tuple[int, int], order: Compile, slot: int) -> Compiled | None:
        """The compiler's answer; None when a SIGKILL that is not ours came first."""
        budget = self.large if order.large else self.standard
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[tuple[int, str]] = loop.create_future()
        born = asyncio.Event()

        def exited(status: int, why: str) -> None:
            if status == _FORBIDDEN:
                self.on_violation("forbidden-call")
            if not gone.done():  # cancelled: nobody wants to know any more
                gone.set_result((status, why))

        child = Child(born.set, exited)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        with ours:
            try:
                with theirs:
                    self.zygote.fork(
                        "compiler", (theirs.fileno(), *fds), child, slot=slot,
                        data=budget.memory_bytes, cpu_seconds=budget.cpu_seconds,
                    )  # fmt: skip
            except OSError as error:
                raise ExecutorError("sandbox.start-failed", f"errno {error.errno}") from error
            self.started += 1
            talk = loop.create_task(self._converse(ours, encode(order)))
            try:
                try:
                    await _watch(talk, child, born, budget.deadline_ms / 1000)
                finally:
                    talk.cancel()
                    child.kill()
                    await asyncio.wait({talk})  # it lets go of the socket before that is closed
                answer = talk.result()
            except ExecutorError:
                await gone  # or the next compiler would have its memory beside that of this one
                raise
            status, why = await gone
        if answer is not None:
            return answer
        if why or status >= 0:
            # The zygote died, or our own code failed: nothing was found against the module.
            raise ExecutorError("sandbox.start-failed", why or ended(status))
        if status == _KILLED:
            return None
        raise ExecutorError("module.too-complex", f"the compiler died: {ended(status)}")

    async def _converse(self, ours: socket.socket, order: bytes) -> Compiled | None:
        try:
            return await _converse(ours, order)
        except ExecutorError as error:
            if error.code != "sandbox.protocol-violation":
                raise
            self.on_violation("illegal-frame")
            raise ExecutorError("module.invalid", "the compiler broke its protocol") from error


async def _watch(
    talk: asyncio.Task[Compiled | None], child: Child, born: asyncio.Event, seconds: float
) -> None:
    """Return when `talk` is at its end; it has `seconds` of CPU time for that.

    Errors  `module.too-complex` when they are used up; `sandbox.start-failed` when the process did
            not get them within `_PATIENCE` times as long, counted from its fork.
    """
    loop = asyncio.get_running_loop()
    waiting = loop.create_task(born.wait())
    try:
        await asyncio.wait({talk, waiting}, timeout=_FORK_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    end, used = loop.time() + _PATIENCE * seconds, 0.0
    while not talk.done():
        left = min(seconds - used, end - loop.time()) if born.is_set() else 0.0
        if used >= seconds:
            raise ExecutorError("module.too-complex", f"not compiled within {seconds:.0f} s")
        if left <= 0:
            raise ExecutorError(
                "sandbox.start-failed",
                f"the compiler got {used:.1f} of {seconds:.1f} s of CPU time",
            )
        # It cannot have used up what it has before as much time has passed.
        await asyncio.wait({talk}, timeout=max(left, _LOOK_S))
        used = _cpu_seconds(child.pid)


def _cpu_seconds(pid: int) -> float:
    """What a process has used so far; 0 when it is gone or nobody may know."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            # The name of the program stands in brackets and may hold anything.
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


def _check_whole(fd: int, compiled: Compiled | None) -> Compiled:
    if compiled is None:
        raise ExecutorError("module.too-complex", f"the compiler died: {ended(_KILLED)}")
    if os.fstat(fd).st_size != compiled.artifact_bytes:
        raise ExecutorError("module.too-complex", "the compiler wrote no whole artifact")
    return compiled


async def _converse(ours: socket.socket, order: bytes) -> Compiled | None:
    """The compiler's answer; None when it ended without one."""
    loop = asyncio.get_running_loop()
    reader = Reader()
    try:
        await loop.sock_sendall(ours, order)
        while data := await loop.sock_recv(ours, _READ):
            for frame in reader.feed(data):
                match frame:
                    case Compiled():
                        return frame
                    case Rejected():
                        code = frame.code if _may_claim(frame.code) else "module.invalid"
                        raise ExecutorError(code, frame.message)
                    case Failed() if frame.code in START_CODES:
                        raise ExecutorError(frame.code, frame.message)
                    case _:
                        raise ExecutorError("sandbox.protocol-violation", "no answer")
    except (BrokenPipeError, ConnectionResetError):
        pass
    return None


def _may_claim(code: str) -> bool:
    return code in TABLE and (code.startswith("module.") or code == "limit.memory-exceeded")
