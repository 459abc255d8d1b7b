"""Compilers seen from the supervisor: what they say, how they die, and who is told."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
from collections.abc import Sequence
from typing import Any, Final

import pytest

from executor.core.frames import Compiled, Ready, Rejected, encode
from executor.errors import ExecutorError
from executor.model import MIB
from executor.supervisor import compiling
from executor.supervisor.compiling import Budget, Compiler
from executor.supervisor.zygote import Child
from tests.support import guests
from tests.support.rig import Rig, make_config, shared_zygote

OK: Final = 0
SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Scripted:
    """A fork server whose compilers say this and end so."""

    def __init__(self, said: bytes, status: int) -> None:
        self.said, self.status = said, status

    def fork(self, role: str, fds: Sequence[int], child: Child, **_: Any) -> None:
        """A compiler that has said all it will say before anybody listens."""
        assert role == "compiler"
        self.socket = socket.socket(fileno=os.dup(fds[0]))
        self.socket.sendall(self.said)
        self.socket.shutdown(socket.SHUT_WR)
        asyncio.get_running_loop().call_soon(child.exited, self.status)


class Silent:
    """A fork server whose compilers say nothing until they are killed."""

    def fork(self, role: str, fds: Sequence[int], child: Child, **_: Any) -> None:
        """A compiler that waits for the end."""
        assert role == "compiler"
        self.socket = socket.socket(fileno=os.dup(fds[0]))
        ours, theirs = os.pipe()
        os.close(theirs)
        child.forked(0, ours)  # what stands for it cannot be signalled
        child.kill = lambda: child.exited(-signal.SIGKILL)  # type: ignore[method-assign]


async def alarms(said: bytes, status: int) -> tuple[list[str], str]:
    """The alarms of such a compiler, and the code that its module is refused with."""
    raised: list[str] = []
    zygote: Any = Scripted(said, status)
    compiler = Compiler(zygote, on_violation=raised.append)
    try:
        product = await compiler.compile(b"\0asm", tenant="acme", memory_max=MIB)
    except ExecutorError as error:
        return raised, error.code
    finally:
        zygote.socket.close()
    del product  # it closes its file
    return raised, ""


async def test_a_forbidden_call_of_a_compiler_is_an_alarm() -> None:
    """Killed by its filter, before or behind its answer, it was taken over."""
    raised = await alarms(b"", -signal.SIGSYS)
    assert raised == (["forbidden-call"], "module.too-complex")
    answer = encode(Compiled((), (), 0, 0, "wasmtime"))
    assert await alarms(answer, -signal.SIGSYS) == (["forbidden-call"], "")


@pytest.mark.parametrize("said", [b"\0\0\0\1\xc1", encode(Ready((), ""))])
async def test_an_illegal_frame_of_a_compiler_is_an_alarm(said: bytes) -> None:
    """What is no answer blames the module, and is told to whoever watches."""
    assert await alarms(said, OK) == (["illegal-frame"], "module.invalid")


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        (encode(Compiled((), (), 0, 0, "wasmtime")), OK, ""),
        (encode(Rejected("module.invalid", "no")), OK, "module.invalid"),
        (b"", -signal.SIGXCPU, "module.too-complex"),
        (b"", -signal.SIGABRT, "module.too-complex"),
    ],
)
async def test_other_ends_are_none(said: bytes, status: int, code: str) -> None:
    """The twins: an answer, a refusal, and a module that takes too much raise no alarm."""
    assert await alarms(said, status) == ([], code)


async def test_the_deadline_alone_ends_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that uses no CPU and says nothing is killed from here, and its module not blamed."""
    monkeypatch.setattr(compiling, "_FORK_S", 0.02)
    zygote: Any = Silent()
    compiler = Compiler(zygote, Budget(deadline_ms=20))
    with pytest.raises(ExecutorError, match="of CPU time") as caught:
        await compiler.compile(b"\0asm", tenant="acme", memory_max=MIB)
    zygote.socket.close()
    assert caught.value.code == "sandbox.start-failed"


async def test_nobody_changes_an_artifact() -> None:
    """What was compiled is sealed: no write, no other size, and no seal taken back."""
    zygote = shared_zygote(make_config())
    try:
        module = guests.assemble(guests.ECHO)
        product = await Compiler(zygote).compile(module, tenant="acme", memory_max=MIB)
    finally:
        zygote.detach()
    descriptor = product.artifact.fd
    assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & SEALS == SEALS
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, product.artifact.size + 1)


async def test_an_alarm_is_a_security_event() -> None:
    """In service the alarms of compilers come where those of sandboxes do."""
    async with Rig() as rig:
        rig.registry.compiler.on_violation("forbidden-call")
        assert rig.journal.security() == ["forbidden-call"]
