"""A sandbox whose words a test writes: a harmless process, and both ends of everything it has.

The pool starts and kills a real process and believes it to be a sandbox; the socket and the status
page are in the test's hands, as they would be in an attacker's who took the process over.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

import pytest

from executor.core.frames import Answer, Done, Frame, Load, Reader, Ready, Run, encode
from executor.core.layers import REQUIRED
from executor.supervisor import process, proofs
from executor.supervisor.zygote import Child, Zygote


class Puppet:
    """One of them; made by `Puppets`."""

    def __init__(self, socket_fd: int, status_fd: int, child: Child) -> None:
        self.socket = socket.socket(fileno=os.dup(socket_fd))
        self.socket.setblocking(False)
        self.page = mmap.mmap(status_fd, process.STATUS_BYTES)
        self.child = child
        self._reader = Reader()
        self._frames: list[Frame] = []
        self.ended = asyncio.Event()
        self.started = asyncio.Event()
        self._tell_fork, child.on_forked = child.on_forked, self._on_forked
        self._tell_exit, child.on_exit = child.on_exit, self._on_exit

    def _on_forked(self) -> None:
        self.started.set()
        self._tell_fork()

    def _on_exit(self, status: int, detail: str) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.ended.set()
        self._tell_exit(status, detail)

    async def next(self) -> Frame:
        """The next frame that the supervisor sent."""
        loop = asyncio.get_running_loop()
        while not self._frames:
            data = await loop.sock_recv(self.socket, 65_536)
            assert data, "the supervisor closed"
            self._frames += self._reader.feed(data)
        return self._frames.pop(0)

    async def run(self) -> Run:
        """The next frame, which must be an attempt."""
        frame = await self.next()
        assert isinstance(frame, Run), frame
        return frame

    async def answer(self) -> Answer:
        """The next frame, which must answer a call."""
        frame = await self.next()
        assert isinstance(frame, Answer), frame
        return frame

    async def send(self, *frames: Frame | bytes) -> None:
        """Say something, legal or not."""
        data = b"".join(frame if isinstance(frame, bytes) else encode(frame) for frame in frames)
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def ready(self, layers: tuple[str, ...] = tuple(sorted(REQUIRED))) -> Load:
        """Take the Load and claim to be locked down."""
        frame = await self.next()
        assert isinstance(frame, Load), frame
        await self.started.wait()
        while proofs.contradicted(self.child.pid, layers):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0)  # until the harmless process is locked down
        await self.send(Ready(layers, "puppet"))
        return frame

    def close(self) -> None:
        """End the process, if the pool did not."""
        self.child.kill()
        self.socket.close()
        self.page.close()

    def show(self, seq: int, *, started_s: float | None = None) -> None:
        """Write the status page."""
        at = time.monotonic() if started_s is None else started_s
        self.page[0:16] = struct.pack("=QQ", seq, int(at * 1e9))


def done(seq: int, output: bytes = b"", *, code: str = "") -> Done:
    """The end of an attempt."""
    return Done(seq, code, "", False, -1, output, (), 0, 1, 1, 1, 0, 0, ())


class Puppets:
    """Takes the place of real sandboxes, from `install` on; compilers stay real."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._all: list[Puppet] = []
        self._new: asyncio.Queue[Puppet] = asyncio.Queue()
        self._honest = Zygote.fork
        patch.setattr(Zygote, "fork", lambda zygote, *a, **k: self._fork(zygote, *a, **k))  # noqa: PLW0108 - it binds

    def _fork(
        self, zygote: Zygote, role: str, fds: Sequence[int], child: Child, **fields: Any
    ) -> None:
        if role == "sandbox":
            puppet = Puppet(fds[0], fds[1], child)
            self._all.append(puppet)
            self._new.put_nowait(puppet)
            # Locked down as any sandbox, and asleep.
            ours, theirs = socket.socketpair()
            with ours, theirs:
                fields["attack"] = "sleep"
                self._honest(zygote, "attack", [theirs.fileno()], child, **fields)
        else:
            self._honest(zygote, role, fds, child, **fields)

    async def next(self) -> Puppet:
        """The next one that the pool starts."""
        return await self._new.get()

    async def ready(self) -> Puppet:
        """The next one, locked down as far as anybody can see."""
        puppet = await self.next()
        await puppet.ready()
        return puppet

    def close(self) -> None:
        """End them all."""
        for puppet in self._all:
            puppet.close()

    @property
    def count(self) -> int:
        """How many were started."""
        return len(self._all)
