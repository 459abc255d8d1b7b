"""The compiler process: one module in, one artifact out, under rlimits.

Compiling is itself an attack: kilobytes of Wasm can ask for minutes and for gigabytes. This
process has a budget of both and is used once; the supervisor reads its death as the module's
fault (SIGXCPU: time; SIGABRT: memory).
"""

from __future__ import annotations

import os
from typing import Final

import wasmtime

from executor.core import abi
from executor.core.frames import FRAME_MAX, IMPORTS_MAX, Compile, Compiled, Rejected, encode
from executor.errors import ExecutorError
from executor.model import MIB
from executor.sandbox import jail
from executor.sandbox.channel import Channel
from executor.sandbox.engine import build, fingerprint
from executor.sandbox.linker import signature
from executor.sandbox.memory import PAGE

# The largest guests known are 20 MB; the supervisor's own caps are lower.
MODULE_MAX: Final = 32 * MIB
# Native code is about five times the module: 1 MB gives 5.5 MB.
ARTIFACT_MAX: Final = 160 * MIB
_NAME_MAX: Final = 128
_SIGNATURE_MAX: Final = 256
_MESSAGE_MAX: Final = 512

Reply = Compiled | Rejected


def serve(channel: Channel, socket_fd: int, parent: int) -> None:
    """Serve one Compile frame. Errors  those of the channel, the engine and the jail."""
    engine = build()
    mark = fingerprint(engine)
    frame = channel.next()
    if not isinstance(frame, Compile):
        raise ExecutorError("sandbox.protocol-violation", "no Compile")
    module = read_module(frame.module_fd)
    jail.close_others({socket_fd, frame.artifact_fd})
    jail.lock_down(
        jail.Plan(
            parent=parent,
            file_bytes=ARTIFACT_MAX,
            address_space=jail.COMPILER_MEMORY_BYTES,
            cpu_seconds=jail.COMPILER_CPU_SECONDS,
        )
    )
    jail.prove()
    channel.send(
        compile_module(engine, module, frame.artifact_fd, memory_max=frame.memory_max, mark=mark)
    )


def read_module(descriptor: int) -> bytes:
    """The module's bytes, one more than allowed at most."""
    pieces: list[bytes] = []
    size = 0
    while size <= MODULE_MAX:
        piece = os.pread(descriptor, MODULE_MAX + 1 - size, size)
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def compile_module(
    engine: wasmtime.Engine, data: bytes, artifact_fd: int, *, memory_max: int, mark: str
) -> Reply:
    """Compile, describe, and write the artifact; or say why not."""
    if len(data) > MODULE_MAX:
        return Rejected("module.too-complex", f"more than {MODULE_MAX} bytes")
    if not data.startswith(b"\0asm"):
        # The library would take it for the text format, and parse that.
        return Rejected("module.invalid", "not a WebAssembly binary")
    try:
        module = wasmtime.Module(engine, data)
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
