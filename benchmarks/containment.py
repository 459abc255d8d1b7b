"""What containment costs and how soon it acts: births, the lock-down, each task, ends by force.

Everything is real: the fork server, its children, a whole supervisor between scripted ports. The
rounds take every measurement in turn, so that a drift of the machine meets all of them.

    python -m benchmarks containment

Two things need a fork server whose children differ from those in service: a lock-down that reports
its time, and a sandbox without one. It is this file started as a program, with the children's
`jail.lock_down` replaced; all else is what the product does.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn, Self
from unittest import mock

from benchmarks.note import note
from benchmarks.options import Options
from benchmarks.section import Goal, Section
from executor.core import signature
from executor.core.frames import (
    Compile,
    Compiled,
    Done,
    Fork,
    Frame,
    Load,
    Reader,
    Ready,
    Run,
    Warm,
    encode,
)
from executor.core.layers import LAYERS
from executor.core.wasm import uleb
from executor.model import KIB, MIB, Answer, Outgoing
from executor.sandbox import jail, zygote
from executor.sandbox import main as sandbox
from executor.sandbox.warm import Warm as Engine
from executor.supervisor.artifacts import ArtifactCache
from executor.supervisor.compiling import Compiler
from executor.supervisor.job import Job
from executor.supervisor.process import STATUS_BYTES, sealed_memfd
from executor.supervisor.zygote import Zygote
from tests.support import guests
from tests.support.nursery import WAIT_SECONDS, Nursery
from tests.support.rig import TENANT, Rig

DEADLINE_MS: Final = 100
ATTEMPTS: Final = 2_000  # of a block
_PAIRS: Final = 4  # of blocks, a round
_BIRTHS: Final = 10  # a round
_ENDS: Final = 4  # by force, a round
_LOADS: Final = 4  # of the large module, a round
_FUNCTIONS: Final = 10_000  # of the large module, of 1 KB each
_PAYLOAD: Final = bytes(range(256)) * 4
_LENGTH: Final = struct.Struct(">I")
# How attempts are sent: (attempts in one write, writes ahead of the answers).
_SENDING: Final = {"one by one": (1, 1), "in a window of 64": (32, 2)}
_KINDS: Final = {"pooled": True, "on-demand": False}


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should be: at most `value`, or about as much."""

    value: float
    about: bool = False


@dataclass
class Figures:
    """Samples by name, in the order in which the names came up."""

    units: dict[str, str] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, unit: str, value: float, target: Target | None = None) -> None:
        """One more sample."""
        self.units[name] = unit
        if target is not None:
            self.targets[name] = target
        self.samples.setdefault(name, []).append(value)


# The fork server of the benchmark, which is this file run as a program.


Steps = tuple[tuple[str, jail.Step], ...]


def _timed(plan: jail.Plan, steps: Steps = jail.STEPS) -> tuple[str, ...]:
    """The whole lock-down; its nanoseconds stand behind the layers in the Ready frame.

    A sandbox takes its steps in two parts, with the loading between them.
    """
    started = time.perf_counter_ns()
    layers = _lock_down(plan, steps)
    return (*layers, f"all steps={time.perf_counter_ns() - started}")


def _stepwise(plan: jail.Plan, steps: Steps = jail.STEPS) -> tuple[str, ...]:
    """The same with a clock round each step. The filter allows reading a clock."""
    return _lock_down(plan, [(name, _clocked(name, step)) for name, step in steps])


def _clocked(name: str, step: jail.Step) -> jail.Step:
    def run(plan: jail.Plan) -> tuple[str, ...]:
        started = time.perf_counter_ns()
        layers = step(plan)
        return (*layers, f"{name}={time.perf_counter_ns() - started}")

    return run


def _nothing(_plan: jail.Plan, _steps: Steps = jail.STEPS) -> tuple[str, ...]:
    return ()


_lock_down: Final = jail.lock_down
_MODES: Final[dict[str, Callable[..., tuple[str, ...]]]] = {
    "": jail.lock_down, "timed": _timed, "stepwise": _stepwise, "unlocked": _nothing,
}  # fmt: skip


