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
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from executor.core.conversation import Conversation
from executor.core.frames import Answer, Call, Done, Failed, Load, Ready, Run, encode
from executor.core.layers import REQUIRED
from executor.errors import ExecutorError
from executor.model import MIB
from executor.supervisor.job import Job, ModuleKey
from executor.supervisor.zygote import Child, Zygote

STATUS_BYTES: Final = 4096
# No attempt ended for so long beyond twice the longest deadline: the status page is a lie.
_SILENCE_GRACE_S: Final = 1.0
# A dying process closes its socket before its end can be seen; microseconds, if it is dying.
_LINGER_S: Final = 0.5
# A sandbox that is not ready by then never will be: with the zygote's start it takes a tenth of a
# second.
_START_S: Final = 20.0
_SIZE_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
# One tick may be a rest of the attempt before.
_IDLE_TICKS: Final = 1
# What a sandbox may hold beside its guest's memory: frames, Python's own, tables.
_DATA_BYTES: Final = 96 * MIB


@dataclass(frozen=True, slots=True)
class Death:
    """How a sandbox ended. `guilty` is the attempt that ran, if one did and is to blame."""

    code: str  # "" when it was told to go
    detail: str
    guilty: int  # seq, or 0
    ready: bool  # whether it had ever been ready
    facts: tuple[tuple[str, str | int], ...] = ()
    forbidden: bool = False  # by a system call that its filter does not have


class Owner(Protocol):
    """The pool, as a sandbox process sees it."""

    def on_started(self, sandbox: SandboxProcess) -> None:
        """The process exists."""

    def on_ready(self, sandbox: SandboxProcess) -> None:
        """It is locked down and takes attempts."""

    def on_done(self, sandbox: SandboxProcess, job: Job, done: Done) -> None:
        """An attempt ended."""

    def on_call(self, sandbox: SandboxProcess, job: Job, call: Call) -> None:
        """An attempt asks the mediator."""

    def on_dead(self, sandbox: SandboxProcess, death: Death, jobs: list[Job]) -> None:
        """The process is gone; `jobs` had not ended, in order."""


def sealed_memfd(name: str, data: bytes | memoryview | None = None, *, size: int = 0) -> int:
    """A memory file whose size (and, with `data`, content) can never change again."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    if data is None:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SIZE_SEALS)
        return fd
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    seal_content(fd)
    return fd


def seal_content(fd: int) -> None:
    """Nobody changes this memory file again. Raises `OSError` while a writable mapping lives."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SIZE_SEALS | fcntl.F_SEAL_WRITE)


