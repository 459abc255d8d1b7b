"""The compiler process: one module in, one artifact out, under rlimits.

Compiling is itself an attack: kilobytes of Wasm can ask for minutes and for gigabytes. This
process has a budget of both and is used once; the supervisor reads its death as the module's
fault (SIGXCPU: time; SIGABRT: memory).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

import wasmtime

from executor.core import abi, complexity
from executor.core.frames import FRAME_MAX, IMPORTS_MAX, Compile, Compiled, Fork, Rejected, encode
from executor.errors import ExecutorError
from executor.sandbox import jail, seccomp
from executor.sandbox.channel import Channel
from executor.sandbox.linker import signature
from executor.sandbox.memory import PAGE
from executor.sandbox.warm import Warm
from executor.sizes import MIB

# Native code is about five times the module: 1 MB gives 5.5 MB.
ARTIFACT_MAX: Final = 160 * MIB
_NAME_MAX: Final = 128
_SIGNATURE_MAX: Final = 256
_MESSAGE_MAX: Final = 512

Reply = Compiled | Rejected


def serve(order: Fork, fds: Sequence[int], channel: Channel, warm: Warm, parent: int) -> None:
    """Serve one Compile frame. Errors  those of the channel and the jail."""
    socket_fd, module_fd, artifact_fd = fds
    frame = channel.next()
    if not isinstance(frame, Compile):
        raise ExecutorError("sandbox.protocol-violation", "no Compile")
    module = read_module(module_fd)
    jail.close_others({socket_fd, artifact_fd})
    jail.lock_down(jail.Plan(
        parent=parent, user=jail.user_of_slot(order.slot), file_bytes=ARTIFACT_MAX,
        rules=seccomp.compiler_rules(pid=os.getpid(), socket=socket_fd, artifact=artifact_fd),
        data=order.data, address_space=order.data, cpu_seconds=order.cpu_seconds,
        best_effort=order.best_effort,
    ))  # fmt: skip
    caps = complexity.LARGE if frame.large else complexity.STANDARD
    channel.send(
        compile_module(
            warm.engine,
            module,
            artifact_fd,
            memory_max=frame.memory_max,
            mark=warm.mark,
            caps=caps,
        )
    )


def read_module(descriptor: int) -> bytes:
    """The module's bytes, one more than allowed at most."""
    pieces: list[bytes] = []
    size = 0
    while size <= complexity.LARGE.module_bytes:
        piece = os.pread(descriptor, complexity.LARGE.module_bytes + 1 - size, size)
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def compile_module(
    engine: wasmtime.Engine,
    data: bytes,
    artifact_fd: int,
    *,
    memory_max: int,
    mark: str,
    caps: complexity.Caps,
) -> Reply:
    """Count, compile, describe, and write the artifact; or say why not."""
    if not data.startswith(b"\0asm"):
        # The library would take it for the text format, and parse that.
        return Rejected("module.invalid", "not a WebAssembly binary")
    try:
        complexity.check(data, caps)
        module = wasmtime.Module(engine, data)
    except ExecutorError as error:
        return Rejected(error.code, _one_line(error.detail))
    except wasmtime.WasmtimeError as error:
        return Rejected("module.invalid", _one_line(str(error)))
    try:
        described = describe(module, mark=mark)
        if isinstance(described, Rejected):
            return described
        if described.memory_min > memory_max:
            return Rejected(
                "limit.memory-exceeded",
                f"it starts with {described.memory_min} bytes, {memory_max} are allowed",
            )
        return _write(described, bytes(module.serialize()), artifact_fd)
    finally:
        module.close()


def describe(module: wasmtime.Module, *, mark: str) -> Reply:
    """Imports, exports and the memory at the start, within the bounds of the frame."""
    imports = tuple((item.module, item.name or "", signature(item.type)) for item in module.imports)
    exports = tuple((item.name, signature(item.type)) for item in module.exports)
    for rows in (imports, exports):
        if len(rows) > IMPORTS_MAX:
            return Rejected("module.too-complex", f"more than {IMPORTS_MAX} imports or exports")
        for *names, spelling in rows:
            if len(spelling) > _SIGNATURE_MAX or any(len(name) > _NAME_MAX for name in names):
                return Rejected("module.too-complex", "an import or export is too long")
    memory = next((i.type for i in module.exports if i.name == abi.MEMORY), None)
    memory_min = memory.limits.min * PAGE if isinstance(memory, wasmtime.MemoryType) else 0
    compiled = Compiled(imports, exports, memory_min, 0, mark)
    if len(encode(compiled)) > FRAME_MAX:
        return Rejected("module.too-complex", "imports and exports are too long")
    return compiled


def _write(compiled: Compiled, artifact: bytes, descriptor: int) -> Reply:
    if len(artifact) > ARTIFACT_MAX:
        return Rejected("module.too-complex", f"its artifact is above {ARTIFACT_MAX} bytes")
    view = memoryview(artifact)
    offset = 0
    while offset < len(view):
        offset += os.pwrite(descriptor, view[offset:], offset)
    return Compiled(
        compiled.imports, compiled.exports, compiled.memory_min, len(artifact), compiled.engine
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MESSAGE_MAX]
