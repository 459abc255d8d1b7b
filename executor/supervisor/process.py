"""One sandbox process seen from the supervisor: socket, status page, deadline, death.

The status page is a memory file that both map: the number of the running attempt and when it
started. The supervisor reads it for one purpose, to decide a kill; a sandbox that lies there is
caught by the second clock, which runs from one end of an attempt to the next and asks the page
nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from executor.core.frames import Answer, Call, Conversation, Done, Load, Ready, Run, encode
from executor.errors import ExecutorError
from executor.supervisor.job import Job, ModuleKey

STATUS_BYTES: Final = 4096
# No attempt ended for so long beyond twice the longest deadline: the status page is a lie.
_SILENCE_GRACE_S: Final = 1.0
# A dying process closes its socket before its end can be seen; microseconds, if it is dying.
_LINGER_S: Final = 0.5
# How a sandbox says that a layer of its jail failed; the number is also in `executor.sandbox.main`,
# which must not be imported here.
_EXIT_CONTAINMENT: Final = 72
# A sandbox that is not ready by then never will be: a cold start takes a tenth of a second.
_START_S: Final = 20.0
# Without these the host is weaker than promised (`sandbox.containment = "required"`).
REQUIRED_LAYERS: Final = frozenset({
    "rlimits", "capabilities", "not-dumpable", "parent-death", "no-new-privs", "no-descriptors",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Death:
    """How a sandbox ended. `guilty` is the attempt that ran, if one did and is to blame."""

    code: str  # "" when it was told to go
    detail: str
    guilty: int  # seq, or 0
    ready: bool  # whether it had ever been ready
    facts: tuple[tuple[str, str | int], ...] = ()


class Owner(Protocol):
    """The pool, as a sandbox process sees it."""

    def on_ready(self, sandbox: SandboxProcess) -> None:
        """It is locked down and takes attempts."""

    def on_done(self, sandbox: SandboxProcess, job: Job, done: Done) -> None:
        """An attempt ended."""

    def on_call(self, sandbox: SandboxProcess, job: Job, call: Call) -> None:
        """An attempt asks the mediator."""

    def on_dead(self, sandbox: SandboxProcess, death: Death, jobs: list[Job]) -> None:
        """The process is gone; `jobs` had not ended, in order."""


def sealed_memfd(name: str, data: bytes | None = None, *, size: int = 0) -> int:
    """A memory file whose size (and, with `data`, content) can never change again."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    if data is None:
        os.ftruncate(fd, size)
    else:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        seals |= fcntl.F_SEAL_WRITE
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def spawn(role: str, socket_fd: int, *fds: int) -> subprocess.Popen[bytes]:
    """Start `executor.sandbox` in a role: empty environment, no descriptor but those given."""
    status = [str(fd) for fd in fds[:1]] if role == "sandbox" else []
    return subprocess.Popen(
        [sys.executable, "-I", "-m", "executor.sandbox", role, str(socket_fd), *status],
        env={}, cwd="/", close_fds=True, pass_fds=(socket_fd, *fds),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,  # the terminal's ctrl-C is the supervisor's to handle
    )  # fmt: skip


