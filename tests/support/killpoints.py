"""The kill points: a name for every step of a task's journey at which a process can die.

Product code knows nothing of them. `arm` replaces the method that a point names by one that ends
this process there; `tests.support.armed` is a program that arms a point and then serves.

A supervisor dies by SIGKILL of itself. A locked sandbox may not send that, so it dies in each way
that is left to it, or stops at the point until somebody outside kills it; what it has to say goes
through a `Page`, memory that it inherited.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import importlib
import inspect
import mmap
import os
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from executor.supervisor.reading import UNREAD

STEPS: Final = (
    "receive", "decode", "count", "resolve", "verify", "authorise", "dispatch", "execute",
    "settle", "publish", "ack",
)  # fmt: skip
# Beside the journey itself.
BESIDE: Final = ("retry", "dead letter", "duplicate", "drain")
COUNT, FLAKY, DEAD, SLOW = "count", "flaky", "dead", "slow"  # the tasks of these tests


@dataclass(frozen=True, slots=True)
class Point:
    """One place to die.

    `where`  module:function or module:Class.method.
    `when`   before | after it; `sent`: after it, and the server has got what it queued;
             `instead`: it is not done, and the server has got what was queued before.
    `task`   only when it is called about this task.
    `nth`    the how manieth of such calls.
    """

    step: str
    where: str
    when: str
    task: str = ""
    nth: int = 1

    @property
    def name(self) -> str:
        """Says it all."""
        about = f" {self.task}" if self.task else ""
        times = f" {self.nth}" if self.nth > 1 else ""
        return f"{self.step}: {self.when} {self.where.rpartition(':')[2]}{about}{times}"


_PIPELINE: Final = "executor.supervisor.pipeline:Pipeline."
_READING: Final = "executor.supervisor.reading:Reading."
_SETTLER: Final = "executor.supervisor.settling:Settler."
_OUTBOX: Final = "executor.transport.outbox:Outbox."
_REGISTRY: Final = "executor.supervisor.registry:"
_SERVING: Final = "executor.cli.serving:"


def _ending(step: str, task: str) -> tuple[Point, ...]:
    """The same end of the journey for a result, a retry and a dead letter."""
    return (
        Point(step, f"{_SETTLER}_publish", "before", task),
        Point(step, f"{_OUTBOX}publish", "instead", task),  # an ack before it would be seen
        Point(step, f"{_OUTBOX}publish", "after", task),  # queued, perhaps sent
        Point(step, f"{_OUTBOX}_on_answer", "before", task),  # stored, and nobody here knows
        Point(step, f"{_SETTLER}_ack", "before", task),  # the PubAck is here
    )


SUPERVISOR: Final = (
    Point("receive", f"{_PIPELINE}receive", "before", COUNT),
    Point("receive", f"{_READING}_decode", "before", FLAKY),  # in hand
    Point("decode", f"{_READING}decode", "before", DEAD),
    Point("decode", f"{_READING}decode", "after", COUNT),
    Point("decode", f"{_READING}_open_retry", "after", FLAKY),
    Point("count", "executor.supervisor.pipeline:is_plain", "after", COUNT),
    Point("count", "executor.supervisor.pipeline:before_running", "after", FLAKY),
    Point("count", f"{_SERVING}_Records.read", "before", COUNT),
    Point("count", f"{_SERVING}_Records.read", "after", DEAD),
    Point("resolve", f"{_REGISTRY}Registry.admit", "before", COUNT),
    Point("resolve", f"{_SERVING}_Modules.get", "after", nth=2),
    Point("verify", f"{_REGISTRY}verify", "before"),
    Point("verify", f"{_REGISTRY}verify", "after", COUNT),
    Point("verify", "executor.supervisor.compiling:Compiler.compile", "before"),
    Point("verify", "executor.supervisor.compiling:Compiler.compile", "after"),
    Point("authorise", "executor.core.policy:authorise", "after"),
    Point("authorise", f"{_PIPELINE}_denied", "after", COUNT),
    Point("authorise", "executor.core.policy:for_request", "before"),  # of one that asks for less
    Point("authorise", "executor.core.policy:for_request", "after"),
    Point("dispatch", "executor.supervisor.pool:Pool.dispatch", "before", COUNT),
    Point("dispatch", "executor.supervisor.process:SandboxProcess.run", "before", DEAD),
    Point("dispatch", "executor.supervisor.process:SandboxProcess.run", "after", COUNT),
    Point("execute", "executor.supervisor.leases:Leases.renew", "before", nth=2),
    Point("execute", "executor.supervisor.mediator:Mediator.serve", "before", COUNT),
    Point("execute", "executor.transport.kv:TenantKv.put", "after"),  # acted, not answered
    Point("execute", "executor.supervisor.process:SandboxProcess.answer", "after"),
    Point("execute", "executor.supervisor.pool:Pool.on_done", "before", COUNT),
    Point("settle", f"{_PIPELINE}_finish", "before", DEAD),
    Point("settle", f"{_SETTLER}settle", "before", COUNT),
    Point("settle", f"{_SETTLER}settle", "after", FLAKY),
    Point("settle", f"{_SETTLER}_seal", "before"),
    *_ending("publish", COUNT),
    Point("ack", f"{_SETTLER}_ack", "after", COUNT),  # queued, not sent
    Point("ack", f"{_SETTLER}_ack", "sent", COUNT),
    *_ending("retry", FLAKY),
    Point("retry", f"{_SETTLER}_ack", "sent", FLAKY),
    *_ending("dead letter", DEAD),
    Point("dead letter", f"{_SETTLER}_ack", "sent", DEAD),
    Point("duplicate", f"{_SERVING}_Records.read", "after", COUNT),
    Point("duplicate", f"{_SETTLER}authentic", "after"),
    Point("duplicate", f"{_SETTLER}_look", "before", COUNT),
    Point("duplicate", f"{_SETTLER}_ack", "after", COUNT),
    Point("drain", f"{_PIPELINE}drain", "before"),
    Point("drain", f"{_PIPELINE}_give_back", "after", SLOW, 2),
    Point("drain", f"{_PIPELINE}stop", "before"),
    Point("drain", f"{_OUTBOX}drain", "before"),
)

_CHANNEL: Final = "executor.sandbox.channel:Channel."
_ZYGOTE: Final = "executor.sandbox.zygote:"
_COMPILER: Final = "executor.sandbox.compiler:"
# In the processes of the zygote. At a birth nothing is known of a task; what else is reached in a
# sandbox is about the attempt that runs or has just ended.
BIRTHS: Final = (
    Point("load", "executor.sandbox.main:_load", "before"),
    Point("load", "executor.sandbox.main:_load", "after"),
    Point("ready", f"{_CHANNEL}send", "before"),
    Point("ready", f"{_CHANNEL}send", "after"),
)
ATTEMPTS: Final = (
    Point("run", "executor.sandbox.status:StatusPage.begin", "before"),
    Point("run", "executor.sandbox.main:execute", "before"),
    Point("call", f"{_CHANNEL}ask", "before"),
    Point("call", f"{_CHANNEL}ask", "after"),
    Point("done", f"{_CHANNEL}queue", "before"),
    Point("done", f"{_CHANNEL}queue", "after"),
    Point("done", f"{_CHANNEL}flush", "after"),  # said and sent
)
ZYGOTES: Final = (
    Point("start", f"{_ZYGOTE}_lock_down", "before"),
    Point("fork", f"{_ZYGOTE}_Server._request", "before"),
    Point("fork", f"{_ZYGOTE}_Server._say", "before"),
    Point("fork", f"{_ZYGOTE}_Server._say", "after"),
)
COMPILERS: Final = (
    Point("compile", f"{_COMPILER}serve", "before"),
    Point("compile", f"{_COMPILER}compile_module", "before"),
    Point("compile", f"{_COMPILER}compile_module", "after"),
)
JAILED: Final = (*BIRTHS, *ATTEMPTS, *ZYGOTES, *COMPILERS)


def find(name: str) -> Point:
    """The point of the supervisor with this name."""
    return next(point for point in SUPERVISOR if point.name == name)


def place(point: Point) -> tuple[Any, str]:
    """The module or class that holds what the point names, and its name there."""
    module, _, path = point.where.partition(":")
    holder: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        holder = getattr(holder, parent)
    return holder, name


def _task_of(holder: object, argument: Any) -> str:
    """The task that an argument is about."""
    if isinstance(argument, str):
        return argument
    entries = getattr(holder, "_entries", None)
    subject = getattr(argument, "subject", "")
    if entries and (entry := entries.get(subject.rpartition(".")[2])) is not None:
        subject = entry.outgoing.subject  # a PubAck is about what was published
    about = getattr(argument, "request", argument)
    if about is UNREAD:
        about, subject = None, argument.delivery.subject
    parts = subject.split(".")
    return str(getattr(about, "task", parts[2] if len(parts) > 2 else ""))


Hook = Callable[[Sequence[Any]], bool | None]  # True before a call: it is left out


def _replace(point: Point, before: Hook, after: Hook) -> None:
    holder, name = place(point)
    original = getattr(holder, name)

    @functools.wraps(original)
    def call(*arguments: Any, **named: Any) -> Any:
        if before(arguments):
            return None
        answer = original(*arguments, **named)
        after(arguments)
        return answer

    @functools.wraps(original)
    async def coroutine(*arguments: Any, **named: Any) -> Any:
        before(arguments)
        answer = await original(*arguments, **named)
        after(arguments)
        return answer

    setattr(holder, name, coroutine if inspect.iscoroutinefunction(original) else call)


def arm(point: Point) -> None:
    """End this process at the point, by SIGKILL."""
    seen = 0
    keep: list[asyncio.Task[None]] = []

    def die() -> None:
        os.write(2, f"killed at {point.name}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(arguments: Sequence[Any]) -> bool:
        nonlocal seen
        if point.task and all(_task_of(arguments[0], a) != point.task for a in arguments):
            return False
        seen += 1
        if seen != point.nth:
            return False
        if point.when in {"before", "after"}:
            die()

        async def later() -> None:
            await getattr(arguments[0], "outbox", arguments[0])._connection.flush()
            die()

        keep.append(asyncio.get_running_loop().create_task(later()))
        return True

    def nothing(_arguments: Sequence[Any]) -> None:
        pass

    if point.when in {"before", "instead"}:
        _replace(point, hook, nothing)
    else:
        _replace(point, nothing, hook)


class Page:
    """Memory shared by a test and the processes of a zygote: which point is armed, who is dead.

    A file that both map: it needs no system call, and it survives the lock-down. Victims are
    attempts whose input is `v` and a number; each dies once and has a word of its own, while what
    two processes count at the same moment may be counted once.
    """

    VICTIMS: Final = 256
    _ARMED, _ALLOWED, _DEATHS, _REACHED, _FIRST = range(5)

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), 4096)).cast("I")
        self._told: set[tuple[int, int]] = set()

    @classmethod
    def create(cls, path: Path) -> Page:
        """A page on which nothing is armed."""
        path.write_bytes(bytes(4096))
        return cls(path)

    def arm(self, place_: int, deaths: int = 0) -> None:
        """From now on processes die at JAILED[place_], those that serve no victim so often."""
        self._words[self._ARMED] = 0
        self._told.clear()
        for word in range(1, self._FIRST + self.VICTIMS):
            self._words[word] = 0
        self._words[self._ALLOWED] = deaths
        self._words[self._ARMED] = place_ + 1

    def disarm(self) -> None:
        """Nobody dies any more."""
        self._words[self._ARMED] = 0

    @property
    def armed(self) -> int:
        """The place of the armed point in JAILED, -1 for none."""
        return int(self._words[self._ARMED]) - 1

    @property
    def deaths(self) -> int:
        """How many died that served no victim."""
        return int(self._words[self._DEATHS])

    @property
    def victims(self) -> int:
        """How many victims are dead."""
        return sum(map(bool, self._words[self._FIRST : self._FIRST + self.VICTIMS]))

    def claim(self, every: int = 1) -> bool:
        """Whether this process, which serves no victim, is to die at the point now."""
        self._words[self._REACHED] += 1
        if self._words[self._REACHED] % every or not self._words[self._ALLOWED]:
            return False
        self._words[self._ALLOWED] -= 1
        self._words[self._DEATHS] += 1
        return True

    def claim_victim(self, victim: int) -> bool:
        """Whether this victim is to die now; the first time alone."""
        if self._words[self._FIRST + victim]:
            return False
        self._words[self._FIRST + victim] = os.getpid()
        return True

    def spinning(self) -> list[int]:
        """The processes that wait at the point to be killed; asked for once each."""
        found = []
        for victim in range(0, self.VICTIMS, len(WAYS)):
            pid, told = self._words[self._FIRST + victim], self._told
            if pid and (victim, pid) not in told:
                told.add((victim, pid))
                found.append(pid)
        return found


def _segfault() -> None:
    ctypes.string_at(0)


def _forbidden() -> None:
    os.kill(os.getpid(), signal.SIGKILL)  # the filter ends the process for the attempt


def _spin() -> None:
    while True:
        pass  # until it is killed from outside


# How a locked process can end of itself, and how it waits for its end.
WAYS: Final = (_spin, _segfault, os.abort, _forbidden, functools.partial(os._exit, 0))


class Jail:
    """What a zygote arms before it forks: all points, of which the page says which one counts."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._victim = -1  # of the attempt that was received last
        self._queued = -1  # of the outcome that was queued last

    def arm(self) -> None:
        """Replace everything."""
        channel = importlib.import_module("executor.sandbox.channel").Channel
        receive = channel.run

        def run(own: Any) -> Any:
            frame = receive(own)
            match = re.fullmatch(rb"v(\d+)", frame.input)
            self._victim = int(match[1]) if match else -1
            return frame

        channel.run = run
        for index, point in enumerate(JAILED):
            at = functools.partial(self._at, index, point)
            before, after = functools.partial(at, "before"), functools.partial(at, "after")
            _replace(point, before, after)

    def _at(self, index: int, point: Point, when: str, arguments: Sequence[Any]) -> None:
        victim, method = self._victim, point.where.rpartition(".")[2]
        if (method, when) == ("queue", "after"):
            self._queued = victim
        elif (method, when) == ("flush", "after"):
            victim, self._queued = self._queued, -1
        armed = self.page.armed
        if armed >= 0 and JAILED[armed] in BIRTHS and method == "main:execute":
            self._die(victim)  # births need deaths
        if armed != index or when != point.when:
            return
        if point in ATTEMPTS:
            self._die(victim)
        elif method == "send" and type(arguments[1]).__name__ != "Ready":
            return
        elif self.page.claim(every=2 if point in BIRTHS else 1):
            self._end(point)

    def _die(self, victim: int) -> None:
        if victim >= 0 and self.page.claim_victim(victim):
            WAYS[victim % len(WAYS)]()

    def _end(self, point: Point) -> None:
        """SIGKILL where it is allowed, which is everywhere but in a locked process."""
        if point.step == "ready":
            os.abort()
        if point.where.endswith("compile_module"):
            self.page.claim_victim(0)  # says who it is
            _spin()
        os.kill(os.getpid(), signal.SIGKILL)