@dataclass(eq=False)
class SandboxProcess(asyncio.Protocol):
    """A running sandbox: one tenant for life, born with its modules."""

    owner: Owner
    tenant: str
    modules: dict[ModuleKey, int]
    loop: asyncio.AbstractEventLoop
    zygote: Zygote
    slot: int = 0
    retiring: bool = False  # it takes nothing new
    leaving: bool = False  # and ends before what lies behind `ends_after`
    successor: str = ""  # the tenant that it makes way for, if it does for one
    ends_after: int = 0
    ready: bool = False
    layers: tuple[str, ...] = ()
    engine: str = ""
    attempts: int = 0
    born: float = field(default_factory=time.monotonic)
    _jobs: dict[int, Job] = field(default_factory=dict)
    _queued: int = 0  # bytes ever handed over to be sent
    _answered: int = 0  # of which the last answer was the end
    _idle: tuple[int, int] | None = None  # attempts and CPU time at the last look, if idle then
    _conversation: Conversation = field(default_factory=Conversation)
    _unsent: list[bytes] = field(default_factory=list)
    _cause: Death | None = None
    _timer: asyncio.TimerHandle | None = None
    _timer_due: float = 0.0
    _last_sign: float = 0.0
    _exited: tuple[int, str] | None = None  # status, and why if that is known
    _failed: Failed | None = None
    _eof: bool = False
    _early: bool = False
    _containment: tuple[tuple[str, ...], str] = ((), "")  # layers, and what is said of them

    def start(self, load: Load, artifact_fds: Sequence[int], *, memory_bytes: int) -> None:
        """Start the process and tell it what to load. Raises `OSError` if it cannot start.

        `memory_bytes`  the most that a guest here may have.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                self._launch(theirs.fileno(), artifact_fds, memory_bytes)
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        self._queue(encode(load))
        self._connecting = self.loop.create_task(self._connect(ours))
        self._arm(_START_S)

    def _launch(self, socket_fd: int, artifact_fds: Sequence[int], memory_bytes: int) -> None:
        status_fd = sealed_memfd("status", size=STATUS_BYTES)
        try:
            self._page = mmap.mmap(status_fd, STATUS_BYTES)
            self._status = (ctypes.c_uint64 * 2).from_buffer(self._page)
            self._child = Child(self._on_forked, self._on_exit)
            try:
                self.zygote.fork(
                    "sandbox", (socket_fd, status_fd, *artifact_fds), self._child, slot=self.slot,
                    data=memory_bytes + _DATA_BYTES,
                )  # fmt: skip
            except OSError:
                self._close_page()
                raise
        finally:
            os.close(status_fd)

    async def _connect(self, ours: socket.socket) -> None:
        await self.loop.create_connection(lambda: self, sock=ours)

    @property
    def pid(self) -> int:
        """The process id, 0 before it exists; it may be gone."""
        return self._child.pid

    @property
    def containment(self) -> str:
        """Whether it has every required layer, and which it lacks, for receipts."""
        if not self._containment[1] or self._containment[0] is not self.layers:
            missing = sorted(REQUIRED - set(self.layers))
            said = f"weakened: no {', '.join(missing)}" if missing else "full"
            self._containment = self.layers, said
        return self._containment[1]

    @property
    def outstanding(self) -> int:
        """Attempts sent and not ended."""
        return len(self._jobs)

    def has_room(self, tasks: int, size: int, most_bytes: int) -> bool:
        """Whether another input of `size` may be sent while at most `tasks` are outstanding."""
        if self._eof or self._cause is not None:
            return False
        jobs = self._jobs
        if not jobs:
            return True
        return (
            len(jobs) < tasks
            and self._conversation.outstanding_bytes + size <= most_bytes
            and not next(iter(jobs.values())).alone
        )

    @property
    def head(self) -> Job | None:
        """The oldest attempt without an end: what runs, or comes next."""
        return next(iter(self._jobs.values()), None)

    def runs(self, job: Job) -> bool:
        """Whether `job` is what runs now, as far as the status page can be believed."""
        return self._jobs.get(self._running()) is job

    def started_at(self, job: Job) -> float:
        """When `job` began, in loop time, as far as the status page can be believed."""
        seq, started = self._status[0], self._status[1] / 1e9
        now = time.monotonic()
        return min(started, now) if self._jobs.get(seq) is job else now

    def leave(self, successor: str = "", *, shown: bool = False) -> list[Job]:
        """End as soon as what runs has ended; what is not started, in order.

        What runs is the oldest attempt without an end: to believe the page would let a sandbox
        choose how long it stays. With `shown` what the page names may end too, as ends of short
        attempts wait in the sandbox until the next one ends: for who has a bound of its own.
        """
        self.retiring = True
        if not self.leaving:
            self.leaving, self.successor = True, successor
            self.ends_after = next(iter(self._jobs), 0)
            if shown:
                self.ends_after = max(self.ends_after, self._running())
        return [job for seq, job in self._jobs.items() if seq > self.ends_after]

    @property
    def done(self) -> bool:
        """Whether it has ended all that it may end."""
        first = next(iter(self._jobs), 0)
        return self.retiring and (not first or (self.leaving and first > self.ends_after))

    def run(self, job: Job, run: Run) -> None:
        """Take an attempt; `flush` sends it, with all that were taken before."""
        jobs = self._jobs
        if not jobs:
            self._last_sign = time.monotonic()
        jobs[run.seq] = job
        self.attempts += 1
        self._unsent.append(self._conversation.run(run))
        self._queued += len(self._unsent[-1])
        seconds = job.limits.deadline_ms / 1000
        if self._timer is None or time.monotonic() + seconds < self._timer_due:
            self._arm(seconds)

    def answer(self, answer: Answer) -> None:
        """Answer the open call, unless its attempt is gone."""
        if answer.seq in self._jobs and self._exited is None and self._cause is None:
            self._queue(self._conversation.answer(answer))
            self._answered = self._queued

    def kill(self, code: str, detail: str, *, guilty: int = 0,
             facts: tuple[tuple[str, str | int], ...] = ()) -> None:  # fmt: skip
        """End the process now; `code` "" means that nobody is to blame."""
        if self._cause is None and self._exited is None:
            self._cause = Death(code, detail, guilty, self.ready, facts)
            self._child.kill()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is with the event loop."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Frames of the sandbox; anything illegal ends it."""
        if self._cause is not None and self._cause.code == "sandbox.protocol-violation":
            return  # what a condemned process still says is not believed
        try:
            for frame in self._conversation.receive(data):
                if self._answered:
                    self._check_read()
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
        if self._exited is None and self._cause is None:
            # Most likely it is dying: how, its exit will say.
            self._arm(_LINGER_S)
        self._finish()

    def _handle(self, frame: Ready | Failed | Call | Done) -> None:
        match frame:
            case Done():
                # The one sign of life: bytes and calls cost an attacker nothing.
                self._last_sign = time.monotonic()
                self.owner.on_done(self, self._jobs.pop(frame.seq), frame)
            case Ready():
                self.layers, self.engine = frame.layers, frame.engine
                self._disarm()
                if self.pid:
                    self._be_ready()
                else:
                    self._early = True  # its first words overtook the zygote's
            case Failed():
                self._failed = frame
            case Call():
                # What is about to die may run again: it must not act twice for that.
                if self._cause is None:
                    self.owner.on_call(self, self._jobs[frame.seq], frame)

    def _check_read(self) -> None:
        """Refuse who goes on while a part of its answer is still on our side, unread by anybody.

        Else it could make us hold an answer for every call that it may make.
        """
        kept = self._transport.get_write_buffer_size() + sum(map(len, self._unsent))
        if self._queued - kept < self._answered:
            raise ExecutorError("sandbox.protocol-violation", "it left an answer unread")
        self._answered = 0

    def _queue(self, data: bytes) -> None:
        if not self._unsent:
            self.loop.call_soon(self.flush)
        self._unsent.append(data)
        self._queued += len(data)

    def flush(self) -> None:
        """Send what was taken."""
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

    def _culprit(self) -> int:
        """What runs, if the page and the order of attempts agree on it; 0: nobody can tell.

        An end may wait in the sandbox while the next attempt runs. But the page may also name an
        innocent one that only lies here, so it is not believed against the order.
        """
        seq, running = self._status[0], self._running()
        head = self._conversation.head
        return running if seq and head is not None and running == head.seq else 0

    def check_idle(self) -> None:
        """End a sandbox that works while it has nothing to do: whatever it does is not ours."""
        if not self.ready or self._jobs or self._cause is not None or self._exited is not None:
            self._idle = None
            return
        before, self._idle = self._idle, (self.attempts, cpu_ticks(self.pid))
        if before is None or before[0] != self.attempts:
            return
        if self._idle[1] - before[1] > _IDLE_TICKS:
            self.kill("sandbox.protocol-violation", "it works though it has nothing to do")

    def _on_timer(self) -> None:
        self._timer = None
        if self._exited is not None:
            # Gone, and yet its socket is not at its end: what is in flight is not worth the slot.
            self._transport.abort()
        elif self._eof:
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
        lie = ""
        if job is not None and self._status[0] == seq:
            left = started + job.limits.deadline_ms / 1000 - now
            if started < job.dispatched_at:
                lie = "it began before it was sent"
            elif left <= 0:
                detail = f"{job.limits.deadline_ms} ms"
                self.kill("limit.deadline-exceeded", detail, guilty=self._culprit())
                return
            waits.append(left)
        if now >= silent_at:
            lie = "no sign of life"
        if lie:
            head = self._conversation.head
            self.kill("sandbox.protocol-violation", lie, guilty=head.seq if head else 0)
            return
        self._arm(max(min(waits), 0.001))

    # The end.

    def _on_forked(self) -> None:
        self.owner.on_started(self)
        if self._early:
            self._be_ready()

    def _be_ready(self) -> None:
        self.ready = True
        self.owner.on_ready(self)

    def _on_exit(self, status: int, detail: str) -> None:
        self._exited = (status, detail)
        if not self._eof:
            self._arm(_LINGER_S)
        self._finish()

    def _finish(self) -> None:
        """Once the process is gone and its last bytes are read."""
        if self._exited is None or not self._eof:
            return
        self._disarm()
        death = self._cause or self._unexpected()
        if death.code == "limit.deadline-exceeded" and self._status[0] != death.guilty:
            # It ended and another began between the look and the kill: that one did not overrun.
            death = replace(death, guilty=0)
        if self._exited[0] == -signal.SIGSYS:
            death = replace(death, forbidden=True)
        jobs = list(self._jobs.values())
        self._jobs.clear()
        self._close_page()
        self.owner.on_dead(self, death, jobs)

    def _close_page(self) -> None:
        del self._status
        self._page.close()

    def _unexpected(self) -> Death:
        assert self._exited is not None
        status, detail = self._exited
        detail = detail or ended(status)
        if not self.ready:
            failed = self._failed or Failed("sandbox.start-failed", detail)
            return Death(failed.code, failed.message, 0, ready=False)
        code = "killed" if status == -signal.SIGKILL else "crashed"
        return Death(f"sandbox.{code}", detail, self._culprit(), ready=True)


def cpu_ticks(pid: int) -> int:
    """CPU time of a process in ticks of the kernel; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def ended(status: int) -> str:
    """How a process ended, for people. A signal may be one that has no name."""
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"exit status {status}" if status >= 0 else f"signal {-status}"
