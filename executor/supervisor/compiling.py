"""Turns verified module bytes into an artifact, in a compiler process of its own.

Compiling untrusted Wasm is an attack by itself, so it happens in a process with CPU, memory and
file-size bounds and a deadline kept from here; one module a process, never on the task path.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from dataclasses import dataclass
from typing import Final

from executor.core.frames import Compile, Compiled, Reader, Rejected, encode
from executor.errors import TABLE, ExecutorError
from executor.supervisor.job import Artifact
from executor.supervisor.process import sealed_memfd, spawn

_READ: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Product:
    """An artifact and what the compiler read out of the module."""

    artifact: Artifact
    imports: tuple[tuple[str, str, str], ...]
    exports: tuple[tuple[str, str], ...]
    memory_min: int


async def compile_module(module: bytes, *, memory_max: int, deadline_ms: int) -> Product:
    """Compile `module`, whose signature was verified.

    Errors  `module.*` and `limit.memory-exceeded` as the compiler says; `module.too-complex` when
            it ran into its own bounds; `sandbox.start-failed` when it could not start.
    """
    module_fd = sealed_memfd("module", module)
    artifact_fd = os.memfd_create("artifact", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        try:
            compiled = await _ask(module_fd, artifact_fd, memory_max, deadline_ms / 1000)
        finally:
            os.close(module_fd)
        _check_whole(artifact_fd, compiled.artifact_bytes)
        # The compiler is gone: nobody holds a writable mapping, so the seal can be set.
        fcntl.fcntl(
            artifact_fd, fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
        )  # fmt: skip
    except BaseException:
        os.close(artifact_fd)
        raise
    artifact = Artifact(artifact_fd, compiled.artifact_bytes, compiled.engine)
    return Product(artifact, compiled.imports, compiled.exports, compiled.memory_min)


def _check_whole(fd: int, size: int) -> None:
    if os.fstat(fd).st_size != size:
        raise ExecutorError("module.too-complex", "the compiler wrote no whole artifact")


async def _ask(module_fd: int, artifact_fd: int, memory_max: int, deadline_s: float) -> Compiled:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    try:
        try:
            process = spawn("compiler", theirs.fileno(), module_fd, artifact_fd)
        except OSError as error:
            raise ExecutorError("sandbox.start-failed", f"errno {error.errno}") from error
        finally:
            theirs.close()
        try:
            async with asyncio.timeout(deadline_s):
                return await _converse(ours, encode(Compile(module_fd, artifact_fd, memory_max)))
        except TimeoutError:
            raise ExecutorError(
                "module.too-complex", f"not compiled within {deadline_s:.0f} s"
            ) from None
        finally:
            process.kill()
            # Dead by SIGKILL: this wait is for the kernel only.
            await asyncio.to_thread(process.wait)
    finally:
        ours.close()


async def _converse(ours: socket.socket, order: bytes) -> Compiled:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(ours, order)
    reader = Reader()
    while data := await loop.sock_recv(ours, _READ):
        for frame in reader.feed(data):
            if isinstance(frame, Compiled):
                return frame
            if isinstance(frame, Rejected):
                code = frame.code if _may_claim(frame.code) else "module.invalid"
                raise ExecutorError(code, frame.message)
            raise ExecutorError("module.invalid", "the compiler broke its protocol")
    raise ExecutorError("module.too-complex", "the compiler died at its CPU or memory bound")


def _may_claim(code: str) -> bool:
    return code in TABLE and (code.startswith("module.") or code == "limit.memory-exceeded")