def _begin(order: Fork, fds: Sequence[int], warm: Engine, parent: int) -> NoReturn:
    """A child as in service, but for its lock-down, which the order names."""
    with mock.patch.object(jail, "lock_down", _MODES[order.attack]):
        sandbox.begin(order, fds, warm, parent)


def serve(descriptor: int) -> NoReturn:
    """Be the fork server until its control socket closes."""
    parent = os.getppid()
    zygote.ignore_signals()
    zygote.follow_parent(parent)
    zygote.serve(socket.socket(fileno=descriptor), _begin, pooled=True, path="auto")


class _OwnNursery(Nursery):
    """The same socket and requests, with this file's fork server at the other end."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.containment", str(theirs.fileno())],
                env={}, cwd=Path(__file__).parent.parent, pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        ours.settimeout(WAIT_SECONDS)
        self.control = ours
        self._statuses: dict[int, int] = {}
        self._number = 0
        frame, _ = self._next()
        if not isinstance(frame, Warm):
            raise TypeError(f"no fork server: {frame}")
        self.warm = frame


class _Process:
    """One child, seen from the supervisor's end of its socket."""

    def __init__(
        self, nursery: Nursery, role: str, *fds: int, first: Frame, mode: str = ""
    ) -> None:  # fmt: skip
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(WAIT_SECONDS)
        self.socket.sendall(encode(first))
        with theirs:
            cpu_seconds = 10 if role == "compiler" else 0
            self.born = nursery.fork(
                role, (theirs.fileno(), *fds), attack=mode, cpu_seconds=cpu_seconds
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.born.close()

    def next(self) -> Frame:
        """The first frame of what comes."""
        reader = Reader()
        while data := self.socket.recv(64 * KIB):
            for frame in reader.feed(data):
                return frame
        raise ConnectionError(f"a child ended: {self.born.wait()}")

    def ready(self) -> Ready:
        """Its Ready frame, which must come now."""
        frame = self.next()
        if not isinstance(frame, Ready):
            raise TypeError(f"not ready: {frame}")
        return frame


@dataclass
class _Nest:
    """A fork server and an artifact made by one of its compilers."""

    nursery: Nursery
    artifact: int = -1

    def compile(self) -> None:
        """Make the artifact of an echo."""
        module = sealed_memfd("module", guests.assemble(guests.ECHO))
        self.artifact = os.memfd_create("artifact", os.MFD_CLOEXEC)
        order = Compile(64 * MIB, large=False)
        with _Process(self.nursery, "compiler", module, self.artifact, first=order) as compiler:
            answer = compiler.next()
        os.close(module)
        if not isinstance(answer, Compiled):
            raise TypeError(f"not compiled: {answer}")

    @contextlib.contextmanager
    def sandbox(self, mode: str = "") -> Iterator[tuple[_Process, Ready, float]]:
        """A sandbox with the echo, its Ready frame, and the ms from the request to it."""
        status = sealed_memfd("status", size=STATUS_BYTES)
        started = time.perf_counter()
        fds = (status, self.artifact)
        with _Process(
            self.nursery, "sandbox", *fds, first=Load(((0, ()),)), mode=mode
        ) as process:  # fmt: skip
            os.close(status)
            ready = process.ready()
            yield process, ready, (time.perf_counter() - started) * 1e3

    def close(self) -> None:
        """End it."""
        if self.artifact >= 0:
            os.close(self.artifact)
        self.nursery.close()


# The measurements, one round each.


def cold_start(figures: Figures) -> None:
    """Exec of the fork server to its Warm frame."""
    for kind, pooled in _KINDS.items():
        started = time.perf_counter()
        nursery = Nursery(pooled=pooled)
        took = (time.perf_counter() - started) * 1e3
        nursery.close()
        figures.add(f"cold start, {kind}", "ms", took, Target(80))


def respawn(figures: Figures, nests: dict[str, _Nest]) -> None:
    """Request for a fork to the Ready of a sandbox with one small module, compiled before."""
    for _ in range(_BIRTHS):
        for kind, nest in nests.items():
            with nest.sandbox() as (_process, _ready, took):
                figures.add(f"respawn, {kind}", "ms", took, Target(5))


def lock_down(figures: Figures, own: _Nest) -> None:
    """All steps, and in other children each step, on the child's own clock."""
    for mode in ("timed", "stepwise"):
        for _ in range(_BIRTHS):
            with own.sandbox(mode) as (_process, ready, _took):
                whole = 0
                for layer in ready.layers:
                    name, _, ns = layer.partition("=")
                    if ns and mode == "timed":
                        whole += int(ns)
                    elif ns:
                        figures.add(f"lock-down: {name}", "us", int(ns) / 1e3)
                if mode == "timed":
                    figures.add("lock-down, all steps", "ms", whole / 1e6, Target(1))


def _run(seq: int) -> Run:
    return Run(
        seq=seq, module=0, input=_PAYLOAD, fuel=10_000_000, memory_bytes=MIB, table_elements=1_000,
        output_bytes=KIB, log_bytes=KIB, log_lines=8, calls=100, mediated_calls=0,
    )  # fmt: skip


class _Answers:
    """Counts frames by their length fields; they are decoded when the clock has stopped."""

    def __init__(self, source: socket.socket) -> None:
        self._source = source
        self._data = bytearray()
        self._at = 0
        self.count = 0

    def until(self, count: int) -> None:
        """Receive until so many frames are whole."""
        while self.count < count:
            data = self._source.recv(256 * KIB)
            if not data:
                raise ConnectionError("a sandbox ended")
            self._data += data
            while len(self._data) - self._at >= _LENGTH.size:
                end = self._at + _LENGTH.size + _LENGTH.unpack_from(self._data, self._at)[0]
                if end > len(self._data):
                    break
                self._at = end
                self.count += 1

    def check(self) -> None:
        """Each must be a result that echoes the input."""
        for frame in Reader().feed(bytes(self._data)):
            if not isinstance(frame, Done) or frame.code or frame.output != _PAYLOAD:
                raise RuntimeError(f"no echo: {frame}")


def _block(process: _Process, batch: int, ahead: int) -> float:
    """Microseconds of one attempt of `ATTEMPTS`."""
    writes = [
        b"".join(encode(_run(first + place + 1)) for place in range(min(batch, ATTEMPTS - first)))
        for first in range(0, ATTEMPTS, batch)
    ]
    answers = _Answers(process.socket)
    started = time.perf_counter()
    for number, data in enumerate(writes):
        answers.until((number + 1 - ahead) * batch)
        process.socket.sendall(data)
    answers.until(ATTEMPTS)
    took = time.perf_counter() - started
    answers.check()
    return took * 1e6 / ATTEMPTS


def echo_us() -> list[float]:
    """Microseconds of an attempt in a locked sandbox as in service, 64 in flight; a few blocks."""
    nest = _Nest(Nursery())
    try:
        nest.compile()
        with nest.sandbox() as (process, _ready, _took):
            return [_block(process, *_SENDING["in a window of 64"]) for _ in range(_PAIRS)][1:]
    finally:
        nest.close()


def jail_us() -> list[tuple[float, float]]:
    """Microseconds of an attempt with and without a lock-down, 64 in flight; pairs of blocks."""
    own = _Nest(_OwnNursery())
    try:
        own.compile()
        with own.sandbox() as (locked, _, _), own.sandbox("unlocked") as (unlocked, _, _):
            how = _SENDING["in a window of 64"]
            return [(_block(locked, *how), _block(unlocked, *how)) for _ in range(_PAIRS)][1:]
    finally:
        own.close()


def per_task(figures: Figures, own: _Nest) -> None:
    """The same attempts with and without a lock-down; the blocks take turns, and so do who begins.

    One by one, each attempt makes two system calls that pass the filter: the dearest case.
    """
    with own.sandbox() as (locked, _, _), own.sandbox("unlocked") as (unlocked, _, _):
        for process in (locked, unlocked):
            _block(process, *_SENDING["in a window of 64"])  # both have met everything once
        for pair in range(_PAIRS):
            for how, (batch, ahead) in _SENDING.items():
                turns = [("locked", locked), ("unlocked", unlocked)]
                took = {
                    name: _block(process, batch, ahead)
                    for name, process in (turns if pair % 2 == 0 else reversed(turns))
                }
                for name, _ in turns:
                    figures.add(f"attempt {how}, {name}", "us", took[name])
                ratio = took["locked"] / took["unlocked"]
                figures.add(f"attempt {how}, ratio in a pair", "x", ratio)


def ratios(figures: Figures) -> None:
    """What the jail costs an attempt, over all rounds."""
    for how in _SENDING:
        locked, unlocked = (
            statistics.median(figures.samples[f"attempt {how}, {name}"])
            for name in ("locked", "unlocked")
        )
        name = f"attempt {how}, ratio of medians"
        figures.add(name, "x", locked / unlocked, Target(1.0, about=True))


def large_module() -> bytes:
    """10 MB of Wasm: 10,000 functions of multiplications and additions, all different."""
    functions = []
    for number in range(_FUNCTIONS):
        # local.get 0, i32.const (five bytes), i32.mul or i32.add, local.set 0
        code = b"".join(
            b"\x20\x00\x41"
            + bytes([0x80 | number & 0x7F, 0x80 | number >> 7, 0x80 | step, 0x81, 2])
            + (b"\x6c", b"\x6a")[step % 2] + b"\x21\x00"
            for step in range(95)
        )  # fmt: skip
        functions.append(b"\x00" + code + b"\x20\x00\x0b")
    functions.append(b"\x00\x41\x07\x10\x00\x0b")  # run: call the first one with 7
    run = uleb(_FUNCTIONS)
    return b"\0asm\1\0\0\0" + b"".join((
        _section(1, [b"\x60\x01\x7f\x01\x7f", b"\x60\x00\x01\x7f"]),
        _section(3, [b"\x00"] * _FUNCTIONS + [b"\x01"]),
        _section(5, [b"\x00\x01"]),
        _section(7, [b"\x03run\x00" + run, b"\x06memory\x02\x00"]),
        _section(10, [uleb(len(function)) + function for function in functions]),
    ))  # fmt: skip


def _section(number: int, items: Sequence[bytes]) -> bytes:
    content = uleb(len(items)) + b"".join(items)
    return bytes([number]) + uleb(len(content)) + content


@dataclass(frozen=True, slots=True)
class Cached:
    """The large module in a cache of its own."""

    folder: tempfile.TemporaryDirectory[str]
    cache: ArtifactCache
    digest: str
    engine: str
    facts: str  # sizes and the time of the one compilation


async def cached_module() -> Cached:
    """Compile the large module once, as a host does, and keep it."""
    module = large_module()
    fork_server = Zygote(pooled=True)
    try:
        engine = (await fork_server.warm()).engine
        started = time.perf_counter()
        compiler = Compiler(fork_server)
        product = await compiler.compile(module, tenant="", memory_max=MIB, large=True)
        took = time.perf_counter() - started
    finally:
        await fork_server.close()
    folder = tempfile.TemporaryDirectory(prefix="executor-bench-")
    cache = ArtifactCache(Path(folder.name), os.urandom(32), 1024 * MIB, lambda _name: None)
    digest = signature.digest(module)
    cache.put(digest, engine, product)
    facts = f"{len(module) / 1e6:.1f} MB of Wasm, artifact {product.artifact.size / 1e6:.1f} MB"
    return Cached(folder, cache, digest, engine, f"{facts}, compiled in {took:.1f} s")


def from_cache(figures: Figures, cached: Cached, nursery: Nursery) -> None:
    """The large module: file to sealed descriptor, and descriptor in hand to Ready."""
    for _ in range(_LOADS):
        started = time.perf_counter()
        product = cached.cache.get(cached.digest, cached.engine)
        took = (time.perf_counter() - started) * 1e3
        if product is None:
            raise RuntimeError("not in the cache")
        figures.add("10 MB module, cache to descriptor", "ms", took)
        with _Nest(nursery, product.artifact.fd).sandbox() as (_process, _ready, took):
            figures.add("10 MB module, descriptor to Ready", "ms", took, Target(5))


class _Watch:
    """When a rig published each dead letter, and when it sent that attempt to a sandbox."""

    def __init__(self, rig: Rig) -> None:
        self.published: dict[str, float] = {}
        self.dispatched: dict[str, float] = {}
        self._store = rig.wire.answer
        self._on_settled = rig.pipeline.settler.on_settled
        rig.wire.answer = self._answer
        rig.pipeline.settler.on_settled = self._settled

    def _answer(self, outgoing: Outgoing) -> Answer | None:
        self.published[outgoing.subject.split(".")[3]] = time.monotonic()
        return self._store(outgoing)

    def _settled(self, job: Job, what: str) -> None:
        self.dispatched[job.request.id] = job.dispatched_at
        self._on_settled(job, what)


async def deadline(figures: Figures) -> None:
    """A spinning guest through a whole supervisor: deadline to dead letter, sealed and published.

    The deadline counts from the moment at which the attempt was sent to its sandbox.
    """
    async with Rig() as rig:
        watch = _Watch(rig)
        rig.publish("spin", guests.SPIN)
        for _ in range(_ENDS):
            request = rig.ask("spin", limits=(("deadline_ms", DEADLINE_MS),), attempts_max=1)
            record = await rig.record(request)
            if record.code != "limit.deadline-exceeded":
                raise RuntimeError(f"it ended otherwise: {record.code}")
            due = watch.dispatched[request.id] + DEADLINE_MS / 1e3
            late = (watch.published[request.id] - due) * 1e3
            figures.add("deadline overshoot", "ms", late, Target(10))


async def cancel(figures: Figures) -> None:
    """A spinning guest through a whole supervisor: cancel to dead letter, sealed and published."""
    async with Rig() as rig:
        watch = _Watch(rig)
        rig.publish("spin", guests.SPIN)
        for _ in range(_ENDS):
            request = rig.ask("spin")
            await rig.running()
            started = time.monotonic()
            rig.pipeline.cancelling.cancel(TENANT, "spin", request.id)
            record = await rig.record(request)
            if record.code != "task.cancelled":
                raise RuntimeError(f"it ended otherwise: {record.code}")
            took = (watch.published[request.id] - started) * 1e3
            figures.add("cancel of running work", "ms", took, Target(100))


async def measure(
    rounds: int, *, large: bool
) -> tuple[Figures, dict[str, str | int | float]]:  # fmt: skip
    """All figures, and the conditions under which they came about."""
    conditions: dict[str, str | int | float] = {
        "cores": len(os.sched_getaffinity(0)), "load before": round(os.getloadavg()[0], 2),
        "rounds": rounds,
    }  # fmt: skip
    cold_start(Figures())  # the first one finds files that nobody has read
    nests = {kind: _Nest(Nursery(pooled=pooled)) for kind, pooled in _KINDS.items()}
    own = _Nest(_OwnNursery())
    figures = Figures()
    cached: Cached | None = None
    try:
        if large:
            cached = await cached_module()
        conditions["large module"] = cached.facts if cached else "skipped"
        for nest in (*nests.values(), own):
            nest.compile()
        with nests["pooled"].sandbox() as (_process, ready, _took):
            have = {*ready.layers, *nests["pooled"].nursery.warm.layers}
            conditions["layers missing"] = ", ".join(n for n in LAYERS if n not in have) or "none"
        for round_ in range(rounds):
            note(f"containment, round {round_ + 1}")
            cold_start(figures)
            respawn(figures, nests)
            lock_down(figures, own)
            per_task(figures, own)
            await deadline(figures)
            await cancel(figures)
            if cached is not None:
                from_cache(figures, cached, nests["pooled"].nursery)
        ratios(figures)
    finally:
        for nest in (*nests.values(), own):
            nest.close()
        if cached is not None:
            cached.folder.cleanup()
    return figures, conditions


async def run(options: Options) -> list[Section]:
    """All figures, each in the column of its unit."""
    rounds = options.count(options.rounds, 3, 1)
    figures, conditions = await measure(rounds, large=not options.quick)
    section = Section("containment", "Containment", "python -m benchmarks containment")
    section.remarks += [f"{name}: {value}" for name, value in conditions.items()]
    for name, samples in figures.samples.items():
        for place, value in enumerate(samples):
            section.add(name, figures.units[name], "", value, round_=place)
        target = figures.targets.get(name)
        if target is not None and not target.about:
            unit = figures.units[name]
            section.goals.append(Goal(f"{name}, {unit}", name, unit, "≤", target.value))
    return [section]


if __name__ == "__main__":
    serve(int(sys.argv[1]))