@dataclass(eq=False)
class SandboxProcess(asyncio.Protocol):
    """A running sandbox: one tenant for life, born with its modules."""

    owner: Owner
    tenant: str
    modules: dict[ModuleKey, int]
    loop: asyncio.AbstractEventLoop
    retiring: bool = False
    ready: bool = False
    layers: tuple[str, ...] = ()
    engine: str = ""
    attempts: int = 0
    born: float = field(default_factory=time.monotonic)
    _jobs: dict[int, Job] = field(default_factory=dict)
    _conversation: Conversation = field(default_factory=Conversation)
    _unsent: list[bytes] = field(default_factory=list)
    _cause: Death | None = None
    _timer: asyncio.TimerHandle | None = None
    _timer_due: float = 0.0
    _last_sign: float = 0.0
    _gone: bool = False
    _eof: bool = False

    def start(self, load: Load, artifact_fds: Sequence[int]) -> None:
        """Start the process and tell it what to load. Raises `OSError` if it cannot start."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                self._launch(theirs.fileno(), artifact_fds)
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        self.loop.add_reader(self._pidfd, self._on_exit)
        self._unsent.append(encode(load))
        self._connecting = self.loop.create_task(self._connect(ours))
        self._arm(_START_S)

    def _launch(self, socket_fd: int, artifact_fds: Sequence[int]) -> None:
        status_fd = sealed_memfd("status", size=STATUS_BYTES)
        try:
            self._page = mmap.mmap(status_fd, STATUS_BYTES)
            self._status = (ctypes.c_uint64 * 2).from_buffer(self._page)
            self._process = spawn("sandbox", socket_fd, status_fd, *artifact_fds)
        finally:
            os.close(status_fd)
        try:
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError:
            # A process that cannot be watched is not kept.
            self._process.kill()
            self._process.wait()
            raise

    async def _connect(self, ours: socket.socket) -> None:
        await self.loop.create_connection(lambda: self, sock=ours)

    @property
    def pid(self) -> int:
        """The process id; it may be gone."""
        return self._process.pid

    @property
    def containment(self) -> str:
        """Whether it claims every layer, for receipts."""
        return "full" if set(self.layers) >= REQUIRED_LAYERS else "weakened"

    @property
    def outstanding(self) -> int:
        """Attempts sent and not ended."""
        return len(self._jobs)

    def has_room(self, tasks: int, size: int, most_bytes: int) -> bool:
        """Whether another input of `size` may be sent while at most `tasks` are outstanding."""
        if self._eof or self._cause is not None:
            return False
        if not self._jobs:
            return True
        return len(self._jobs) < tasks and self._conversation.outstanding_bytes + size <= most_bytes

    def runs(self, job: Job) -> bool:
        """Whether `job` is what runs now, as far as the status page can be believed."""
        return self._jobs.get(self._running()) is job

    def run(self, job: Job, run: Run) -> None:
        """Send an attempt; what one loop turn sends travels in one write."""
        if not self._jobs:
            self._last_sign = time.monotonic()
        self._jobs[run.seq] = job
        self.attempts += 1
        self._queue(self._conversation.run(run))
        due = time.monotonic() + job.limits.deadline_ms / 1000
        if self._timer is None or due < self._timer_due:
            self._arm(job.limits.deadline_ms / 1000)

    def answer(self, answer: Answer) -> None:
        """Answer the open call, unless its attempt is gone."""
        if answer.seq in self._jobs and not self._gone and self._cause is None:
            self._queue(self._conversation.answer(answer))

    def kill(self, code: str, detail: str, *, guilty: int = 0,
             facts: tuple[tuple[str, str | int], ...] = ()) -> None:  # fmt: skip
        """End the process now; `code` "" means that nobody is to blame."""
        if self._cause is None and not self._gone:
            self._cause = Death(code, detail, guilty, self.ready, facts)
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is with the event loop."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Frames of the sandbox; anything illegal ends it."""
        if self._cause is not None and self._cause.code == "sandbox.protocol-violation":
            return  # what a condemned process still says is not believed
        try:
            for frame in self._conversation.receive(data):
                self._handle(frame)
        except ExecutorError as error:
            head = self._conversation.head
            self.kill(error.code, error.detail, guilty=head.seq if head else 0)

    def eof_received(self) -> bool:
        """The process closed its end."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come."""
        del exc
        self._eof = True
        if not self._gone and self._cause is None:
            # Most likely it is dying: how, its exit will say.
            self._arm(_LINGER_S)
        self._finish()

    def _handle(self, frame: Ready | Call | Done) -> None:
        match frame:
            case Ready():
                self.ready, self.layers, self.engine = True, frame.layers, frame.engine
                self._disarm()
                self.owner.on_ready(self)
            case Call():
                self.owner.on_call(self, self._jobs[frame.seq], frame)
            case Done():
                # The one sign of life: bytes and calls cost an attacker nothing.
                self._last_sign = time.monotonic()
                self.owner.on_done(self, self._jobs.pop(frame.seq), frame)

    def _queue(self, data: bytes) -> None:
        if not self._unsent:
            self.loop.call_soon(self._flush)
        self._unsent.append(data)

    def _flush(self) -> None:
        transport = getattr(self, "_transport", None)
        if transport is not None and self._unsent:
            transport.write(b"".join(self._unsent))
            self._unsent.clear()

    # The deadline.

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer_due = time.monotonic() + seconds
        self._timer = self.loop.call_later(seconds, self._on_timer)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _running(self) -> int:
        """The attempt that runs, as far as the status page can be believed."""
        seq = self._status[0]
        if seq in self._jobs:
            return int(seq)
        head = self._conversation.head
        return head.seq if head is not None and seq else 0

    def _on_timer(self) -> None:
        self._timer = None
        if self._eof:
            # A process that closed its socket and lives on is of no use to anybody.
            code = "sandbox.crashed" if self.ready else "sandbox.start-failed"
            self.kill(code, "it closed its socket", guilty=self._running())
        elif not self.ready:
            self.kill("sandbox.start-failed", f"not ready after {_START_S:.0f} s")
        elif self._jobs and self._cause is None:
            self._check_clocks()

    def _check_clocks(self) -> None:
        now = time.monotonic()
        deadlines = [job.limits.deadline_ms / 1000 for job in self._jobs.values()]
        silent_at = self._last_sign + 2 * max(deadlines) + _SILENCE_GRACE_S
        waits = [*deadlines, silent_at - now]
        seq, started = self._status[0], self._status[1] / 1e9
        job = self._jobs.get(seq)
        if job is not None and self._status[0] == seq:
            left = started + job.limits.deadline_ms / 1000 - now
            if left <= 0:
                self.kill("limit.deadline-exceeded", f"{job.limits.deadline_ms} ms", guilty=seq)
                return
            waits.append(left)
        if now >= silent_at:
            head = self._conversation.head
            self.kill("sandbox.protocol-violation", "no sign of life",
                      guilty=head.seq if head else 0)  # fmt: skip
            return
        self._arm(max(min(waits), 0.001))

    # The end.

    def _on_exit(self) -> None:
        self._process.poll()
        if self._process.returncode is None:
            return
        self._gone = True
        self.loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._finish()

    def _finish(self) -> None:
        """Once the process is gone and its last bytes are read."""
        if not (self._gone and self._eof):
            return
        self._disarm()
        death = self._cause or self._unexpected()
        if death.code == "limit.deadline-exceeded" and self._status[0] != death.guilty:
            # It ended and another began between the look and the kill: that one did not overrun.
            death = replace(death, guilty=0)
        jobs = list(self._jobs.values())
        self._jobs.clear()
        del self._status
        self._page.close()
        self.owner.on_dead(self, death, jobs)

    def _unexpected(self) -> Death:
        status = self._process.returncode
        name = _ended(status)
        if not self.ready:
            code = "containment-missing" if status == _EXIT_CONTAINMENT else "start-failed"
            return Death(f"sandbox.{code}", name, 0, ready=False)
        code = "killed" if status == -signal.SIGKILL else "crashed"
        return Death(f"sandbox.{code}", name, self._running(), ready=True)


def _ended(status: int) -> str:
    """How a process ended, for people. A signal may be one that has no name."""
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"exit status {status}" if status >= 0 else f"signal {-status}"


def is_confined(pid: int) -> bool:
    """What the kernel says of a sandbox that claims to be locked down."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            lines = dict(line.split(":\t", 1) for line in file if ":\t" in line)
    except OSError:
        return False
    return lines.get("NoNewPrivs", "").strip() == "1"
