"""A zygote without an event loop: tests ask it for children and read how they end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

from executor.core.frames import Exited, Fork, Forked, Frame, Reader, Warm, encode
from executor.model import MIB

WAIT_SECONDS = 60.0
DATA_BYTES = 256 * MIB


class Born:
    """One child."""

    def __init__(self, nursery: Nursery, number: int, pid: int, pidfd: int) -> None:
        self.number, self.pid = number, pid
        self._nursery = nursery
        self._pidfd = pidfd

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still exists."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def wait(self) -> int:
        """Its exit status, or minus its signal."""
        return self._nursery.exit_status(self.number)

    def close(self) -> None:
        """End it."""
        self.kill()
        self.wait()
        os.close(self._pidfd)


class Nursery:
    """One zygote and the statuses of its children."""

    def __init__(self, *, pooled: bool = True, path: str = "raw") -> None:
        self.pooled = pooled
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-I", "-m", "executor.sandbox", "zygote",
                    str(theirs.fileno()), "pooled" if pooled else "on-demand", path,
                ],
                env={}, cwd="/", pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        ours.settimeout(WAIT_SECONDS)
        self.control = ours
        self._statuses: dict[int, int] = {}
        self._number = 0
        frame, _ = self._next()
        assert isinstance(frame, Warm), frame
        self.warm = frame

    def _next(self) -> tuple[Frame | None, list[int]]:
        data, fds, _, _ = socket.recv_fds(self.control, 4096, 1)
        frames = list(Reader().feed(data))
        return (frames[0] if frames else None), fds

    def fork(
        self, role: str, fds: Sequence[int], *, slot: int = 0, data: int = DATA_BYTES,
        best_effort: bool = False, cpu_seconds: int = 0, attack: str = "",
    ) -> Born:  # fmt: skip
        """A child in a role."""
        self._number += 1
        order = Fork(self._number, role, slot, data, best_effort, cpu_seconds, attack)
        socket.send_fds(self.control, [encode(order)], list(fds))
        while True:
            frame, passed = self._next()
            if isinstance(frame, Forked):
                assert frame.number == self._number
                return Born(self, frame.number, frame.pid, passed[0])
            self._take(frame)

    def attack(self, name: str, *, best_effort: bool = False) -> int:
        """How a locked process ends that tries this."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            born = self.fork("attack", [theirs.fileno()], attack=name, best_effort=best_effort)
            status = born.wait()
            born.close()
        return status

    def _take(self, frame: Frame | None) -> None:
        assert isinstance(frame, Exited), frame
        self._statuses[frame.number] = frame.status

    def exit_status(self, number: int) -> int:
        """Wait for its end."""
        while number not in self._statuses:
            frame, _ = self._next()
            self._take(frame)
        return self._statuses[number]

    def close(self) -> None:
        """End the zygote, and with it everything it forked."""
        self.control.close()
        self.process.wait(WAIT_SECONDS)
