"""The fork server seen from the supervisor: every sandbox and compiler is born there.

It is started first of all, by exec with an empty environment, before any credential is read. If it
dies its children die with it, as sandboxes that were killed, and the next request starts another.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from executor.core.frames import Exited, Failed, Fork, Forked, Reader, Warm, encode
from executor.errors import ExecutorError

_MESSAGE_MAX: Final = 4096
_START_S: Final = 20.0
_STOP_S: Final = 5.0
_PR_SET_DUMPABLE: Final = 4


def hide_memory() -> None:
    """Before a key is read: no core file, and no other process of this user reads this memory.

    Errors  `sandbox.containment-missing`.
    """
    if ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, *map(ctypes.c_ulong, (0, 0, 0, 0))) != 0:
        raise ExecutorError("sandbox.containment-missing", "the supervisor is dumpable")


@dataclass(eq=False)
class Child:
    """One forked process. `pid` is 0 until the zygote has answered."""

    on_forked: Callable[[], None]
    on_exit: Callable[[int, str], None]  # status as subprocess gives it; why, when known
    pid: int = 0
    ended: bool = False
    _pidfd: int = -1
    _condemned: bool = False

    def kill(self) -> None:
        """SIGKILL, now or as soon as it exists."""
        self._condemned = True
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):  # it died, and nobody told us yet
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def forked(self, pid: int, pidfd: int) -> None:
        """It exists."""
        self.pid, self._pidfd = pid, pidfd
        if self._condemned:
            self.kill()
        self.on_forked()

    def exited(self, status: int, detail: str = "") -> None:
        """It is gone."""
        self.ended = True
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self.on_exit(status, detail)


@dataclass(eq=False)
class Zygote:
    """See the module. `launch` needs no event loop; everything else runs on one."""

    pooled: bool = True
    best_effort: bool = False
    path: str = "auto"
    starts: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _control: socket.socket | None = None
    _children: dict[int, Child] = field(default_factory=dict)
    _next: int = 1
    _warm: Warm | None = None
    _failed: ExecutorError | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None

    def launch(self) -> None:
        """Start the process, if it does not run. Raises `OSError`."""
        if self._control is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [
                        sys.executable, "-I", "-m", "executor.sandbox", "zygote",
                        str(theirs.fileno()), "pooled" if self.pooled else "on-demand", self.path,
                    ],
                    env={}, cwd="/", close_fds=True, pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # the terminal's ctrl-C is the supervisor's to handle
                )  # fmt: skip
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        self._control, self._warm, self._failed = ours, None, None
        self.starts += 1

    @property
    def pid(self) -> int:
        """Of the process that was started last; 0 before the first."""
        return self._process.pid if self._process else 0

    async def warm(self) -> Warm:
        """What it says of itself once it can fork.

        Errors  `sandbox.start-failed`, `sandbox.containment-missing`.
        """
        self._listen()
        try:
            async with asyncio.timeout(_START_S):
                while self._warm is None:
                    if self._failed is not None:
                        raise self._failed
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            late = f"not warm after {_START_S:.0f} s"
            raise ExecutorError("sandbox.start-failed", late) from None
        return self._warm

    def fork(
        self, role: str, fds: Sequence[int], child: Child, *, slot: int, data: int,
        cpu_seconds: int = 0, attack: str = "",
    ) -> None:  # fmt: skip
        """Ask for a child in `role`, born with copies of `fds`. Raises `OSError`."""
        self._listen()
        assert self._control is not None
        number, self._next = self._next, self._next + 1
        order = Fork(number, role, slot, data, self.best_effort, cpu_seconds, attack)
        socket.send_fds(self._control, [encode(order)], fds)
        self._children[number] = child

    def _listen(self) -> None:
        """Have a process, and this loop's ear on it."""
        self.launch()
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            assert self._control is not None
            self._changed = asyncio.Event()
            loop.add_reader(self._control, self._read)
            self._loop = loop

    def detach(self) -> None:
        """Let go of this loop; another may take over."""
        if self._loop is not None and self._control is not None:
            self._loop.remove_reader(self._control)
        self._loop = None

    def _read(self) -> None:
        while self._control is not None:
            try:
                data, fds, _, _ = socket.recv_fds(self._control, _MESSAGE_MAX, 1)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            if not data:
                self._lost()
                return
            for frame in Reader().feed(data):
                self._handle(frame, fds)

    def _handle(self, frame: object, fds: list[int]) -> None:
        match frame:
            case Forked():
                self._children[frame.number].forked(frame.pid, fds[0])
            case Exited():
                self._children.pop(frame.number).exited(frame.status)
            case Warm():
                self._warm = frame
                self._changed.set()
            case Failed():
                self._failed = ExecutorError(frame.code, frame.message)
            case _:
                raise RuntimeError("the zygote said what it cannot say")

    def _lost(self) -> None:
        """It is gone, and the kernel ends its children."""
        self.detach()
        assert self._control is not None
        self._control.close()
        self._control = None
        if self._warm is None and self._failed is None:
            self._failed = ExecutorError("sandbox.start-failed", "the zygote died")
        self._changed.set()
        status, detail = -int(signal.SIGKILL), "the zygote died"
        if self._failed is not None:
            status, detail = 1, self._failed.detail or self._failed.code
        if self._process is not None:
            self._process.kill()  # it is leaving: this wait is for the kernel only
            self._process.wait()
        for child in list(self._children.values()):
            child.kill()
            child.exited(status, detail)
        self._children.clear()

    async def close(self) -> None:
        """End it, and with it what is left of its children."""
        self.detach()
        if self._control is not None:
            self._control.close()
            self._control = None
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, _STOP_S)
            process.kill()
            await asyncio.to_thread(process.wait)
