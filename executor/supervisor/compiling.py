"""Turns verified module bytes into an artifact, in a compiler process of its own.

Compiling untrusted Wasm is an attack by itself, so it happens in a process with CPU, memory and
file-size bounds and a deadline kept from here; one module a process, never on the task path.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
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


@dataclass(frozen=True, slots=True)
class Product:
    """An artifact and what the compiler read out of the module."""

    artifact: Artifact
    imports: tuple[tuple[str, str, str], ...]
    exports: tuple[tuple[str, str], ...]
    memory_min: int


@dataclass(frozen=True, slots=True)
class Budget:
    """What compiling one module may take: memory beyond the start's, CPU and wall-clock time."""

    memory_bytes: int = 1024 * MIB
    cpu_seconds: int = 10
    deadline_ms: int = 10_000


@dataclass
class Compiler:
    """Compiles in a process of its own, one for each module."""

    zygote: Zygote
    standard: Budget = field(default_factory=Budget)
    large: Budget = field(default_factory=lambda: Budget(2048 * MIB, 60, 60_000))
    started: int = 0
    # A sign of attack, by its kind: the module took its compiler over, or a bug looks like it.
    on_violation: Callable[[str], None] = lambda _kind: None

    async def compile(self, module: bytes, *, memory_max: int, large: bool = False) -> Product:
        """Compile `module`, whose signature was verified.

        Errors  `module.*` and `limit.memory-exceeded` as the compiler says; `module.too-complex`
                when it ran into its own bounds; `sandbox.start-failed`,
                `sandbox.containment-missing` when it could not start.
        """
        module_fd = sealed_memfd("module", module)
        artifact_fd = os.memfd_create("artifact", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            try:
                fds, order = (module_fd, artifact_fd), Compile(memory_max, large)
                compiled = await self._ask(fds, order)
                if compiled is None:
                    # Killed by somebody else, who says nothing about the module. Twice in a row
                    # it is no accident: the module takes more than this host has.
                    os.ftruncate(artifact_fd, 0)
                    compiled = await self._ask(fds, order)
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

    async def _ask(self, fds: tuple[int, int], order: Compile) -> Compiled | None:
        """The compiler's answer; None when a SIGKILL that is not ours came first."""
        budget = self.large if order.large else self.standard
        gone: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        child = Child(lambda: None, lambda status, why: gone.set_result((status, why)))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        with ours:
            try:
                with theirs:
                    self.zygote.fork(
                        "compiler", (theirs.fileno(), *fds), child,
                        slot=COMPILER_SLOTS + self.started % COMPILERS_MAX,
                        data=budget.memory_bytes, cpu_seconds=budget.cpu_seconds,
                    )  # fmt: skip
            except OSError as error:
                raise ExecutorError("sandbox.start-failed", f"errno {error.errno}") from error
            self.started += 1
            try:
                async with asyncio.timeout(budget.deadline_ms / 1000):
                    answer = await self._converse(ours, encode(order))
            except TimeoutError:
                seconds = budget.deadline_ms / 1000
                raise ExecutorError(
                    "module.too-complex", f"not compiled within {seconds:.0f} s"
                ) from None
            finally:
                child.kill()
                status, why = await gone
                if status == _FORBIDDEN:
                    self.on_violation("forbidden-call")
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
