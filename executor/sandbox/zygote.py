"""The fork server: everything imported, the engine warm, nothing else; it answers one request.

Started by exec with an empty environment before its supervisor reads any credential, so that a copy
of it has nothing to hide. It keeps one descriptor, its control socket: when that closes it leaves,
and the kernel ends its children with it. Each request is one message: a Fork frame and the
descriptors that the child is born with.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from executor.core.frames import MODULES_MAX, Exited, Fork, Forked, Frame, Reader, Warm, encode
from executor.core.layers import NAMESPACES, NO_NEW_PRIVS
from executor.errors import ExecutorError
from executor.sandbox import jail, kernel
from executor.sandbox.warm import Warm as Engine
from executor.sandbox.warm import warm_up
from executor.sizes import MIB

# Socket, status page and artifacts.
_DESCRIPTORS_MAX: Final = 2 + MODULES_MAX
_MESSAGE_MAX: Final = 4096
# Below this the main thread could overflow before the guest's own stack limit is met.
STACK_MIN: Final = 2 * MIB
# As root: enough to give each child a user of its own, and nothing beyond. The kernel sends a
# child's parent-death signal with the dying parent's rights: without CAP_KILL it would not arrive.
_KEPT: Final = (
    1 << kernel.CAP_SETUID | 1 << kernel.CAP_SETGID | 1 << kernel.CAP_SETPCAP | 1 << kernel.CAP_KILL
)
_START_FAILED: Final = 71

Child = Callable[[Fork, Sequence[int], Engine, int], NoReturn]


def serve(control: socket.socket, child: Child, *, pooled: bool, path: str) -> NoReturn:
    """Warm up, then fork whenever asked, until the control socket closes.

    Errors  `sandbox.start-failed`, `sandbox.containment-missing`, `sandbox.protocol-violation`.
    """
    _check_stack()
    engine = warm_up(pooled=pooled, path=path)
    layers = _lock_down()
    jail.close_others({control.fileno()})
    if jail.threads() != 1:
        raise ExecutorError("sandbox.start-failed", "a second thread: children could hang")
    gc.collect()
    gc.freeze()  # what exists now lives as long as the process and its children
    control.sendall(encode(Warm(engine.mark, layers, "raw" if engine.raw else "public")))
    _Server(control, child, engine, os.getpid()).run()


def _check_stack() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    if soft != resource.RLIM_INFINITY and soft < STACK_MIN:
        raise ExecutorError("sandbox.start-failed", f"a stack of {soft} bytes is too small")


def _lock_down() -> tuple[str, ...]:
    """What children inherit at no cost, and what this process itself does not need."""
    layers: list[str] = []
    try:
        new_user = 0 if os.geteuid() == 0 else kernel.CLONE_NEWUSER
        kernel.unshare(new_user | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC)
        layers.append(NAMESPACES)
    except OSError:
        pass  # containers rarely allow it; what it stops is stopped by the filter as well
    try:
        if os.geteuid() == 0 and jail.user_of_slot(0) >= 0:
            kernel.drop_bounding_set(_KEPT)
            kernel.set_capabilities(_KEPT)
        else:
            kernel.set_capabilities(0)
    except OSError:
        # Root without its capabilities, as in containers: fewer than asked for is what we want.
        kernel.set_capabilities(0)
    with contextlib.suppress(OSError):
        # Children inherit it. Each of them looks again, and says it when there is such memory.
        jail.settle_code(jail.Plan(parent=os.getpid(), rules=()))
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    jail.hide_memory()
    return (*layers, NO_NEW_PRIVS)


@dataclass(frozen=True, slots=True)
class _Spare:
    """A child that waits for its order on a socket."""

    orders: socket.socket
    pid: int
    pidfd: int


@dataclass
class _Server:
    control: socket.socket
    child: Child
    engine: Engine
    pid: int
    spare: _Spare | None = None

    def run(self) -> NoReturn:
        """Requests and deaths, as they come."""
        self._prepare_spare()
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        living: dict[int, tuple[int, int]] = {}  # pidfd → number, pid
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self.control.fileno():
                    made = self._request()
                    if made is not None:
                        pidfd, number, pid = made
                        living[pidfd] = (number, pid)
                        poll.register(pidfd, select.POLLIN)
                    if self.spare is None:
                        self._prepare_spare()
                else:
                    poll.unregister(descriptor)
                    number, pid = living.pop(descriptor)
                    _, status = os.waitpid(pid, 0)
                    os.close(descriptor)
                    self._say(Exited(number, os.waitstatus_to_exitcode(status)))

    def _request(self) -> tuple[int, int, int] | None:
        """Serve one message: the child's pidfd, number and pid. Leaves at the end of the socket."""
        data, fds, flags, _ = socket.recv_fds(self.control, _MESSAGE_MAX, _DESCRIPTORS_MAX)
        if not data:
            os._exit(0)
        try:
            order = _order(data)
            if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC) or not fds:
                self._say(Exited(order.number, _START_FAILED))
                return None
            born = self._use_spare(data, fds) or self._fork(order, fds)
        finally:
            for descriptor in fds:
                os.close(descriptor)
        if born is None:
            self._say(Exited(order.number, _START_FAILED))
            return None
        pid, pidfd = born
        self._say(Forked(order.number, pid), pidfd)
        return pidfd, order.number, pid

    def _fork(self, order: Fork, fds: Sequence[int]) -> tuple[int, int] | None:
        try:
            pid = os.fork()
        except OSError:
            return None
        if pid == 0:
            self.control.close()
            self.child(order, fds, self.engine, self.pid)
        return pid, os.pidfd_open(pid)

    def _prepare_spare(self) -> None:
        """Fork one child ahead of its request, to have its copied pages behind it by then."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                return
            if pid == 0:
                self.control.close()
                ours.close()
                self._be_spare(theirs)
        self.spare = _Spare(ours, pid, os.pidfd_open(pid))

    def _be_spare(self, orders: socket.socket) -> NoReturn:
        status = _START_FAILED
        try:
            follow_parent(self.pid)
            jail.close_others({orders.fileno()})
            self.engine.rehearse()
            jail.rehearse()
            data, fds, _, _ = socket.recv_fds(orders, _MESSAGE_MAX, _DESCRIPTORS_MAX)
            status = 0
            if data:
                orders.close()
                self.child(_order(data), fds, self.engine, self.pid)
        finally:
            os._exit(status)

    def _use_spare(self, data: bytes, fds: Sequence[int]) -> tuple[int, int] | None:
        """Let the spare be this child; None when there is none, or it died."""
        spare, self.spare = self.spare, None
        if spare is None:
            return None
        with spare.orders:
            try:
                socket.send_fds(spare.orders, [data], fds)
            except OSError:
                os.waitpid(spare.pid, 0)
                os.close(spare.pidfd)
                return None
        return spare.pid, spare.pidfd

    def _say(self, frame: Frame, *fds: int) -> None:
        try:
            socket.send_fds(self.control, [encode(frame)], fds)
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)


def _order(data: bytes) -> Fork:
    frames = list(Reader().feed(data))
    if len(frames) != 1 or not isinstance(frames[0], Fork):
        raise ExecutorError("sandbox.protocol-violation", "no Fork")
    return frames[0]


def ignore_signals() -> None:
    """Ctrl-C, a hang-up and a service manager's stop reach the whole group.

    While the supervisor drains, attempts go on; it ends these processes by closing the socket, by
    SIGKILL, or by dying.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def follow_parent(parent: int) -> None:
    """End with the process that started this one. Errors  `sandbox.start-failed`."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise ExecutorError("sandbox.start-failed", "the parent is gone")
