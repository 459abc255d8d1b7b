"""Is the jail there? Asked of the kernel and of attacks, before the first task and by `doctor`."""

from __future__ import annotations

import asyncio
import signal
import socket
from dataclasses import dataclass
from typing import Final

from executor.core.frames import Call, Done, Load
from executor.core.layers import CANARIES, LAYERS, REQUIRED
from executor.errors import ExecutorError
from executor.model import MIB
from executor.supervisor.job import Job
from executor.supervisor.process import Death, SandboxProcess
from executor.supervisor.proofs import contradicted
from executor.supervisor.zygote import Child, Zygote

_DATA_BYTES: Final = 64 * MIB
# Sandboxes and compilers have the slots below.
_SLOT: Final = 320


@dataclass(frozen=True, slots=True)
class Containment:
    """What a sandbox of this host has."""

    layers: tuple[str, ...]  # claimed and not denied by the kernel
    escaped: tuple[str, ...]  # the attacks that a locked process lived through
    path: str  # how attempts reach the engine, raw or public

    @property
    def missing(self) -> tuple[str, ...]:
        """The layers that are not there, required ones or not."""
        return tuple(name for name in LAYERS if name not in self.layers)

    def check(self) -> None:
        """Errors  `sandbox.containment-missing` with what is missing or what was possible."""
        lacking = [name for name in self.missing if name in REQUIRED]
        if lacking or self.escaped:
            passed = [f"`{name}` was possible" for name in self.escaped]
            raise ExecutorError("sandbox.containment-missing", ", ".join([*lacking, *passed]))


async def examine(zygote: Zygote) -> Containment:
    """Start one empty sandbox and look at it; spend a few locked processes on attacks.

    Errors  `sandbox.start-failed`, `sandbox.containment-missing`.
    """
    warm = await zygote.warm()
    layers = await _layers(zygote)
    ended = await asyncio.gather(*(
        _attack(zygote, name, _SLOT + place) for place, name in enumerate(CANARIES)
    ))  # fmt: skip
    escaped = tuple(
        name for name, status in zip(CANARIES, ended, strict=True) if status != -signal.SIGSYS
    )
    found = {*warm.layers, *layers}
    return Containment(tuple(name for name in LAYERS if name in found), escaped, warm.path)


async def _layers(zygote: Zygote) -> tuple[str, ...]:
    probe = _Probe()
    sandbox = SandboxProcess(
        owner=probe, tenant="", modules={}, loop=asyncio.get_running_loop(), zygote=zygote,
        slot=_SLOT - 1,
    )  # fmt: skip
    try:
        sandbox.start(Load(()), [], memory_bytes=0)
    except OSError as error:
        raise ExecutorError("sandbox.start-failed", f"errno {error.errno}") from error
    try:
        return await probe.ready
    finally:
        sandbox.kill("", "examined")
        await probe.dead.wait()


class _Probe:
    """Owns one sandbox for as long as it takes to read its layers."""

    def __init__(self) -> None:
        self.ready: asyncio.Future[tuple[str, ...]] = asyncio.get_running_loop().create_future()
        self.dead = asyncio.Event()

    def on_started(self, sandbox: SandboxProcess) -> None:
        """It exists."""

    def on_ready(self, sandbox: SandboxProcess) -> None:
        """What it claims, without what the kernel denies."""
        denied = contradicted(sandbox.pid, sandbox.layers)
        self.ready.set_result(tuple(name for name in sandbox.layers if name not in denied))

    def on_done(self, sandbox: SandboxProcess, job: Job, done: Done) -> None:
        """Never: nothing was sent."""

    def on_call(self, sandbox: SandboxProcess, job: Job, call: Call) -> None:
        """Never: nothing was sent."""

    def on_dead(self, sandbox: SandboxProcess, death: Death, jobs: list[Job]) -> None:
        """It ended; before it was ready if nobody asked for that."""
        del sandbox, jobs
        if not self.ready.done():
            self.ready.set_exception(
                ExecutorError(death.code or "sandbox.start-failed", death.detail)
            )
        self.dead.set()


async def _attack(zygote: Zygote, name: str, slot: int) -> int:
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    child = Child(lambda: None, lambda status, _: ended.set_result(status))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            zygote.fork("attack", [theirs.fileno()], child, slot=slot, data=_DATA_BYTES,
                        attack=name)  # fmt: skip
        except OSError as error:
            raise ExecutorError("sandbox.start-failed", f"errno {error.errno}") from error
    return await ended
